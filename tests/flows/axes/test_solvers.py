"""Orders, evaluations and exactness of the solvers."""

import dataclasses
import itertools
import math

import pytest
import torch

import flowpolicy.flows.axes  # noqa: F401, registers the values
from flowpolicy.core.errors import ConfigError
from flowpolicy.flows.axes.interpolants import Linear, Trigonometric, VariancePreserving
from flowpolicy.flows.axes.registry import VALUES, make
from flowpolicy.flows.axes.schedules import Cosine, UniformSteps
from flowpolicy.flows.axes.solvers import (
    AdamsBashforth,
    Afp,
    Ddim,
    Dynamics,
    Euler,
    Fitted,
    FixedNoise,
    Heun,
    MapJumps,
    Midpoint,
    Plan,
    PseudoCorrector,
    Stochastic,
)

from ..gaussian import F64, GaussianFlow, normal

LINEAR, UNIFORM = Linear(), UniformSteps()
PLAIN = ["euler", "midpoint", "heun", "pseudo-corrector", "ab2", "ddim", "afp"]


class Counted:
    """A velocity that notes the times at which it is asked."""

    def __init__(self, velocity, path=LINEAR):
        self.times = []
        self.flow = Dynamics(lambda x, t: self.times.append(float(t[0])) or velocity(x, t), path)

    def run(self, solver, x, evaluations, schedule=UNIFORM, generator=None):
        self.times.clear()
        return solver.solve(self.flow, x, schedule.grid(solver.steps(evaluations)), evaluations, generator)


def growth(x, t):
    return x * (1 + t).unsqueeze(1)


def gaussian(x, t):
    """Velocity of the flow to N(.7, .4^2)."""
    t = t.unsqueeze(1)
    variance = (0.4 * t) ** 2 + (1 - t) ** 2
    return 0.7 + (0.16 * t - (1 - t)) / variance * (x - 0.7 * t)


START = torch.tensor([[1.0], [-0.5]], dtype=F64)


@pytest.mark.parametrize("schedule", [UniformSteps(), Cosine()], ids=["uniform", "cosine"])
@pytest.mark.parametrize("name", PLAIN)
def test_declared_order(name, schedule):
    """Halving the steps of dx/dt = (1 + t) x divides the error by 2 ** order; AB2 on unequal steps too."""
    solver, counted = VALUES["solver"][name](), Counted(growth)
    exact = START * math.exp(1.5)
    errors = [(counted.run(solver, START, n, schedule) - exact).abs().max() for n in (256, 512)]
    assert float(torch.log2(errors[0] / errors[1])) == pytest.approx(solver.order, abs=0.12)


def test_a_safe_pseudo_corrector_is_adams_bashforth_on_equal_steps_alone():
    """Its predicted points y obey y' = y + h (3/2 new slope - 1/2 old slope), and it ends in one of them."""
    counted = Counted(gaussian)
    ends = [counted.run(solver, START, 5) for solver in (PseudoCorrector(), AdamsBashforth())]
    torch.testing.assert_close(*ends, rtol=1e-12, atol=1e-12)
    unequal = [counted.run(solver, START, 5, Cosine()) for solver in (PseudoCorrector(), AdamsBashforth())]
    assert float((unequal[0] - unequal[1]).abs().max()) > 1e-4


@pytest.mark.parametrize("evaluations", [1, 2, 4, 7, 8])
@pytest.mark.parametrize("name", [*PLAIN, "fixed-noise", "sde"])
def test_evaluations_are_exact_and_never_at_the_data(name, evaluations):
    solver, counted = VALUES["solver"][name](), Counted(gaussian)
    if name == "midpoint" and evaluations % 2:
        with pytest.raises(ConfigError, match="multiple of 2"):
            solver.steps(evaluations)
        return
    counted.run(solver, START, evaluations, generator=torch.Generator())
    assert len(counted.times) == evaluations
    assert max(counted.times) < 1
    with pytest.raises(ConfigError):
        solver.steps(0)


def test_published_correctors_cost_one_more_and_touch_the_data():
    counted = Counted(lambda x, t: torch.cos(t).unsqueeze(1) + 0 * x)
    end = counted.run(PseudoCorrector("corrector"), START, 9)
    assert len(counted.times) == 9 and max(counted.times) == 1
    h = 1 / 8
    trapezoid = sum(h / 2 * (math.cos(k * h) + math.cos((k + 1) * h)) for k in range(8))
    torch.testing.assert_close(end, START + trapezoid)
    first = counted.run(PseudoCorrector("corrector"), START, 2)
    torch.testing.assert_close(first, counted.run(Heun("corrector"), START, 2))
    with pytest.raises(ConfigError):
        Heun("corrector").steps(3)


def test_midpoint_is_the_taylor_step_of_rf_solver():
    x, h = START, 0.25
    counted = Counted(lambda x, t: torch.sin(3 * x) + t.unsqueeze(1) * x)
    flow = counted.flow
    v, ahead = flow.at(x, 0.0), None
    ahead = flow.at(x + h / 2 * v, h / 2)
    taylor = x + h * v + h * h / 2 * (ahead - v) / (h / 2)
    torch.testing.assert_close(Midpoint().solve(flow, x, (0.0, h), 2, None), taylor, atol=1e-14, rtol=0)


