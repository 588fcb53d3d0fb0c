"""Bounded features of flow times."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn


class TimeFeatures(nn.Module):
    """``[t, sin(w t), cos(w t)]`` with angular frequencies w geometric from pi/2 to ``highest``.

    Derivatives are bounded by ``highest``. The usual frequencies below 1 cannot tell apart times near the data;
    see the two flow networks for what each of them needs. Deterministic, no parameters; safe under
    ``torch.func.jvp`` and ``torch.compile``.

    Args:
        frequencies: number of frequencies; the features have size ``1 + 2 * frequencies``.
        highest: largest angular frequency, rad per unit of flow time.

    """

    def __init__(self, frequencies: int, highest: float) -> None:
        super().__init__()
        self.size = 1 + 2 * frequencies
        angular = torch.logspace(math.log10(math.pi / 2), math.log10(highest), frequencies)
        self.register_buffer("angular", angular, persistent=False)
        self.angular: Tensor

    def forward(self, t: Float[Tensor, " b"]) -> Float[Tensor, "b e"]:
        """Features of times in [0, 1]."""
        angle = t.unsqueeze(1) * self.angular
        return torch.cat([t.unsqueeze(1), angle.sin(), angle.cos()], dim=1)

    def derivative(self, t: Float[Tensor, " b"]) -> Float[Tensor, "b e"]:
        """Derivative of :meth:`forward` with respect to t."""
        angle = t.unsqueeze(1) * self.angular
        slope = torch.cat([self.angular * angle.cos(), -self.angular * angle.sin()], dim=1)
        return torch.cat([torch.ones_like(t).unsqueeze(1), slope], dim=1)
