"""Processor seconds from nothing to a command's end, over those of importing torch alone."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from flowpolicy.bench.timing import spread
from flowpolicy.core.errors import FlowPolicyError

TORCH = "import torch"
_COMMAND = ("-m", "flowpolicy")
_TRAIN = ("train", "debug", "--steps", "2", "--compile", "off", "--no-tensorboard")
_WORKER = "from flowpolicy.envs import find_env; find_env('lift').make(1).close()"

STARTS: dict[str, tuple[str, ...]] = {
    TORCH: ("-c", TORCH),
    "--help": (*_COMMAND, "--help"),
    "train debug --help": (*_COMMAND, "train", "debug", "--help"),
    "train debug, two updates": (*_COMMAND, *_TRAIN, "--data.path", "@data", "--out", "@out"),
    "a Lift worker": ("-c", _WORKER),
}
"""Arguments of Python by what is measured; ``@data`` is a toy file, ``@out`` a folder that is not there."""


def bench_startup(rounds: int = 5, starts: Mapping[str, Sequence[str]] = STARTS) -> dict[str, Any]:
    """Start every program in turn, ``rounds`` times over, one thread each; processor time of it and its children.

    Args:
        rounds: alternated rounds, after one that is not counted.
        starts: arguments of Python by name; ``import torch`` is among them.

    Returns:
        ``cpu_s`` by name and ``ratios`` to ``import torch`` inside a round: median and quartiles.

    Raises:
        FlowPolicyError: a program fails.

    """
    seconds: dict[str, list[float]] = {name: [] for name in starts}
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "toy.hdf5"
        if any("@data" in arguments for arguments in starts.values()):
            _seconds([*_COMMAND, "data", "make", "toy", "--episodes", "20", "--out", str(data)])
        for _ in range(rounds + 1):
            for name, arguments in starts.items():
                places = {"@data": str(data), "@out": str(Path(scratch) / f"{len(seconds[name])} {name}")}
                seconds[name].append(_seconds([places.get(word, word) for word in arguments]))
    found = {name: np.array(values[1:]) for name, values in seconds.items()}
    return {
        "rounds": rounds,
        "cpu_s": {name: spread(values) for name, values in found.items()},
        "ratios": {name: spread(values / found[TORCH]) for name, values in found.items() if name != TORCH},
    }


def startup_table(result: dict[str, Any]) -> Table:
    """The result of :func:`bench_startup` for the console."""
    table = Table(title="processor time from nothing to the end, one thread")
    for column in ("", "median", "quartiles", f"over {TORCH}"):
        table.add_column(column, justify="left" if not column else "right")
    for name, value in result["cpu_s"].items():
        ratio = result["ratios"].get(name)
        times = "" if ratio is None else f"{ratio['median']:.2f}"
        table.add_row(name, f"{value['median']:.2f} s", f"{value['low']:.2f} - {value['high']:.2f}", times)
    return table


def _seconds(arguments: Sequence[str]) -> float:
    before = _used()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise FlowPolicyError(f"python {' '.join(arguments)} failed: {done.stderr.strip()[-2000:]}")
    return _used() - before


def _used() -> float:
    """Processor seconds of all programs that have been waited for, and of those that they waited for."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return children.ru_utime + children.ru_stime
