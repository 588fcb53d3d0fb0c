"""Actions of the previous chunk that the next one must continue: real-time chunking."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from flowpolicy.flows.real_time import committed_rows


class Committed(NamedTuple):
    """The previous chunk, shifted so that its row 0 is the action taken right after the observation.

    The first ``length`` rows are executed while the policy computes: they were decided before, and nothing can
    change them. Counted in actions that the robot consumed since the observation, not estimated from times.
    """

    action: Float[Tensor, "b h a"]
    """In environment units; rows from ``overlap`` on mean nothing."""
    length: Int64[Tensor, " b"]
    """Committed rows, 0 or more."""
    overlap: Int64[Tensor, " b"]
    """Rows that the previous chunk had planned, at least ``length``."""

    @property
    def rows(self) -> Bool[Tensor, "b h"]:
        """Which rows are committed."""
        return committed_rows(self.length, self.action.shape[1])

    def impose(self, chunk: Float[Tensor, "b h a"]) -> Float[Tensor, "b h a"]:
        """``chunk`` with the committed rows put in, bit for bit."""
        return torch.where(self.rows.unsqueeze(2), self.action, chunk)
