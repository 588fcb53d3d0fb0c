"""The consistency axis: what trains a flow map off the diagonal. Noise at t = 0, data at t = 1.

The map ``X(x, s, t) = x + (t - s) u(x, s, t)`` carries x from s to t >= s; u on the diagonal s = t is the velocity.
Three identities make it the map of that velocity: Lagrangian ``d_t X = v(X, t)``, Eulerian ``d_s X + (d_x X) v(x, s) =
0``, and the semigroup ``X(X(x, s, w), w, t) = X(x, s, t)`` (arXiv 2505.18825). Derivatives are forward-mode.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from typing_extensions import override

from flowpolicy.core import ranks
from flowpolicy.core.ranges import Few, Positive, Share, SomeShare
from flowpolicy.flows.axes.interpolants import Interpolant
from flowpolicy.flows.axes.losses import Loss
from flowpolicy.flows.axes.registry import Conflict, Reference, Value, register
from flowpolicy.flows.axes.time_laws import Dyadic, TimeLaw, TimePair
from flowpolicy.flows.straight import rows

MEANFLOW = Reference("Mean Flows for One-step Generative Modeling", "2505.13447")
FLOW_MAPS = Reference("How to Build a Consistency Model: Learning Flow Maps via Self-Distillation", "2505.18825")


@runtime_checkable
class TangentMap(Protocol):
    """A mean-velocity network that gives its directional derivative with the value."""

    def __call__(self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor) -> Any:
        """An object with the fields ``value`` (b, h, a) and ``features``: mean velocity from s to t at x."""

    def with_tangent(
        self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor, dx: Tensor, ds: Tensor, skip: int
    ) -> tuple[Any, Tensor]:
        """The same for all rows, and the derivative (b - skip, h, a) along (dx, ds) for rows ``skip`` to b."""


@dataclasses.dataclass(frozen=True)
class Problem:
    """One batch of intervals."""

    network: TangentMap
    """Mean velocity; its call gives an object with ``value``."""
    x: Float[Tensor, "b h a"]
    """Points of the path at s."""
    velocity: Float[Tensor, "b h a"]
    """Derivative of the path there."""
    s: Float[Tensor, " b"]
    """Noisier ends."""
    t: Float[Tensor, " b"]
    """Cleaner ends."""
    cond: Float[Tensor, "b c"]
    """Condition; does not move."""
    diagonal: int
    """Leading rows with s = t."""
    fraction: Float[Tensor, " b"] | None = None
    """Where to cut each interval, as a share of it; None for objectives that do not."""

    def mean(self, x: Tensor, s: Tensor, t: Tensor, skip: int = 0) -> Tensor:
        """Mean velocity of the rows from ``skip`` on."""
        value: Tensor = self.network(x, s, t, self.cond[skip:]).value
        return value


class Errors(NamedTuple):
    """Errors on and off the diagonal, in units of a velocity."""

    on: Float[Tensor, "m h a"]
    off: Float[Tensor, "n h a"]
    skip: int
    """First row of ``off`` in the batch."""
    separate: bool
    """Whether every row has both errors, so that their losses add; otherwise each row has one of them."""


@dataclasses.dataclass(frozen=True)
class Consistency(Value):
    """Base of the objectives."""

    two_time: ClassVar[bool] = True
    """Whether it trains a flow map."""
    forward_mode: ClassVar[bool] = False
    """Whether it differentiates the network forwards."""
    differentiated: ClassVar[bool] = False
    """Whether the gradient runs through that derivative."""
    own_tangent: ClassVar[bool] = False
    """Whether it follows the network's own velocity, not that of the pair."""
    cuts: ClassVar[bool] = False
    """Whether it cuts intervals at a random place."""

    def share(self) -> float:
        """Share of rows with s = t."""
        return 0.0

    @property
    def settles(self) -> float:
        """Share of the updates from which on the intervals no longer depend on it."""
        return 0.0

    def pairs(self, law: TimeLaw, batch: int, progress: float, generator: torch.Generator) -> tuple[TimePair, int]:
        """Intervals and the number of leading rows with s = t; ``progress`` is the share of updates done."""
        diagonal = self.leading(law, batch)
        return law.pairs(batch, diagonal, generator), diagonal

    def leading(self, law: TimeLaw, batch: int) -> int:
        """Rows with s = t that lead a batch."""
        return law.diagonal(batch, self.share())

    def errors(self, problem: Problem) -> Errors:
        """Errors of a batch. Teachers carry no gradient."""
        raise NotImplementedError

    def loss(
        self, problem: Problem, valid: Bool[Tensor, "b h"], loss: Loss, path: Interpolant
    ) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
        """Loss of a batch, and the parts on and off the diagonal for the log."""
        e = self.errors(problem)
        n = e.on.shape[0]
        on = loss.reduce(e.on, valid[:n], problem.s[:n], path)
        plain = loss.reduce(e.off, valid[e.skip :], problem.s[e.skip :], path)
        off = loss.balance(plain, on)
        metrics = {"on_diagonal": on.detach(), "off_diagonal": plain.detach()}
        if e.separate:
            return on + off, metrics
        leading, every = ranks.totals(valid[:n].sum(), valid.sum())
        share = leading.to(on.dtype) / every.clamp(min=1)
        return share * on + (1 - share) * off, metrics


