"""How much of a chunk is executed before the policy decides again, and what the next chunk must continue; no torch."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowpolicy.core.errors import ConfigError
from flowpolicy.policy.committed import Committed
from flowpolicy.policy.previous import Previous


class ChunkQueue:
    """Actions waiting to be executed: the first ``execute`` of each chunk; the rest is what was planned beyond.

    Args:
        execute: actions per chunk that are executed, at least 1.

    """

    def __init__(self, execute: int) -> None:
        if execute < 1:
            raise ConfigError(f"a queue that executes {execute} actions of a chunk", expected="at least 1")
        self.execute = execute
        self._planned: deque[NDArray[Any]] = deque()
        self._left = 0
        self._executed: deque[NDArray[Any]] = deque(maxlen=256)

    @property
    def empty(self) -> bool:
        """Whether the policy must decide before the next action."""
        return not self.left

    @property
    def left(self) -> int:
        """Actions that are given before the policy decides again."""
        return min(self._left, len(self._planned))

    def push(self, chunk: NDArray[Any], skip: int = 0, execute: int | None = None) -> None:
        """Replace what is waiting by the actions of ``chunk`` (h, a) from row ``skip`` on.

        Args:
            chunk: row 0 is meant for the moment of the observation.
            skip: actions executed since. A chunk that is over by then gives its last row, once.
            execute: how many of this chunk's actions are executed, if not as many as of every other.

        """
        if chunk.ndim != 2 or not len(chunk) or skip < 0:
            raise ConfigError(
                f"a chunk of shape {tuple(chunk.shape)}, {skip} actions late", expected="one chunk (h, a), 0 or more"
            )
        self._planned = deque(np.array(chunk)[min(skip, len(chunk) - 1) :])
        self._left = self.execute if execute is None else execute

    def pop(self) -> NDArray[Any]:
        """The next action (a,). Raises IndexError when empty."""
        if not self._left:
            raise IndexError("pop from an empty queue")
        action = self._planned.popleft()
        self._left -= 1
        self._executed.append(action)
        return action

    def previous(self, chunk: int, age: int = 0) -> Previous | None:
        """What was done before an observation that is ``age`` actions old, as chunks of ``chunk`` rows.

        Returns:
            A batch of one, of arrays, or None where nothing was executed before.

        """
        done = list(self._executed)
        before, since = done[: len(done) - age], done[len(done) - age :]
        if not before:
            return None
        before = before[-chunk:]
        missing = chunk - len(before)
        executed = [np.zeros_like(before[0])] * missing + before
        plan = [*since, *self._planned] or [before[-1]]
        planned = (plan + [plan[-1]] * chunk)[:chunk]
        return Previous(_batch(executed), np.arange(chunk)[None] >= missing, _batch(planned))

    def committed(self, age: int, chunk: int, most: int) -> Committed | None:
        """What a chunk of ``chunk`` rows must begin with, given an observation that is ``age`` actions old.

        Args:
            age: actions executed since the observation.
            chunk: rows of a chunk.
            most: rows that may be committed; of more only the first ``most`` are.

        Returns:
            A batch of one, of arrays, or None where nothing is committed.

        """
        past = list(self._executed)[len(self._executed) - age :]
        length = min(age, most, chunk)
        if not length:
            return None
        plan = [*past, *self._planned][:chunk]
        overlap = len(plan)
        padded = _batch([*plan, *[np.zeros_like(plan[0])] * (chunk - overlap)])
        return Committed(padded, np.array([length]), np.array([max(overlap, length)]))


def _batch(rows: list[NDArray[Any]]) -> NDArray[np.float32]:
    batch: NDArray[np.float32] = np.stack(rows)[None].astype(np.float32)
    return batch
