"""Real-time chunking at training time: policies that continue committed actions."""

import dataclasses

import pytest
import torch

from flowpolicy.agents.base.optimizer import Optimizer
from flowpolicy.agents.cloning.dm1 import DM1
from flowpolicy.agents.cloning.flow_bc import FlowBC
from flowpolicy.agents.cloning.mip import MIP
from flowpolicy.agents.cloning.regression import Regression
from flowpolicy.core.errors import ConfigError
from flowpolicy.core.keys import ACTION, OBS, VALID
from flowpolicy.core.seed import torch_generator
from flowpolicy.core.spec import ActionSpec, Contract, ObservationSpec, Spec
from flowpolicy.data.normalize import Normalizer
from flowpolicy.nets.encoder import StateEncoder
from flowpolicy.nets.mlp import MLP
from flowpolicy.nets.transformer import Transformer
from flowpolicy.nets.unet import UNet
from flowpolicy.policy.committed import Committed

from ...conftest import repeat
from ..shared import build, check_agent

SMALL = {"net": MLP(width=32, depth=2), "encoder": StateEncoder(width=8), "chunk": 4, "execute": 2, "prefix": 2}
AGENTS = {"dm1": DM1(**SMALL), "flow_bc": FlowBC(**SMALL, nfe=4), "regression": Regression(**SMALL)}


@pytest.mark.parametrize("name", AGENTS)
def test_suite(name, demonstrations):
    check_agent(AGENTS[name], demonstrations, compiled=False)  # test_compiled_losses.py has them with a prefix


def bind(lengths, chunk=4, action=2, seed=0):
    length = torch.tensor(lengths)
    return Committed(0.5 * torch.randn(len(lengths), chunk, action, generator=torch_generator(seed)), length, length)


@pytest.mark.parametrize("net", [MLP(width=16, depth=2), UNet(width=8, levels=2), Transformer(width=16, depth=1)])
@pytest.mark.parametrize("name", AGENTS)
def test_committed_actions_come_back_exactly_and_the_free_ones_follow_them(name, net, demonstrations):
    agent, _ = build(dataclasses.replace(AGENTS[name], net=net), demonstrations)
    with torch.no_grad():
        for value in agent.ema.state_dict().values():
            value += 0.1 * torch.randn(value.shape, generator=torch_generator(1))
    policy = agent.policy()
    obs = {key: torch.zeros(3, 1, *spec.shape) for key, spec in policy.contract.spec.observation.items()}

    def act(committed):
        return policy.act(obs, torch_generator(0), committed=committed)

    bound, other = bind([0, 1, 2]), bind([0, 1, 2], seed=5)
    chunk = act(bound)
    for row, length in enumerate((0, 1, 2)):
        assert torch.equal(chunk[row, :length], bound.action[row, :length])
    assert torch.equal(act(bind([0, 0, 0])), act(None)), "nothing committed is the plain policy"
    assert torch.equal(chunk[0], act(None)[0])
    assert not torch.equal(chunk[2, 2:], act(other)[2, 2:]), "the free actions ignore what was committed"
    beyond = bound._replace(action=bound.action.clone())
    beyond.action[:, 2:] = 9.0  # rows that are not committed mean nothing
    assert torch.equal(act(beyond), chunk)


def test_more_committed_actions_than_trained_are_refused(demonstrations):
    policy = build(AGENTS["dm1"], demonstrations)[0].policy()
    obs = {key: torch.zeros(1, 1, *spec.shape) for key, spec in policy.contract.spec.observation.items()}
    with pytest.raises(ConfigError, match="3 actions are committed and the policy was trained to continue 2"):
        policy.act(obs, torch_generator(0), committed=bind([3]))
    plain = build(dataclasses.replace(AGENTS["dm1"], prefix=0), demonstrations)[0].policy()
    with pytest.raises(ConfigError, match="trained to continue 0"):
        plain.act(obs, torch_generator(0), committed=bind([1]))


@pytest.mark.parametrize("config", [DM1, FlowBC, Regression])
def test_a_prefix_must_leave_room_for_what_is_executed(config):
    for prefix in (-1, 3):
        with pytest.raises(ConfigError, match="prefix"):
            config(chunk=4, execute=2, prefix=prefix)


def test_an_agent_that_knows_no_prefix_refuses_it():
    config = MIP(net=MLP(width=8, depth=1), chunk=4, execute=2, prefix=2)
    contract = Contract(Spec({"state": ObservationSpec((1,))}, ActionSpec(1)), 1, 4, 2, config.nfe)
    with pytest.raises(ConfigError, match="a prefix of 2 committed actions with a Mip"):
        config.build(contract, Normalizer({"state": 1}, 1), steps=1, seed=0, compile=False)


def test_simulated_delays_are_uniform_and_cost_nothing_where_they_are_off(demonstrations):
    agent, windows = build(AGENTS["dm1"], demonstrations)
    (rows,) = agent.draw_committed(torch.zeros(3000, 4, 2), torch_generator(0))
    counts = torch.bincount(rows.sum(1), minlength=5)
    assert counts[3:].sum() == 0
    assert all(abs(count - 1000) < 3 * (3000 * 2 / 9) ** 0.5 for count in counts[:3].tolist())
    plain, _ = build(dataclasses.replace(AGENTS["dm1"], prefix=0), demonstrations)
    batch = windows.draw(torch_generator(0))
    with_prefix, without = (each.draws(batch, torch_generator(1)) for each in (agent, plain))
    assert with_prefix.keys() - without.keys() == {"committed"}
    assert all(torch.equal(with_prefix[name], value) for name, value in without.items())


@pytest.mark.parametrize("config", [DM1, FlowBC])
def test_the_free_action_has_the_conditional_law_of_the_data(config):
    """Both actions of a chunk are equal, uniform on [-.8, .8]: given the first, the second is known."""
    options = {"net": MLP(width=64, depth=2), "encoder": StateEncoder(width=0), "chunk": 2, "execute": 1, "prefix": 1}
    options["optimizer"] = Optimizer(lr=2e-3, warmup=20, ema=0.99)
    agent_config, steps = config(**options), 350
    contract = Contract(Spec({"state": ObservationSpec((1,))}, ActionSpec(1)), 1, 2, 1, agent_config.nfe)
    agent = agent_config.build(contract, Normalizer({"state": 1}, 1), steps=steps, seed=0, compile=False)
    state, valid, random = torch.zeros(256, 1, 1), torch.ones(256, 2, dtype=torch.bool), torch_generator(0, "pairs")

    def update():
        action = (1.6 * torch.rand(256, 1, 1, generator=random) - 0.8).expand(256, 2, 1)
        agent.update({OBS: {"state": state}, ACTION: action, VALID: valid}, random)

    repeat(update, steps)
    policy = agent.policy()
    given = torch.linspace(-0.7, 0.7, 200).view(200, 1, 1).expand(200, 2, 1)
    one = torch.ones(200, dtype=torch.long)
    chunk = policy.act({"state": torch.zeros(200, 1, 1)}, torch_generator(1), committed=Committed(given, one, one))
    assert (chunk[:, 1] - given[:, 1]).abs().mean() < 0.15
    free = policy.act({"state": torch.zeros(200, 1, 1)}, torch_generator(1))
    assert (free[:, 1] - given[:, 1]).abs().mean() > 0.3
