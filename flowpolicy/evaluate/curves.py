"""Learning curves from the training CSV."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flowpolicy.core.errors import EvaluationError
from flowpolicy.evaluate.figures import BLUE, GREEN, ORANGE, save_figure, tidy

TIMES = ("data_ms", "update_ms", "log_ms")
"""Columns of the time split, drawn together."""
LOG_SPREAD = 30.0
"""A positive loss or norm that spans more than this factor is drawn on a log scale."""
TITLES = {"lr": "learning rate", "grad_norm": "gradient norm"}
COLUMNS = 3

Curves = dict[str, np.ndarray]
"""Column -> (rows,) float64, NaN where the cell is empty."""


def draw_curves(metrics_csv: Path, png: Path, unit: str = "gradient step") -> None:
    """Draw a panel per metric and one for the time split.

    Args:
        metrics_csv: a column ``step`` and any metrics. A last line that was cut off is ignored.
        png: where to.
        unit: what ``step`` counts.

    Raises:
        EvaluationError: the file is missing, has no column ``step``, no metrics, or no complete row.

    """
    curves = read_curves(metrics_csv)
    step = curves.pop("step")
    times = [name for name in TIMES if name in curves]
    panels = [name for name in sorted(curves, key=panel_order) if name not in TIMES and np.isfinite(curves[name]).any()]
    count = len(panels) + bool(times)
    if count == 0:
        raise EvaluationError(f"{metrics_csv} holds no metric to draw", expected="a column beside 'step'")
    columns = min(COLUMNS, count)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(4.6 * columns, 3.1 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    figure.suptitle(f"Training of {metrics_csv.resolve().parent.name}")
    for axes, name in zip(grid, panels, strict=False):
        _draw_metric(axes, step, curves[name], name)
    if times:
        _draw_times(grid[len(panels)], step, {name: curves[name] for name in times})
    for axes in grid[:count]:
        axes.set_xlabel(unit)
        tidy(axes)
    for axes in grid[count:]:
        axes.set_axis_off()
    save_figure(figure, png)


def read_curves(path: Path) -> Curves:
    """Read the training CSV, column by column."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise EvaluationError(f"{path} is missing", fix="train first, or point at another run") from error
    # A killed run leaves a last line without its end; its last number may lack digits.
    lines = text[: text.rfind("\n") + 1].splitlines()
    header, *rows = list(csv.reader(lines)) or [[]]
    if "step" not in header or not rows:
        raise EvaluationError(
            f"{path} holds no complete row of metrics",
            expected="a header with 'step' and at least one line",
            fix="let the training reach its first log line",
        )
    for number, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise EvaluationError(
                f"{path}, line {number}: {len(row)} cells", expected=f"{len(header)} as in the header"
            )
    return {name: np.array([_cell(row[i]) for row in rows]) for i, name in enumerate(header) if _numeric(rows, i)}


def _cell(text: str) -> float:
    return float(text) if text else math.nan


def _numeric(rows: list[list[str]], column: int) -> bool:
    """Whether a column holds numbers: words, such as a date, are not drawn."""
    try:
        for row in rows:
            _cell(row[column])
    except ValueError:
        return False
    return True


def panel_order(name: str) -> tuple[int, str]:
    """Losses first, then the optimiser, then the rest."""
    ranks = (name == "loss", "loss" in name, name == "lr", "grad" in name)
    return (ranks.index(True) if any(ranks) else len(ranks), name)


def smooth(values: np.ndarray) -> np.ndarray:
    """Exponential average over about a fortieth of the curve, without the bias of its start."""
    decay = 1.0 - 1.0 / max(1.0, len(values) / 40)
    total, weight, out = 0.0, 0.0, np.empty(len(values))
    for i, value in enumerate(values):
        total, weight = decay * total + value, decay * weight + 1.0
        out[i] = total / weight
    return out


def _draw_metric(axes: Axes, step: np.ndarray, values: np.ndarray, name: str) -> None:
    logged = np.isfinite(values)
    step, values = step[logged], values[logged]
    if name == "lr":
        axes.plot(step, values, color=BLUE)
    else:
        axes.plot(step, values, color=BLUE, alpha=0.25, linewidth=0.8, label="logged")
        axes.plot(step, smooth(values), color=BLUE, linewidth=1.6, label="smoothed")
        axes.legend(frameon=False, fontsize=8)
        scaled = "loss" in name or "norm" in name
        if scaled and values.min() > 0 and values.max() > LOG_SPREAD * values.min():
            axes.set_yscale("log")
    axes.set_title(TITLES.get(name, name.replace("_", " ")))


def _draw_times(axes: Axes, step: np.ndarray, times: Curves) -> None:
    logged = np.all([np.isfinite(values) for values in times.values()], axis=0)
    medians = {name: float(np.median(values[logged])) for name, values in times.items()}
    colours = dict(zip(TIMES, (GREEN, BLUE, ORANGE), strict=True))
    axes.stackplot(
        step[logged],
        [values[logged] for values in times.values()],
        labels=[f"{name.removesuffix('_ms')}, median {medians[name]:.2g} ms" for name in times],
        colors=[colours[name] for name in times],
    )
    # The first row holds the compilation, a thousand times the rest: it may leave the axis.
    axes.set_ylim(0, 2 * sum(medians.values()) or 1.0)
    axes.set(title="time per step (axis to twice the median)", ylabel="ms")
    axes.legend(fontsize=8, framealpha=1.0, loc="upper right")
