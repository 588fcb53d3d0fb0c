"""Assembly of the behaviour-cloning agents and what distinguishes them."""

import dataclasses

import pytest
import torch

from flowpolicy.agents.base.optimizer import Optimizer
from flowpolicy.agents.cloning.dm1 import DM1
from flowpolicy.agents.cloning.flow_bc import FlowBC
from flowpolicy.agents.cloning.regression import Regression
from flowpolicy.core.errors import CheckpointError, ConfigError
from flowpolicy.core.keys import ACTION, OBS, VALID
from flowpolicy.core.seed import torch_generator
from flowpolicy.core.spec import ActionSpec, Contract, ObservationSpec, Spec
from flowpolicy.data.normalize import Normalizer
from flowpolicy.flows.axes.consistency import ImprovedMeanFlow
from flowpolicy.flows.axes.flow_spec import FlowSpec
from flowpolicy.flows.axes.registry import make
from flowpolicy.flows.axes.time_laws import Ends
from flowpolicy.flows.dispersive import Dispersive
from flowpolicy.nets.encoder import StateEncoder
from flowpolicy.nets.mlp import MLP
from flowpolicy.nets.transformer import Transformer
from flowpolicy.nets.unet import UNet

from ..conftest import repeat
from .shared import build, check_agent

SMALL = {"net": MLP(width=32, depth=2), "encoder": StateEncoder(width=8), "chunk": 4, "execute": 4}
AGENTS = {"dm1": DM1(**SMALL), "flow_bc": FlowBC(**SMALL), "regression": Regression(**SMALL)}


@pytest.mark.parametrize("name", AGENTS)
def test_suite(name, demonstrations):
    check_agent(AGENTS[name], demonstrations, compiled=False)


@pytest.mark.parametrize("net", [UNet(width=8, levels=2), Transformer(width=16, depth=1, heads=2)])
def test_dm1_trains_on_every_trunk(net, demonstrations):
    check_agent(dataclasses.replace(AGENTS["dm1"], net=net, history=2), demonstrations, compiled=False)


def loss_of(config, path, seed=0):
    agent, windows = build(config, path, seed=0)
    with torch.no_grad():
        for name, value in agent.actor.named_parameters():
            value += 0.1 * torch.randn(value.shape, generator=torch_generator(seed, name))
    batch = agent.scaled(windows.draw(torch_generator(seed, "draw")))
    draws = agent.draws(batch, torch_generator(seed, "noise"))
    loss, metrics = agent.loss(batch[OBS], batch[ACTION], batch[VALID], draws)
    return agent, loss, metrics


def test_the_dispersive_term_reaches_the_encoder_and_only_with_its_weight(demonstrations):
    """In the released DM1 the regulariser carried no gradient."""
    config = dataclasses.replace(AGENTS["dm1"], dispersive=Dispersive(weight=0.0))
    agent, plain, _ = loss_of(config, demonstrations)
    plain.backward()
    without = agent.actor.encoder.project[0].weight.grad.clone()
    agent, spread, metrics = loss_of(dataclasses.replace(config, dispersive=Dispersive(weight=0.5)), demonstrations)
    spread.backward()
    difference = agent.actor.encoder.project[0].weight.grad - without
    assert difference.abs().max() > 1e-4
    assert spread.item() == pytest.approx(plain.item() + 0.5 * metrics["dispersive"].item(), rel=1e-5)
    trunk = [p.grad for n, p in agent.actor.net.named_parameters()]
    assert all(torch.isfinite(g).all() for g in trunk)


