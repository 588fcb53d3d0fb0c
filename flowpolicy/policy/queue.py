"""How much of a chunk is executed before the policy decides again, and what the next chunk must continue."""

from __future__ import annotations

from collections import deque

import torch
from jaxtyping import Float
from torch import Tensor

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
        self._planned: deque[Tensor] = deque()
        self._left = 0
        self._executed: deque[Tensor] = deque(maxlen=256)

    @property
    def empty(self) -> bool:
        """Whether the policy must decide before the next action."""
        return not (self._left and self._planned)

    def push(self, chunk: Float[Tensor, "h a"], skip: int = 0) -> None:
        """Replace what is waiting by the actions of ``chunk`` from row ``skip`` on.

        Args:
            chunk: row 0 is meant for the moment of the observation.
            skip: actions executed since. A chunk that is over by then gives its last row, once.

        """
        if chunk.ndim != 2 or not len(chunk) or skip < 0:
            raise ConfigError(
                f"a chunk of shape {tuple(chunk.shape)}, {skip} actions late", expected="one chunk (h, a), 0 or more"
            )
        self._planned = deque(chunk[min(skip, len(chunk) - 1) :])
        self._left = self.execute

    def pop(self) -> Float[Tensor, " a"]:
        """The next action. Raises IndexError when empty."""
        if not self._left:
            raise IndexError("pop from an empty queue")
        action = self._planned.popleft()
        self._left -= 1
        self._executed.append(action)
        return action

    def previous(self, chunk: int, age: int = 0) -> Previous | None:
        """What was done before an observation that is ``age`` actions old, as chunks of ``chunk`` rows.

        Returns:
            A batch of one, or None where nothing was executed before.

        """
        done = list(self._executed)
        before, since = done[: len(done) - age], done[len(done) - age :]
        if not before:
            return None
        before = before[-chunk:]
        missing = chunk - len(before)
        executed = torch.stack([torch.zeros_like(before[0])] * missing + before)
        plan = [*since, *self._planned] or [before[-1]]
        planned = torch.stack((plan + [plan[-1]] * chunk)[:chunk])
        return Previous(executed[None], (torch.arange(chunk) >= missing)[None], planned[None])

    def committed(self, age: int, chunk: int, most: int) -> Committed | None:
        """What a chunk of ``chunk`` rows must begin with, given an observation that is ``age`` actions old.

        Args:
            age: actions executed since the observation.
            chunk: rows of a chunk.
            most: rows that may be committed; of more only the first ``most`` are.

        Returns:
            A batch of one, or None where nothing is committed.

        """
        past = list(self._executed)[len(self._executed) - age :]
        length = min(age, most, chunk)
        if not length:
            return None
        plan = torch.stack([*past, *self._planned][:chunk])
        overlap = len(plan)
        padded = torch.cat([plan, plan.new_zeros(chunk - overlap, plan.shape[1])])
        return Committed(padded[None], torch.tensor([length]), torch.tensor([max(overlap, length)]))
