"""The minimal iterative policy: its loss by hand, and its two evaluations."""

import types

import pytest
import torch

from flowpolicy.agents.cloning.mip import MIP
from flowpolicy.core.errors import ConfigError
from flowpolicy.core.seed import torch_generator
from flowpolicy.nets.encoder import StateEncoder
from flowpolicy.nets.mlp import MLP

from ..shared import build, check_agent

SMALL = {"net": MLP(width=16, depth=2), "encoder": StateEncoder(width=8), "chunk": 4, "execute": 4}


@pytest.mark.quick("cloning")
def test_suite(demonstrations):
    losses = check_agent(MIP(**SMALL), demonstrations)
    assert losses[-1] < losses[0]


def test_the_loss_by_hand(demonstrations):
    agent, windows = build(MIP(**SMALL, noise=0.2), demonstrations)
    batch = windows.draw(torch_generator(0))
    asked = []

    def net(x, t, cond):
        asked.append((x, t))
        return types.SimpleNamespace(value=0.5 * x + t.reshape(-1, 1, 1))

    agent.actor.net.forward = net
    noise = torch.randn(batch["action"].shape, generator=torch_generator(1))
    seen = agent.scaled(batch)
    loss, parts = agent.loss(seen["obs"], seen["action"], seen["valid"], noise)
    data, entries = agent.normalizer.action(batch["action"]), batch["valid"].unsqueeze(2).expand_as(batch["action"])
    first = data[entries].square().mean()
    second = (0.5 * (data + 0.2 * noise) + 0.9 - data)[entries].square().mean()
    torch.testing.assert_close(loss, first / 0.81 + second / 0.04)
    torch.testing.assert_close(torch.stack(list(parts.values())), torch.stack([first, second]))
    assert not asked[0][0].any() and not asked[0][1].any() and bool((asked[1][1] == 0.9).all())


def test_acting_refines_the_first_prediction_without_noise(demonstrations):
    agent, _ = build(MIP(**SMALL), demonstrations)
    policy = agent.policy()
    policy.actor.net.forward = lambda x, t, cond: types.SimpleNamespace(value=0.5 * x + 0.4 * t.reshape(-1, 1, 1) + 0.1)
    obs = {key: torch.randn(2, 1, *spec.shape) for key, spec in policy.contract.spec.observation.items()}
    chunk = policy.normalizer.action(policy.act(obs, torch_generator(0)))
    # 0.1 from zeros at time 0, then half of it and 0.36 + 0.1.
    torch.testing.assert_close(chunk, torch.full_like(chunk, 0.05 + 0.46))
    assert torch.equal(policy.act(obs, torch_generator(0)), policy.act(obs, torch_generator(9)))
    with pytest.raises(ConfigError, match="cannot act in 1 evaluations"):
        policy.act(obs, torch_generator(0), 1)


def test_noise_is_needed():
    with pytest.raises(ConfigError, match=r"agent.noise"):
        MIP(noise=0.0)
