"""Residual MLP over the flattened chunk, with its directional derivative written out."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from flowpolicy.core.ranges import Depth, Width
from flowpolicy.nets.layers import LayerNorm, gelu, gelu_derivative
from flowpolicy.nets.trunk import FlowOutput, Trunk


@dataclasses.dataclass(frozen=True)
class MLP:
    """Residual MLP over the flattened chunk: the fastest trunk, for short chunks."""

    width: Width = 512
    """Size of every hidden layer."""
    depth: Depth = 4
    """Number of hidden layers."""
    bypass: bool = False
    """Also add the noisy chunk itself, every number of it times a factor that depends on the time. Noise has to be
    taken away to the last bit, and all of it does not pass through a narrow layer."""

    def build(self, action: int, chunk: int, cond: int, time: int) -> ResidualMLP:
        """The trunk for chunks of ``chunk`` actions of size ``action``."""
        return ResidualMLP(self, action, chunk, cond, time)


class ResidualMLP(Trunk):
    """``h = inlet(x, time, cond)``, then depth - 1 times ``h += W gelu(norm(h))``, then ``W gelu(norm(h))``.

    With a bypass ``x * (W time)`` is added to that. Normalisation before each block keeps the identity path open, so
    depth does not slow training; the cost is that of a plain MLP of the same depth. The last layer starts at zero: the
    first MeanFlow targets then are the velocities alone, free of the derivative of a random network.

    Safe under ``torch.func.jvp`` and ``torch.compile``; :meth:`with_tangent` needs no jvp. It shares the forward
    pass and leaves out the condition, which does not move, and the rows before ``skip``.
    """

    def __init__(self, config: MLP, action: int, chunk: int, cond: int, time: int) -> None:
        super().__init__()
        self.moving = chunk * action + time
        self.inlet = nn.Linear(self.moving + cond, config.width)
        self.blocks = nn.ModuleList(_Layer(config.width, config.width) for _ in range(config.depth - 1))
        self.outlet = _Layer(config.width, chunk * action)
        nn.init.zeros_(self.outlet.linear.weight)
        nn.init.zeros_(self.outlet.linear.bias)
        self.bypass = nn.Linear(time, chunk * action) if config.bypass else None
        if self.bypass is not None:
            nn.init.zeros_(self.bypass.weight)
            nn.init.zeros_(self.bypass.bias)

    def forward(self, x: Float[Tensor, "b h a"], time: Float[Tensor, "b e"], cond: Float[Tensor, "b c"]) -> FlowOutput:
        """Output for chunks x at times with features ``time``."""
        hidden = self._hidden(x, time, cond)
        return self._output(x, time, hidden)

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
        output = self._output(x, time, hidden)
        with torch.no_grad():
            moving = torch.cat([dx[skip:].flatten(1), dtime[skip:]], dim=1)
            tangent = functional.linear(moving, self.inlet.weight[:, : self.moving])
            for state, block in zip(hidden[:-1], cast("Iterable[_Layer]", self.blocks), strict=True):
                tangent = tangent + block.derivative(state[skip:], tangent)
            tangent = self.outlet.derivative(hidden[-1][skip:], tangent)
            if self.bypass is not None:
                tangent = tangent + self.bypass(time[skip:]) * dx[skip:].flatten(1)
                tangent = tangent + functional.linear(dtime[skip:], self.bypass.weight) * x[skip:].flatten(1)
        return output, tangent.reshape(dx[skip:].shape)

    def _hidden(self, x: Tensor, time: Tensor, cond: Tensor) -> list[Tensor]:
        states = [self.inlet(torch.cat([x.flatten(1), time, cond], dim=1))]
        for block in self.blocks:
            states.append(states[-1] + block(states[-1]))
        return states

    def _output(self, x: Tensor, time: Tensor, hidden: list[Tensor]) -> FlowOutput:
        value = self.outlet(hidden[-1])
        if self.bypass is not None:
            value = value + self.bypass(time) * x.flatten(1)
        return FlowOutput(value.reshape(x.shape), {"trunk": hidden[min(1, len(hidden) - 1)]})


class _Layer(nn.Module):
    """``linear(gelu(norm(x)))`` and its derivative."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm = LayerNorm(inputs)
        self.linear = nn.Linear(inputs, outputs)

    def forward(self, x: Float[Tensor, "b i"]) -> Float[Tensor, "b o"]:
        output: Tensor = self.linear(gelu(self.norm(x)))
        return output

    def derivative(self, x: Float[Tensor, "b i"], dx: Float[Tensor, "b i"]) -> Float[Tensor, "b o"]:
        """Derivative of :meth:`forward` at x along dx."""
        return functional.linear(gelu_derivative(self.norm(x)) * self.norm.derivative(x, dx), self.linear.weight)
