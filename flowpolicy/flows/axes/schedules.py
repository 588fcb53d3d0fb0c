"""The schedule axis: where a solver puts its steps, as rising grids from exactly 0 to exactly 1."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from typing_extensions import override

from flowpolicy.core.errors import ConfigError
from flowpolicy.core.ranges import Positive
from flowpolicy.flows.axes.registry import Conflict, Reference, Value, register

_EDM = Reference("Elucidating the Design Space of Diffusion-Based Generative Models", "2206.00364")


@dataclasses.dataclass(frozen=True)
class Schedule(Value):
    """Base of the schedules."""

    @property
    def belongs_to(self) -> str:
        """Hash of the weights that the schedule was fitted on; empty for closed forms."""
        return ""

    def at(self, u: float) -> float:
        """Time of the share u of the steps, for u in (0, 1)."""
        raise NotImplementedError

    def grid(self, steps: int) -> tuple[float, ...]:
        """The ``steps + 1`` times, 0 first and 1 last."""
        return (0.0, *(self.at(k / steps) for k in range(1, steps)), 1.0)


@register("schedule", "uniform")
@dataclasses.dataclass(frozen=True)
class UniformSteps(Schedule):
    """Equal steps."""

    @override
    def at(self, u: float) -> float:
        return u


@register("schedule", "cosine", Reference("Improved Denoising Diffusion Probabilistic Models", "2102.09672"))
@dataclasses.dataclass(frozen=True)
class Cosine(Schedule):
    """``(1 - cos(pi u)) / 2``: short steps at both ends."""

    @override
    def at(self, u: float) -> float:
        return 0.5 * (1 - math.cos(math.pi * u))


@register("schedule", "power", _EDM)
@dataclasses.dataclass(frozen=True)
class Power(Schedule):
    """``u^exponent``: above 1 short steps at the noise, below 1 at the data."""

    exponent: Positive = 2.0
    """The exponent."""

    @override
    def at(self, u: float) -> float:
        return float(u**self.exponent)


@register(
    "schedule",
    "time-shift",
    Reference("Scaling Rectified Flow Transformers for High-Resolution Image Synthesis", "2403.03206"),
)
@dataclasses.dataclass(frozen=True)
class TimeShift(Schedule):
    """``1 - t = shift (1 - u) / (1 + (shift - 1) (1 - u))``: above 1 short steps at the noise."""

    shift: Positive = 2.0
    """The shift; 1 is uniform."""

    @override
    def at(self, u: float) -> float:
        back = 1 - u
        return 1 - self.shift * back / (1 + (self.shift - 1) * back)


@register("schedule", "edm", _EDM)
@dataclasses.dataclass(frozen=True)
class Edm(Schedule):
    """Noise levels ``sigma = (1 - t) / t`` with equal steps of ``sigma^(1/rho)`` (EDM, arXiv 2206.00364, eq. 5)."""

    rho: Positive = 7.0
    """Larger values make shorter steps at the data."""
    largest: float = 80.0
    """Noise level at u = 0; the grid itself starts at t = 0."""
    smallest: Positive = 0.002
    """Noise level at u = 1; the grid itself ends at t = 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.smallest >= self.largest:
            raise ConfigError(f"the schedule edm has the levels {self.smallest} and {self.largest}")

    @override
    def at(self, u: float) -> float:
        high, low = self.largest ** (1 / self.rho), self.smallest ** (1 / self.rho)
        return float(1 / (1 + (high + u * (low - high)) ** self.rho))


@register("schedule", "logsnr", Reference("Variational Diffusion Models", "2107.00630"))
@dataclasses.dataclass(frozen=True)
class LogSnr(Schedule):
    """Equal steps of the log signal-to-noise ratio ``2 log(t / (1 - t))`` within +- ``limit``."""

    limit: Positive = 8.0
    """Largest absolute value."""

    @override
    def at(self, u: float) -> float:
        return 1 / (1 + math.exp(-self.limit * (u - 0.5)))


@register(
    "schedule",
    "logit-normal",
    Reference("RiT: Vanilla Diffusion Transformers Suffice in Representation Space", "2605.21981"),
)
@dataclasses.dataclass(frozen=True)
class LogitNormalSteps(Schedule):
    """Quantiles of the logit-normal law: short steps where that law trains most (RiT)."""

    mean: float = 0.0
    """Mean of the logit."""
    std: Positive = 1.0
    """Its standard deviation."""

    @override
    def at(self, u: float) -> float:
        from statistics import NormalDist

        return 1 / (1 + math.exp(-NormalDist(self.mean, self.std).inv_cdf(u)))


@register(
    "schedule", "boss", Reference("Bellman Optimal Step-size Straightening of Flow-Matching Models", "2312.16414")
)
@dataclasses.dataclass(frozen=True)
class Boss(Schedule):
    """The nodes on which Euler's method loses least, found by dynamic programming (BOSS, arXiv 2312.16414).

    ``flowpolicy fit`` makes it; see :func:`flowpolicy.flows.fitting.bellman`.
    """

    nodes: tuple[float, ...] = ()
    """The grid, 0 first and 1 last."""
    weights: str = ""
    """Hash of the weights that it was fitted on."""

    @property
    @override
    def belongs_to(self) -> str:
        return self.weights

    def grid(self, steps: int) -> tuple[float, ...]:
        """The fitted grid; ConfigError for another number of steps."""
        if steps != len(self.nodes) - 1:
            fitted = f"was fitted for {len(self.nodes) - 1} steps, not {steps}" if self.nodes else "is not fitted"
            raise ConfigError(
                f"the schedule boss {fitted}",
                fix=f"flowpolicy fit RUN --nfe {steps}",
            )
        return self.nodes

    def conflicts(self, spec: Any, setting: Any) -> Iterator[Conflict]:
        """A fit belongs to weights that do not exist yet."""
        if not self.nodes:
            yield Conflict(
                f"{self.flag} before there are weights",
                "its nodes are fitted to the field of a trained policy",
                "train with --flow.schedule uniform, then: flowpolicy fit RUN --nfe 4 --what boss",
            )
