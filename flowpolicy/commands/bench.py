"""``flowpolicy bench update|latency|data|rollout``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from flowpolicy.commands.arguments import call, pick
from flowpolicy.core.files import write_json


def run(argv: Sequence[str]) -> int:
    """Measure one kind of speed."""
    table = {
        "update": ("gradient step of MeanFlow over flow matching and over the bare matrix products", update),
        "latency": ("one-step latency over the bare matrix-vector products of the same weights", latency),
        "data": ("share of an update spent on sampling its batch", data),
        "rollout": ("environment steps per second over those of the bare simulator", rollout),
    }
    name, rest = pick(argv, table, "bench", "measurement")
    return call(table[name][1], rest, f"bench {name}")
