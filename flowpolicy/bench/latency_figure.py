"""Table and picture of :func:`flowpolicy.bench.latency.bench_latency`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter
from rich.table import Table

from flowpolicy.bench.latency import FLOORS, READ
from flowpolicy.evaluate.figures import BLUE, GREEN, ORANGE, save_figure, tidy
from flowpolicy.policy.engines import ENGINES


def latency_table(result: dict[str, Any]) -> Table:
    """Every entry, and why others are missing."""
    evaluations = f"{result['nfe']} evaluation{'s' if result['nfe'] > 1 else ''}"
    table = Table(title=f"{result['parameters']:,} parameters, {evaluations}, one decision, microseconds")
    for column in ("", "batch", "threads", "p50", "p99", "p99.9", "p50 / floor", "p50 / read", "peak MiB", "load s"):
        table.add_column(column, justify="right" if column else "left")
    for row in result["entries"]:
        numbers = [f"{row[key]:.0f}" for key in ("p50", "p99", "p99.9")]
        ratios = [f"{row[key]:.2f}" for key in ("ratio_p50", "ratio_read")]
        rest = [f"{row['peak_memory_mb']:.0f}", f"{row['load_s']:.1f}"]
        table.add_row(row["entry"], str(row["batch"]), str(row["threads"]), *numbers, *ratios, *rest)
    lines = [f"{name}: {reason}" for name, reason in result["left_out"].items()]
    table.caption = "\n".join(["Floor: the faster of the bare products of the same weights.", *lines])
    return table


def draw_latency(result: dict[str, Any], title: str, png: Path) -> None:
    """Bars from p50 to p99 on a logarithmic axis, one panel per batch size and number of threads."""
    entries = result["entries"]
    settings = list(dict.fromkeys((row["batch"], row["threads"]) for row in entries))
    names = list(dict.fromkeys(row["entry"] for row in entries))
    height = 0.9 + len(settings) * (0.55 + 0.28 * len(names))
    figure = Figure(figsize=(7.6, height), layout="constrained")
    panels = figure.subplots(len(settings), 1, sharex=True, squeeze=False)[:, 0]
    figure.suptitle(title)
    for axes, (batch, threads) in zip(panels, settings, strict=True):
        rows = [row for row in entries if (row["batch"], row["threads"]) == (batch, threads)]
        rows.sort(key=lambda row: -row["p50"])
        floor = min(row["p50"] for row in rows if row["entry"] in FLOORS)
        for place, row in enumerate(rows):
            colour = BLUE if row["entry"] in ENGINES else GREEN if row["entry"] in (*FLOORS, READ) else ORANGE
            axes.plot([row["p50"], row["p99"]], [place, place], color=colour, linewidth=2, alpha=0.45)
            axes.plot(row["p50"], place, "o", color=colour)
            axes.annotate(
                f"{row['p50']:,.0f} us, {row['ratio_p50']:.2f} x",
                (row["p50"], place),
                textcoords="offset points",
                xytext=(0, 5),
                fontsize=7,
            )
        axes.axvline(floor, color=GREEN, linewidth=1, linestyle="--")
        axes.set_yticks(range(len(rows)), [row["entry"] for row in rows], fontsize=8)
        axes.set_ylim(-0.6, len(rows) - 0.2)
        axes.set_title(f"batch {batch}, {threads} thread{'s' if threads > 1 else ''}", fontsize=9, loc="left")
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        tidy(axes)
    panels[-1].set_xlabel("one decision: p50 (dot) to p99, microseconds; dashed: floor")
    save_figure(figure, png)
