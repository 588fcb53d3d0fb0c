"""Residual MLP over the flattened chunk, with its directional derivative written out."""

from __future__ import annotations

import dataclasses

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from flowpolicy.nets.layers import LayerNorm, gelu, gelu_derivative
from flowpolicy.nets.trunk import FlowOutput, Trunk


@dataclasses.dataclass(frozen=True)
class MLP:
    """Residual MLP over the flattened chunk: the fastest trunk, for short chunks."""

    width: int = 512
    """Size of every hidden layer."""
    depth: int = 4
    """Number of hidden layers."""

    def build(self, action: int, chunk: int, cond: int, time: int) -> ResidualMLP:
        """The trunk for chunks of ``chunk`` actions of size ``action``."""
        return ResidualMLP(self, action, chunk, cond, time)


class ResidualMLP(Trunk):
    """``h = in(x, time, cond)``; ``h += W gelu(norm(h))`` depth - 1 times; ``out(gelu(norm(h)))``.

    Normalisation before each block keeps the identity path open, so depth does not slow training; the cost is
    that of a plain MLP of the same depth. The last layer starts at zero: the first MeanFlow targets then are the
    velocities alone, free of the derivative of a random network.

    Safe under ``torch.func.jvp`` and ``torch.compile``; :meth:`with_tangent` needs no jvp. It shares the forward
    pass and leaves out the condition, which does not move, and the rows before ``skip``.
    """

    def __init__(self, config: MLP, action: int, chunk: int, cond: int, time: int) -> None:
        super().__init__()
        self.moving = chunk * action + time
        self.inlet = nn.Linear(self.moving + cond, config.width)
        self.blocks = nn.ModuleList(nn.Linear(config.width, config.width) for _ in range(config.depth - 1))
        self.norms = nn.ModuleList(LayerNorm(config.width) for _ in range(config.depth))
        self.outlet = nn.Linear(config.width, chunk * action)
        nn.init.zeros_(self.outlet.weight)
        nn.init.zeros_(self.outlet.bias)

    def forward(self, x: Float[Tensor, "b h a"], time: Float[Tensor, "b e"], cond: Float[Tensor, "b c"]) -> FlowOutput:
        """Output for chunks x at times with features ``time``."""
        hidden = self._hidden(x, time, cond)
        return self._output(x, hidden)

    def with_tangent(
        self,
        x: Float[Tensor, "b h a"],
        time: Float[Tensor, "b e"],
        cond: Float[Tensor, "b c"],
        dx: Float[Tensor, "b h a"],
        dtime: Float[Tensor, "b e"],
        skip: int,
    ) -> tuple[FlowOutput, Float[Tensor, "n h a"]]:
        """Output of all rows, and its derivative along (dx, dtime) for the n = b - skip last rows."""
        hidden = self._hidden(x, time, cond)
        output = self._output(x, hidden)
        with torch.no_grad():
            moving = torch.cat([dx[skip:].flatten(1), dtime[skip:]], dim=1)
            tangent = functional.linear(moving, self.inlet.weight[:, : self.moving])
            for state, norm, block in zip(hidden[:-1], self.norms[:-1], self.blocks, strict=True):
                tangent = tangent + functional.linear(_slope(norm, state[skip:], tangent), block.weight)
            tangent = functional.linear(_slope(self.norms[-1], hidden[-1][skip:], tangent), self.outlet.weight)
        return output, tangent.reshape(dx[skip:].shape)

    def _hidden(self, x: Tensor, time: Tensor, cond: Tensor) -> list[Tensor]:
        states = [self.inlet(torch.cat([x.flatten(1), time, cond], dim=1))]
        for norm, block in zip(self.norms[:-1], self.blocks, strict=True):
            states.append(states[-1] + block(gelu(norm(states[-1]))))
        return states

    def _output(self, x: Tensor, hidden: list[Tensor]) -> FlowOutput:
        value = self.outlet(gelu(self.norms[-1](hidden[-1]))).reshape(x.shape)
        return FlowOutput(value, {"trunk": hidden[min(1, len(hidden) - 1)]})


def _slope(norm: nn.Module, state: Tensor, tangent: Tensor) -> Tensor:
    """Derivative of ``gelu(norm(state))`` along ``tangent``."""
    return gelu_derivative(norm(state)) * norm.derivative(state, tangent)
