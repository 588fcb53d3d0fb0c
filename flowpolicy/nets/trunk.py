"""What every trunk is: a network over a noisy chunk that can also give its directional derivative."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn


class FlowOutput(NamedTuple):
    """Output of a trunk or of a flow network."""

    value: Float[Tensor, "b h a"]
    """Velocity, or mean velocity."""
    features: dict[str, Float[Tensor, "b _"]]
    """``trunk``: activation after the first block; same forward pass, gradient attached."""


class Trunk(nn.Module):
    """Base of the trunks: ``forward(x (b, h, a), time (b, e), cond (b, c)) -> FlowOutput``."""

    def with_tangent(
        self,
        x: Float[Tensor, "b h a"],
        time: Float[Tensor, "b e"],
        cond: Float[Tensor, "b c"],
        dx: Float[Tensor, "b h a"],
        dtime: Float[Tensor, "b e"],
        skip: int,
    ) -> tuple[FlowOutput, Float[Tensor, "n h a"]]:
        """Output of all rows, and its derivative along (dx, dtime) for the n = b - skip last rows.

        The condition does not move. The derivative carries no graph. This default repeats the forward pass of
        those rows under ``torch.func.jvp``.
        """
        output = self(x, time, cond)
        with torch.no_grad():
            tangent = torch.func.jvp(
                lambda x, time: self(x, time, cond[skip:]).value, (x[skip:], time[skip:]), (dx[skip:], dtime[skip:])
            )[1]
        return output, tangent