def test_plans_are_their_letters():
    counted = Counted(gaussian)
    torch.testing.assert_close(counted.run(Plan("EEEE"), START, 4), counted.run(Euler(), START, 4))
    torch.testing.assert_close(counted.run(Plan("MM"), START, 4), counted.run(Midpoint(), START, 4))
    torch.testing.assert_close(counted.run(Plan("HHM"), START, 6), counted.run(Heun(), START, 6))
    counted.run(Plan("HPPM"), START, Plan("HPPM").usual)
    assert len(counted.times) == 6 == Plan("HPPM").usual
    assert max(counted.times) < 1
    with pytest.raises(ConfigError, match="letters"):
        Plan("HPPM").steps(5)


@pytest.mark.parametrize(("plan", "large", "small"), [("ER", 1, 1), ("ERR", 1, 3), ("HPR", 3, 1), ("HRR", 2, 3)])
def test_refined_plans_count_both_networks_and_are_heun_where_the_refiner_is_exact(plan, large, small):
    counted, asked = Counted(gaussian), []

    def refine(x, t, v):
        asked.append(float(t[0]))
        return gaussian(x, t) - v

    counted.flow = dataclasses.replace(counted.flow, refine=refine)
    found = counted.run(Plan(plan), START, large + small)
    assert (len(counted.times), len(asked)) == (large, small) and max(asked) < 1
    assert Plan(plan).usual == large + small
    exact = Counted(gaussian)
    same = plan[0] + plan[1:-1].replace("R", "H") + "E"
    torch.testing.assert_close(found, exact.run(Plan(same), START, Plan(same).usual))
    with pytest.raises(ConfigError, match="without a refiner"):
        exact.run(Plan(plan), START, large + small)


def test_a_refiner_that_predicts_no_change_repeats_the_velocity():
    counted = Counted(lambda x, t: torch.full_like(x, 0.7))
    counted.flow = dataclasses.replace(counted.flow, refine=lambda x, t, v: torch.zeros_like(x))
    torch.testing.assert_close(counted.run(Plan("ERR"), START, 4), START + 0.7)


@pytest.mark.parametrize("letters", ["", "X", "EP", "PE", "HH", "MPE", "R", "RE", "MR"])
def test_impossible_plans_are_refused(letters):
    with pytest.raises(ConfigError, match="plan"):
        Plan(letters)


def test_ddim_is_euler_on_the_straight_line():
    counted = Counted(gaussian)
    torch.testing.assert_close(counted.run(Ddim(), START, 7), counted.run(Euler(), START, 7), atol=1e-12, rtol=0)


@pytest.mark.parametrize("path", [Linear(), Trigonometric(), VariancePreserving()], ids=lambda p: p.name)
def test_one_ddim_step_is_exact_for_a_single_pair_on_every_path(path):
    """Noise and data constant along the path: DDIM and fixed noise need one step, Euler only on the straight line."""
    noise, data = START, torch.tensor([[0.3], [0.8]], dtype=F64)
    counted = Counted(lambda x, t: path.velocity(noise, data, t), path)
    for solver in (Ddim(), FixedNoise()):
        torch.testing.assert_close(counted.run(solver, noise, 1), data, atol=1e-9, rtol=0)
        torch.testing.assert_close(counted.run(solver, noise, 3), data, atol=1e-9, rtol=0)
    euler = (counted.run(Euler(), noise, 1) - data).abs().max()
    assert (float(euler) < 1e-12) == (path.name == "linear")


def test_fixed_noise_equals_euler_where_the_pairing_is_affine_and_known():
    """data = m + s noise: the velocity is m + (s - 1)(x - m t) / (1 + (s - 1) t), and every method is exact."""

    def affine(x, t):
        t = t.unsqueeze(1)
        return 0.7 - 0.6 * (x - 0.7 * t) / (1 - 0.6 * t)

    counted = Counted(affine)
    for solver in (Euler(), FixedNoise(), AdamsBashforth(), Ddim()):
        torch.testing.assert_close(counted.run(solver, START, 3), 0.7 + 0.4 * START, atol=1e-12, rtol=0)


