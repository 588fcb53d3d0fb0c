"""Network of a segment head: several velocities, their rates and their shares from one forward pass."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from flowpolicy.nets.flow_nets import TrunkConfig
from flowpolicy.nets.time_features import TimeFeatures
from flowpolicy.nets.trunk import FlowOutput, Trunk


class SegmentNet(nn.Module):
    """Modes and their numbers, side by side in every step of a chunk; any trunk serves.

    The trunk sees the chunk once per mode and empty columns for the numbers, of which a chunk has one each: the mean
    over its steps. See :meth:`flowpolicy.flows.axes.segments.Segment.read`.
    """

    def __init__(self, trunk: TrunkConfig, action: int, chunk: int, cond: int, modes: int) -> None:
        super().__init__()
        self.modes = modes
        self.times = TimeFeatures(8, highest=30.0)
        self.trunk: Trunk = trunk.build(action * modes + 2 * modes - 1, chunk, cond, self.times.size)

    def forward(self, x: Float[Tensor, "b h a"], t: Float[Tensor, " b"], cond: Float[Tensor, "b c"]) -> FlowOutput:
        """Modes and numbers, (b, h, k a + 2 k - 1), of segments that start at x and t."""
        wide = functional.pad(torch.cat([x] * self.modes, dim=2), (0, 2 * self.modes - 1))
        output: FlowOutput = self.trunk(wide, self.times(t), cond)
        return output