@register("consistency", "none")
@dataclasses.dataclass(frozen=True)
class NoConsistency(Consistency):
    """Velocity matching alone: a network of one time, and a solver."""

    two_time: ClassVar[bool] = False


@register(
    "consistency",
    "meanflow",
    MEANFLOW,
    Reference("DM1: MeanFlow with Dispersive Regularization for 1-Step Robotic Manipulation", "2510.07865"),
)
@dataclasses.dataclass(frozen=True)
class MeanFlow(Consistency):
    """``u = sg(w + (t - s) D u)`` with D the derivative along (w, 1), w of the pair (MeanFlow, arXiv 2505.13447)."""

    share_diagonal: Share = 0.25
    """Share of rows with s = t. Smaller is better at one evaluation (errors 57, 81, 133 at .25, .5, .75; measured)."""
    forward_mode: ClassVar[bool] = True

    @override
    def share(self) -> float:
        return self.share_diagonal

    @override
    def errors(self, problem: Problem) -> Errors:
        p, k = problem, problem.diagonal
        speed = self.speed(p)
        output, slope = p.network.with_tangent(p.x, p.s, p.t, p.cond, speed, torch.ones_like(p.s), k)
        return self._split(p, output.value, slope)

    def speed(self, problem: Problem) -> Float[Tensor, "b h a"]:
        """Velocity that the derivative follows."""
        return problem.velocity

    @staticmethod
    def _split(p: Problem, value: Tensor, slope: Tensor) -> Errors:
        k = p.diagonal
        target = p.velocity[k:] + rows((p.t - p.s)[k:], slope) * slope
        return Errors(value[:k] - p.velocity[:k], value[k:] - target.detach(), k, separate=False)


@register(
    "consistency",
    "improved-meanflow",
    Reference("Improved Mean Flows: On the Challenges of Fastforward Generative Models", "2512.02012"),
)
@dataclasses.dataclass(frozen=True)
class ImprovedMeanFlow(MeanFlow):
    """MeanFlow whose derivative follows the network's own velocity, of less variance (iMF, arXiv 2512.02012)."""

    kappa: Share = 0.0
    """Share of the pair's velocity in what the derivative follows; 1 is MeanFlow."""
    own_tangent: ClassVar[bool] = True

    @override
    def speed(self, problem: Problem) -> Float[Tensor, "b h a"]:
        p, k = problem, problem.diagonal
        with torch.no_grad():
            own = p.mean(p.x[k:], p.s[k:], p.s[k:], k)
        return torch.cat([p.velocity[:k], self.kappa * p.velocity[k:] + (1 - self.kappa) * own if self.kappa else own])


@register(
    "consistency",
    "central-difference",
    Reference("AnyFlow: Any-Step Video Diffusion Model with On-Policy Flow Map Distillation", "2605.13724"),
    MEANFLOW,
)
@dataclasses.dataclass(frozen=True)
class CentralDifference(MeanFlow):
    """MeanFlow with ``D u`` as a central difference: two forward passes and no forward mode (AnyFlow).

    Works with any network and is cheaper, but noisier at one evaluation (error 134 instead of 81, measured).
    """

    width: Positive = 0.01
    """Half of the distance; below 0.005 rounding in float32 wins."""
    forward_mode: ClassVar[bool] = False

    @override
    def errors(self, problem: Problem) -> Errors:
        p, k, e = problem, problem.diagonal, self.width
        with torch.no_grad():
            x, s, t, w = p.x[k:], p.s[k:], p.t[k:], p.velocity[k:]
            slope = (p.mean(x + e * w, s + e, t, k) - p.mean(x - e * w, s - e, t, k)) / (2 * e)
        return self._split(p, p.mean(p.x, p.s, p.t), slope)


