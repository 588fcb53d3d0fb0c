"""Actions of the previous chunk that the next one must continue: real-time chunking."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flowpolicy.policy.inputs import require_numbers


class Committed(NamedTuple):
    """The previous chunk, shifted so that its row 0 is the action taken right after the observation.

    The first ``length`` rows are executed while the policy computes: they were decided before, and nothing can
    change them. Counted in actions that the robot consumed since the observation, not estimated from times.
    Arrays where they are kept, tensors where a policy continues them.
    """

    action: Any
    """(b, h, a) in environment units; rows from ``overlap`` on mean nothing."""
    length: Any
    """(b,) int64, committed rows, 0 or more."""
    overlap: Any
    """(b,) int64, rows that the previous chunk had planned, at least ``length``."""

    @classmethod
    def of(cls, rows: Sequence[NDArray[Any] | None], shape: tuple[int, int]) -> Committed:
        """A batch of arrays from the committed actions (n, a) of every row, None for none.

        Args:
            rows: of every decision.
            shape: of a chunk, (h, a).

        Raises:
            ConfigError: more actions than a chunk has, or of another size.

        """
        action, length = np.zeros((len(rows), *shape), np.float32), np.zeros(len(rows), np.int64)
        for row, given in enumerate(rows):
            if given is not None:
                length[row] = len(given)
                require_numbers("the committed actions", given, (min(len(given), shape[0]), shape[1]))
                action[row, : len(given)] = given
        return cls(action, length, length)

    @property
    def rows(self) -> Any:
        """(b, h) bool tensor: which rows are committed; of tensors."""
        from flowpolicy.flows.real_time import committed_rows

        return committed_rows(self.length, self.action.shape[1])

    def impose(self, chunk: Any) -> Any:
        """A tensor ``chunk`` (b, h, a) with the committed rows put in, bit for bit; of tensors."""
        return self.action.where(self.rows.unsqueeze(2), chunk)
