"""Predictor-corrector solvers, and plans that mix kinds of steps."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from flowpolicy.core.errors import ConfigError
from flowpolicy.flows.axes.registry import Conflict, Reference, register
from flowpolicy.flows.axes.solvers.explicit import midpoint_step
from flowpolicy.flows.axes.solvers.solver import Dynamics, Solver, Times

_COST = {"E": 1, "M": 2, "H": 2, "P": 1, "R": 2}
_FEW = 4


@dataclasses.dataclass(frozen=True)
class Corrector(Solver):
    """Base of the predictor-corrector solvers, which differ in where the first slope of a step comes from."""

    last: Literal["safe", "corrector"] = "safe"
    """'safe' ends with a step that stays away from t = 1; 'corrector' evaluates there, as published."""
    order: ClassVar[int] = 2

    def conflicts(self, spec: Any, setting: Any) -> Iterator[Conflict]:
        """With few evaluations, the corrector at t = 1 spoils the sample."""
        if self.last == "corrector" and setting.nfe is not None and setting.nfe < _FEW:
            yield Conflict(
                f"{self.flag} --flow.solver.last corrector in {setting.nfe} evaluations",
                "the last corrector asks for the velocity at t = 1, far from the data",
                "--flow.solver.last safe, or --agent.nfe 8",
            )


@register(
    "solver", "heun", Reference("Elucidating the Design Space of Diffusion-Based Generative Models", "2206.00364")
)
@dataclasses.dataclass(frozen=True)
class Heun(Corrector):
    """Trapezoid rule with a predicted end (arXiv 2206.00364, algorithm 1).

    The last step is a midpoint step where the evaluations are even and an Euler step where they are odd.
    """

    @override
    def steps(self, evaluations: int) -> int:
        if self.last == "corrector" and evaluations % 2:
            raise ConfigError(
                f"nfe={evaluations} with the solver heun and a last corrector", expected="a multiple of 2"
            )
        return (Solver.steps(self, evaluations) + 1) // 2

    @override
    def solve(
        self, flow: Dynamics, x: Float[Tensor, "b *d"], grid: Times, evaluations: int, generator: torch.Generator | None
    ) -> Float[Tensor, "b *d"]:
        pairs = list(itertools.pairwise(grid))
        for s, t in pairs if self.last == "corrector" else pairs[:-1]:
            slope = flow.at(x, s)
            x = x + 0.5 * (t - s) * (slope + flow.at(x + (t - s) * slope, t))
        s, t = pairs[-1]
        if self.last == "corrector":
            return x
        return x + (t - s) * flow.at(x, s) if evaluations % 2 else midpoint_step(flow, x, s, t)


@register(
    "solver",
    "pseudo-corrector",
    Reference("FlowTurbo: Towards Real-time Flow-Based Image Generation with Velocity Refiner", "2409.18128"),
)
@dataclasses.dataclass(frozen=True)
class PseudoCorrector(Corrector):
    """Heun whose first slope is the corrector's of the step before (FlowTurbo, arXiv 2409.18128, section 3.3).

    n steps cost n evaluations, and n + 1 where the last corrector at t = 1 is kept. 'safe' ends with the slope that
    it has; on equal steps that is AB2, since the predicted points move by 3/2 of the new slope less 1/2 of the old.
    """

    @override
    def steps(self, evaluations: int) -> int:
        if self.last == "corrector" and evaluations < 2:
            raise ConfigError(f"nfe={evaluations} with a last corrector", expected="at least 2")
        return Solver.steps(self, evaluations) - int(self.last == "corrector")

    @override
    def solve(
        self, flow: Dynamics, x: Float[Tensor, "b *d"], grid: Times, evaluations: int, generator: torch.Generator | None
    ) -> Float[Tensor, "b *d"]:
        slope = flow.at(x, grid[0])
        pairs = list(itertools.pairwise(grid))
        for s, t in pairs if self.last == "corrector" else pairs[:-1]:
            ahead = flow.at(x + (t - s) * slope, t)
            x, slope = x + 0.5 * (t - s) * (slope + ahead), ahead
        s, t = pairs[-1]
        return x if self.last == "corrector" else x + (t - s) * slope


@register(
    "solver",
    "plan",
    Reference("FlowTurbo: Towards Real-time Flow-Based Image Generation with Velocity Refiner", "2409.18128"),
)
@dataclasses.dataclass(frozen=True)
class Plan(Solver):
    """A step kind per letter: E Euler, M midpoint, H Heun, P pseudo-corrector, R refined (FlowTurbo, arXiv 2409.18128).

    P takes its first slope from the corrector of an H or P right before it and costs one evaluation. R is a Heun step
    whose slopes are the last ones, refined by the small network of ``flowpolicy distill RUN --method refiner``: two
    evaluations of that, and one as the last step, which is Euler's with a refined slope.
    """

    letters: str = "HPPM"
    """The steps in order. The last may be E, M or R only: the others evaluate at t = 1."""

    def __post_init__(self) -> None:
        word = self.letters
        ends = word[-1:] in ("E", "M", "R")
        starts = all(word[k - 1 : k] in ("H", "P") for k, letter in enumerate(word) if letter == "P")
        refined = all(word[k - 1 : k] in ("E", "H", "P", "R") for k, letter in enumerate(word) if letter == "R")
        if not word or set(word) - set(_COST) or not ends or not starts or not refined:
            raise ConfigError(
                f"the plan '{word}'",
                expected="letters E, M, H, P, R; E, M or R last; P right after an H or a P; R right after E, H, P or R",
            )

    @property
    def usual(self) -> int:  # type: ignore[override]
        """What the plan costs."""
        return sum(_COST[letter] for letter in self.letters) - self.letters.endswith("R")

    @override
    def steps(self, evaluations: int) -> int:
        if evaluations != self.usual:
            raise ConfigError(
                f"nfe={evaluations} with the plan {self.letters}, which costs {self.usual}",
                fix=f"--agent.nfe {self.usual}, or another --flow.solver.letters",
            )
        return len(self.letters)

    @override
    def solve(
        self, flow: Dynamics, x: Float[Tensor, "b *d"], grid: Times, evaluations: int, generator: torch.Generator | None
    ) -> Float[Tensor, "b *d"]:
        slope = last = x  # the slope for P, taken where the step ended, and that for R, taken where it began
        for letter, (s, t) in zip(self.letters, itertools.pairwise(grid), strict=True):
            if letter == "M":
                x = midpoint_step(flow, x, s, t)
            elif letter == "E":
                last = flow.at(x, s)
                x = x + (t - s) * last
            elif letter == "R":
                last = flow.refined(x, s, last)
                ahead = last if t == grid[-1] else flow.refined(x + (t - s) * last, t, last)
                x = x + 0.5 * (t - s) * (last + ahead)
            else:
                last = flow.at(x, s) if letter == "H" else slope
                slope = flow.at(x + (t - s) * last, t)
                x = x + 0.5 * (t - s) * (last + slope)
                last = last if letter == "H" else slope
        return x

    def conflicts(self, spec: Any, setting: Any) -> Iterator[Conflict]:
        """Refined steps need a refiner."""
        if "R" in self.letters and not setting.refiner:
            yield Conflict(
                f"{self.flag} --flow.solver.letters {self.letters} without a refiner",
                "its steps R ask a network that is trained beside a policy",
                "flowpolicy distill RUN --method refiner",
            )
