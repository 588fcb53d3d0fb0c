"""Dynamic programming against brute force; least squares recovers what it contains."""

import itertools

import pytest
import torch

from flowpolicy.core.errors import ConfigError
from flowpolicy.flows.axes.interpolants import Linear
from flowpolicy.flows.axes.solvers import AdamsBashforth, Dynamics, Euler, Fitted
from flowpolicy.flows.fitting import bellman, fit_subspace, step_costs, trajectories

F64 = torch.float64


def field(x, t):
    """Velocity of the flow to two modes at +-.6 with deviation .2: bent paths."""
    t = t.unsqueeze(1)
    variance = (0.2 * t) ** 2 + (1 - t) ** 2
    posterior = torch.tanh(0.6 * t * x / variance)
    centre = 0.6 * posterior
    return centre + (0.04 * t - (1 - t)) / variance * (x - centre * t)


FLOW = Dynamics(field, Linear())
NOISE = torch.randn(400, 2, generator=torch.Generator().manual_seed(0), dtype=F64)


@pytest.mark.parametrize("steps", [1, 3, 5])
def test_bellman_finds_the_cheapest_path(steps):
    cost = torch.rand(9, 9, generator=torch.Generator().manual_seed(steps), dtype=F64)
    cost[torch.tril(torch.ones(9, 9)) > 0] = float("inf")

    def total(path):
        return sum(float(cost[a, b]) for a, b in itertools.pairwise(path))

    paths = [(0, *inner, 8) for inner in itertools.combinations(range(1, 8), steps - 1)]
    assert bellman(cost, steps) == min(paths, key=total)
    with pytest.raises(ConfigError):
        bellman(cost, 9)


def test_costs_of_straight_paths_are_nothing_and_fall_with_the_steps():
    straight = trajectories(Dynamics(lambda x, t: 0 * x + 1.5, Linear()), NOISE, 12)
    assert float(step_costs(straight)[0, 12]) < 1e-20
    cost = step_costs(trajectories(FLOW, NOISE, 12))
    totals = []
    for steps in range(1, 13):
        nodes = bellman(cost, steps)
        assert nodes[0] == 0 and nodes[-1] == 12 and len(nodes) == steps + 1
        totals.append(sum(float(cost[a, b]) for a, b in itertools.pairwise(nodes)))
    assert all(a >= b for a, b in itertools.pairwise(totals))
    assert totals[-1] < 1e-20


def test_costs_of_a_velocity_of_time_alone_are_those_of_left_sums():
    paths = trajectories(Dynamics(lambda x, t: 0 * x + (t**2).unsqueeze(1), Linear()), NOISE, 10)
    exact = [sum(0.1 * (0.1 * k) ** 2 for k in range(i, 8)) - (0.8 - 0.1 * i) * (0.1 * i) ** 2 for i in range(8)]
    for i, error in enumerate(exact):
        assert float(step_costs(paths)[i, 8]) == pytest.approx(2 * error**2, abs=1e-12)


def test_least_squares_recovers_euler_from_eulers_own_path():
    paths = trajectories(FLOW, NOISE, 4)
    rows = fit_subspace(paths, (0, 1, 2, 3, 4))
    for k, row in enumerate(rows):
        assert row == pytest.approx((1.0, *[0.25] * (k + 1)), abs=1e-6)


def test_a_fit_beats_what_it_contains_and_halves_the_error_of_the_samples():
    paths = trajectories(FLOW, NOISE, 64)
    nodes = bellman(step_costs(paths), 4)
    times = tuple(float(paths.times[k]) for k in nodes)
    fitted = Fitted(times, fit_subspace(paths, nodes), "w")
    fresh = torch.randn(4000, 2, generator=torch.Generator().manual_seed(1), dtype=F64)
    exact = Euler().solve(FLOW, fresh, tuple(k / 256 for k in range(257)), 256, None)

    def error(solver):
        return float((solver.solve(FLOW, fresh, times, 4, None) - exact).square().mean())

    assert error(fitted) < 0.25 * error(Euler())
    assert error(fitted) < error(AdamsBashforth())
    design = torch.stack([paths.states[0].flatten(), *(paths.slopes[k].flatten() for k in nodes[:-1])], dim=1)
    residual = (design @ torch.tensor(fitted.coefficients[-1], dtype=F64) - paths.states[-1].flatten()).square().mean()
    euler = (1.0, *(b - a for a, b in itertools.pairwise(times)))
    assert residual < (design @ torch.tensor(euler, dtype=F64) - paths.states[-1].flatten()).square().mean()
