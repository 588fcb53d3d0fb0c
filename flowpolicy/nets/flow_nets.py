"""The two kinds of flow network, velocity at a time and mean velocity over an interval; and the net without a time."""

from __future__ import annotations

import math
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flowpolicy.nets.time_features import TimeFeatures
from flowpolicy.nets.trunk import FlowOutput, Trunk

__all__ = ["DecoratorNet", "FlowOutput", "MapNet", "OneStepNet", "TrunkConfig", "VelocityNet"]


@runtime_checkable
class TrunkConfig(Protocol):
    """A frozen dataclass that builds a trunk: ``MLP``, ``UNet``, ``Transformer``."""

    def build(self, action: int, chunk: int, cond: int, time: int) -> Trunk:
        """The trunk for chunks (chunk, action), conditions of size ``cond``, time features of size ``time``."""


class VelocityNet(nn.Module):
    """Velocity v(x, t, cond) on the way from noise (t = 0) to data (t = 1), or ``outputs`` numbers per action."""

    def __init__(self, trunk: TrunkConfig, action: int, chunk: int, cond: int, outputs: int | None = None) -> None:
        super().__init__()
        # Trunks give as many numbers per action as they take: what is missing is zeros.
        self.missing = 0 if outputs is None else outputs - action
        action += self.missing
        # A velocity may change fast near the data, and nothing differentiates it in time.
        self.times = TimeFeatures(8, highest=30.0)
        self.trunk = trunk.build(action, chunk, cond, self.times.size)

    def forward(self, x: Float[Tensor, "b h a"], t: Float[Tensor, " b"], cond: Float[Tensor, "b c"]) -> FlowOutput:
        """Velocity of the noisy chunks x at the times t in [0, 1]."""
        if self.missing:
            x = nn.functional.pad(x, (0, self.missing))
        output: FlowOutput = self.trunk(x, self.times(t), cond)
        return output


class OneStepNet(nn.Module):
    """Actions mu(noise, cond) in one evaluation: no flow time, no residual (FQL, arXiv 2502.02538)."""

    def __init__(self, trunk: TrunkConfig, action: int, chunk: int, cond: int) -> None:
        super().__init__()
        self.trunk = trunk.build(action, chunk, cond, 0)

    def forward(self, noise: Float[Tensor, "b h a"], cond: Float[Tensor, "b c"]) -> FlowOutput:
        """Chunks for the noise; not clamped."""
        output: FlowOutput = self.trunk(noise, noise.new_zeros(noise.shape[0], 0), cond)
        return output


class DecoratorNet(OneStepNet):
    """Residual ``shift(chunk, cond)`` that a policy adds to its chunks (Fisher Decorator, arXiv 2604.17919).

    Exactly zero at the start, whatever the trunk: the decorated policy then is the undecorated one, bit for bit.
    """

    def __init__(self, trunk: TrunkConfig, action: int, chunk: int, cond: int) -> None:
        super().__init__(trunk, action, chunk, cond)
        outlet = [module for module in self.trunk.modules() if isinstance(module, nn.Linear)][-1]
        nn.init.zeros_(outlet.weight)
        nn.init.zeros_(outlet.bias)


class MapNet(nn.Module):
    """Mean velocity U(x, s, t, cond) from s to t >= s; ``s == t`` gives the velocity at s.

    The flow map is ``x + (t - s) U(x, s, t)``. Conditions on (s, t - s): the length of the interval is what
    tells a velocity from a jump.
    """

    def __init__(self, trunk: TrunkConfig, action: int, chunk: int, cond: int) -> None:
        super().__init__()
        # The MeanFlow target holds the derivative in time, which grows with the frequency: up to 30 rad, a thousand
        # updates put a tenth of one-step samples on two modes; up to pi, eight tenths (measured).
        self.times = TimeFeatures(2, highest=math.pi)
        self.trunk = trunk.build(action, chunk, cond, 2 * self.times.size)

    def forward(
        self, x: Float[Tensor, "b h a"], s: Float[Tensor, " b"], t: Float[Tensor, " b"], cond: Float[Tensor, "b c"]
    ) -> FlowOutput:
        """Mean velocity from s to t of chunks x that are at the noisier end s."""
        output: FlowOutput = self.trunk(x, self._features(s, t), cond)
        return output

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
        """Mean velocity of all rows, and its derivative along (dx, ds), t fixed, for the n = b - skip last rows.

        The derivative carries no graph.
        """
        slope = torch.cat([self.times.derivative(s), -self.times.derivative(t - s)], dim=1)
        return self.trunk.with_tangent(x, self._features(s, t), cond, dx, slope * ds.unsqueeze(1), skip)

    def _features(self, s: Tensor, t: Tensor) -> Tensor:
        return torch.cat([self.times(s), self.times(t - s)], dim=1)
