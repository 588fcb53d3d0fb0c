"""The console that tables are printed on."""

from __future__ import annotations

from rich.console import Console

WIDTH = 120
"""Columns of a file or a pipe, where rich would fold tables at 80."""


def console() -> Console:
    """Standard output: a terminal at its own width, anything else at :data:`WIDTH` columns."""
    found = Console()
    return found if found.is_terminal else Console(width=WIDTH)
