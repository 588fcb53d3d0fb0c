"""Progress of long work on the console."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Protocol

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


class Move(Protocol):
    """Moves a bar to so many finished parts."""

    def __call__(self, finished: int, note: str = "") -> None:
        """``note`` stands beside the bar."""


@contextlib.contextmanager
def progress_bar(title: str, total: int, completed: int = 0, *, shown: bool = True) -> Iterator[Move]:
    """Yield a function (finished, note) that moves a bar on standard error.

    On a file or pipe it writes some plain lines instead, and nothing at all where ``shown`` is False.
    """
    if not shown:

        def ignore(finished: int, note: str = "") -> None:
            pass

        yield ignore
        return
    console = Console(stderr=True)
    if not console.is_terminal:
        marks = iter(range(1, 11))
        due, begun = next(marks), time.monotonic()

        def lines(finished: int, note: str = "") -> None:
            nonlocal due
            if finished * 10 >= due * total:
                each = (time.monotonic() - begun) / max(finished - completed, 1)
                left = f"{each * (total - finished):.0f} s left" if finished < total else ""
                console.print(f"{title} {finished}/{total} {note} {left}".rstrip(), soft_wrap=True, highlight=False)
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
