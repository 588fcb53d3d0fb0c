import math

import pytest
import torch

from flowpolicy.core.errors import ConfigError
from flowpolicy.flows.axes.interpolants import Linear
from flowpolicy.flows.axes.registry import make
from flowpolicy.flows.axes.solvers import Dynamics, MapJumps

SOLVERS = ("euler", "midpoint", "heun")
EVALUATIONS_PER_STEP = {"euler": 1, "midpoint": 2, "heun": 2}


def integrate(field, x, steps, solver="euler"):
    grid, evaluations = tuple(k / steps for k in range(steps + 1)), steps * EVALUATIONS_PER_STEP[solver]
    return make("solver", solver).solve(Dynamics(field, Linear()), x, grid, evaluations, None)


def jump(mean, x, steps):
    grid = tuple(k / steps for k in range(steps + 1))
    return MapJumps().solve(Dynamics(lambda x, t: mean(x, t, t), Linear(), mean), x, grid, steps, None)


def steps_for(nfe, solver):
    return make("solver", solver).steps(nfe)


def start():
    return torch.tensor([[1.0, -0.5]], dtype=torch.float64)


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("midpoint", 2), ("heun", 2)])
def test_declared_order(solver, order):
    """Richardson: halving the step divides the error of dx/dt = (1 + t) x by 2 ** order."""

    def field(x, t):
        return x * (1 + t).unsqueeze(1)

    exact = start() * math.exp(1.5)
    errors = [(integrate(field, start(), steps, solver) - exact).abs().max() for steps in (64, 128)]
    assert float(torch.log2(errors[0] / errors[1])) == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize(("std", "shrunk"), [(0.1, 0.06172), (0.3, 0.24687), (0.5, 0.43078), (1.0, 0.87898)])
def test_ten_euler_steps_contract(std, shrunk):
    """Ten Euler steps of the exact velocity of N(0, std ** 2) give a smaller spread; one step gives the mean."""

    def field(x, t):
        variance = (1 - t) ** 2 + (t * std) ** 2
        return ((t * std**2 - (1 - t)) / variance).unsqueeze(1) * x

    one = torch.ones(1, 1, dtype=torch.float64)
    assert float(integrate(field, one, 10)) == pytest.approx(shrunk, abs=1e-5)
    assert float(integrate(field, one, 1)) == 0


def test_euler_visits_the_left_ends_of_the_grid():
    """Guards the published mistake of evaluating at the end point: times 0, .25, .5, .75 for four steps."""
    seen = []
    integrate(lambda x, t: seen.append(float(t[0])) or x, start(), 4)
    assert seen == [0.0, 0.25, 0.5, 0.75]


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_evaluations_are_as_declared_and_never_at_the_data_end(solver, steps):
    times = []
    integrate(lambda x, t: times.append(float(t[0])) or x, start(), steps, solver)
    assert len(times) == steps * EVALUATIONS_PER_STEP[solver]
    assert max(times) < 1


def test_steps_for():
    assert steps_for(10, "euler") == 10 and steps_for(10, "midpoint") == 5 and steps_for(1, "map") == 1
    for nfe, solver in ((3, "midpoint"), (0, "euler"), (-2, "heun")):
        with pytest.raises(ConfigError, match="evaluations"):
            steps_for(nfe, solver)


@pytest.mark.parametrize("solver", SOLVERS)
def test_exact_velocity_is_carried_to_the_data(lab, solver):
    """Noise x goes to mean + std x."""
    x = torch.linspace(-2, 2, 9, dtype=torch.float64).unsqueeze(1)
    end = integrate(lambda x, t: lab.velocity(x, t.unsqueeze(1)), x, 1000, solver)
    torch.testing.assert_close(end, lab.mean + lab.std * x, atol=2e-3, rtol=0)


def test_one_jump_of_the_exact_map_samples_the_data(lab):
    def exact(x, s, t):
        return lab.mean_velocity(x, s.unsqueeze(1), t.unsqueeze(1))

    assert float(jump(exact, torch.tensor([[1.3]], dtype=torch.float64), 1)) == pytest.approx(1.22, abs=1e-12)
    noise = torch.randn(100_000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    samples = jump(exact, noise, 1)
    assert float(samples.mean()) == pytest.approx(0.7, abs=5e-3)
    assert float(samples.std()) == pytest.approx(0.4, abs=5e-3)


def test_jumps_agree_unless_clamped_on_the_way(lab):
    def exact(x, s, t):
        return lab.mean_velocity(x, s.unsqueeze(1), t.unsqueeze(1))

    x = torch.linspace(-2, 2, 9, dtype=torch.float64).unsqueeze(1)
    one, two, five = (jump(exact, x, steps) for steps in (1, 2, 5))
    torch.testing.assert_close(one, two, atol=1e-10, rtol=0)
    torch.testing.assert_close(one, five, atol=1e-10, rtol=0)

    half = torch.full((9,), 0.5, dtype=torch.float64)
    clamped = (x + 0.5 * exact(x, 0 * half, half)).clamp(-1, 1)
    clamped = clamped + 0.5 * exact(clamped, half, 2 * half)
    assert (clamped - one).abs().max() > 0.05
