"""On the exact flow map of a Gaussian every objective is 0 with gradient 0, with the velocity of the flow as target."""

import dataclasses

import pytest
import torch

import flowpolicy.flows.axes  # noqa: F401, registers the values
from flowpolicy.core.errors import ConfigError
from flowpolicy.flows.axes.consistency import (
    CentralDifference,
    Eulerian,
    Lagrangian,
    MeanFlow,
    Problem,
    Progressive,
    Shortcut,
    Trajectory,
    two_jumps,
)
from flowpolicy.flows.axes.interpolants import Linear
from flowpolicy.flows.axes.losses import Balanced, Squared
from flowpolicy.flows.axes.registry import VALUES
from flowpolicy.flows.axes.time_laws import Dyadic, Uniform
from flowpolicy.nets.trunk import FlowOutput

F64, SQUARED = torch.float64, Squared()
OBJECTIVES = {name: cls() for name, cls in VALUES["consistency"].items() if name != "none"}
EXACT = [name for name in OBJECTIVES if name not in ("ctm", "central-difference")]


class GaussianMap:
    """Exact mean velocity of the flow to N(.7, .4^2), and a scalar that moves it off the exact one."""

    mean, std = 0.7, 0.4

    def __init__(self):
        self.scale = torch.ones((), dtype=F64, requires_grad=True)
        self.detached_calls = 0

    def spread(self, t):
        return ((t * self.std) ** 2 + (1 - t) ** 2).sqrt()

    def velocity(self, x, t):
        t = t.reshape(-1, 1, 1)
        return self.mean + (t * self.std**2 - (1 - t)) / self.spread(t) ** 2 * (x - self.mean * t)

    def __call__(self, x, s, t, cond):
        s, t = s.reshape(-1, 1, 1), t.reshape(-1, 1, 1)
        same = t == s
        safe = torch.where(same, s + 1e-3, t)
        jump = self.mean * (safe - s) + (self.spread(safe) / self.spread(s) - 1) * (x - self.mean * s)
        value = torch.where(same, self.velocity(x, s), jump / (safe - s))
        return FlowOutput(self.scale * value, {})

    def with_tangent(self, x, s, t, cond, dx, ds, skip):
        with torch.no_grad():
            derivative = torch.func.jvp(
                lambda x, s: self(x, s, t[skip:], cond).value, (x[skip:], s[skip:]), (dx[skip:], ds[skip:])
            )[1]
        return self(x, s, t, cond), derivative


def problem(diagonal=0, rows=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    network = GaussianMap()
    s, t = torch.rand(2, rows, generator=generator, dtype=F64).sort(0).values
    t = torch.maximum(t, s + 0.02).clamp(max=1.0)
    s[:diagonal] = t[:diagonal]
    mid = s.reshape(-1, 1, 1)
    noise = torch.randn(rows, 2, 2, generator=generator, dtype=F64)
    x = network.mean * mid + network.spread(mid) * noise
    fraction = torch.rand(rows, generator=generator, dtype=F64)
    return Problem(network, x, network.velocity(x, s), s, t, torch.zeros(rows, 1, dtype=F64), diagonal, fraction)


def value_and_gradient(objective, p, loss=SQUARED):
    value, metrics = objective.loss(p, torch.ones(len(p.x), 2, dtype=torch.bool), loss, Linear())
    (gradient,) = torch.autograd.grad(value, p.network.scale)
    return float(value), float(gradient), metrics


@pytest.mark.parametrize("name", EXACT)
def test_the_exact_map_is_a_fixed_point(name):
    value, gradient, metrics = value_and_gradient(OBJECTIVES[name], problem(diagonal=8))
    assert value < 1e-20
    assert abs(gradient) < 1e-10
    assert float(metrics["on_diagonal"]) < 1e-20 and float(metrics["off_diagonal"]) < 1e-20


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_wrong_map_is_not(name):
    p = problem(diagonal=8)
    with torch.no_grad():
        p.network.scale.mul_(1.2)
    value, gradient, metrics = value_and_gradient(OBJECTIVES[name], p)
    assert value > 1e-3 and gradient > 1e-3
    assert float(metrics["off_diagonal"]) > 1e-4


def test_central_differences_have_order_two():
    p = problem()
    exact = value_and_gradient(MeanFlow(), p)[0]
    errors = [value_and_gradient(CentralDifference(width=e), p)[0] ** 0.5 for e in (0.01, 0.005)]
    assert exact < 1e-20
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.05)


