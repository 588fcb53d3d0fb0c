"""Solvers that step through predictions of data and noise instead of adding velocities."""

from __future__ import annotations

import dataclasses
import itertools
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from flowpolicy.flows.axes.registry import Reference, register
from flowpolicy.flows.axes.solvers.solver import Dynamics, Solver, Times

_RECTIFIED = Reference("Improving the Training of Rectified Flows", "2405.20320")


@register(
    "solver",
    "ddim",
    Reference("Denoising Diffusion Implicit Models", "2010.02502"),
    Reference("Rectified Diffusion: Straightness Is Not Your Need in Rectified Flow", "2410.07303"),
)
@dataclasses.dataclass(frozen=True)
class Ddim(Solver):
    """Data and noise are kept over a step: exact where they are constant, on any path (arXiv 2010.02502, eq. 12)."""

    converts: ClassVar[bool] = True
    left_ends: ClassVar[bool] = True

    @override
    def solve(
        self, flow: Dynamics, x: Float[Tensor, "b *d"], grid: Times, evaluations: int, generator: torch.Generator | None
    ) -> Float[Tensor, "b *d"]:
        for s, t in itertools.pairwise(grid):
            data, noise = flow.ends(x, s)
            e = flow.path.effective(x.new_full(x.shape[:1], t), x)
            x = e.beta * data + e.sigma * noise
        return x


@register("solver", "fixed-noise", _RECTIFIED)
@dataclasses.dataclass(frozen=True)
class FixedNoise(Solver):
    """The data are predicted anew at every step, the noise stays as drawn (arXiv 2405.20320, section 4.3)."""

    converts: ClassVar[bool] = True
    left_ends: ClassVar[bool] = True

    @override
    def solve(
        self, flow: Dynamics, x: Float[Tensor, "b *d"], grid: Times, evaluations: int, generator: torch.Generator | None
    ) -> Float[Tensor, "b *d"]:
        noise = x
        for s, t in itertools.pairwise(grid):
            data, _ = flow.ends(x, s)
            e = flow.path.effective(x.new_full(x.shape[:1], t), x)
            x = e.beta * data + e.sigma * noise
        return x
