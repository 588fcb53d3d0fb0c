"""Axis 7, continued: flow maps that teach themselves by an identity (arXiv 2505.18825)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from flowpolicy.core.errors import ConfigError
from flowpolicy.flows.axes.consistency import Consistency, Errors, Problem
from flowpolicy.flows.axes.interval_laws import Dyadic
from flowpolicy.flows.axes.registry import Conflict, Reference, register
from flowpolicy.flows.axes.time_laws import TimeLaw
from flowpolicy.flows.interpolant import rows
from flowpolicy.flows.times import TimePair

FLOW_MAPS = Reference("How to Build a Consistency Model: Learning Flow Maps via Self-Distillation", "2505.18825")


@dataclasses.dataclass(frozen=True)
class SelfDistillation(Consistency):
    """Base of the flow-map objectives: velocity matching and one identity, both on every row (arXiv 2505.18825)."""

    anneal: float = 0.0
    """Share of the updates over which the longest interval grows from 0.02 to 1; 0 has no window."""
    own_tangent: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.anneal <= 1:  # R19: a window inside the training
            raise ConfigError(f"the window is annealed over {self.anneal} of the updates", expected="in [0, 1]")

    def pairs(self, law: TimeLaw, batch: int, progress: float, generator: torch.Generator) -> tuple[TimePair, int]:
        """See :class:`Consistency`."""
        (s, t), diagonal = Consistency.pairs(self, law, batch, progress, generator)
        if progress < self.anneal:
            t = s + (t - s) * (0.02 + 0.98 * progress / self.anneal)
        return TimePair(s, t), diagonal

    def errors(self, problem: Problem) -> Errors:
        """See :class:`Consistency`."""
        p = problem
        return Errors(p.mean(p.x, p.s, p.s) - p.velocity, self.identity(p), 0, separate=True)

    def identity(self, problem: Problem) -> Float[Tensor, "b h a"]:
        """Error of the identity on every row."""
        raise NotImplementedError


@register("consistency", "lsd", FLOW_MAPS)
@dataclasses.dataclass(frozen=True)
class Lagrangian(SelfDistillation):
    """``d_t X(x, s, t) = sg u(X, t, t)``: the best one-step map here, 18 to 25 (arXiv 2505.18825, section 3)."""

    clamp: float = 3.0
    """The teacher sees X within +- this. Without, 3 of 5 runs diverged: X leaves the data and teaches itself."""
    forward_mode: ClassVar[bool] = True
    differentiated: ClassVar[bool] = True

    def identity(self, problem: Problem) -> Float[Tensor, "b h a"]:
        """See :class:`SelfDistillation`."""
        p = problem
        mean, slope = derivative(lambda t: p.mean(p.x, p.s, t), (p.t,), (torch.ones_like(p.t),))
        length = rows(p.t - p.s, p.x)
        with torch.no_grad():
            teacher = p.mean((p.x + length * mean.detach()).clamp(-self.clamp, self.clamp), p.t, p.t)
        return mean + length * slope - teacher

    def conflicts(self, spec: Any, setting: Any) -> Iterator[Conflict]:
        """R25."""
        if self.clamp <= 0:
            yield Conflict(
                f"{self.flag} --flow.consistency.clamp {self.clamp:g}",
                "a teacher that sees where the map leads diverged in 3 of 5 runs",
                "--flow.consistency.clamp 3",
            )


@register("consistency", "esd", FLOW_MAPS)
@dataclasses.dataclass(frozen=True)
class Eulerian(SelfDistillation):
    """``d_s X + (d_x X) sg u(x, s, s) = 0`` (arXiv 2505.18825, section 3)."""

    forward_mode: ClassVar[bool] = True
    differentiated: ClassVar[bool] = True

    def identity(self, problem: Problem) -> Float[Tensor, "b h a"]:
        """See :class:`SelfDistillation`."""
        p = problem
        with torch.no_grad():
            own = p.mean(p.x, p.s, p.s)
        mean, slope = derivative(lambda x, s: p.mean(x, s, p.t), (p.x, p.s), (own, torch.ones_like(p.s)))
        return mean - own - rows(p.t - p.s, p.x) * slope


@register("consistency", "psd", FLOW_MAPS)
@dataclasses.dataclass(frozen=True)
class Progressive(SelfDistillation):
    """One jump equals two: ``u(x, s, t) = sg[f u(x, s, w) + (1 - f) u(X, w, t)]``, w a share f of the way."""

    midpoint: bool = False
    """Cut every interval in the middle; otherwise anywhere."""
    cuts: ClassVar[bool] = True

    def identity(self, problem: Problem) -> Float[Tensor, "b h a"]:
        """See :class:`SelfDistillation`."""
        p = problem
        share = torch.full_like(p.s, 0.5) if self.midpoint or p.fraction is None else p.fraction
        return p.mean(p.x, p.s, p.t) - two_jumps(p, share)


@register("consistency", "shortcut", Reference("One Step Diffusion via Shortcut Models", "2410.12557"))
@dataclasses.dataclass(frozen=True)
class Shortcut(Consistency):
    """Two half steps teach a whole one on dyadic intervals; the other rows match the velocity (arXiv 2410.12557)."""

    share_bootstrap: float = 0.25
    """Share of rows with a step."""
    levels: int = 7
    """The finest step is ``2^-levels``."""
    own_tangent: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.share_bootstrap <= 1 or self.levels < 1:
            raise ConfigError(
                f"the objective shortcut has the share {self.share_bootstrap} and {self.levels} levels",
                expected="a share in (0, 1], at least one level",
            )

    def leading(self, law: TimeLaw, batch: int) -> int:
        """Its own share, whatever the law asks for."""
        return TimeLaw.diagonal(law, batch, 1 - self.share_bootstrap)

    def pairs(self, law: TimeLaw, batch: int, progress: float, generator: torch.Generator) -> tuple[TimePair, int]:
        """Times of the law on the diagonal, dyadic intervals off it."""
        dyadic = law if isinstance(law, Dyadic) else Dyadic(2**self.levels)
        diagonal = self.leading(law, batch)
        s, t = dyadic.pairs(batch, diagonal, generator)
        s[:diagonal] = t[:diagonal] = law.draw(batch, generator)[:diagonal]
        return TimePair(s, t), diagonal

    def errors(self, problem: Problem) -> Errors:
        """See :class:`Consistency`."""
        p, k = problem, problem.diagonal
        value = p.mean(p.x, p.s, p.t)
        off = Problem(p.network, p.x[k:], p.velocity[k:], p.s[k:], p.t[k:], p.cond[k:], 0)
        target = two_jumps(off, torch.full_like(off.s, 0.5))
        return Errors(value[:k] - p.velocity[:k], value[k:] - target, k, separate=False)


@register(
    "consistency",
    "ctm",
    Reference("Consistency Trajectory Models: Learning Probability Flow ODE Trajectory of Diffusion", "2310.02279"),
)
@dataclasses.dataclass(frozen=True)
class Trajectory(SelfDistillation):
    """A midpoint step of the own velocity, then a jump, equals one jump (CTM, arXiv 2310.02279, section 3.2).

    The identity holds up to the third power of the step. Compared in velocities, not through a second jump to the
    data; without the adversarial term.
    """

    step: float = 0.05
    """Longest step of the own velocity."""

    def __post_init__(self) -> None:
        SelfDistillation.__post_init__(self)
        if not 0 < self.step <= 1:
            raise ConfigError(f"the step of ctm is {self.step}", expected="in (0, 1]")

    def identity(self, problem: Problem) -> Float[Tensor, "b h a"]:
        """See :class:`SelfDistillation`."""
        p = problem
        length = p.t - p.s
        with torch.no_grad():
            step = length.clamp(max=self.step)
            half = p.s + 0.5 * step
            middle = p.x + rows(0.5 * step, p.x) * p.mean(p.x, p.s, p.s)
            speed = p.mean(middle, half, half)
            share = rows(torch.where(length > 0, step / length.clamp(min=1e-12), 1.0), p.x)
            rest = p.mean(p.x + rows(step, p.x) * speed, p.s + step, p.t)
            target = share * speed + (1 - share) * rest
        return p.mean(p.x, p.s, p.t) - target


def derivative(
    function: Callable[..., Tensor], at: tuple[Tensor, ...], along: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor]:
    """Value of a function and its derivative in a direction, by forward mode; both carry a gradient."""
    value, slope = torch.func.jvp(function, at, along)[:2]
    return value, slope


@torch.no_grad()
def two_jumps(problem: Problem, share: Float[Tensor, " b"]) -> Float[Tensor, "b h a"]:
    """Mean velocity over [s, t] of a jump over the first ``share`` of it and a second over the rest."""
    p = problem
    between = p.s + share * (p.t - p.s)
    first = p.mean(p.x, p.s, between)
    second = p.mean(p.x + rows(between - p.s, p.x) * first, between, p.t)
    part = rows(share, p.x)
    return part * first + (1 - part) * second
