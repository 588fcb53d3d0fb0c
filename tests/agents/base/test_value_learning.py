"""What every value-learning agent inherits: targets, returns, their independence of the batch, and the settings."""

import dataclasses

import pytest
import torch

from flowpolicy.agents.base.optimizer import Adam
from flowpolicy.agents.offline.fisher import Fisher
from flowpolicy.agents.offline.fql import FQL
from flowpolicy.agents.offline.ifql import IFQL
from flowpolicy.agents.offline.iql import IQL
from flowpolicy.agents.offline.mean_flow_q import MeanFlowQ
from flowpolicy.agents.offline.qc import QC
from flowpolicy.agents.offline.rebrac import ReBRAC
from flowpolicy.core.errors import CheckpointError, ConfigError
from flowpolicy.core.seed import torch_generator
from flowpolicy.nets.critic import Critic, CriticConfig
from flowpolicy.nets.plain import Plain

from ...conftest import repeat
from ..offline.bandit import bandit
from ..shared import build

SMALL = {"net": Plain(width=16, depth=2), "critic": CriticConfig(width=16, depth=2)}
AGENTS = {
    "fql": FQL(**SMALL),
    "iql": IQL(**SMALL),
    "ifql": IFQL(**SMALL, candidates=3, flow_steps=2),
    "rebrac": ReBRAC(**SMALL),
    "qc": QC(**SMALL, chunk=3, execute=3, candidates=3, target_candidates=2, flow_steps=2),
    "qc_distilled": QC(**SMALL, chunk=3, execute=3, mode="distilled", flow_steps=2),
}


def transition(config, reward, mask, steps):
    """One row whose rewards are given."""
    agent = bandit(config)
    rows = len(reward)
    chunk = torch.zeros(rows, config.chunk, 2)
    state = {"state": torch.zeros(rows, 1, 1)}
    batch = {"obs": state, "next_obs": state, "action": chunk, "next_action": chunk[:, 0]}
    batch["valid"] = torch.arange(config.chunk) < torch.tensor(steps)[:, None]
    batch |= {"reward": torch.tensor(reward), "mask": torch.tensor(mask), "steps": torch.tensor(steps)}
    return agent, agent.transition(batch)


def test_a_termination_is_not_bootstrapped_and_a_cut_is():
    agent, t = transition(FQL(**SMALL), [[2.0], [2.0]], [0.0, 1.0], [1.0, 1.0])
    target = agent.bootstrap(t, torch.tensor([50.0, 50.0]))
    torch.testing.assert_close(target, torch.tensor([2.0, 2.0 + 0.99 * 50]))


def test_returns_of_chunks():
    """Also chunks that terminate or are cut off after two of five rewards."""
    reward = [[-1.0] * 5, [-1.0, -1.0, 0, 0, 0], [-1.0, -1.0, 0, 0, 0]]
    _, t = transition(QC(**SMALL), reward, [1.0, 0.0, 1.0], [5.0, 2.0, 2.0])
    torch.testing.assert_close(t.returns, torch.tensor([-4.90099501, -1.99, -1.99]))
    torch.testing.assert_close(t.discount, torch.tensor([0.95099005, 0.0, 0.9801]))
    assert t.exact.tolist() == [1, 1, 0]


def test_returns_of_several_steps_with_single_actions():
    config = dataclasses.replace(FQL(**SMALL), n_step=3)
    assert config.horizon == 3 and QC(n_step=3).horizon == 5
    _, t = transition(config, [[1.0, 1.0, 1.0], [1.0, 0, 0]], [1.0, 1.0], [3.0, 1.0])
    torch.testing.assert_close(t.returns, torch.tensor([1 + 0.99 + 0.99**2, 1.0]))
    torch.testing.assert_close(t.discount, torch.tensor([0.99**3, 0.99]))
    assert t.exact.tolist() == [1, 1]


def test_rows_that_were_cut_off_do_not_teach_the_critic():
    agent, t = transition(QC(**SMALL), [[-1.0] * 5, [-1.0, 0, 0, 0, 0]], [1.0, 1.0], [5.0, 1.0])
    loss = [agent.critic_loss(t, torch.tensor([1.0, cut]))[0].item() for cut in (0.0, 9.0)]
    assert loss[0] == loss[1] > 0