@dataclasses.dataclass(frozen=True)
class SelfDistillation(Consistency):
    """Base of the flow-map objectives: velocity matching and one identity, both on every row (arXiv 2505.18825)."""

    anneal: Share = 0.0
    """Share of the updates over which the longest interval grows from 0.02 to 1; 0 has no window."""
    own_tangent: ClassVar[bool] = True

    @property
    @override
    def settles(self) -> float:
        return self.anneal

    @override
    def pairs(self, law: TimeLaw, batch: int, progress: float, generator: torch.Generator) -> tuple[TimePair, int]:
        (s, t), diagonal = Consistency.pairs(self, law, batch, progress, generator)
        if progress < self.anneal:
            t = s + (t - s) * (0.02 + 0.98 * progress / self.anneal)
        return TimePair(s, t), diagonal

    @override
    def errors(self, problem: Problem) -> Errors:
        p = problem
        return Errors(p.mean(p.x, p.s, p.s) - p.velocity, self.identity(p), 0, separate=True)

    def identity(self, problem: Problem) -> Float[Tensor, "b h a"]:
        """Error of the identity on every row."""
        raise NotImplementedError


@register("consistency", "lsd", FLOW_MAPS)
@dataclasses.dataclass(frozen=True)
class Lagrangian(SelfDistillation):
    """``d_t X(x, s, t) = sg u(X, t, t)``: the best one-step map here, error 18 to 25 (arXiv 2505.18825, section 3)."""

    clamp: float = 3.0
    """X is clamped to +- this for the teacher. Without, 3 of 5 runs diverged: X leaves the data and teaches itself."""
    forward_mode: ClassVar[bool] = True
    differentiated: ClassVar[bool] = True

    @override
    def identity(self, problem: Problem) -> Float[Tensor, "b h a"]:
        p = problem
        mean, slope = derivative(lambda t: p.mean(p.x, p.s, t), (p.t,), (torch.ones_like(p.t),))
        length = rows(p.t - p.s, p.x)
        with torch.no_grad():
            teacher = p.mean((p.x + length * mean.detach()).clamp(-self.clamp, self.clamp), p.t, p.t)
        return mean + length * slope - teacher

    def conflicts(self, spec: Any, setting: Any) -> Iterator[Conflict]:
        """A teacher that follows the map out of the data teaches nonsense."""
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

    @override
    def identity(self, problem: Problem) -> Float[Tensor, "b h a"]:
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

    @override
    def identity(self, problem: Problem) -> Float[Tensor, "b h a"]:
        p = problem
        share = torch.full_like(p.s, 0.5) if self.midpoint or p.fraction is None else p.fraction
        return p.mean(p.x, p.s, p.t) - two_jumps(p, share)


@register("consistency", "shortcut", Reference("One Step Diffusion via Shortcut Models", "2410.12557"))
@dataclasses.dataclass(frozen=True)
class Shortcut(Consistency):
    """Two half steps teach a whole one on dyadic intervals; the other rows match the velocity (arXiv 2410.12557)."""

    share_bootstrap: SomeShare = 0.25
    """Share of rows with a step."""
    levels: Few = 7
    """The finest step is ``2^-levels``."""
    own_tangent: ClassVar[bool] = True

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

    @override
    def errors(self, problem: Problem) -> Errors:
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
    """One jump equals a midpoint step of the map's own velocity and a jump (CTM, arXiv 2310.02279, section 3.2).

    The identity holds up to the third power of the step. Compared in velocities, not through a second jump to the
    data; without the adversarial term.
    """

    step: SomeShare = 0.05
    """Longest step of the map's own velocity."""

    @override
    def identity(self, problem: Problem) -> Float[Tensor, "b h a"]:
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
