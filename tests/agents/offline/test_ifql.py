"""IFQL: the best of N flow samples, honestly counted."""

import dataclasses
import itertools

import pytest
import torch

from flowpolicy.agents.offline.ifql import IFQL
from flowpolicy.core.errors import ConfigError
from flowpolicy.core.seed import torch_generator
from flowpolicy.nets.critic import CriticConfig
from flowpolicy.nets.encoder import StateEncoder
from flowpolicy.nets.plain import Plain

from ..shared import build, check_agent
from .bandit import EULER, MEAN, TINY, tiny, train

SMALL = {"net": Plain(width=32, depth=2), "critic": CriticConfig(width=32, depth=2, aggregate="min")}
CONFIG = IFQL(**SMALL, candidates=4, flow_steps=3)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"candidates": 1},
        {"chunk": 3, "execute": 2, "history": 2, "encoder": StateEncoder(width=8)},
        {"solver": "midpoint", "flow_steps": 2, "ema": 0.9},
    ],
)
def test_suite(change, demonstrations):
    check_agent(dataclasses.replace(CONFIG, **change), demonstrations, compiled=False)


def test_the_best_of_n_reaches_the_order_statistic_of_a_linear_bandit():
    """r = g a: the largest of 32 draws of a Gaussian lies 2.07 deviations above its mean, along g and not across."""
    config = IFQL(**TINY, critic=tiny("min"), candidates=32)
    agent, chunk = train(config, lambda a: a[:, 0, 0], 500)
    along, across = (chunk[:, 0].mean(0) - MEAN).tolist()
    assert along == pytest.approx(2.07 * EULER, rel=0.2)
    assert abs(across) < 0.08
    assert agent.config.nfe == 320


def test_more_candidates_never_value_less(demonstrations):
    """Nested candidates; one candidate is behaviour cloning."""
    agent, _ = build(CONFIG, demonstrations)
    policy = agent.policy()
    obs = {
        k: torch.randn(6, 1, *s.shape, generator=torch_generator(2))
        for k, s in policy.contract.spec.observation.items()
    }
    noise = torch.randn(6, 16, 1, 2, generator=torch_generator(3))
    streams = policy.streams(obs)
    values = []
    for count in (1, 2, 4, 16):
        before = policy.evaluations
        chunk = policy.act_from(obs, noise[:, :count].flatten(0, 1), 3 * count)
        assert policy.evaluations - before == 3 * count
        values.append(policy.actor.critic.value(streams, policy.normalizer.action(chunk)))
    assert all((more >= fewer - 1e-5).all() for fewer, more in itertools.pairwise(values))
    assert (values[-1] > values[0]).any()


def test_candidates_belong_to_their_own_row(demonstrations):
    """The published code gets this wrong: a batch of observations must act as its rows do one by one."""
    agent, _ = build(CONFIG, demonstrations)
    policy = agent.policy()
    obs = {k: torch.randn(5, 1, *s.shape) for k, s in policy.contract.spec.observation.items()}
    noise = torch.randn(20, 1, 2)
    together = policy.act_from(obs, noise, 12)
    for row in range(5):
        one = {key: value[row : row + 1] for key, value in obs.items()}
        alone = policy.act_from(one, noise[4 * row : 4 * row + 4], 12)
        torch.testing.assert_close(alone[0], together[row], rtol=1e-4, atol=1e-5)


def test_evaluations_that_the_candidates_cannot_share_are_refused(demonstrations):
    policy = build(CONFIG, demonstrations)[0].policy()
    obs = {k: torch.zeros(1, 1, *s.shape) for k, s in policy.contract.spec.observation.items()}
    with pytest.raises(ConfigError, match="6 evaluations on 4 candidates"):
        policy.act(obs, torch_generator(0), nfe=6)
