"""How figures look, in one place. Drawn with matplotlib's Agg backend: no display, no global state."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flowpolicy.core.files import replacing

BLUE, ORANGE, GREEN = "#0072b2", "#d55e00", "#009e73"
"""Colours that stay apart for colour-blind readers; Wong 2011, Nature Methods 8:441."""


def tidy(axes: Axes) -> None:
    """Remove the box and draw a light grid behind the data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, which="major", color="#e4e4e4", linewidth=0.7)
    axes.set_axisbelow(True)


def save_figure(figure: Figure, png: Path) -> None:
    """Write a PNG, atomically."""
    with replacing(png) as temporary:
        figure.savefig(temporary, format="png", dpi=130)
