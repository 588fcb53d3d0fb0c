"""Axis 9, how the velocity or the chunk is steered while acting."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from flowpolicy.core.errors import ConfigError
from flowpolicy.flows.axes.registry import Reference, Value, register
from flowpolicy.flows.solvers import Field


@dataclasses.dataclass(frozen=True)
class Guidance(Value):
    """Base of the guidance methods."""

    null: ClassVar[bool] = False
    """Whether it asks the network without the observation, which training must then show it."""
    intermediate: ClassVar[bool] = False
    """Whether it needs states between noise and chunk."""

    @property
    def drop(self) -> float:
        """Share of the rows that are trained without their observation."""
        return 0.0

    def total(self, evaluations: int) -> int:
        """Evaluations of the network for so many of the solver."""
        return evaluations

    def budget(self, nfe: int) -> int:
        """Evaluations of the solver that ``nfe`` of the network pay for; ConfigError where none does."""
        for evaluations in range(1, nfe + 1):
            if self.total(evaluations) == nfe:
                return evaluations
        raise ConfigError(
            f"nfe={nfe} with the guidance {self.name}",
            expected=f"one of {', '.join(str(self.total(n)) for n in (1, 2, 4, 8))}, ...",
        )

    def field(self, conditional: Field, unconditional: Field) -> Field:
        """The velocity that the solver is given."""
        return conditional

    def finish(self, chunk: Float[Tensor, "b h a"]) -> Float[Tensor, "b h a"]:
        """The chunk that is acted on."""
        return chunk


@register("guidance", "none")
@dataclasses.dataclass(frozen=True)
class NoGuidance(Guidance):
    """The velocity as it is."""


@register("guidance", "cfg", Reference("Classifier-Free Diffusion Guidance", "2207.12598"))
@dataclasses.dataclass(frozen=True)
class ClassifierFree(Guidance):
    """``u + scale (v - u)`` with u the velocity without the observation: two evaluations (arXiv 2207.12598)."""

    scale: float = 1.5
    """1 is no guidance; above, chunks are more typical of the observation and less diverse."""
    dropout: float = 0.1
    """Share of the rows that are trained without their observation."""
    null: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.dropout < 1:  # R16
            raise ConfigError(
                f"{self.flag} with the dropout {self.dropout}",
                expected="above 0 and below 1: without dropout there is no velocity without the observation",
                fix="--flow.guidance.dropout 0.1",
            )

    @property
    def drop(self) -> float:
        """See :class:`Guidance`."""
        return self.dropout

    def total(self, evaluations: int) -> int:
        """See :class:`Guidance`."""
        return 2 * evaluations

    def field(self, conditional: Field, unconditional: Field) -> Field:
        """See :class:`Guidance`."""

        def guided(x: Tensor, t: Tensor) -> Tensor:
            plain = unconditional(x, t)
            return plain + self.scale * (conditional(x, t) - plain)

        return guided


@register(
    "guidance",
    "rcfg",
    Reference("StreamDiffusion: A Pipeline-level Solution for Real-time Interactive Generation", "2312.12491"),
)
@dataclasses.dataclass(frozen=True)
class ResidualClassifierFree(ClassifierFree):
    """Classifier-free guidance that asks without the observation once, at the noise (StreamDiffusion, "initialize")."""

    def total(self, evaluations: int) -> int:
        """See :class:`Guidance`."""
        return evaluations + 1

    def field(self, conditional: Field, unconditional: Field) -> Field:
        """See :class:`Guidance`."""
        first: list[Tensor] = []

        def guided(x: Tensor, t: Tensor) -> Tensor:
            if not first:
                first.append(unconditional(x, t))
            return first[0] + self.scale * (conditional(x, t) - first[0])

        return guided
