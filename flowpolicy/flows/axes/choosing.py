"""Axis 9, continued: guidance that leaves the velocity alone and works on the noise or on finished chunks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor

from flowpolicy.core.errors import ConfigError
from flowpolicy.flows.axes.guidance import Aimed, Situation
from flowpolicy.flows.axes.registry import Reference, register
from flowpolicy.flows.goals import project


@register(
    "guidance",
    "projection",
    Reference("Learning Physical Models that Can Respect Conservation Laws", "2302.11002"),
)
@dataclasses.dataclass(frozen=True)
class Projection(Aimed):
    """The finished chunk is moved to where it meets the goal exactly (ProbConserv, arXiv 2302.11002).

    With several samples the chunk moves along their covariance, and most where they disagree: on a Gaussian policy
    that gives samples of its law under the goal. With one it moves the shortest way. Within the limits of the actions.
    """

    samples: int = 1
    """Chunks whose covariance says where to move; the first of them is the one that moves. 1 or at least 3."""
    shrinkage: float = 0.1
    """Share of the covariance that is replaced by its mean variance in every direction."""

    def __post_init__(self) -> None:
        if self.samples < 1 or self.samples == 2 or not 0 <= self.shrinkage <= 1:
            raise ConfigError(
                f"{self.flag} of {self.samples} samples with the shrinkage {self.shrinkage}",
                expected="1 sample or at least 3, a shrinkage in [0, 1]",
            )

    @property
    def candidates(self) -> int:
        """See :class:`Guidance`."""
        return self.samples

    def check(self, at: Situation, chunk: Float[Tensor, "1 h a"]) -> None:
        """See :class:`Guidance`."""
        project(chunk, at.goal(self.goal, chunk))

    def finish(self, chunks: Float[Tensor, "b k h a"], at: Situation) -> Float[Tensor, "b h a"]:
        """See :class:`Guidance`."""
        chunk = chunks[:, 0]
        return project(chunk, at.goal(self.goal, chunk), self.covariance(chunks) if self.samples > 1 else None)

    def covariance(self, chunks: Float[Tensor, "b k h a"]) -> Float[Tensor, "b d d"]:
        """Of every row's samples in units of its mean variance, shrunk."""
        flat = chunks.flatten(2).double()
        flat = flat - flat.mean(1, keepdim=True)
        spread = flat.mT @ flat / (flat.shape[1] - 1)
        eye = torch.eye(spread.shape[1], dtype=spread.dtype, device=spread.device)
        even = spread.diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-12).reshape(-1, 1, 1)
        return (1 - self.shrinkage) * spread / even + self.shrinkage * eye


@register(
    "guidance",
    "best-of-n",
    Reference("Reinforcement Learning with Action Chunking", "2507.07969"),
)
@dataclasses.dataclass(frozen=True)
class BestOfN(Aimed):
    """Of n chunks the one nearest to the goal is acted on. A goal out of reach makes it an extreme of n draws."""

    n: int = 8
    """Chunks per decision."""

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ConfigError(f"{self.flag} of {self.n} chunks", expected="at least 1")

    @property
    def candidates(self) -> int:
        """See :class:`Guidance`."""
        return self.n

    def finish(self, chunks: Float[Tensor, "b k h a"], at: Situation) -> Float[Tensor, "b h a"]:
        """See :class:`Guidance`."""
        every = chunks.flatten(0, 1)
        cost = at.goal(self.goal, every).cost(every).view(chunks.shape[:2])
        return chunks[torch.arange(len(chunks), device=chunks.device), cost.argmin(1)]


@register(
    "guidance",
    "noise-opt",
    Reference("FlowOpt: Fast Optimization Through Whole Flow Processes for Training-Free Editing"),
)
@dataclasses.dataclass(frozen=True)
class NoiseOptimisation(Aimed):
    """The noise is moved until its chunk is near the goal; any solver and flow maps of one step too (FlowOpt).

    'identity' takes the sampler's Jacobian for the identity, ``x0 - rate gradient``: the distance falls as long as
    ``|1 - rate J| < 1``, and nothing is differentiated. 'gauss-newton' takes the least step that meets the goal if the
    sampler were linear; it costs a backward pass per equation and meets the goal in one step where the sampler is.
    """

    jacobian: Literal["identity", "gauss-newton"] = "identity"
    """How the sampler's Jacobian is taken."""
    iterations: int = 4
    """Steps; a chunk costs one generation more than that."""
    rate: float = 0.5
    """Length of a step; 1 is the whole way to the goal."""
    shell: bool = False
    """Put the noise back to the length that it was drawn with, so that it stays a probable one."""
    repeatable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.iterations < 1 or not self.rate > 0:
            raise ConfigError(
                f"{self.flag} with {self.iterations} iterations at the rate {self.rate}", expected="at least 1, above 0"
            )

    @property
    def repeats(self) -> int:
        """See :class:`Guidance`."""
        return self.iterations + 1

    @property
    def differentiates(self) -> bool:
        """See :class:`Guidance`."""
        return self.jacobian == "gauss-newton"

    def start(
        self, noise: Float[Tensor, "b h a"], generate: Callable[[Tensor], Tensor], at: Situation
    ) -> Float[Tensor, "b h a"]:
        """See :class:`Guidance`."""
        goal, x = at.goal(self.goal, noise), noise
        for _ in range(self.iterations):
            if self.jacobian == "identity":
                x = x - self.rate * goal.gap(generate(x))
            else:
                x = x - self.rate * _least_step(goal.matrix, goal.value, generate, x)
            if self.shell:
                length = noise.flatten(1).norm(dim=1) / x.flatten(1).norm(dim=1).clamp(min=1e-12)
                x = x * length.reshape(-1, 1, 1)
        return x


def _least_step(
    matrix: Float[Tensor, "m d"], value: Float[Tensor, " m"], generate: Callable[[Tensor], Tensor], x: Tensor
) -> Float[Tensor, "b h a"]:
    """The least change of x whose subtraction meets the goal, if chunks were linear in x."""
    a, b = matrix.to(x), value.to(x)
    chunk, pull = cast("tuple[Tensor, Any]", torch.func.vjp(generate, x))
    rows = [pull(row.view(1, *x.shape[1:]).expand_as(x).contiguous())[0].flatten(1) for row in a]
    slope = torch.stack(rows, dim=1)
    error = (chunk.flatten(1) @ a.mT - b).unsqueeze(2)
    step: Tensor = torch.linalg.pinv(slope) @ error
    return step.view_as(x)
