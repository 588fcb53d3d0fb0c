"""Table and picture of what the laboratory measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

from flowpolicy.core.files import write_json, write_text
from flowpolicy.evaluate.figures import save_figure, tidy
from flowpolicy.evaluate.statistics import Interval, bootstrap_mean

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8c564b")
_MARKERS = "osD^vP*X"
_FLOOR = 0.5  # smallest value drawn: unbiased distances of equal laws scatter around 0


def summarise(records: Sequence[dict[str, Any]]) -> dict[str, dict[int, Interval]]:
    """Recipe -> evaluations -> error, with an interval over the observations of the seeds' mean.

    The interval says how well the error of these runs is known, and not how another seed would do: the table gives
    each seed's error beside it.
    """
    found: dict[str, dict[int, list[list[float]]]] = {}
    for record in records:
        rows = {record["name"]: record["error"], f"{record['name']}, fitted": record.get("fitted", {})}
        for name, errors in rows.items():
            for nfe, values in errors.items():
                found.setdefault(name, {}).setdefault(int(nfe), []).append(values)
    return {
        name: {nfe: bootstrap_mean(np.mean(values, axis=0)) for nfe, values in sorted(errors.items())}
        for name, errors in found.items()
    }


def per_seed(records: Sequence[dict[str, Any]], name: str, nfe: int) -> list[float]:
    """Mean error of every seed of a recipe."""
    base, fitted = name.removesuffix(", fitted"), name.endswith(", fitted")
    part = "fitted" if fitted else "error"
    return [
        float(np.mean(record[part][str(nfe)]))
        for record in records
        if record["name"] == base and str(nfe) in record.get(part, {})
    ]


def table(records: Sequence[dict[str, Any]], nfes: Sequence[int], name: str = "lab", note: str = "") -> str:
    """Errors as a Markdown table: mean, interval, and every seed; ``name`` is that of the picture's file."""
    plan, summary, counted = records[0]["plan"], summarise(records), "parameters" in records[0]
    toy, seeds = plan["toy"], sorted({record["seed"] for record in records})
    lines = [
        "# Flow laboratory",
        "",
        f"Chunks of {toy['steps']} x {toy['action']} numbers, {toy['modes']} modes on {toy['share']:.0%} of the "
        f"observations, deviations {toy['narrow']} and {toy['wide']}; {plan['updates']} updates of {plan['batch']}, "
        f"network {plan['depth']} x {plan['width']}, seeds {', '.join(map(str, seeds))}.",
        "",
        "Conditional energy distance x 1000 (0 is exact; lower is better) with a 95 % bootstrap interval over "
        f"{plan['observations']} observations; behind the bar the error of every seed.",
        *(["", note] if note else []),
        *(["", _versions(records)] if _versions(records) else []),
        "",
        "| recipe | "
        + " | ".join(f"NFE {nfe}" for nfe in nfes)
        + (" | width | parameters" if counted else "")
        + " | CPU seconds |",
        "|---|" + "---:|" * (len(nfes) + (3 if counted else 1)),
    ]
    for row, errors in summary.items():
        cells = []
        for nfe in nfes:
            seen = ", ".join(f"{value:.0f}" for value in per_seed(records, row, nfe))
            cells.append(_cell(errors[nfe], seen) if nfe in errors else "-")
        own = [record for record in records if record["name"] == row.removesuffix(", fitted")]
        size = f" | {own[0]['plan']['width']} | {own[0]['parameters']:,}" if counted else ""
        seconds = np.mean([record["cpu_seconds"] for record in own])
        lines.append(f"| {row} | " + " | ".join(cells) + f"{size} | {seconds:.0f} |")
    return "\n".join([*lines, "", f"![error over evaluations]({name}.png)", ""])


def _versions(records: Sequence[dict[str, Any]]) -> str:
    """A warning where kept records were made by other code or another torch than the new ones; empty otherwise."""
    made = {(record.get("commit", ""), record["versions"].get("torch", "")) for record in records}
    if len(made) == 1:
        return ""
    named = "; ".join(f"commit {commit[:12] or 'unknown'} with torch {torch}" for commit, torch in sorted(made))
    return f"**Not all rows were made by the same code**: {named}. Remove the older records to make them again."


def _cell(interval: Interval, seeds: str) -> str:
    return f"{interval.mean:.1f} [{interval.low:.0f}, {interval.high:.0f}] \\| {seeds}"


def draw(records: Sequence[dict[str, Any]], png: Path) -> None:
    """Error over evaluations per chunk, one line per recipe, with its intervals."""
    summary = summarise(records)
    figure = Figure(figsize=(8.0, 0.22 * len(summary) + 5.0), layout="constrained")
    axes = figure.subplots()
    every = sorted({nfe for errors in summary.values() for nfe in errors})
    for position, (name, errors) in enumerate(summary.items()):
        nfes = list(errors)
        # Shifted a little, so that bars of equal recipes stay apart.
        at = [nfe * 1.02 ** (position - len(summary) / 2) for nfe in nfes]
        means = [max(e.mean, _FLOOR) for e in errors.values()]
        low = [m - min(m, max(e.low, _FLOOR)) for m, e in zip(means, errors.values(), strict=True)]
        high = [max(e.high, m) - m for m, e in zip(means, errors.values(), strict=True)]
        axes.errorbar(
            at,
            means,
            yerr=(low, high),
            label=name,
            color=_COLOURS[position % len(_COLOURS)],
            marker=_MARKERS[(position + position // len(_COLOURS)) % len(_MARKERS)],  # no colour twice with it
            linestyle="--" if name.endswith(", fitted") else "-",
            capsize=3,
            markersize=5,
        )
    axes.set(xscale="log", yscale="log", xlabel="network evaluations per chunk (NFE)", ylabel="energy distance x 1000")
    axes.xaxis.set_major_locator(FixedLocator(every))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(ScalarFormatter())
    axes.set_xticks(every, [str(nfe) for nfe in every])
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    tidy(axes)
    save_figure(figure, png)


def write_report(records: Sequence[dict[str, Any]], folder: Path, name: str = "lab", note: str = "") -> None:
    """``lab.md``, ``lab.png`` and ``lab.json`` (means and intervals), or files of another name."""
    nfes = sorted({int(nfe) for record in records for nfe in record["error"]})
    summary = {
        name: {str(nfe): [i.mean, i.low, i.high] for nfe, i in errors.items()}
        for name, errors in summarise(records).items()
    }
    write_text(folder / f"{name}.md", table(records, nfes, name, note))
    origin = {key: records[0][key] for key in ("command", "commit", "order") if key in records[0]}
    write_json(folder / f"{name}.json", {"schema": 1, **origin, "plan": records[0]["plan"], "error": summary})
    draw(records, folder / f"{name}.png")
