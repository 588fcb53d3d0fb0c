"""Network of a source that the observation shapes."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flowpolicy.nets.layers import gelu

_WIDTH = 128
_SPREAD = 4.0  # bound of the log variance: a source that has collapsed cannot come back


class SourceNet(nn.Module):
    """Mean and log variance of the noise, given the condition; exactly N(0, I) at the start.

    Args:
        cond: size of the condition.
        chunk: steps of a chunk.
        action: numbers of a step.

    """

    def __init__(self, cond: int, chunk: int, action: int) -> None:
        super().__init__()
        self.shape = (chunk, action)
        self.inlet = nn.Linear(cond, _WIDTH)
        self.outlet = nn.Linear(_WIDTH, 2 * chunk * action)
        nn.init.zeros_(self.outlet.weight)
        nn.init.zeros_(self.outlet.bias)

    def forward(self, cond: Float[Tensor, "b c"]) -> tuple[Float[Tensor, "b h a"], Float[Tensor, "b h a"]]:
        """Mean and log variance."""
        mean, spread = self.outlet(gelu(self.inlet(cond))).chunk(2, dim=1)
        return mean.unflatten(1, self.shape), (_SPREAD * torch.tanh(spread / _SPREAD)).unflatten(1, self.shape)
