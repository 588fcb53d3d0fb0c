"""Fisher Decorator: assembly, what each loss reaches, the zero start, and what every option does."""

import dataclasses
import itertools

import pytest
import torch

from flowpolicy.agents.base.optimizer import Adam
from flowpolicy.agents.offline.fisher import Fisher
from flowpolicy.core import keys
from flowpolicy.core.errors import ConfigError
from flowpolicy.core.seed import torch_generator
from flowpolicy.flows.axes.time_laws import Ends
from flowpolicy.flows.fisher_metric import Metric
from flowpolicy.nets.critic import CriticConfig
from flowpolicy.nets.encoder import StateEncoder
from flowpolicy.nets.flow_nets import DecoratorNet
from flowpolicy.nets.mlp import MLP
from flowpolicy.nets.plain import Plain
from flowpolicy.nets.transformer import Transformer
from flowpolicy.nets.unet import UNet

from ..shared import build, check_agent

SMALL = Fisher(net=MLP(width=16, depth=2), critic=CriticConfig(width=16, depth=2))


@pytest.mark.parametrize(
    ("change", "nfe"),
    [
        ({}, 2),
        ({"base": "euler"}, 11),
        ({"metric": Metric(mode="iso"), "net": Plain(width=16, depth=2)}, 2),
        ({"metric": Metric(mode="proxy", normalise="state", samples=4), "base": "euler", "flow_steps": 4}, 5),
        ({"metric": Metric(normalise="global", samples=3), "encoder": StateEncoder(width=8), "ema": 0.9}, 2),
        ({"metric": Metric(mode="curv"), "history": 2, "chunk": 3, "execute": 3}, 2),
        ({"metric": Metric(mode="kl2"), "chunk": 2, "execute": 2, "base": "euler", "candidates": 3}, 33),
    ],
)
def test_suite(change, nfe, demonstrations):
    config = dataclasses.replace(SMALL, **change)
    assert config.nfe == nfe
    check_agent(config, demonstrations, compiled=config.metric.mode in ("iso", "proxy", "curv"))


def prepared(config, path, *, moved=True):
    """An agent whose weights have left their start, a batch as the losses see it, and draws."""
    agent, windows = build(config, path)
    if moved:
        with torch.no_grad():
            for name, value in agent.named_parameters():
                if name.startswith(("actor.", "critic.")):
                    value += 0.1 * torch.randn(value.shape, generator=torch_generator(0, name))
            agent.dual.precision.fill_(3.0)
    batch = windows.draw(torch_generator(0, "draw"))
    nested = (keys.OBS, keys.NEXT_OBS)
    inputs = {name: dict(value.items()) if name in nested else value for name, value in batch.items()}
    draws = agent.draw(batch[keys.ACTION], torch_generator(0, "noise"))
    return agent, agent.transition(inputs), draws


MODES = [
    Metric(mode="iso"),
    Metric(mode="proxy", samples=2),
    Metric(),
    Metric(samples=2, normalise="global"),
    Metric(mode="curv"),
    Metric(mode="kl2"),
]


@pytest.mark.parametrize("metric", MODES, ids=lambda m: f"{m.mode}-{m.samples}")
@pytest.mark.parametrize("base", ["map", "euler"])
def test_each_loss_reaches_its_own_networks_only(metric, base, demonstrations):
    """No gradient of Q reaches the flow, the encoder or the critic; none of the data reaches the shift."""
    config = dataclasses.replace(SMALL, metric=metric, base=base, flow_steps=2, encoder=StateEncoder(width=4))
    agent, t, draws = prepared(config, demonstrations)
    owners = {
        "critic": ("critic.",),
        "flow": ("actor.net.", "actor.encoder."),
        "decorator": ("actor.decorator.",),
        "dual": ("dual.",),
    }
    names, parameters = zip(*((n, p) for n, p in agent.named_parameters() if p.requires_grad), strict=True)
    losses, _ = agent.losses(t, draws)
    assert losses.keys() == owners.keys()
    for loss, prefix in owners.items():
        gradients = torch.autograd.grad(losses[loss], parameters, allow_unused=True, retain_graph=True)
        reached = {n for n, g in zip(names, gradients, strict=True) if g is not None and g.abs().max() > 0}
        assert reached
        assert all(name.startswith(prefix) for name in reached), loss


