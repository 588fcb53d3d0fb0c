"""Velocities that grow or fade exponentially within a segment of a flow, integrated exactly (ArcFlow).

One evaluation at the start of a segment gives K modes m_k, rates g_k (the first is 0) and shares pi_k. After the time
tau the velocity is ``sum_k pi_k m_k exp(g_k tau)``; what it covers from tau on in the time D is
``D sum_k pi_k m_k exp(g_k tau) phi(g_k D)`` with ``phi(z) = (exp(z) - 1) / z``. Source: code pnotp/ArcFlow.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

_SMALL = 1e-3  # below, the series to the second power is exact to rounding in float32


def phi(z: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """``(exp(z) - 1) / z``, and 1 at 0."""
    small = z.abs() < _SMALL
    safe = torch.where(small, torch.ones_like(z), z)
    return torch.where(small, 1 + z / 2 + z.square() / 6, torch.expm1(safe) / safe)


class Momentum(NamedTuple):
    """The velocities of a segment."""

    modes: Float[Tensor, "b k *d"]
    """Velocities at the segment's start."""
    rates: Float[Tensor, "b k"]
    """How fast they grow; the first is 0."""
    logits: Float[Tensor, "b k"]
    """Logarithms of their shares, up to a constant."""

    def velocity(self, after: Float[Tensor, " b"]) -> Float[Tensor, "b *d"]:
        """Velocity at the time ``after`` the segment's start."""
        return self._sum((self.rates * after.unsqueeze(1)).exp())

    def displacement(self, after: Float[Tensor, " b"], span: Float[Tensor, " b"]) -> Float[Tensor, "b *d"]:
        """Way from the time ``after`` the segment's start on, in the time ``span``; exact."""
        grown = (self.rates * after.unsqueeze(1)).exp()
        return self._sum(span.unsqueeze(1) * grown * phi(self.rates * span.unsqueeze(1)))

    def without(self, dropped: Bool[Tensor, "b k"]) -> Momentum:
        """The segment without some modes; a row that would lose all of them keeps them."""
        kept = dropped & ~dropped.all(1, keepdim=True)
        return self._replace(logits=self.logits.masked_fill(kept, -torch.inf))

    def _sum(self, factor: Float[Tensor, "b k"]) -> Float[Tensor, "b *d"]:
        share = self.logits.softmax(1) * factor
        return (share.reshape(*share.shape, *[1] * (self.modes.ndim - 2)) * self.modes).sum(1)
