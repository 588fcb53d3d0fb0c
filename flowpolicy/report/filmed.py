"""Films and traces on a page: which of them fit, and how a trace is written small."""

from __future__ import annotations

import base64
import dataclasses
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowpolicy.report.blocks import rounded

_LEVELS = 65_534
_MISSING = 65_535
"""Written where a value is not finite."""


@dataclasses.dataclass(frozen=True)
class Traces:
    """T steps of an episode as a page shows them."""

    groups: Mapping[str, NDArray[Any]]
    """Name -> (T, d), drawn as one chart each."""
    rate_hz: float
    """Steps per second of the film."""
    decisions: tuple[int, ...] = ()
    """Steps at which a new chunk begins."""
    flags: tuple[tuple[int, str], ...] = ()
    """Steps at which something was found, and what."""

    @property
    def steps(self) -> int:
        """T."""
        return max((len(values) for values in self.groups.values()), default=0)

    def to_json(self, most: int = 400) -> str:
        """JSON text: 16 bits a number, and no more rows than ``most``, evenly spread."""
        rows = np.unique(np.linspace(0, self.steps - 1, min(self.steps, most)).round().astype(int))
        value = {
            "rate": self.rate_hz,
            "steps": self.steps,
            "rows": rows.tolist() if len(rows) < self.steps else None,
            "decisions": list(self.decisions),
            "flags": [list(flag) for flag in self.flags],
            "groups": [_packed(name, values[rows]) for name, values in self.groups.items() if values.size],
        }
        return json.dumps(value, separators=(",", ":"), allow_nan=False)


def _packed(name: str, values: NDArray[Any]) -> dict[str, Any]:
    """(points, d) as 16-bit steps between the ends of every dimension, dimension by dimension."""
    values = values.reshape(len(values), -1).T.astype(np.float64)
    finite = np.isfinite(values)
    low = np.where(finite, values, np.inf).min(1, initial=np.inf)
    high = np.where(finite, values, -np.inf).max(1, initial=-np.inf)
    low, high = np.where(np.isfinite(low), low, 0.0), np.where(np.isfinite(high), high, 0.0)
    span = np.where(high > low, high - low, 1.0)[:, None]
    steps = np.where(finite, (np.where(finite, values, low[:, None]) - low[:, None]) / span * _LEVELS, _MISSING)
    data = base64.b64encode(steps.round().astype("<u2").tobytes()).decode()
    return {"name": name, "low": rounded(low), "high": rounded(np.where(high > low, high, low + 1.0)), "data": data}


@dataclasses.dataclass(frozen=True)
class Film:
    """A video of an episode, unread."""

    size: int
    """Bytes."""
    read: Callable[[], bytes]


def film_of(path: Path) -> Film:
    """The video in a file."""
    return Film(path.stat().st_size, path.read_bytes)


def chosen_films(films: Sequence[tuple[Any, str, Film]], budget: int) -> set[int]:
    """Numbers of the films that fit into a budget of bytes: by turns of every owner, failures first, in their order.

    Args:
        films: owner, outcome ('failure', 'success' or '') and film.
        budget: bytes of all together.

    """
    queues: dict[tuple[Any, str], list[int]] = {}
    for number, (owner, outcome, _) in enumerate(films):
        queues.setdefault((owner, outcome), []).append(number)
    order = sorted(queues, key=lambda key: key[1] != "failure")
    turns = itertools.chain.from_iterable(itertools.zip_longest(*(queues[key] for key in order)))
    chosen, spent = set(), 0
    for number in turns:
        if number is not None and spent + films[number][2].size <= budget:
            chosen.add(number)
            spent += films[number][2].size
    return chosen
