"""Guidance that works on finished chunks: project one onto the goal, or choose the nearest of several."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from flowpolicy.core.errors import ConfigError
from flowpolicy.core.ranges import Few, Share
from flowpolicy.flows.axes.guidance.method import Aimed, Situation
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

    With several samples the chunk moves along their covariance, and most where they disagree: for a Gaussian policy the
    result is a sample of its law given the goal. With one it moves the shortest way. It stays within the action limits.
    """

    samples: Few = 1
    """Chunks whose covariance says where to move; the first of them moves. 1, or at least 3."""
    shrinkage: Share = 0.1
    """Share of the covariance that is replaced by its mean variance in every direction."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples == 2:
            raise ConfigError(f"{self.flag} of 2 samples", expected="1 sample or at least 3")

    waits: ClassVar[str] = "which chunks leave the limits, and whether the goal is met, is read at the end"

    @property
    @override
    def candidates(self) -> int:
        return self.samples

    @override
    def check(self, at: Situation, chunk: Float[Tensor, "1 h a"]) -> None:
        project(chunk, at.goal(self.goal, chunk))

    @override
    def finish(self, chunks: Float[Tensor, "b k h a"], at: Situation) -> Float[Tensor, "b h a"]:
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
    """The chunk nearest to the goal among n; for a goal out of reach, the most extreme of n draws."""

    n: Few = 8
    """Chunks per decision."""

    @property
    @override
    def candidates(self) -> int:
        return self.n

    @override
    def finish(self, chunks: Float[Tensor, "b k h a"], at: Situation) -> Float[Tensor, "b h a"]:
        every = chunks.flatten(0, 1)
        cost = at.goal(self.goal, every).cost(every).view(chunks.shape[:2])
        return chunks[torch.arange(len(chunks), device=chunks.device), cost.argmin(1)]
