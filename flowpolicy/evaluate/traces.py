"""What a filmed episode did, in numbers: actions, observations and where the policy decided, beside its video.

::

    RUN/videos/episode_0007-PLAN-step300-..._success.mp4
    RUN/videos/episode_0007-PLAN-step300-..._success.json    the trace of the same episode
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowpolicy.core.errors import EvaluationError
from flowpolicy.core.files import read_json, write_text

SCHEMA = 1
_DIGITS = 5


@dataclasses.dataclass(frozen=True, eq=False)
class Trace:
    """T steps of an episode."""

    action: NDArray[Any]
    """(T, a) as executed, in environment units."""
    obs: dict[str, NDArray[Any]]
    """State that the policy sees -> (T, d) before the action of the same row; a row that was not taken is NaN."""
    reward: NDArray[Any]
    """(T,)."""
    decisions: tuple[int, ...]
    """Steps, counted from 0, at which a new chunk begins."""
    rate_hz: float = 0.0
    """Steps per second of the film beside it; 0 where there is none."""


def save_trace(path: Path, trace: Trace) -> None:
    """Write a trace as JSON of five significant digits, atomically."""
    value = {
        "schema": SCHEMA,
        "rate_hz": trace.rate_hz,
        "decisions": list(trace.decisions),
        "action": _rounded(trace.action),
        "obs": {name: _rounded(column) for name, column in trace.obs.items()},
        "reward": _rounded(trace.reward),
    }
    write_text(path, json.dumps(value, separators=(",", ":"), allow_nan=False) + "\n")


def load_trace(path: Path) -> Trace:
    """Read a trace written by :func:`save_trace`.

    Raises:
        EvaluationError: another schema, a missing key, or columns that do not fit together.

    """
    value = read_json(path)
    if not isinstance(value, dict) or value.get("schema") != SCHEMA:
        raise EvaluationError(f"{path} is not a trace of schema {SCHEMA}", fix="run flowpolicy eval again")
    try:
        trace = Trace(
            action=np.array(value["action"], dtype=np.float64),
            obs={str(name): _numbers(column) for name, column in value["obs"].items()},
            reward=np.array(value["reward"], dtype=np.float64),
            decisions=tuple(int(step) for step in value["decisions"]),
            rate_hz=float(value["rate_hz"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise EvaluationError(f"{path} is damaged: {error}", fix="run flowpolicy eval again") from error
    steps = len(trace.action)
    uneven = len(trace.reward) != steps or any(len(c) != steps or c.ndim != 2 for c in trace.obs.values())
    if trace.action.ndim != 2 or uneven:
        raise EvaluationError(f"{path} is damaged: its columns differ in length", fix="run flowpolicy eval again")
    return trace


def _rounded(values: NDArray[Any]) -> list[Any]:
    if values.ndim > 1:
        return [_rounded(row) for row in values]
    return [float(f"{value:.{_DIGITS}g}") if np.isfinite(value) else None for value in values.tolist()]


def _numbers(column: list[list[float | None]]) -> NDArray[Any]:
    return np.array([[np.nan if value is None else value for value in row] for row in column], dtype=np.float64)
