"""How much of a chunk is executed before the policy decides again."""

from __future__ import annotations

from collections import deque

from jaxtyping import Float
from torch import Tensor


class ChunkQueue:
    """Actions waiting to be executed: the first ``execute`` of each chunk; the rest is discarded.

    Args:
        execute: actions per chunk that are executed, at least 1.

    """

    def __init__(self, execute: int) -> None:
        self.execute = execute
        self._waiting: deque[Tensor] = deque()

    @property
    def empty(self) -> bool:
        """Whether the policy must decide before the next action."""
        return not self._waiting

    def push(self, chunk: Float[Tensor, "h a"]) -> None:
        """Replace what is waiting by the first actions of ``chunk``."""
        self._waiting = deque(chunk[: self.execute])

    def pop(self) -> Float[Tensor, " a"]:
        """The next action. Raises IndexError when empty."""
        return self._waiting.popleft()