def test_jumps_compose():
    def mean(x, s, t):
        s, t = s.unsqueeze(1), t.unsqueeze(1)
        spread = [((0.4 * u) ** 2 + (1 - u) ** 2).sqrt() for u in (s, t)]
        return (0.7 * (t - s) + (spread[1] / spread[0] - 1) * (x - 0.7 * s)) / (t - s)

    flow = Dynamics(gaussian, Linear(), mean)
    for steps in (1, 2, 5):
        end = MapJumps().solve(flow, START, Cosine().grid(steps), steps, None)
        torch.testing.assert_close(end, 0.7 + 0.4 * START, atol=1e-12, rtol=0)
    with pytest.raises(ConfigError, match="one time"):
        MapJumps().solve(Dynamics(gaussian, Linear()), START, (0.0, 1.0), 1, None)


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_stochastic_sampling_keeps_the_law(strength):
    noise = torch.randn(20_000, 1, generator=torch.Generator().manual_seed(0), dtype=F64)
    counted = Counted(gaussian)
    end = counted.run(Stochastic(strength), noise, 100, generator=torch.Generator().manual_seed(1))
    ode = counted.run(Euler(), noise, 100)
    assert float(end.mean()) == pytest.approx(0.7, abs=0.012)
    assert float(end.std()) == pytest.approx(0.4, rel=0.03)
    moved = float((end - ode).std())
    assert moved == 0 if strength == 0 else moved > 0.1
    with pytest.raises(ConfigError, match="generator"):
        counted.run(Stochastic(), noise, 2)


def round_trip(solver, steps):
    """A chunk to its noise and back by Euler, on a field that is not monotone."""
    counted = Counted(lambda x, t: torch.sin(4 * x) + t.unsqueeze(1) * x - 0.3)
    grid, data = UniformSteps().grid(steps), torch.linspace(-1, 1, 21, dtype=F64).unsqueeze(1)
    noise = solver.invert(counted.flow, data, grid)
    return (Euler().solve(counted.flow, noise, grid, steps, None) - data).square().mean().sqrt(), counted.times


def test_inversion():
    for steps in (8, 16):
        euler, used = round_trip(Euler(), steps)
        afp, again = round_trip(Afp(), steps)
        assert float(afp) < 0.5 * float(euler)
        assert len(used) == len(again) == 2 * steps
    # 64 steps: h times the Lipschitz constant is far below 1, and Euler's step is reversed exactly.
    assert float(round_trip(Afp(inner=60), 64)[0]) < 1e-10
    with pytest.raises(ConfigError):
        Afp(inner=0)


def test_midpoint_inversion_of_a_gaussian_is_the_affine_map():
    errors = []
    for steps in (64, 128):
        noise = Midpoint().invert(Dynamics(gaussian, Linear()), START, UniformSteps().grid(steps))
        errors.append(float((noise - (START - 0.7) / 0.4).abs().max()))
    assert errors[1] < 1e-3 and errors[0] / errors[1] > 3.5


def test_a_fitted_solver_holds_every_multistep_method():
    nodes = (0.0, 0.3, 0.7, 1.0)
    rows = [tuple(b - a for a, b in itertools.pairwise(nodes[: k + 2])) for k in range(3)]
    euler = Fitted(nodes, tuple((1.0, *row) for row in rows), "w")
    flow = Dynamics(gaussian, Linear())
    expected = Euler().solve(flow, START, nodes, 3, None)
    torch.testing.assert_close(euler.solve(flow, START, (), 3, None), expected, atol=1e-12, rtol=0)
    with pytest.raises(ConfigError, match="fit"):
        euler.steps(4)


@pytest.mark.parametrize("solver", ["midpoint", "heun", "ab2", "euler"])
def test_the_rest_of_a_flow_ends_where_the_whole_does(solver):
    """From x_t on the exact flow of a Gaussian, for rows that stand at different times."""
    flow = GaussianFlow.random(3, 0)

    def field(x, t):
        rows = [flow.field(row.flatten(1), time).view_as(row) for row, time in zip(x.split(1), t.split(1), strict=True)]
        return torch.cat(rows)

    noise = normal(4, 1, 3)
    start = torch.tensor([0.0, 0.3, 0.6, 0.9], dtype=F64)
    fine = make("solver", "midpoint")
    whole = Dynamics(field, make("interpolant", "linear"))
    grid = tuple(k / 50 for k in range(51))
    end = fine.solve(whole, noise, grid, 100, None)
    # Each row carried to its own time by the flow before it.
    states = torch.cat(
        [
            fine.solve(whole, noise[k : k + 1], tuple(s * t for t in grid), 100, None)
            for k, s in enumerate(start.tolist())
        ]
    )
    chosen = make("solver", solver)
    evaluations = 200 if solver != "euler" else 2000
    steps = chosen.steps(evaluations)
    found = chosen.solve(whole.after(start), states, tuple(k / steps for k in range(steps + 1)), evaluations, None)
    torch.testing.assert_close(found, end, atol=4e-3 if solver == "euler" else 5e-4, rtol=0)


def test_a_flow_map_jumps_over_the_rest():
    exact = lambda x, s, t: (s + t).reshape(-1, 1, 1).expand_as(x) / 2  # noqa: E731, the mean of v = t
    flow = Dynamics(lambda x, t: t.reshape(-1, 1, 1).expand_as(x), make("interpolant", "linear"), exact)
    start = torch.tensor([0.0, 0.5], dtype=F64)
    x = torch.zeros(2, 1, 1, dtype=F64)
    for steps in (1, 3):
        grid = tuple(k / steps for k in range(steps + 1))
        end = make("solver", "map").solve(flow.after(start), x, grid, steps, None)
        torch.testing.assert_close(end.flatten(), (1 - start.square()) / 2, atol=1e-12, rtol=0)
