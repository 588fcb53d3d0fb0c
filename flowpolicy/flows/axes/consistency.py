"""Axis 7, what a flow map is trained on off the diagonal. Noise at t = 0, data at t = 1.

The map ``X(x, s, t) = x + (t - s) u(x, s, t)`` carries x from s to t >= s; u on the diagonal s = t is the velocity.
Three identities make it the map of that velocity: Lagrangian ``d_t X = v(X, t)``, Eulerian ``d_s X + (d_x X) v(x, s) =
0``, and the semigroup ``X(X(x, s, w), w, t) = X(x, s, t)`` (arXiv 2505.18825). Derivatives are forward-mode.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from flowpolicy.core.errors import ConfigError
from flowpolicy.flows.axes.interpolants import Interpolant
from flowpolicy.flows.axes.losses import Loss
from flowpolicy.flows.axes.registry import Reference, Value, register
from flowpolicy.flows.axes.time_laws import TimeLaw
from flowpolicy.flows.interpolant import rows
from flowpolicy.flows.meanflow import TangentMap
from flowpolicy.flows.times import TimePair

MEANFLOW = Reference("Mean Flows for One-step Generative Modeling", "2505.13447")


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
    """Where in the interval an objective that cuts it in two does so."""

    def mean(self, x: Tensor, s: Tensor, t: Tensor, skip: int = 0) -> Tensor:
        """Mean velocity of the rows from ``skip`` on."""
        value: Tensor = self.network(x, s, t, self.cond[skip:]).value
        return value


class Errors(NamedTuple):
    """Errors in units of a velocity on the diagonal and off it, and the times and validity of their rows."""

    on: Float[Tensor, "m h a"]
    off: Float[Tensor, "n h a"]
    skip: int
    """First row of ``off`` in the batch."""
    separate: bool
    """Whether every row has both errors, whose losses add; otherwise rows are shared out."""


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
        share = valid[:n].sum().to(on.dtype) / valid.sum().clamp(min=1)
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

    share_diagonal: float = 0.25
    """Share of rows with s = t. Fewer are better at one evaluation (57, 81, 133 at .25, .5, .75; measured)."""
    forward_mode: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.share_diagonal <= 1:
            raise ConfigError(f"the share of the diagonal is {self.share_diagonal}", expected="in [0, 1]")

    def share(self) -> float:
        """See :class:`Consistency`."""
        return self.share_diagonal

    def errors(self, problem: Problem) -> Errors:
        """See :class:`Consistency`."""
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

    own_tangent: ClassVar[bool] = True

    def speed(self, problem: Problem) -> Float[Tensor, "b h a"]:
        """See :class:`MeanFlow`."""
        p, k = problem, problem.diagonal
        with torch.no_grad():
            own = p.mean(p.x[k:], p.s[k:], p.s[k:], k)
        return torch.cat([p.velocity[:k], own])


@register(
    "consistency",
    "central-difference",
    Reference("AnyFlow: Any-Step Video Diffusion Model with On-Policy Flow Map Distillation"),
    MEANFLOW,
)
@dataclasses.dataclass(frozen=True)
class CentralDifference(MeanFlow):
    """MeanFlow with ``D u`` as a central difference: two forward passes and no forward mode (AnyFlow).

    Works with any network and is cheaper, and noisier at one evaluation (134 against 81, measured).
    """

    width: float = 0.01
    """Half of the distance; below 0.005 rounding in float32 wins."""
    forward_mode: ClassVar[bool] = False

    def __post_init__(self) -> None:
        MeanFlow.__post_init__(self)
        if not self.width > 0:
            raise ConfigError(f"the width of the central difference is {self.width}", expected="above 0")

    def errors(self, problem: Problem) -> Errors:
        """See :class:`Consistency`."""
        p, k, e = problem, problem.diagonal, self.width
        with torch.no_grad():
            x, s, t, w = p.x[k:], p.s[k:], p.t[k:], p.velocity[k:]
            slope = (p.mean(x + e * w, s + e, t, k) - p.mean(x - e * w, s - e, t, k)) / (2 * e)
        return self._split(p, p.mean(p.x, p.s, p.t), slope)
