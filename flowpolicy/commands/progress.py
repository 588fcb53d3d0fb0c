"""Progress of long work on the console."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

if TYPE_CHECKING:
    from flowpolicy.train import Trainer  # brings torch, seconds of every --help


@contextlib.contextmanager
def progress_bar(title: str, total: int, completed: int = 0) -> Iterator[Callable[[int, str], None]]:
    """Yield a function (finished, note) that moves a bar; on a file or pipe, some plain lines instead."""
    console = Console(stderr=True)
    if not console.is_terminal:
        marks = iter(range(1, 11))
        due = next(marks)

        def lines(finished: int, note: str = "") -> None:
            nonlocal due
            if finished * 10 >= due * total:
                console.print(f"{title} {finished}/{total} {note}", soft_wrap=True, highlight=False)
                while finished * 10 >= due * total:
                    due = next(marks, 11 * total)

        yield lines
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(title, total=total, completed=completed, note="")

        def move(finished: int, note: str = "") -> None:
            bar.update(task, completed=finished, note=note)

        yield move


@contextlib.contextmanager
def download_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a function (bytes there, bytes of the whole or 0) that moves a bar; silent on a file or pipe."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=None)
        yield lambda there, whole: bar.update(task, completed=there, total=whole or None)


@contextlib.contextmanager
def training_progress(trainer: Trainer, folder: Path) -> Iterator[Callable[[int, dict[str, float]], None]]:
    """A bar that shows loss and where the time goes."""
    with progress_bar(f"train {folder}", trainer.experiment.steps, trainer.step) as move:

        def report(step: int, row: dict[str, float]) -> None:
            times = "  ".join(f"{name} {row[f'{name}_ms']:.2f}" for name in ("data", "update", "log"))
            move(step, f"loss {row['loss']:.4f}  ms per step: {times}")

        yield report