@pytest.mark.parametrize("metric", MODES, ids=lambda m: f"{m.mode}-{m.samples}")
@pytest.mark.parametrize("net", [MLP(16, 2), Plain(16, 2)])
def test_at_the_start_the_policy_is_the_behaviour(metric, net, demonstrations):
    """Bit for bit; the charge is zero, and the gradient of the shift is that of Q alone, -(1 / b) grad_a mean_i Q_i."""
    config = dataclasses.replace(SMALL, metric=metric, net=net, normalize_q=False)
    agent, t, draws = prepared(config, demonstrations, moved=False)
    policy = agent.policy()
    obs = {key: torch.randn(5, 1, *spec.shape) for key, spec in policy.contract.spec.observation.items()}
    decorated = policy.act(obs, torch_generator(1))
    policy.config = dataclasses.replace(policy.config, sampler=policy.config.sampler.inner)
    assert torch.equal(decorated, policy.act(obs, torch_generator(1), nfe=1))
    assert policy.evaluations == 3

    cond, z = agent.actor.encoder(t.obs).cond, draws.z
    shifts = []
    forward = agent.shift
    agent.shift = lambda base, cond: shifts.append(forward(base, cond)) or shifts[-1]
    loss, _, metrics = agent.decorator_losses(t, draws)
    assert metrics["charge"] == 0
    shift = shifts[0]
    assert not shift.any()
    (found,) = torch.autograd.grad(loss, shift)
    base = agent.behave(t.obs, z).requires_grad_()
    (slope,) = torch.autograd.grad(agent.critic.values(t.obs, base).mean(0).sum(), base)
    inside = (base.abs() < 1).float()
    torch.testing.assert_close(found * inside, -slope / len(base) * inside)
    assert cond.grad is None


@pytest.mark.parametrize("net", [MLP(16, 2), Plain(16, 2), UNet(), Transformer()])
def test_every_trunk_makes_a_decorator_that_starts_at_zero(net):
    decorator = DecoratorNet(net, action=2, chunk=4, cond=3)
    assert not decorator(torch.randn(3, 4, 2), torch.randn(3, 3)).value.any()


SCORE, FEW, CURV, GLOBAL = Metric(), Metric(samples=2), Metric(mode="curv"), Metric(normalise="global")
EFFECTS = [
    (SMALL, {"base": "euler"}),
    (dataclasses.replace(SMALL, base="euler"), {"flow_steps": 5}),
    (SMALL, {"pairs": Ends(share_diagonal=0.5)}),
    (SMALL, {"budget": 0.2}),
    (SMALL, {"initial_weight": 1.0}),
    (SMALL, {"normalize_q": False}),
    (SMALL, {"overflow": 5.0}),
    (dataclasses.replace(SMALL, metric=CURV), {"metric": dataclasses.replace(CURV, shrinkage=0.5)}),
    (dataclasses.replace(SMALL, metric=GLOBAL), {"metric": SCORE}),
    (dataclasses.replace(SMALL, metric=FEW), {"metric": dataclasses.replace(FEW, shrinkage=0.9)}),
    *((SMALL, {"metric": metric}) for metric in MODES if metric != SCORE),
    *(
        (SMALL, {"metric": dataclasses.replace(SCORE, **{name: value})})
        for name, value in {"time": 0.8, "samples": 2, "damping": 5.0}.items()
    ),
]


@pytest.mark.parametrize(
    ("base", "change"), EFFECTS, ids=lambda value: str(value)[:60] if isinstance(value, dict) else ""
)
def test_every_option_changes_a_loss(base, change, demonstrations):
    def losses(config):
        agent, t, draws = prepared(config, demonstrations)
        return {name: float(value) for name, value in agent.losses(t, draws)[0].items()}

    assert losses(base) != losses(dataclasses.replace(base, **change))


@pytest.mark.parametrize("name", ["decorator_optimizer", "dual_optimizer"])
@pytest.mark.parametrize("options", [Adam(lr=5e-3, clip=1.0), Adam(clip=1e-6)])
def test_every_optimizer_trains_its_own_networks(name, options, demonstrations):
    def trained(config):
        agent, windows = build(config, demonstrations)
        draw, noise = torch_generator(0, "draw"), torch_generator(0, "noise")
        for _ in range(4):
            agent.update(windows.draw(draw), noise)
        return {
            "decorator_optimizer": agent.actor.decorator.trunk.outlet.linear.weight,
            "dual_optimizer": agent.dual.log_weight,
        }[name]

    assert not torch.equal(trained(SMALL), trained(dataclasses.replace(SMALL, **{name: options})))


def test_the_weight_stays_within_its_limits_and_the_precision_is_a_running_mean(demonstrations):
    agent, windows = build(dataclasses.replace(SMALL, dual_optimizer=Adam(lr=8.0)), demonstrations)
    draw, noise = torch_generator(0, "draw"), torch_generator(0, "noise")
    seen = []
    for count in itertools.count(1):
        seen.append(float(agent.update(windows.draw(draw), noise)["precision"]))
        assert abs(float(agent.dual.log_weight.detach())) <= 10
        assert float(agent.dual.precision) == pytest.approx(sum(seen) / len(seen), rel=1e-4)
        if count == 5:
            break


@pytest.mark.parametrize("change", [{"budget": 0.0}, {"flow_steps": 0}, {"candidates": 0}, {"initial_weight": 0.0}])
def test_impossible_options_are_refused(change):
    with pytest.raises(ConfigError, match=f"--agent.{next(iter(change)).replace('_', '-')} is 0"):
        dataclasses.replace(SMALL, **change)
