"""The Fisher Decorator on Gaussian bandits: exact behaviour, exact Q, optimum in closed form.

The behaviour N(0, diag(std^2)) is an exact flow map in place of the network, Q an exact function; what is trained is
the shift and the weight of its charge.
"""

import dataclasses
import math

import pytest
import torch
from torch import nn

from flowpolicy.agents.base.optimizer import Adam, Group
from flowpolicy.agents.offline.fisher import Fisher
from flowpolicy.core import keys
from flowpolicy.core.seed import torch_generator
from flowpolicy.core.spec import ActionSpec, Contract, ObservationSpec, Spec
from flowpolicy.core.streams import STATES
from flowpolicy.data.normalize import Normalizer
from flowpolicy.flows.fisher_metric import Metric
from flowpolicy.nets.critic import CriticConfig
from flowpolicy.nets.mlp import MLP
from flowpolicy.nets.trunk import FlowOutput

from ...conftest import repeat

STD = torch.tensor([0.05, 0.4])
TIME = 0.95
BLURRED = STD.square() + ((1 - TIME) / TIME) ** 2
ROWS = 128


class GaussianMap(nn.Module):
    """Exact mean velocity of N(0, diag(std^2)); on the diagonal, the velocity."""

    def forward(self, x, s, t, cond):
        first, last = ((u**2)[:, None, None] * STD**2 + ((1 - u) ** 2)[:, None, None] for u in (s, t))
        length = (t - s)[:, None, None]
        velocity = (s[:, None, None] * STD**2 - (1 - s)[:, None, None]) / first * x
        jump = ((last / first).sqrt() - 1) * x / length.clamp(min=1e-6)
        return FlowOutput(torch.where(length == 0, velocity, jump), {})

    def with_tangent(self, x, s, t, cond, dx, ds, skip):
        return self(x, s, t, cond), torch.zeros_like(x[skip:])


def decorate(metric, budget, q, *, steps=300, normalize=False):
    """Train the shift of the bandit; the agent, behaviour actions (n, 2), and their shifts (n, 2)."""
    config = Fisher(
        net=MLP(32, 2),
        critic=CriticConfig(4, 1),
        metric=metric,
        budget=budget,
        normalize_q=normalize,
        initial_weight=2.0,
        decorator_optimizer=Adam(lr=3e-3),
        dual_optimizer=Adam(lr=1e-2),
    )
    contract = Contract(Spec({"state": ObservationSpec((1,))}, ActionSpec(2)), 1, 1, 1, config.nfe)
    agent = config.build(contract, Normalizer({"state": 1}, 2), steps=steps, seed=0, compile=False)
    agent.actor.net = GaussianMap()
    agent.critic._values = lambda inputs, networks, frozen: q(inputs[1].flatten(1)).expand(networks, -1)
    random, action = torch_generator(0, "bandit"), torch.zeros(ROWS, 1, 2)
    state = {"state": torch.zeros(ROWS, 1, 1)}
    groups = dict(agent.optimizer.groups)

    def update():
        decay = 0.5 * (1 + math.cos(math.pi * agent.updates / steps))
        for name, (options, parameters) in groups.items():
            agent.optimizer.groups[name] = Group(dataclasses.replace(options, lr=options.lr * decay), parameters)
        batch = {
            keys.OBS: state,
            keys.ACTION: STD * torch.randn(action.shape, generator=random),
            keys.VALID: torch.ones(ROWS, 1, dtype=torch.bool),
            keys.REWARD: torch.zeros(ROWS, 1),
            keys.MASK: torch.zeros(ROWS),
            keys.STEPS: torch.ones(ROWS),
            keys.NEXT_OBS: state,
            keys.NEXT_ACTION: action[:, 0],
        }
        agent.update(batch, random)

    repeat(update, steps)
    with torch.no_grad():
        base = agent.behave({STATES: torch.zeros(2000, 1, 1)}, torch.randn(2000, 1, 2, generator=random))
        return agent, base[:, 0], agent.shift(base, torch.zeros(2000, 1))[:, 0]


def linear(action):
    return action.sum(1)


WANT = STD.square()  # Sigma grad Q


def cosine(shift):
    return float(torch.cosine_similarity(shift, WANT.expand_as(shift), dim=1).mean())


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["score", "curv", "kl2"])
def test_the_shift_follows_sigma_grad_q_and_spends_the_budget(mode):
    """KL to the blurred behaviour, exactly, of the decorated one: within a fifth of the budget of .05 nats per dim."""
    _, base, shift = decorate(Metric(mode=mode, time=TIME, damping=0.0, shrinkage=0.0), 0.05, linear)
    assert cosine(shift) > 0.98
    mean, std = shift.mean(0), (base + shift).std(0) / base.std(0)
    ratio = (std.square() * STD**2 + BLURRED - STD**2) / BLURRED
    nats = 0.5 * (ratio - 1 - ratio.log() + mean.square() / BLURRED).mean()
    assert float(nats) == pytest.approx(0.05, rel=0.2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("metric", "cos"),
    [(Metric(mode="iso"), 0.714), (Metric(mode="proxy", time=TIME, normalise="state", samples=8, damping=1e-3), 0.97)],
)
def test_documented_the_isotropic_and_the_released_metric_turn_away(metric, cos):
    _, _, shift = decorate(metric, 0.005, linear)
    assert cosine(shift) == pytest.approx(cos, abs=0.02)


@pytest.mark.slow
def test_quadratic_q_has_the_optimum_of_its_weight():
    """Q = -|a - c|^2 / 2: every action moves by (I + w F / d)^-1 (c - b), w the weight that the dual has found."""
    goal = torch.tensor([0.1, 0.5])
    metric = Metric(time=TIME, damping=0.0, shrinkage=0.0)
    agent, base, shift = decorate(metric, 0.02, lambda action: -0.5 * (action - goal).square().sum(1))
    precision = 1 / BLURRED
    weight = agent.dual.log_weight.detach().exp()
    best = (goal - base) / (1 + weight * precision / 2)
    assert float((shift - best).square().mean().sqrt() / best.square().mean().sqrt()) < 0.15
    spent = 0.5 * (shift.square() * precision).mean()
    assert float(spent) == pytest.approx(0.02, rel=0.2)
