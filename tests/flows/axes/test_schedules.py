"""Grids rise and end exactly at 0 and 1."""

import itertools
import math

import pytest

import flowpolicy.flows.axes  # noqa: F401, registers the values
from flowpolicy.core.errors import ConfigError
from flowpolicy.flows.axes.registry import VALUES
from flowpolicy.flows.axes.schedules import (
    Boss,
    Cosine,
    Edm,
    LogitNormalSteps,
    LogSnr,
    Power,
    TimeShift,
    UniformSteps,
)

CLOSED = {name: cls() for name, cls in VALUES["schedule"].items() if name != "boss"}


@pytest.mark.parametrize("name", CLOSED)
@pytest.mark.parametrize("steps", [1, 2, 5, 64])
def test_grids_rise_between_exact_ends(name, steps):
    grid = CLOSED[name].grid(steps)
    assert len(grid) == steps + 1 and grid[0] == 0.0 and grid[-1] == 1.0
    assert all(a < b for a, b in itertools.pairwise(grid))


def test_closed_forms():
    assert UniformSteps().grid(4) == (0.0, 0.25, 0.5, 0.75, 1.0)
    assert Cosine().grid(3)[1] == pytest.approx(0.25)
    assert Power(3.0).grid(2)[1] == pytest.approx(0.125)
    assert TimeShift(3.0).grid(2)[1] == pytest.approx(1 - 1.5 / 2)
    assert TimeShift(1.0).grid(8) == pytest.approx(UniformSteps().grid(8))
    sigma = ((80 ** (1 / 7) + 0.002 ** (1 / 7)) / 2) ** 7
    assert (1 - Edm().grid(2)[1]) / Edm().grid(2)[1] == pytest.approx(sigma)
    t = LogSnr(6.0).grid(4)[1]
    assert 2 * math.log(t / (1 - t)) == pytest.approx(-3.0)
    # Quantiles of the normal law: 0.8416 is its 80 % point.
    assert LogitNormalSteps(0.5, 2.0).grid(5)[4] == pytest.approx(1 / (1 + math.exp(-(0.5 + 2 * 0.841621))), abs=1e-6)


def test_a_fitted_grid_has_one_number_of_steps():
    assert Boss(nodes=(0.0, 0.7, 1.0)).grid(2) == (0.0, 0.7, 1.0)
    with pytest.raises(ConfigError, match="fit"):
        Boss(nodes=(0.0, 0.7, 1.0)).grid(3)


@pytest.mark.parametrize(
    "wrong", [lambda: Power(0.0), lambda: TimeShift(0.0), lambda: Edm(rho=0.0), lambda: LogSnr(0.0)]
)
def test_impossible_options_are_refused(wrong):
    with pytest.raises(ConfigError):
        wrong()
