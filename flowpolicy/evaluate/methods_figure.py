"""Several methods on one plan, as a picture."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from flowpolicy.evaluate.figures import BLUE, ORANGE, save_figure, scores, tidy
from flowpolicy.evaluate.tables import Methods


def draw_methods(methods: Methods, title: str, png: Path) -> None:
    """Success with Wilson's interval on the left, decision latency on the right, a row per method."""
    figure = Figure(figsize=(8.0, 1.4 + 0.55 * len(methods)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    figure.suptitle(title)
    rows = range(len(methods))
    found = scores(list(methods.values()))
    left.errorbar(found.means, rows, xerr=found.bars, fmt="o", color=BLUE, capsize=4)
    left.set(xlabel=found.label, xlim=found.limits, ylim=(len(methods) - 0.5, -0.5))
    left.set_yticks(
        rows, [f"{name}, {evaluation.nfe} NFE, step {evaluation.step:,}" for name, evaluation in methods.items()]
    )
    timed = [(row, evaluation.latency) for row, evaluation in enumerate(methods.values())]
    for percentile, colour, marker in (("p50_us", BLUE, "o"), ("p99_us", ORANGE, "s")):
        points = [(getattr(latency, percentile) / 1000, row) for row, latency in timed if latency]
        right.plot(*zip(*points, strict=True), marker, color=colour, label=percentile.removesuffix("_us"))
    right.set(xlabel="decision latency, ms")
    right.set_xlim(left=0.0)
    right.legend(frameon=False)
    for axes in (left, right):
        tidy(axes)
    save_figure(figure, png)
