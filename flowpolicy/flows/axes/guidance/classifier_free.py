"""Classifier-free guidance: away from the velocity without the observation."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from torch import Tensor
from typing_extensions import override

from flowpolicy.core.ranges import Inside
from flowpolicy.flows.axes.guidance.method import Fields, Guidance, Situation
from flowpolicy.flows.axes.registry import Reference, register
from flowpolicy.flows.straight import Field


@register("guidance", "cfg", Reference("Classifier-Free Diffusion Guidance", "2207.12598"))
@dataclasses.dataclass(frozen=True)
class ClassifierFree(Guidance):
    """``u + scale (v - u)`` with u the velocity without the observation: two evaluations (arXiv 2207.12598)."""

    scale: float = 1.5
    """1 is no guidance; above, chunks are more typical of the observation and less diverse."""
    dropout: Inside = 0.1
    """Share of the rows that are trained without their observation; without any, no velocity is known without it."""
    null: ClassVar[bool] = True

    @property
    @override
    def drop(self) -> float:
        return self.dropout

    @override
    def total(self, evaluations: int) -> int:
        return 2 * evaluations

    @override
    def field(self, fields: Fields, at: Situation) -> Field:

        def guided(x: Tensor, t: Tensor) -> Tensor:
            plain = fields.null(x, t)
            return plain + self.scale * (fields.full(x, t) - plain)

        return guided


@register(
    "guidance",
    "rcfg",
    Reference("StreamDiffusion: A Pipeline-level Solution for Real-time Interactive Generation", "2312.12491"),
)
@dataclasses.dataclass(frozen=True)
class ResidualClassifierFree(ClassifierFree):
    """Classifier-free guidance that asks without the observation once, at the noise (StreamDiffusion, "initialize")."""

    @override
    def total(self, evaluations: int) -> int:
        return evaluations + 1

    @override
    def field(self, fields: Fields, at: Situation) -> Field:
        first: list[Tensor] = []

        def guided(x: Tensor, t: Tensor) -> Tensor:
            if not first:
                first.append(fields.null(x, t))
            return first[0] + self.scale * (fields.full(x, t) - first[0])

        return guided
