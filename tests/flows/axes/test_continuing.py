"""Flows that start from the previous chunk, on Gaussian laws."""

import pytest
import torch

from flowpolicy.core.errors import ConfigError
from flowpolicy.flows.axes.refusals import IncompatibleSpecError, Setting, validate
from flowpolicy.flows.axes.registry import make
from flowpolicy.flows.axes.solvers import Dynamics
from flowpolicy.flows.axes.spec import FlowSpec

from ..gaussian import F64, GaussianFlow


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def test_the_bridge_has_the_law_that_it_states():
    path = make("interpolant", "bridge", spread=0.3, scale=0.8)
    past = torch.tensor([0.5, -0.2], dtype=F64).expand(50_000, 1, 2)
    begin = path.begin(normal(50_000, 1, 2), past)
    data, z = 0.9 + 0.1 * normal(50_000, 1, 2, seed=1), normal(50_000, 1, 2, seed=2)
    for t in (0.0, 0.4, 1.0):
        x = path.point(begin, data, torch.full((50_000,), t, dtype=F64), z)
        variance = (1 - t) ** 2 * 0.3**2 + t**2 * 0.1**2 + (0.8 * t * (1 - t)) ** 2
        mean = (1 - t) * past[0] + t * 0.9
        torch.testing.assert_close(x.mean(0), mean, atol=0.01, rtol=0)
        torch.testing.assert_close(x.var(0), torch.full((1, 2), variance, dtype=F64), atol=0, rtol=0.04)


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


def test_the_start_is_late_where_nothing_moves():
    source = make("source", "warm-start", most=0.6, motion=0.5)
    history = torch.zeros(4, 2, 3)
    history[1:, 1] = torch.tensor([0.1, 0.5, 9.0]).unsqueeze(1)
    torch.testing.assert_close(source.begin(history), torch.tensor([0.6, 0.48, 0.0, 0.0]))
    assert make("source", "warm-start", most=0.2).begin(history).tolist() == pytest.approx([0.2] * 4)
    with pytest.raises(ConfigError, match="history 2"):
        source.begin(history[:, :1])
    for options in ({"most": 1.0}, {"motion": -1.0}):
        with pytest.raises(ConfigError, match="warm-start"):
            make("source", "warm-start", **options)
    with pytest.raises(ConfigError, match="bridge"):
        make("interpolant", "bridge", spread=-0.1)


@pytest.mark.parametrize(
    "values",
    [
        {"interpolant": "bridge", "target": "data"},
        {"interpolant": "bridge", "solver": "ddim"},
        {"interpolant": "bridge", "solver": "sde"},
        {"interpolant": "bridge", "source": "student-t"},
        {"interpolant": "bridge", "coupling": "c2ot"},
        {"interpolant": "bridge", "guidance": "gradient"},
        {"interpolant": "bridge", "consistency": "meanflow"},
        {"interpolant": "bridge", "coupling": "table"},  # R17
        {"source": "warm-start", "coupling": "table"},  # R17
        {"source": "warm-start", "solver": "sde"},
        {"source": "warm-start", "solver": "ddim"},
        {"source": "warm-start", "interpolant": "latent"},
        {"source": "warm-start", "guidance": "gradient"},
        {"source": "warm-start", "target": "noise"},
    ],
)
def test_what_needs_plain_noise_is_refused(values):
    spec = FlowSpec(**{axis: make(axis, name) for axis, name in values.items()})
    with pytest.raises(IncompatibleSpecError, match=r"bridge|warm-start"):
        validate(spec, Setting(teacher=True))
