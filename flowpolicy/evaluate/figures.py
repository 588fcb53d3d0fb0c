"""How figures look, in one place. Drawn with matplotlib's Agg backend: no display, no global state."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flowpolicy.core.files import replacing
from flowpolicy.evaluate.statistics import Interval

BLUE, ORANGE, GREEN = "#0072b2", "#d55e00", "#009e73"
"""Colours that stay apart for colour-blind readers; Wong 2011, Nature Methods 8:441."""


class Measured(Protocol):
    """What was played: an evaluation, or a point of a curve."""

    @property
    def success(self) -> Interval | None:
        """Rate of success; None where success is not defined."""

    @property
    def return_(self) -> Interval:
        """Mean return."""


class Scores(NamedTuple):
    """What counts of several that were played in one environment, as an axis shows it."""

    means: list[float]
    bars: tuple[list[float], list[float]]
    """Below and above the mean."""
    label: str
    limits: tuple[float, float] | None


def scores(measured: Sequence[Measured]) -> Scores:
    """Success in per cent or, where it is not defined, the return."""
    if rates := [one.success for one in measured if one.success is not None]:
        return _scores(rates, 100.0, "success, % (Wilson 95 %)", (-4.0, 104.0))
    return _scores([one.return_ for one in measured], 1.0, "return (bootstrap 95 %)", None)


def _scores(found: Sequence[Interval], factor: float, label: str, limits: tuple[float, float] | None) -> Scores:
    bars = ([factor * (s.mean - s.low) for s in found], [factor * (s.high - s.mean) for s in found])
    return Scores([factor * s.mean for s in found], bars, label, limits)


def tidy(axes: Axes) -> None:
    """Remove the box and draw a light grid behind the data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, which="major", color="#e4e4e4", linewidth=0.7)
    axes.set_axisbelow(True)


def save_figure(figure: Figure, png: Path) -> None:
    """Write a PNG, atomically."""
    with replacing(png) as temporary:
        figure.savefig(temporary, format="png", dpi=130)
