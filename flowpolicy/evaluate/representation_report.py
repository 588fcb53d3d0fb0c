"""Figures of features as a table, as JSON, and as a picture."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table

from flowpolicy.evaluate.features_of_run import Features
from flowpolicy.evaluate.figures import BLUE, GREEN, ORANGE, save_figure, tidy
from flowpolicy.evaluate.representation import APART_MM, NEAR_MM, Figures, cosines, spectrum

_COLOURS = (BLUE, ORANGE, GREEN, "#cc79a7", "#56b4e9", "#e69f00")


class _Line(NamedTuple):
    """A line of the table."""

    text: str
    field: str
    form: str


_LINES = (
    _Line("numbers", "size", "d"),
    _Line("participation ratio (1 collapsed)", "participation_ratio", ".3g"),
    _Line("RankMe, centred (1 collapsed)", "rank_me", ".3g"),
    _Line("RankMe, not centred", "rank_me_uncentred", ".3g"),
    _Line("cosine of two rows, mean (1 collapsed)", "cosine", ".3f"),
    _Line("cosine of two rows, 95th percentile", "cosine_95", ".3f"),
    _Line("uniformity (0 collapsed, about -4 spread)", "uniformity", ".3f"),
    _Line("signal over augmentation (1: only the window)", "signal_over_augmentation", ".3g"),
    _Line("probe of the object's position, error in mm", "probe_mm", ".1f"),
    _Line("... of the mean position, which knows nothing", "probe_baseline_mm", ".1f"),
    _Line("... R2 (1 all is known)", "probe_r2", ".3f"),
    _Line(f"confusable of pairs with object >= {APART_MM:g} mm apart, hand <= {NEAR_MM:g} mm", "confusable", ".2%"),
)


def features_table(measured: dict[str, Figures], title: str, features: Features) -> Table:
    """A column per feature, a line per figure; those that nothing is known for are left out."""
    table = Table("", *measured, title=title, caption=_remarks(features))
    for line in _LINES:
        values = [getattr(figures, line.field) for figures in measured.values()]
        if not all(isinstance(value, float) and math.isnan(value) for value in values):
            table.add_row(line.text, *(f"{value:{line.form}}".replace("%", " %") for value in values))
    return table


def figures_json(measured: dict[str, Figures], features: Features, seed: int) -> dict[str, Any]:
    """Everything as JSON values; null where a figure is not defined, or infinite."""
    return {
        "rows": len(features.episode),
        "episodes": len(np.unique(features.episode)),
        "seed": seed,
        "trained_on": features.trained_on,
        "pairs": features.pairs,
        "features": {
            name: {key: _finite(value) for key, value in dataclasses.asdict(figures).items()}
            for name, figures in measured.items()
        },
    }


def draw_features(features: Features, measured: dict[str, Figures], title: str, png: Path) -> None:
    """Singular values, cosines of pairs and, where the file knows the object's position, what the probe misses."""
    knows = features.scene is not None
    figure = Figure(figsize=(4.6 * (2 + knows), 3.6), layout="constrained")
    panels = figure.subplots(1, 2 + knows)
    figure.suptitle(title, fontsize=10)
    for name, colour in zip(measured, _colours(measured), strict=True):
        middle = features.samples[name].middle
        values = spectrum(middle)
        panels[0].plot(np.arange(1, len(values) + 1), values, color=colour, label=_short(name))
        edges = np.linspace(-1, 1, 81)
        share, _ = np.histogram(np.clip(cosines(middle), -1, 1), edges)
        panels[1].stairs(100 * share / share.sum(), edges, color=colour, label=_short(name))
    panels[0].set(yscale="log", ylim=(1e-4, 1.3), xlabel="number", ylabel="over the largest", title="singular values")
    panels[1].set(xlabel="cosine of two rows", ylabel="% of pairs", title="similarity of all pairs", xlim=(-1.02, 1.02))
    for axes in panels[:2]:
        axes.legend(frameon=False, fontsize=8)
    if knows:
        _draw_probe(panels[2], measured)
    for axes in panels:
        tidy(axes)
    save_figure(figure, png)


def _draw_probe(axes: Axes, measured: dict[str, Figures]) -> None:
    places = np.arange(len(measured))
    heights = [figures.probe_mm for figures in measured.values()]
    bars = axes.bar(places, heights, color=_colours(measured), width=0.6)
    axes.bar_label(bars, fmt="%.1f", label_type="center", color="white")
    baseline = next(iter(measured.values())).probe_baseline_mm
    axes.axhline(baseline, color="#555555", linestyle=":", label=f"mean position, {baseline:.1f} mm")
    axes.set_xticks(places, [_short(name) for name in measured], fontsize=8)
    axes.set(ylabel="mm", title="linear probe of the object's position", ylim=(0, 1.35 * max(baseline, *heights)))
    axes.legend(frameon=False, fontsize=8)


def _remarks(features: Features) -> str:
    scene = features.scene
    parts = [
        f"{len(np.unique(features.episode))} episodes of "
        + ("the file that the policy was trained on" if features.trained_on else "another file than the training's")
    ]
    if scene is None:
        parts.append("the file does not say where the object is: no probe, no confusable pairs")
    elif scene.hand is None:
        parts.append("the file does not say where the hand is: no confusable pairs")
    else:
        parts.append(f"{features.pairs:,} pairs differ in the object alone")
    return "\n".join(parts)


def _colours(measured: dict[str, Figures]) -> list[str]:
    return [_COLOURS[place % len(_COLOURS)] for place in range(len(measured))]


def _short(name: str) -> str:
    return name.removesuffix("_image")


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
