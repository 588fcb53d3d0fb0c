"""Sampling by a stochastic differential equation."""

from __future__ import annotations

import dataclasses
import itertools
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from flowpolicy.core.errors import ConfigError
from flowpolicy.core.ranges import NonNegative
from flowpolicy.flows.axes.registry import Reference, register
from flowpolicy.flows.axes.solvers.solver import Dynamics, Solver, Times


@register(
    "solver", "sde", Reference("Stochastic Interpolants: A Unifying Framework for Flows and Diffusions", "2303.08797")
)
@dataclasses.dataclass(frozen=True)
class Stochastic(Solver):
    """Euler-Maruyama of ``dX = (v + e score) dt + sqrt(2 e) dW`` (Stochastic Interpolants, arXiv 2303.08797, eq. 2.32).

    Any e(t) >= 0 keeps the marginals of the flow. Here ``e = strength sigma``, sigma the deviation of the noise, so
    that ``e score = -strength noise`` is bounded. The last step is Euler's, without noise.
    """

    strength: NonNegative = 0.5
    """Factor of e; 0 is Euler."""
    stochastic: ClassVar[bool] = True
    converts: ClassVar[bool] = True
    needs_score: ClassVar[bool] = True

    @override
    def solve(
        self, flow: Dynamics, x: Float[Tensor, "b *d"], grid: Times, evaluations: int, generator: torch.Generator | None
    ) -> Float[Tensor, "b *d"]:
        if generator is None:
            raise ConfigError("the solver sde without a generator", fix="pass the generator that act was given")
        pairs = list(itertools.pairwise(grid))
        for s, t in pairs[:-1]:
            time = x.new_full(x.shape[:1], s)
            v = flow.velocity(x, time)
            noise, sigma = flow.path.noise(x, v, time), flow.path.effective(time, x).sigma
            fresh = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
            x = x + (t - s) * (v - self.strength * noise)
            x = x + (2 * self.strength * sigma * (t - s)).sqrt() * fresh
        s, t = pairs[-1]
        return x + (t - s) * flow.at(x, s)