def test_deterministic_data_gives_zero_meanflow_loss_for_the_exact_network(demonstrations):
    """For a single action a0 the exact mean velocity is (a0 - x) / (1 - s); every row's loss is then 0."""
    agent, windows = build(dataclasses.replace(AGENTS["dm1"], dispersive=Dispersive(weight=0.0)), demonstrations)
    batch = windows.draw(torch_generator(0, "draw"))
    batch[ACTION] = torch.full_like(batch[ACTION], 0.25)
    batch = agent.scaled(batch)
    target = batch[ACTION][:1]

    class Exact(torch.nn.Module):
        def value(self, x, s):
            return (target - x) / (1 - s).reshape(-1, 1, 1)

        def with_tangent(self, x, s, t, cond, dx, ds, skip):
            from flowpolicy.nets.flow_nets import FlowOutput

            _, tangent = torch.func.jvp(self.value, (x[skip:], s[skip:]), (dx[skip:], ds[skip:]))
            return FlowOutput(self.value(x, s), {}), tangent

    agent.actor.net = Exact()
    drawn = agent.draws(batch, torch_generator(0, "noise"))
    s = drawn["s"].clamp(max=0.95)
    drawn = {**drawn, "s": s, "t": torch.maximum(s, drawn["t"])}
    loss, _ = agent.loss(batch[OBS], batch[ACTION], batch[VALID], drawn)
    assert loss.item() < 1e-9


@pytest.mark.parametrize(
    "change",
    [
        {"flow": dataclasses.replace(DM1.flow, consistency=ImprovedMeanFlow(kappa=0.3))},
        {"flow": dataclasses.replace(DM1.flow, time=Ends(share_diagonal=0.5))},
        {"flow": dataclasses.replace(DM1.flow, time=Ends(share_endpoint=0.4))},
        {"flow": dataclasses.replace(DM1.flow, time=Ends(share_uniform=0.9))},
        {"flow": dataclasses.replace(DM1.flow, time=Ends(logit_mean=-1.0))},
        {"flow": dataclasses.replace(DM1.flow, time=Ends(logit_std=0.2))},
        {"dispersive": Dispersive(kind="cosine")},
        {"dispersive": Dispersive(kind="hinge")},
        {"dispersive": Dispersive(kind="covariance")},
        {"dispersive": Dispersive(weight=0.1)},
        {"dispersive": Dispersive(temperature=0.1)},
        {"dispersive": Dispersive(kind="hinge", margin=3.0)},
        {"dispersive": Dispersive(normalise=False)},
        {"dispersive": Dispersive(per_dimension=False)},
        {"dispersive": Dispersive(include_diagonal=True)},
        {"encoder": StateEncoder(width=0)},
        {"net": MLP(width=16, depth=2)},
        {"net": MLP(width=32, depth=3)},
        {"history": 2},
        {"chunk": 3, "execute": 3},
        {"execute": 2, "prefix": 1},
    ],
)
def test_every_option_of_dm1_changes_the_loss(change, demonstrations):
    base = loss_of(dataclasses.replace(AGENTS["dm1"], dispersive=Dispersive(kind=_kind(change))), demonstrations)[1]
    assert loss_of(dataclasses.replace(AGENTS["dm1"], **change), demonstrations)[1].item() != base.item()


def _kind(change):
    dispersive = change.get("dispersive", Dispersive())
    return dispersive.kind if dispersive.kind == "hinge" and dispersive.margin != Dispersive().margin else "l2"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("lr", 1e-2),
        ("weight_decay", 0.5),
        ("warmup", 5),
        ("schedule", "constant"),
        ("clip", 1e-3),
        ("ema", 0.05),
        ("scaling", "sqrt"),
    ],
)
def test_every_option_of_the_optimizer_changes_the_policy(field, value, demonstrations):
    def policy(options):
        agent, windows = build(dataclasses.replace(AGENTS["flow_bc"], optimizer=options), demonstrations, steps=12)
        draw, noise = torch_generator(0, "draw"), torch_generator(0, "noise")
        for _ in range(12):
            agent.update(windows.draw(draw), noise)
        return torch.cat([p.flatten() for p in agent.policy().actor.parameters()])

    base = Optimizer(warmup=2)
    assert not torch.equal(policy(base), policy(dataclasses.replace(base, **{field: value})))


