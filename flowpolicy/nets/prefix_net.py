"""A flow network that can be told which rows of a chunk are already decided."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from flowpolicy.nets.trunk import FlowOutput, Trunk


class CommittedNet(nn.Module):
    """Wraps a flow network: what it says of committed rows is exactly zero, so no solver moves them.

    The first ``chunk`` entries of the condition are 1 where a row is committed, 0 where it is free; the network
    reads them, and the clean committed actions from ``x``. Safe under ``torch.func.jvp`` and ``torch.compile`` where
    the wrapped network is.

    Args:
        net: :class:`flowpolicy.nets.flow_nets.MapNet` or ``VelocityNet``, built for the longer condition.
        chunk: rows of a chunk.

    """

    def __init__(self, net: Any, chunk: int) -> None:
        super().__init__()
        self.net, self.chunk = net, chunk

    @property
    def trunk(self) -> Trunk:
        """Trunk of the wrapped network; the last columns that it sees are the encoder's, as without a prefix."""
        trunk: Trunk = self.net.trunk
        return trunk

    def forward(self, x: Float[Tensor, "b h a"], *times_and_cond: Tensor) -> FlowOutput:
        """Output of the network for chunks x; arguments as the wrapped network's."""
        output = self.net(x, *times_and_cond)
        return FlowOutput(output.value * self._free(times_and_cond[-1]), output.features)

    def with_tangent(
        self,
        x: Float[Tensor, "b h a"],
        s: Float[Tensor, " b"],
        t: Float[Tensor, " b"],
        cond: Float[Tensor, "b c"],
        dx: Float[Tensor, "b h a"],
        ds: Float[Tensor, " b"],
        skip: int,
    ) -> tuple[FlowOutput, Float[Tensor, "n h a"]]:
        """Output and directional derivative, see :meth:`flowpolicy.nets.flow_nets.MapNet.with_tangent`."""
        output, tangent = self.net.with_tangent(x, s, t, cond, dx, ds, skip)
        free = self._free(cond)
        return FlowOutput(output.value * free, output.features), tangent * free[skip:]

    def _free(self, cond: Float[Tensor, "b c"]) -> Float[Tensor, "b h 1"]:
        return 1 - cond[:, : self.chunk].unsqueeze(2)
