"""Timing on a machine that is not quiet: alternated rounds, medians, quartiles."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np

Rounds = dict[str, np.ndarray]
"""Name -> (rounds,) seconds per call."""


def alternate(
    work: Mapping[str, Callable[[], object]],
    rounds: int,
    calls: int,
    settle: Callable[[], object] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> Rounds:
    """Time ``calls`` calls of every entry of ``work`` in turn, ``rounds`` times over.

    What disturbs the machine for longer than a round disturbs all entries alike, so ratios inside one
    round hold where absolute times do not. ``settle`` waits for a device that works on after a call has returned.
    Processor time, ``clock=time.process_time``, leaves out who else computes; threads that wait in loops count in it.
    """
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds):
        for name, call in work.items():
            settle()
            start = clock()
            for _ in range(calls):
                call()
            settle()
            seconds[name].append((clock() - start) / calls)
    return {name: np.array(values) for name, values in seconds.items()}


def spread(values: np.ndarray) -> dict[str, float]:
    """Median and quartiles."""
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
    return {"median": float(median), "low": float(low), "high": float(high)}