@pytest.mark.parametrize("name", AGENTS)
def test_a_target_does_not_depend_on_the_rest_of_the_batch(name, demonstrations):
    agent, sampler = build(AGENTS[name], demonstrations)
    batch = sampler.draw(torch_generator(0))
    draws = agent.draw(batch["action"], torch_generator(1))
    seen = []
    original = agent.bootstrap
    agent.bootstrap = lambda t, value: seen.append(original(t, value)) or seen[-1]
    for rows in (32, 8):
        part = batch.at(slice(rows))
        inputs = {key: dict(value.items()) if "obs" in key else value for key, value in part.items()}
        each = [draws] if isinstance(draws, torch.Tensor) else draws
        cut = [draw[: rows * (draw.shape[0] // 32)] for draw in each]
        cut = cut[0] if isinstance(draws, torch.Tensor) else draws and type(draws)(*cut)
        agent.losses(agent.transition(inputs), cut, **agent.switches())
    torch.testing.assert_close(seen[0][:8], seen[1], rtol=1e-5, atol=1e-6)


def test_fitted_values_of_a_chain_of_five_steps():
    """Reward -1 each, termination after the fifth: the start is worth -4.90099501."""
    fast = Adam(lr=3e-3)
    critic = CriticConfig(width=32, depth=2)
    agent = bandit(IQL(net=Plain(16, 1), critic=critic, critic_optimizer=fast, tau=0.1, expectile=0.5))
    place = torch.arange(5.0)[:, None, None]
    batch = {
        "obs": {"state": place},
        "next_obs": {"state": place + 1},
        "action": torch.zeros(5, 1, 2),
        "next_action": torch.zeros(5, 2),
        "valid": torch.ones(5, 1, dtype=torch.bool),
        "reward": -torch.ones(5, 1),
        "mask": torch.tensor([1.0, 1, 1, 1, 0]),
        "steps": torch.ones(5),
    }
    repeat(lambda: agent.update(batch, torch_generator(0)), 800)
    value = agent.critic.value({"state": place[:1]}, torch.zeros(1, 1, 2))
    assert value.item() == pytest.approx(-4.90099501, abs=0.05)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("actor_optimizer", Adam(lr=1e-3)),
        ("actor_optimizer", Adam(clip=1e-3)),
        ("critic_optimizer", Adam(lr=1e-3)),
        ("critic_optimizer", Adam(clip=1e-3)),
        ("actor_optimizer", Adam(scaling="sqrt")),
        ("critic_optimizer", Adam(scaling="sqrt")),
        ("tau", 0.5),
        ("ema", 0.5),
    ],
)
def test_every_shared_option_changes_what_an_update_leaves(field, value, demonstrations):
    def state(config):
        agent, sampler = build(config, demonstrations)
        draw, noise = torch_generator(0, "draw"), torch_generator(0, "noise")
        for _ in range(3):
            agent.update(sampler.draw(draw), noise)
        files = agent.state_dict()
        return torch.cat([v.flatten() for name in ("ema", "training") for v in files[name].values()])

    base = dataclasses.replace(AGENTS["fql"], ema=0.0)
    assert not torch.equal(state(base), state(dataclasses.replace(base, **{field: value})))


def test_a_foreign_state_is_refused(demonstrations):
    agent, _ = build(AGENTS["fql"], demonstrations)
    other, sampler = build(dataclasses.replace(AGENTS["fql"], critic=CriticConfig(width=8, depth=2)), demonstrations)
    other.update(sampler.draw(torch_generator(0)), torch_generator(0))
    with pytest.raises(CheckpointError, match="does not fit"):
        agent.load_state_dict(other.state_dict())
    with pytest.raises(CheckpointError, match="does not fit"):
        build(AGENTS["iql"], demonstrations)[0].load_state_dict(agent.state_dict())


@pytest.mark.parametrize("change", [{"lr": 0.0}, {"clip": -1.0}])
def test_an_impossible_optimiser_is_refused(change):
    with pytest.raises(ConfigError, match=r"expected: a(bove|t least) 0"):
        Adam(**change)


@pytest.mark.parametrize("config", [*AGENTS.values(), MeanFlowQ(**SMALL), Fisher(**SMALL, flow_steps=2)])
def test_critics_are_shown_actions_as_they_are_executed(config, demonstrations):
    """A dimension that never varied in the data comes back as its constant: a critic never sees another value."""
    agent, sampler = build(config, demonstrations)
    agent.normalizer.action_scaling.limit[0] = 0.0
    batch = sampler.draw(torch_generator(0))
    inputs = {name: dict(value.items()) if "obs" in name else value for name, value in batch.items()}
    draws = agent.draw(batch["action"], torch_generator(1))
    torch.manual_seed(0)
    before = agent.loss(inputs, draws, **agent.switches())[0]
    critics = [module for module in agent.modules() if isinstance(module, Critic)]
    with torch.no_grad():
        for critic in critics:
            weight = critic.layers[0].linear.weight
            first = critic.encoder.size
            weight[:, first :: agent.normalizer.action_scaling.limit.numel()] += 10.0
    torch.manual_seed(0)
    assert critics
    assert float(agent.loss(inputs, draws, **agent.switches())[0]) == float(before)