def test_learning_rate_warms_up_and_decays():
    options = Optimizer(lr=1.0, warmup=10)
    rates = [options.lr_at(update, 100) for update in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.5)
    assert rates[-1] < 0.001


def test_the_learning_rate_grows_with_the_root_of_the_batch():
    assert [Optimizer(scaling="sqrt").scale(batch) for batch in (64, 256, 1024)] == [0.5, 1.0, 2.0]
    assert Optimizer().scale(1024) == 1.0


def test_padded_steps_do_not_count(demonstrations):
    agent, windows = build(AGENTS["regression"], demonstrations)
    batch = agent.scaled(windows.draw(torch_generator(0, "draw")))
    valid = torch.ones_like(batch[VALID])
    valid[:, 2:] = False
    other = batch[ACTION].clone()
    other[:, 2:] = 0.77
    obs = batch[OBS]
    assert agent.loss(obs, batch[ACTION], valid, ())[0].item() == agent.loss(obs, other, valid, ())[0].item()


def test_regression_acts_in_one_evaluation_only(demonstrations):
    agent, _ = build(AGENTS["regression"], demonstrations)
    policy = agent.policy()
    obs = {key: torch.zeros(1, 1, *spec.shape) for key, spec in policy.contract.spec.observation.items()}
    with pytest.raises(ConfigError, match="regression policy cannot act in 2"):
        policy.act(obs, torch_generator(0), nfe=2)


def test_a_solver_that_cannot_spend_the_evaluations_is_refused():
    with pytest.raises(ConfigError, match="nfe=3"):
        FlowBC(flow=FlowSpec(solver=make("solver", "midpoint")), nfe=3).check(2)


def test_a_foreign_state_is_refused(demonstrations):
    agent, _ = build(AGENTS["dm1"], demonstrations)
    other, _ = build(dataclasses.replace(AGENTS["dm1"], net=MLP(width=16, depth=2)), demonstrations)
    with pytest.raises(CheckpointError, match="does not fit"):
        agent.load_state_dict(other.state_dict())


def one_evaluation(config, steps):
    """A thousand draws in one evaluation of a policy trained on two modes, at (.5, .5) and (-.5, -.5)."""
    contract = Contract(Spec({"state": ObservationSpec((1,))}, ActionSpec(2)), 1, 1, 1, config.nfe)
    agent = config.build(contract, Normalizer({"state": 1}, 2), steps=steps, seed=0, compile=False)
    state, valid, random = torch.zeros(256, 1, 1), torch.ones(256, 1, dtype=torch.bool), torch_generator(0, "modes")

    def update():
        mode = torch.randint(0, 2, (256, 1, 1), generator=random) - 0.5
        action = mode + 0.02 * torch.randn(256, 1, 2, generator=random)
        agent.update({OBS: {"state": state}, ACTION: action, VALID: valid}, random)

    repeat(update, steps)
    return agent.policy().act({"state": torch.zeros(1000, 1, 1)}, torch_generator(1), nfe=1)[:, 0]


def test_dm1_reaches_two_modes_in_one_evaluation_where_regression_reaches_none():
    small = {"net": MLP(width=64, depth=2), "encoder": StateEncoder(width=0), "chunk": 1, "execute": 1}
    small["optimizer"] = Optimizer(lr=2e-3, warmup=20, ema=0.99)
    up, down = torch.tensor([0.5, 0.5]), torch.tensor([-0.5, -0.5])

    def share(chunk, mode):
        return ((chunk - mode).abs() < 0.2).all(1).float().mean()

    chunk = one_evaluation(DM1(**small), 1000)
    assert share(chunk, up) + share(chunk, down) > 0.65
    assert min(share(chunk, up), share(chunk, down)) > 0.25
    chunk = one_evaluation(Regression(**small), 300)
    assert share(chunk, up) + share(chunk, down) == 0
