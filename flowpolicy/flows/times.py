"""Laws of the flow times that a loss is evaluated at. Noise at t = 0, data at t = 1.

Published laws are mostly stated with data at 0. A logit-normal time reversed is logit-normal with the
opposite mean (``1 - sigmoid(z) = sigmoid(-z)``), so MeanFlow's LN(-0.4, 1) is LN(+0.4, 1) here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from flowpolicy.core.errors import ConfigError
from flowpolicy.core.ranges import Positive


def uniform(batch: int, generator: torch.Generator) -> Float[Tensor, " b"]:
    """Times uniform on [0, 1)."""
    return torch.rand(batch, generator=generator, device=generator.device)


def logit_normal(batch: int, generator: torch.Generator, mean: float, std: float) -> Float[Tensor, " b"]:
    """Times ``sigmoid(mean + std z)``, z standard normal (Esser et al. 2024, arXiv 2403.03206)."""
    return torch.sigmoid(mean + std * torch.randn(batch, generator=generator, device=generator.device))


class TimePair(NamedTuple):
    """Intervals [s, t], one per row, s the noisier end; 0 <= s <= t <= 1."""

    s: Float[Tensor, " b"]
    t: Float[Tensor, " b"]


@dataclass(frozen=True)
class PairLaw:
    """Law of the intervals [s, t] of the MeanFlow loss (MeanFlow, arXiv 2505.13447, sections 3 and 4.3).

    The published law almost never draws the interval (0, 1), the only one a one-step policy is asked for
    (4 of a million rows), so a share of the rows ends at the data, half of it starting at pure noise.
    The shares are exact counts, not probabilities: every batch holds them.
    """

    share_diagonal: float = 0.25
    """Share of rows with s = t, where the loss is plain velocity matching."""
    share_endpoint: float = 0.15
    """Share of rows with t = 1: half of them with s = 0, the others with s uniform on (0, 1/2)."""
    share_uniform: float = 0.5
    """In all other rows: probability that a time is uniform rather than logit-normal."""
    logit_mean: float = 0.4
    """Mean of the logit-normal times, counted with data at 1 (the published -0.4 counts from the data)."""
    logit_std: Positive = 1.0
    """Standard deviation of the logit-normal times before the sigmoid."""

    def __post_init__(self) -> None:
        shares = (self.share_diagonal, self.share_endpoint, self.share_uniform)
        if not all(0 <= share <= 1 for share in shares) or self.share_diagonal + self.share_endpoint > 1:
            raise ConfigError(
                f"PairLaw has the shares diagonal {shares[0]}, endpoint {shares[1]}, uniform {shares[2]}",
                expected="shares in [0, 1], diagonal and endpoint together at most 1",
            )

    def diagonal_rows(self, batch: int) -> int:
        """Number of leading rows with s = t."""
        return math.floor(self.share_diagonal * batch)

    def endpoint_rows(self, batch: int) -> int:
        """Number of rows with t = 1, right after the diagonal ones."""
        return math.floor(self.share_endpoint * batch)

    def draw(self, batch: int, generator: torch.Generator) -> TimePair:
        """Draw ``batch`` intervals: diagonal rows first, then endpoint rows, then sorted pairs.

        The order lets the loss compute tangents for the rows after the diagonal ones only; it mixes with
        nothing, because the rows of a batch are themselves independent draws.
        """
        diagonal, endpoint = self.diagonal_rows(batch), self.endpoint_rows(batch)
        first, second = self._times(batch, generator), self._times(batch, generator)
        s, t = torch.minimum(first, second), torch.maximum(first, second)
        s[:diagonal] = t[:diagonal] = first[:diagonal]
        t[diagonal : diagonal + endpoint] = 1.0
        start = 0.5 * uniform(endpoint, generator)
        start[: (endpoint + 1) // 2] = 0.0
        s[diagonal : diagonal + endpoint] = start
        return TimePair(s, t)

    def _times(self, batch: int, generator: torch.Generator) -> Float[Tensor, " b"]:
        flat = uniform(batch, generator)
        peaked = logit_normal(batch, generator, self.logit_mean, self.logit_std)
        return torch.where(uniform(batch, generator) < self.share_uniform, flat, peaked)
