"""ReBRAC: the penalised target, delayed updates, and the optimum of a linear bandit."""

import dataclasses
import itertools

import pytest
import torch

from flowpolicy.agents.offline.rebrac import ReBRAC, squashed
from flowpolicy.core.errors import ConfigError
from flowpolicy.core.seed import torch_generator
from flowpolicy.nets.critic import CriticConfig
from flowpolicy.nets.encoder import StateEncoder
from flowpolicy.nets.plain import Plain

from ..shared import build, check_agent, flat
from .bandit import MEAN, TINY, tiny, train

SMALL = {"net": Plain(width=32, depth=2), "critic": CriticConfig(width=32, depth=2, aggregate="min")}


@pytest.mark.parametrize(
    "change", [{}, {"history": 2, "n_step": 3, "encoder": StateEncoder(width=8)}, {"actor_every": 1, "ema": 0.9}]
)
@pytest.mark.quick("offline")
def test_suite(change, demonstrations):
    check_agent(dataclasses.replace(ReBRAC(**SMALL), **change), demonstrations, compiled=False)


def make(demonstrations, **change):
    agent, sampler = build(dataclasses.replace(ReBRAC(**SMALL), **change), demonstrations)
    batch = sampler.draw(torch_generator(0))
    inputs = {name: dict(value.items()) if "obs" in name else value for name, value in batch.items()}
    return agent, agent.transition(inputs), torch.randn(32, 1, 2, generator=torch_generator(1))


def test_the_target_is_penalised_by_the_distance_summed_over_dimensions(demonstrations):
    """Without the penalty it is the target of TD3."""
    agent, t, noise = make(demonstrations, alpha_critic=0.0)
    action = squashed(agent.target_actor, t.next_obs, noise)
    action = (action + (0.2 * noise).clamp(-0.5, 0.5)).clamp(-1, 1)
    td3 = t.returns + t.discount * agent.target.values(t.next_obs, action).amin(0)
    torch.testing.assert_close(agent.penalised_target(t, noise), td3)
    penalised, *_ = make(demonstrations, alpha_critic=2.0)
    distance = ((action[:, 0, 0] - t.next_action[:, 0]) ** 2) + ((action[:, 0, 1] - t.next_action[:, 1]) ** 2)
    torch.testing.assert_close(penalised.penalised_target(t, noise), td3 - 2 * t.discount * distance)


def test_actor_and_targets_move_every_second_update(demonstrations):
    agent, sampler = build(ReBRAC(**SMALL), demonstrations)
    random = torch_generator(0)
    states, rows = [flat(agent.state_dict())], []
    for _ in range(4):
        rows.append(agent.update(sampler.draw(random), random))
        states.append(flat(agent.state_dict()))
    moved = [
        {
            name.split("/")[1].split(".")[0]
            for name in a
            if name[:2] in ("we", "tr") and not torch.equal(a[name], b[name])
        }
        for a, b in itertools.pairwise(states)
    ]
    assert moved[1] == moved[3] == {"critic"}
    assert moved[0] - {"last"} == moved[2] - {"last"} == {"critic", "target", "target_actor", "net"}
    assert rows[0].keys() == rows[1].keys() and rows[1]["actor_loss"] == rows[0]["actor_loss"]


def test_the_policy_reaches_the_optimum_of_a_linear_bandit():
    """r = 1 + g a: alpha |pi - mu|^2 - Q(pi) / |Q| is least at pi = mu + g / (2 alpha |Q(pi)|)."""
    slope, alpha = torch.tensor([0.5, 0.0]), 1.0
    config = ReBRAC(**TINY, critic=tiny("min"), alpha_actor=alpha)
    _, chunk = train(config, lambda a: 1 + a[:, 0] @ slope, 1500)
    optimum = MEAN.clone()
    for _ in range(100):
        optimum = MEAN + slope / (2 * alpha * (1 + optimum @ slope).abs())
    torch.testing.assert_close(chunk[:, 0].mean(0), optimum, rtol=0, atol=0.05)


@pytest.mark.parametrize(
    "change",
    [{"alpha_actor": 1.0}, {"alpha_critic": 1.0}, {"target_noise": 0.5}, {"target_noise_limit": 0.01}],
)
def test_every_option_changes_the_loss(change, demonstrations):
    def loss(**change):
        agent, t, noise = make(demonstrations, **change)
        return sum(agent.losses(t, noise, full=True)[0].values()).item()

    assert loss(**change) != loss()


@pytest.mark.parametrize(
    ("change", "message"), [({"chunk": 2, "execute": 2}, "chunk 1"), ({"actor_every": 0}, "--agent.actor-every is 0")]
)
def test_what_rebrac_cannot_do_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        ReBRAC(**change)
