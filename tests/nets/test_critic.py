"""An ensemble in one product is the same as its members one by one, and only members enter what they should."""

import dataclasses

import pytest
import torch
from torch.nn import functional

from flowpolicy.core.errors import ConfigError
from flowpolicy.core.spec import ObservationSpec
from flowpolicy.nets.critic import CriticConfig, polyak

CONFIG = CriticConfig(width=16, depth=3, members=3, held_out=2)


def make(config=CONFIG, obs=4, action=2):
    torch.manual_seed(0)
    critic = config.build({"state": ObservationSpec((obs,))}, 1, action)
    for parameter in critic.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return critic, {"state": torch.randn(8, 1, obs)}, torch.randn(8, 1, action)


@pytest.mark.parametrize("layer_norm", [True, False])
@pytest.mark.quick("nets")
def test_one_batched_product_equals_the_members_one_by_one(layer_norm):
    critic, obs, action = make(dataclasses.replace(CONFIG, layer_norm=layer_norm))
    values = critic(obs, action)
    assert values.shape == (5, 8)
    for index in range(5):
        hidden = torch.cat([obs["state"][:, 0], action.flatten(1)], dim=1)
        for layer in critic.layers:
            hidden = functional.gelu(hidden @ layer.linear.weight[index] + layer.linear.bias[index], approximate="tanh")
            if layer_norm:
                hidden = functional.layer_norm(hidden, (16,), layer.scale[index, 0], layer.shift[index, 0])
        single = hidden @ critic.head.weight[index] + critic.head.bias[index]
        torch.testing.assert_close(values[index], single[:, 0], rtol=1e-4, atol=1e-4)


def test_members_aggregate_without_those_held_out():
    critic, obs, action = make()
    values = critic(obs, action)
    assert torch.equal(critic.values(obs, action), values[:3])
    assert torch.equal(critic.all_values(obs, action), values)
    assert torch.equal(critic.value(obs, action), values[:3].mean(0))
    smallest, *_ = make(dataclasses.replace(CONFIG, aggregate="min"))
    assert torch.equal(smallest.value(obs, action), values[:3].amin(0))


def test_an_actor_s_gradient_reaches_the_action_and_no_weight():
    critic, obs, action = make()
    action.requires_grad_(True)
    critic.value(obs, action).sum().backward()
    assert action.grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in critic.parameters())


def test_the_target_is_a_copy_of_the_members_without_gradients():
    critic, obs, action = make()
    target = critic.target()
    assert torch.equal(target(obs, action), critic.values(obs, action))
    assert not any(parameter.requires_grad for parameter in target.parameters())


def test_polyak_closes_the_gap_geometrically():
    critic, *_ = make()
    target = critic.double().target().double()
    with torch.no_grad():
        for parameter in target.parameters():
            parameter.zero_()
    for _ in range(1000):
        polyak(target, critic, 0.005)
    for slow, fast in zip(target.parameters(), critic.parameters(), strict=True):
        gap = (fast[: slow.shape[0]] - slow) / fast[: slow.shape[0]]
        torch.testing.assert_close(gap, torch.full_like(gap, 0.995**1000), rtol=1e-8, atol=0)
    assert round(0.995**1000, 6) == 0.006654


def test_members_start_different():
    weight = CONFIG.build({"state": ObservationSpec((4,))}, 1, 2).layers[1].linear.weight
    assert not torch.equal(weight[0], weight[1])
    assert weight.std().item() == pytest.approx((2 / 32) ** 0.5, rel=0.1)


@pytest.mark.parametrize("change", [{"members": 0}, {"held_out": -1}])
def test_impossible_ensembles_are_refused(change):
    with pytest.raises(ConfigError, match=r"--agent.critic.(members|held-out)"):
        CriticConfig(**change)
