"""MeanFlow Q-learning: assembly, what each loss reaches, candidates, and every option."""

import dataclasses

import pytest
import torch

from flowpolicy.agents.base.bricks import jump_from
from flowpolicy.agents.offline.mean_flow_q import MeanFlowQ
from flowpolicy.core import keys
from flowpolicy.core.errors import ConfigError
from flowpolicy.core.seed import torch_generator
from flowpolicy.flows.axes.time_laws import Ends
from flowpolicy.nets.critic import CriticConfig
from flowpolicy.nets.encoder import StateEncoder
from flowpolicy.nets.mlp import MLP

from ..shared import build, check_agent
from .bandit import DEVIATION, FAST, MEAN, tiny, train

SMALL = MeanFlowQ(net=MLP(width=16, depth=2), critic=CriticConfig(width=16, depth=2))


@pytest.mark.parametrize(
    ("change", "nfe"),
    [
        ({}, 1),
        ({"candidates": 5, "target_candidates": 2, "chunk": 3, "execute": 3}, 5),
        ({"encoder": StateEncoder(width=8), "ema": 0.9, "history": 2}, 1),
    ],
)
def test_suite(change, nfe, demonstrations):
    config = dataclasses.replace(SMALL, **change)
    assert config.nfe == nfe
    check_agent(config, demonstrations, compiled=False)


BANDIT = MeanFlowQ(
    net=MLP(width=48, depth=2), actor_optimizer=FAST, critic_optimizer=FAST, critic=tiny(), normalize_q=False, ema=0.99
)
GOAL = torch.tensor([-0.1, 0.2])


@pytest.mark.slow
def test_where_the_reward_is_flat_one_jump_gives_the_behaviour_of_a_gaussian_bandit():
    _, chunk = train(dataclasses.replace(BANDIT, alpha=1.0), lambda a: 0 * a[:, 0].sum(1), 800)
    torch.testing.assert_close(chunk[:, 0].mean(0), MEAN, rtol=0, atol=0.03)
    deviation = chunk[:, 0].std(0)
    torch.testing.assert_close(deviation, torch.full_like(deviation, DEVIATION), rtol=0.3, atol=0)


@pytest.mark.slow
def test_alpha_moves_the_policy_between_the_optimum_of_a_quadratic_bandit_and_the_behaviour():
    """Both are isotropic, so the mean lies on the segment between them; without the flow every noise acts best."""
    shares = []
    for alpha in (1e-3, 1.0):
        _, chunk = train(dataclasses.replace(BANDIT, alpha=alpha), lambda a: -(a[:, 0] - GOAL).square().sum(1), 500)
        mean, along = chunk[:, 0].mean(0), MEAN - GOAL
        share = (mean - GOAL) @ along / (along @ along)
        torch.testing.assert_close(mean, GOAL + share * along, rtol=0, atol=0.06)
        shares.append(float(share))
        if alpha < 1:
            assert chunk[:, 0].std(0).max() < 0.06
    assert -0.15 < shares[0] < 0.15 < shares[1] - 0.2 < 0.75


def prepared(config, path):
    """An agent whose weights have left their start, a batch as the losses see it, and draws."""
    agent, windows = build(config, path)
    with torch.no_grad():
        for name, value in agent.named_parameters():
            value += 0.1 * torch.randn(value.shape, generator=torch_generator(0, name))
    batch = windows.draw(torch_generator(0, "draw"))
    nested = (keys.OBS, keys.NEXT_OBS)
    inputs = {name: dict(value.items()) if name in nested else value for name, value in batch.items()}
    return agent, agent.transition(inputs), agent.draw(batch[keys.ACTION], torch_generator(0, "noise"))


def test_each_loss_reaches_its_own_networks_only(demonstrations):
    agent, t, draws = prepared(SMALL, demonstrations)
    losses, _ = agent.losses(t, draws)
    for loss, prefix in {"critic": "critic.", "actor": "actor.net."}.items():
        named = {n: p for n, p in agent.named_parameters() if p.requires_grad}
        gradients = torch.autograd.grad(losses[loss], tuple(named.values()), allow_unused=True, retain_graph=True)
        reached = {n for n, g in zip(named, gradients, strict=True) if g is not None and g.abs().max() > 0}
        assert reached
        assert all(name.startswith(prefix) for name in reached)


def test_the_loss_is_q_plus_alpha_times_meanflow(demonstrations):
    agent, t, draws = prepared(dataclasses.replace(SMALL, overflow=0.0, normalize_q=False, alpha=3.0), demonstrations)
    losses, metrics = agent.losses(t, draws)
    chunk = jump_from(agent.actor, t.obs, draws.z).clamp(-1, 1)
    q = agent.critic.values(t.obs, chunk).mean()
    torch.testing.assert_close(losses["actor"], 3 * metrics["meanflow"] - q)


def test_normalised_q_does_not_depend_on_the_scale_of_the_critic(demonstrations):
    agent, t, draws = prepared(SMALL, demonstrations)
    before = agent.losses(t, draws)[0]["actor"]
    with torch.no_grad():
        agent.critic.head.weight.mul_(7.0)
        agent.critic.head.bias.mul_(7.0)
    torch.testing.assert_close(agent.losses(t, draws)[0]["actor"], before)


def test_the_target_takes_the_best_of_its_candidates(demonstrations):
    agent, t, draws = prepared(dataclasses.replace(SMALL, target_candidates=3), demonstrations)
    with torch.no_grad():
        noises = draws.next_noise.unbind(1)
        values = [agent.target.value(t.next_obs, jump_from(agent.actor, t.next_obs, n).clamp(-1, 1)) for n in noises]
    expected = t.returns + t.discount * torch.stack(values).amax(0)
    torch.testing.assert_close(agent.losses(t, draws)[1]["target_mean"], expected.mean())


@pytest.mark.parametrize(
    "change",
    [
        {"alpha": 3.0},
        {"normalize_q": False},
        {"overflow": 9.0},
        {"pairs": Ends(share_endpoint=0.5)},
        {"kappa": 0.5},
        {"target_candidates": 2},
    ],
)
def test_every_option_changes_a_loss(change, demonstrations):
    def losses(config):
        agent, t, draws = prepared(config, demonstrations)
        return {name: value.item() for name, value in agent.losses(t, draws)[0].items()}

    assert losses(SMALL) != losses(dataclasses.replace(SMALL, **change))


@pytest.mark.parametrize("change", [{"candidates": 0}, {"target_candidates": 0}])
def test_impossible_options_are_refused(change):
    with pytest.raises(ConfigError, match=f"--agent.{next(iter(change)).replace('_', '-')} is 0\n.*at least 1"):
        dataclasses.replace(SMALL, **change)
