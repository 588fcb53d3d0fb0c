"""Committed actions in NumPy: what :class:`flowpolicy.nets.committed.CommittedNet` and the policy around it do."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from flowpolicy.policy.engines.engine import Buffers
from flowpolicy.policy.engines.tape import Rows, Tape


class Commitment:
    """Records which rows of a chunk are committed and what follows from it.

    Args:
        rows: tape with one row per observation.
        all_rows: the same tape with one row per candidate.
        buffers: with committed actions and their number.
        weights: ``action.offset``, ``action.scale`` and ``action.limit``.

    """

    def __init__(
        self, rows: Tape, all_rows: Tape, buffers: Buffers, weights: Mapping[str, Float[np.ndarray, "..."]]
    ) -> None:
        assert buffers.committed is not None and buffers.length is not None
        batch, chunk, size = buffers.committed.shape
        candidates = all_rows.rows // batch
        self._rows, self._all = rows, all_rows
        self._step = np.zeros((batch, chunk), np.bool_)
        self._one = np.zeros((batch, chunk * size), np.bool_)  # one per number of a chunk
        self._each = np.zeros((batch, candidates, chunk * size), np.bool_)
        index = np.broadcast_to(np.arange(chunk), (batch, chunk))
        rows.call(np.less, index, buffers.length[:, None], self._step)
        rows.call(np.copyto, self._one.reshape(batch, chunk, size), self._step[:, :, None])
        rows.call(np.copyto, self._each, self._one[:, None])
        self.free = all_rows.buffer(chunk * size)
        """1 in the rows that are free, 0 in the committed ones."""
        rows.call(np.logical_not, self._each.reshape(self.free.shape), self.free)
        self._given = buffers.committed.reshape(batch, chunk * size)
        offset, scale, limit = (np.tile(weights[f"action.{name}"], chunk) for name in ("offset", "scale", "limit"))
        scaled = rows.multiply(rows.add(self._given, rows.spread(-offset)), rows.spread(scale))
        self._action = rows.clamp(scaled, rows.spread(-limit), rows.spread(limit))

    def told(self, mask: Rows) -> None:
        """Write 1 for every committed row, (b, h)."""
        self._rows.call(np.copyto, mask, self._step)

    def imposed(self, noise: Rows, target: Rows) -> None:
        """Write the noise with the committed actions, normalised, put in."""
        shape = self._each.shape
        self._rows.call(np.copyto, target, noise)
        self._rows.call(_put, target.reshape(shape), self._action[:, None], self._each)

    def only(self, x: Rows) -> None:
        """Set everything but the committed actions to zero."""
        self._all.multiply(x, self._all.add(self._all.multiply(self.free, self._minus()), self._ones()), x)

    def returned(self, chunk: Rows) -> None:
        """Put the committed actions into the finished chunk, bit for bit."""
        self._rows.call(_put, chunk, self._given, self._one)

    def _minus(self) -> Rows:
        return self._all.full(-1.0, self.free.shape[1])

    def _ones(self) -> Rows:
        return self._all.full(1.0, self.free.shape[1])


def _put(target: np.ndarray, value: np.ndarray, where: np.ndarray) -> None:
    np.copyto(target, value, where=where)
