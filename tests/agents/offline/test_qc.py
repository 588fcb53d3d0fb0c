"""QC: chunked values, best of N and distilled."""

import dataclasses

import pytest
import torch

from flowpolicy.agents.base.bricks import flow_sample
from flowpolicy.agents.offline.qc import QC
from flowpolicy.core.errors import ConfigError
from flowpolicy.core.seed import torch_generator
from flowpolicy.nets.critic import CriticConfig
from flowpolicy.nets.encoder import StateEncoder
from flowpolicy.nets.plain import Plain

from ..shared import build, check_agent
from .bandit import MEAN, TINY, tiny, train

SMALL = {"net": Plain(width=32, depth=2), "critic": CriticConfig(width=32, depth=2), "chunk": 3, "execute": 3}
CONFIG = QC(**SMALL, candidates=4, target_candidates=3, flow_steps=2)


@pytest.mark.parametrize(
    "change",
    [{}, {"mode": "distilled"}, {"candidates": 1}, {"history": 2, "encoder": StateEncoder(width=8), "ema": 0.9}],
)
def test_suite(change, demonstrations):
    check_agent(dataclasses.replace(CONFIG, **change), demonstrations, compiled=False)


def test_evaluations_count_every_candidate():
    assert QC().nfe == 320 and QC(mode="distilled").nfe == 1
    with pytest.raises(ConfigError, match="at least 1"):
        QC(candidates=0)


def test_targets_take_the_candidate_that_the_critic_values_most(demonstrations):
    agent, sampler = build(CONFIG, demonstrations)
    batch = sampler.draw(torch_generator(0))
    obs = agent.normalizer.obs(dict(batch["next_obs"].items()))
    noise = agent.draw(batch["action"], torch_generator(1))[0]
    best = agent.best(obs, noise)
    for row in range(4):
        same = {key: value[[row, row, row]] for key, value in obs.items()}
        candidates = flow_sample(agent.actor, same, noise[3 * row : 3 * row + 3], 2, "euler")
        values = agent.critic.value(same, candidates)
        torch.testing.assert_close(best[row], candidates[values.argmax()], rtol=1e-4, atol=1e-5)


def test_best_of_n_climbs_the_sum_of_a_chunk():
    """r = sum of the first coordinate over the chunk: both of its actions move up, the other coordinate stays."""
    config = QC(**TINY, critic=tiny(), chunk=2, execute=2, candidates=16, target_candidates=1)
    _, chunk = train(config, lambda a: a[:, :, 0].sum(1), 500)
    gain = chunk.mean(0) - MEAN
    assert (gain[:, 0] > 0.2).all() and gain[:, 1].abs().max() < 0.1


def test_the_distilled_policy_reaches_the_optimum_of_a_quadratic_bandit():
    """As FQL's, with chunk x dimensions entries: (w mu + k c) / (w + k) with w = alpha / 4."""
    goal, k, alpha = torch.tensor([-0.1, 0.2]), 1.0, 4.0
    config = QC(**TINY, critic=tiny(), chunk=2, execute=2, mode="distilled", alpha=alpha)
    _, chunk = train(config, lambda a: -k * (a - goal).square().sum((1, 2)) / 0.99, 500)
    weight = alpha / 4
    expected = (weight * MEAN + k * goal) / (weight + k)
    torch.testing.assert_close(chunk.mean(0), expected.expand(2, 2), rtol=0, atol=0.07)
