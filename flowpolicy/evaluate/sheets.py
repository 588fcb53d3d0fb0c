"""A table as text, before anybody has decided how it is to look: for the terminal, Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Sequence
from typing import Literal

from rich.table import Table

from flowpolicy.evaluate.statistics import Interval

SheetFormat = Literal["markdown", "latex", "csv"]
"""What a sheet is written as; CSV is for programs and has one row per number."""


@dataclasses.dataclass(frozen=True)
class Sheet:
    """A table."""

    title: str
    head: tuple[str, ...]
    """Names of the columns; the first one is of the rows' names."""
    rows: tuple[tuple[str, ...], ...]
    """Cells, as many per row as there are columns."""
    notes: tuple[str, ...] = ()
    """Sentences below it."""

    def turned(self) -> Sheet:
        """Rows for columns."""
        head, *rows = zip(self.head, *self.rows, strict=True)
        return dataclasses.replace(self, head=("", *head[1:]), rows=tuple(rows))


@dataclasses.dataclass(frozen=True)
class SuiteScore:
    """One arm on one task, as numbers."""

    arm: str
    task: str
    score: str
    """'success' or 'normalised'; 'published' where nobody measured it here."""
    mean: float
    """In per cent, or the normalised score."""
    low: float | None = None
    high: float | None = None
    seeds: int | None = None
    episodes: int | None = None
    """Of a run."""
    nfe: int | None = None
    updates: int | None = None
    rows: int | None = None
    """Per update."""
    training_seconds: float | None = None
    """Median over seeds, wall time."""
    source: str = ""
    """Of a published score."""


def as_rich(sheet: Sheet) -> Table:
    """For the terminal."""
    table = Table(*sheet.head, title=sheet.title, caption="\n".join(sheet.notes))
    for row in sheet.rows:
        table.add_row(*(cell.replace("[", r"\[") for cell in row))
    return table


def as_markdown(sheets: Sequence[Sheet]) -> str:
    """GitHub's tables, a heading above and the notes below each."""
    parts = []
    for sheet in sheets:
        lines = [sheet.head, ("---",) + ("---:",) * (len(sheet.head) - 1), *sheet.rows]
        rows = "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)
        notes = "".join(f"- {note}\n" for note in sheet.notes)
        parts.append(f"### {sheet.title}\n\n{rows}\n" + (f"\n{notes}" if notes else ""))
    return "\n".join(parts)


def as_latex(sheets: Sequence[Sheet]) -> str:
    """Tables for the package booktabs."""
    parts = []
    for sheet in sheets:
        body = "\n".join(" & ".join(map(_escaped, row)) + r" \\" for row in sheet.rows)
        notes = "".join(f"\\\\{{\\footnotesize {_escaped(note)}}}\n" for note in sheet.notes)
        parts.append(
            "\\begin{table}\n\\centering\n"
            f"\\caption{{{_escaped(sheet.title)}}}\n"
            f"\\begin{{tabular}}{{l{'r' * (len(sheet.head) - 1)}}}\n\\toprule\n"
            f"{' & '.join(map(_escaped, sheet.head))} \\\\\n\\midrule\n{body}\n\\bottomrule\n\\end{{tabular}}\n"
            f"{notes}\\end{{table}}\n"
        )
    return "\n".join(parts)


def as_csv(scores: Sequence[SuiteScore]) -> str:
    """One row per arm and task, and per published number."""
    text = io.StringIO()
    fields = [field.name for field in dataclasses.fields(SuiteScore)]
    writer = csv.DictWriter(text, fields, lineterminator="\n")
    writer.writeheader()
    for score in scores:
        values = dataclasses.asdict(score)
        writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in values.items()})
    return text.getvalue()


def points(interval: Interval, unit: str = " %") -> str:
    """A share in points with its interval, e.g. '95.0 % [88.8, 97.8]'."""
    return f"{100 * interval.mean:.1f}{unit} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


_SPECIAL = {"\\": r"\textbackslash{}", **{sign: f"\\{sign}" for sign in "&%$#_{}"}, "~": r"\textasciitilde{}"}
_SPECIAL |= {"^": r"\textasciicircum{}", "±": r"$\pm$", "<": "$<$", ">": "$>$"}


def _escaped(text: str) -> str:
    return "".join(_SPECIAL.get(sign, sign) for sign in text)