def test_a_trajectory_step_has_at_least_order_three():
    """On this flow the midpoint rule is even one order better than in general."""
    p = problem(seed=3)
    far = dataclasses.replace(p, s=torch.full_like(p.s, 0.3), t=torch.full_like(p.t, 0.9))
    far = dataclasses.replace(far, velocity=p.network.velocity(far.x, far.s))
    errors = [value_and_gradient(Trajectory(step=h), far)[0] ** 0.5 for h in (0.02, 0.01)]
    assert errors[1] < 1e-4 and errors[0] / errors[1] > 7.5


def test_two_jumps_over_nothing_or_everything_are_one():
    p = problem()
    with torch.no_grad():
        p.network.scale.mul_(1.3)
        one = p.mean(p.x, p.s, p.t)
        torch.testing.assert_close(two_jumps(p, torch.zeros_like(p.s)), one, atol=1e-12, rtol=0)
        torch.testing.assert_close(two_jumps(p, torch.ones_like(p.s)), one, atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_teachers_carry_no_gradient(name):
    """With a teacher that is fed a number of its own, the gradient of the objective does not see that number."""
    p = problem(diagonal=8)
    inner = p.network

    class Watched(GaussianMap):
        def __call__(self, x, s, t, cond):
            if not torch.is_grad_enabled():
                self.detached_calls += 1
            return GaussianMap.__call__(self, x, s, t, cond)

    watched = Watched()
    watched.scale = inner.scale
    value_and_gradient(OBJECTIVES[name], dataclasses.replace(p, network=watched))
    assert watched.detached_calls > 0


def test_the_lagrangian_teacher_sees_a_clamped_state():
    p = problem()
    far = dataclasses.replace(p, x=50 * p.x)
    seen = []

    class Watched(GaussianMap):
        def __call__(self, x, s, t, cond):
            if not torch.is_grad_enabled():
                seen.append(float(x.abs().max()))
            return GaussianMap.__call__(self, x, s, t, cond)

    Lagrangian(clamp=2.5).identity(dataclasses.replace(far, network=Watched()))
    assert seen == [2.5]


def test_the_published_slip_of_the_eulerian_tangent_would_be_noticed():
    """With the velocity at (t, X) instead of (s, x) as tangent the residual of the exact flow is far from 0."""
    p = problem()
    length = (p.t - p.s).reshape(-1, 1, 1)
    end = p.x + length * p.mean(p.x, p.s, p.t)
    wrong = p.network.velocity(end, p.t).detach()
    mean, slope = torch.func.jvp(lambda x, s: p.mean(x, s, p.t), (p.x, p.s), (wrong, torch.ones_like(p.s)))
    assert float((mean - wrong - length * slope).square().mean()) > 1e-2
    assert float(Eulerian().identity(p).square().mean()) < 1e-20


def test_windows_grow():
    generator = torch.Generator()
    for progress, longest in ((0.0, 0.02), (0.15, 0.51), (0.5, 1.0)):
        (s, t), _ = Lagrangian(anneal=0.3).pairs(Uniform(), 4000, progress, generator.manual_seed(0))
        assert 0.9 * longest < float((t - s).max()) <= longest + 1e-6


def test_shortcut_intervals_are_dyadic_off_the_diagonal():
    (s, t), diagonal = Shortcut(0.25, levels=3).pairs(Uniform(), 40, 0.0, torch.Generator().manual_seed(0))
    assert diagonal == 30 and torch.equal(s[:30], t[:30])
    assert set((t - s)[30:].tolist()) <= {1.0, 0.5, 0.25, 0.125}
    (s, t), _ = Shortcut(0.5, levels=3).pairs(Dyadic(2), 40, 0.0, torch.Generator().manual_seed(0))
    assert set((t - s)[20:].tolist()) <= {1.0, 0.5}


def test_balanced_losses_are_equal_in_size():
    p = problem(diagonal=16)
    p = dataclasses.replace(p, velocity=p.velocity + 1)
    with torch.no_grad():
        p.network.scale.mul_(1.5)
    value, _, metrics = value_and_gradient(Lagrangian(), p, Balanced())
    assert value == pytest.approx(2 * float(metrics["on_diagonal"]), rel=1e-3)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: MeanFlow(1.5),
        lambda: CentralDifference(width=0.0),
        lambda: Progressive(anneal=2.0),
        lambda: Shortcut(0.0),
        lambda: Trajectory(step=0.0),
    ],
)
def test_impossible_options_are_refused(wrong):
    with pytest.raises(ConfigError):
        wrong()
