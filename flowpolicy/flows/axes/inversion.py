"""Axis 8a, continued: solvers that are made to be run backwards, from a chunk to its noise."""

from __future__ import annotations

import dataclasses
import itertools

import torch
from jaxtyping import Float
from torch import Tensor

from flowpolicy.core.errors import ConfigError
from flowpolicy.flows.axes.registry import Reference, register
from flowpolicy.flows.axes.solvers import Dynamics, Euler, Times


@register("solver", "afp", Reference("SteerFlow: Steering Rectified Flows for Faithful Inversion-Based Image Editing"))
@dataclasses.dataclass(frozen=True)
class Afp(Euler):
    """Euler forwards; backwards the velocity is taken where the step will arrive (SteerFlow, AFP inversion).

    Generation by Euler then meets nearly the velocities that the inversion used: the round trip is 2 to 10 times
    closer than Euler's, for one evaluation per step (0.026 against 0.167 in eight steps, measured).
    """

    inner: int = 1
    """Fixed-point iterations per step backwards; many make Euler's step exactly reversible where h times the
    Lipschitz constant is below 1, and diverge where it is not."""

    def __post_init__(self) -> None:
        if self.inner < 1:
            raise ConfigError(f"afp with {self.inner} iterations", expected="at least 1")

    def invert(self, flow: Dynamics, x: Float[Tensor, "b *d"], grid: Times) -> Float[Tensor, "b *d"]:
        """See :class:`Solver`; the first step, which has no velocity to reuse, takes it at x itself."""
        speed = torch.zeros_like(x)
        for s, t in itertools.pairwise(reversed(grid)):
            for _ in range(self.inner):
                speed = flow.at(x + (t - s) * speed, t)
            x = x + (t - s) * speed
        return x
