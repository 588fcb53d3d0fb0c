"""What a guidance method is, and what it may know of a decision."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import ClassVar, NamedTuple

from jaxtyping import Bool, Float
from torch import Tensor
from typing_extensions import override

from flowpolicy.core.errors import ConfigError
from flowpolicy.flows.axes.interpolants import Interpolant, Linear
from flowpolicy.flows.axes.registry import Value, register
from flowpolicy.flows.goals import AT_REST, Goal, read_goal
from flowpolicy.flows.straight import Field, MeanField


class Fields(NamedTuple):
    """Velocities that guidance may combine; each call costs one evaluation of the network."""

    full: Field
    """Given the whole observation."""
    null: Field
    """Given none of it, or none of the observations that ``Guidance.hides``."""
    parts: tuple[Field, ...] = ()
    """Given one of the observations that ``Guidance.hides``, and all that it does not."""


@dataclasses.dataclass(frozen=True)
class Situation:
    """What else guidance may know of a decision."""

    path: Interpolant = Linear()
    """Path from noise to data."""
    grid: tuple[float, ...] = (0.0, 1.0)
    """Times of the solver's steps."""
    scale: Float[Tensor, " a"] | None = None
    """Chunks here are ``(actions - offset) * scale``; None where they are the actions."""
    offset: Float[Tensor, " a"] | None = None
    noise: Float[Tensor, "b h a"] | None = None
    """Where the flow starts."""
    planned: Float[Tensor, "b h a"] | None = None
    """The previous chunk from the row that is due now, scaled; None in the first decision."""
    begun: Bool[Tensor, " b"] | None = None
    """Which rows have a previous chunk."""

    def goal(self, text: str, like: Float[Tensor, "b h a"]) -> Goal:
        """A goal that is stated in units of the environment, for the chunks here."""
        goal = read_goal(text, *like.shape[1:])
        return goal if self.scale is None or self.offset is None else goal.rescaled(self.scale, self.offset)

    def step(self, t: float) -> tuple[float, float]:
        """Start and end of the solver's step that holds the time t."""
        pairs = list(itertools.pairwise(self.grid))
        return next((pair for pair in pairs if t < pair[1] - 1e-6), pairs[-1])


@dataclasses.dataclass(frozen=True)
class Guidance(Value):
    """Base of the guidance methods: each changes the noise, the velocity, or the finished chunk."""

    null: ClassVar[bool] = False
    """Whether it asks the network without the observation; training must then leave it out of some rows."""
    intermediate: ClassVar[bool] = False
    """Whether it needs states between noise and chunk."""
    converts: ClassVar[bool] = False
    """Whether it needs the data that a velocity points to."""
    continues: ClassVar[bool] = False
    """Whether it looks at the previous chunk."""
    waits: ClassVar[str] = ""
    """Why every decision on a GPU waits for the processor on the way; empty where none does."""
    repeatable: ClassVar[bool] = False
    """Whether it asks for several chunks of the same noise, which a stochastic solver does not give."""

    @property
    def drop(self) -> float:
        """Share of the rows that are trained without their observation."""
        return 0.0

    @property
    def hides(self) -> tuple[str, ...]:
        """Observations that are hidden from the network, all of them or all but one; training must hide them too."""
        return ()

    @property
    def hidden_share(self) -> float:
        """Share of the training rows from which they are hidden."""
        return 0.0

    @property
    def differentiates(self) -> bool:
        """Whether it differentiates the network while acting."""
        return False

    @property
    def candidates(self) -> int:
        """Chunks generated for each one that is executed."""
        return 1

    @property
    def repeats(self) -> int:
        """Times that a whole chunk is generated, candidates included."""
        return self.candidates

    def total(self, evaluations: int) -> int:
        """Evaluations of the network for so many of the solver."""
        return self.repeats * evaluations

    def budget(self, nfe: int) -> int:
        """Evaluations of the solver that ``nfe`` of the network pay for; ConfigError where none does."""
        for evaluations in range(1, nfe + 1):
            if self.total(evaluations) == nfe:
                return evaluations
        raise ConfigError(
            f"nfe={nfe} with the guidance {self.name}",
            expected=f"one of {', '.join(str(self.total(n)) for n in (1, 2, 4, 8))}, ...",
        )

    def check(self, at: Situation, chunk: Float[Tensor, "1 h a"]) -> None:
        """Raise ConfigError where it cannot act on chunks like this one, for instance where a goal is out of reach."""

    def start(
        self, noise: Float[Tensor, "b h a"], generate: Callable[[Tensor], Tensor], at: Situation
    ) -> Float[Tensor, "b h a"]:
        """The noise to start from; ``generate`` gives the chunk of a noise."""
        return noise

    def field(self, fields: Fields, at: Situation) -> Field:
        """The velocity that the solver integrates."""
        return fields.full

    def mean(self, mean: MeanField, at: Situation) -> MeanField:
        """The mean velocity of a flow map that the solver follows."""
        return mean

    @property
    def finishes(self) -> bool:
        """Whether a finished chunk is chosen or changed."""
        return type(self).finish is not Guidance.finish

    def finish(self, chunks: Float[Tensor, "b k h a"], at: Situation) -> Float[Tensor, "b h a"]:
        """The chunk to execute, of the candidates; all are within [-1, 1]."""
        return chunks[:, 0]


@dataclasses.dataclass(frozen=True)
class Aimed(Guidance):
    """Base of the methods that pursue a goal (:mod:`flowpolicy.flows.goals`)."""

    goal: str = AT_REST
    """Equations of the chunk a in units of the environment, such as 'a[-1] = 0; sum a[:, 0] = 0.4'."""

    @override
    def check(self, at: Situation, chunk: Float[Tensor, "1 h a"]) -> None:
        at.goal(self.goal, chunk)


@register("guidance", "none")
@dataclasses.dataclass(frozen=True)
class NoGuidance(Guidance):
    """The velocity as it is."""
