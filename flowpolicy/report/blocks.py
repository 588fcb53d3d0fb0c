"""What a page is made of: JSON values that ``page.js`` draws. Text in them is text, never markup."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from flowpolicy.evaluate.statistics import Interval

Block = dict[str, Any]
"""One thing on a page; 'type' says which."""

BINS = 40
_POINTS = 400
"""Points of a curve: more are not seen on a screen."""


@dataclasses.dataclass(frozen=True)
class Section:
    """A heading and what stands below it."""

    id: str
    """Anchor, one word."""
    title: str
    blocks: tuple[Block, ...]
    note: str = ""
    """One line below the heading."""

    def to_json(self) -> Block:
        """As the page reads it."""
        return {"id": self.id, "title": self.title, "note": self.note, "blocks": list(self.blocks)}


Kind = Literal["text", "code", "number", "interval", "verdict", "jump"]


def column(name: str, kind: Kind = "text", *, digits: int = 0, help: str = "", unit: str = "") -> Block:  # noqa: A002
    """A column of a table.

    Args:
        name: heading.
        kind: how its cells are drawn and sorted.
        digits: of a number behind the point.
        help: what it means, shown when pointed at.
        unit: of an interval, behind its mean.

    """
    return {"name": name, "kind": kind, "digits": digits, "help": help, "unit": unit}


def table(
    columns: Sequence[Block], rows: Sequence[Sequence[Any]], *, empty: str = "nothing", caption: str = ""
) -> Block:
    """A table that is sorted and filtered; a cell is a text, a number, None, or what :func:`interval` gives."""
    return {"type": "table", "columns": list(columns), "rows": [list(row) for row in rows]} | {
        "empty": empty,
        "caption": caption,
    }


def interval(found: Interval | None, factor: float = 1.0) -> list[float] | None:
    """A cell with a mean and the ends of its interval."""
    return None if found is None else [factor * found.mean, factor * found.low, factor * found.high]


def tiles(*values: tuple[str, str, str]) -> Block:
    """Figures in large print: label, value, note."""
    return {"type": "tiles", "tiles": [list(value) for value in values]}


def words(*lines: str) -> Block:
    """Sentences, one a line."""
    return {"type": "words", "lines": list(lines)}


def notes(*lines: str) -> Block:
    """What the reader should know before believing the rest."""
    return {"type": "notes", "lines": list(lines)}


def facts(pairs: Mapping[str, str]) -> Block:
    """Names and values."""
    return {"type": "facts", "pairs": [[name, value] for name, value in pairs.items()]}


@dataclasses.dataclass(frozen=True)
class ChartLine:
    """One curve of a chart."""

    name: str
    x: NDArray[Any]
    y: NDArray[Any]
    low: NDArray[Any] | None = None
    """Lower end of an interval around every point."""
    high: NDArray[Any] | None = None
    faint: NDArray[Any] | None = None
    """What was smoothed to give ``y``, drawn behind it."""


def chart(
    title: str,
    lines: Sequence[ChartLine],
    *,
    explanation: str = "",
    x_label: str = "",
    log_x: bool = False,
    log_y: bool = False,
    points: bool = False,
    from_zero: bool = False,
    to: float | None = None,
) -> Block:
    """Curves over a common axis.

    Args:
        title: what is drawn.
        lines: the curves.
        explanation: what it means, in a sentence.
        x_label: of the horizontal axis.
        log_x: powers of two are evenly spaced.
        log_y: powers of ten are evenly spaced.
        points: mark every point.
        from_zero: the vertical axis begins at zero.
        to: where the vertical axis ends.

    """
    drawn = []
    for line in lines:
        parts = {"y": line.y, "low": line.low, "high": line.high, "faint": line.faint}
        kept = {name: part for name, part in parts.items() if part is not None}
        rows = _thinned(len(line.x))
        shown = {name: rounded(part[rows]) for name, part in {"x": line.x, **kept}.items()}
        drawn.append({"name": line.name, **shown})
    return {"type": "chart", "title": title, "lines": drawn, "explanation": explanation, "xLabel": x_label} | {
        "logX": log_x,
        "logY": log_y,
        "points": points,
        "fromZero": from_zero,
        "to": to,
    }


def charts(*drawn: Block) -> Block:
    """Several charts and histograms side by side, as many as fit."""
    return {"type": "charts", "charts": list(drawn)}


def histogram(
    title: str, values: NDArray[Any], *, explanation: str = "", x_label: str = "", whole: bool = False
) -> Block:
    """How often values occur, in at most forty bins; what is not finite is left out.

    Args:
        title: of what.
        values: any shape.
        explanation: what it means, in a sentence.
        x_label: of the horizontal axis.
        whole: values are whole numbers, and so are the borders of the bins.

    """
    flat = np.ravel(values).astype(np.float64)
    flat = flat[np.isfinite(flat)]
    low, high = (float(flat.min()), float(flat.max())) if flat.size else (0.0, 1.0)
    if whole:
        step = max(1, math.ceil((high - low + 1) / BINS))
        edges = np.arange(low, high + step + 1, step) - 0.5
    else:
        edges = np.linspace(low, high, BINS + 1) if high > low else np.array([low - 0.5, low + 0.5])
    counts, _ = np.histogram(flat, edges)
    return {
        "type": "histogram",
        "title": title,
        "edges": rounded(edges),
        "counts": counts.tolist(),
        "explanation": explanation,
        "xLabel": x_label,
    }


def pictures(rows: Sequence[tuple[str, Sequence[str]]], caption: str = "") -> Block:
    """Strips of pictures: a title and data URLs each."""
    return {"type": "pictures", "rows": [[title, list(urls)] for title, urls in rows], "caption": caption}


def rounded(values: NDArray[Any], digits: int = 6) -> list[float | None]:
    """JSON values of so many significant digits; what is not finite is None."""
    return [float(f"{value:.{digits}g}") if math.isfinite(value) else None for value in values.tolist()]


def _thinned(rows: int) -> NDArray[Any]:
    """At most :data:`_POINTS` rows, evenly spread, the last one among them."""
    return np.unique(np.linspace(0, rows - 1, min(rows, _POINTS)).round().astype(int))
