"""The time axis: the law of the flow times at which a loss is evaluated. Noise at t = 0, data at t = 1.

A law draws single times for velocity matching and intervals [s, t] for flow maps. Most published laws put the data at
t = 0; they are reversed here.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from flowpolicy.core.errors import ConfigError
from flowpolicy.core.ranges import Count, NonNegative, Positive, Share
from flowpolicy.flows.axes.registry import Conflict, Reference, Value, register

SCALING = Reference("Scaling Rectified Flow Transformers for High-Resolution Image Synthesis", "2403.03206")
IMAGE_SIZES = 1024
"""From this many numbers on, a reference size belongs to images: chunks have 7 to 112."""


def uniform(batch: int, generator: torch.Generator) -> Float[Tensor, " b"]:
    """Times uniform on [0, 1)."""
    return torch.rand(batch, generator=generator, device=generator.device)


def logit_normal(batch: int, generator: torch.Generator, mean: float, std: float) -> Float[Tensor, " b"]:
    """Times ``sigmoid(mean + std z)``, z standard normal (Esser et al. 2024, arXiv 2403.03206)."""
    return torch.sigmoid(mean + std * torch.randn(batch, generator=generator, device=generator.device))


class TimePair(NamedTuple):
    """Intervals [s, t], one per row, s the noisier end; 0 <= s <= t <= 1."""

    s: Float[Tensor, " b"]
    t: Float[Tensor, " b"]


@dataclasses.dataclass(frozen=True)
class TimeLaw(Value):
    """Base of the laws: a subclass draws times and states their density."""

    def draw(self, count: int, generator: torch.Generator) -> Float[Tensor, " b"]:
        """Times in [0, 1]."""
        raise NotImplementedError

    def log_pdf(self, t: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Log density (log probability of a discrete law) at times inside (0, 1)."""
        raise NotImplementedError

    def diagonal(self, batch: int, share: float) -> int:
        """Rows with s = t that lead a batch of intervals; ``share`` is what the objective asks for."""
        return math.floor(share * batch)

    def pairs(self, batch: int, diagonal: int, generator: torch.Generator) -> TimePair:
        """Intervals: ``diagonal`` rows with s = t first, then the sorted pair of two times."""
        first, second = self.draw(batch, generator), self.draw(batch, generator)
        s, t = torch.minimum(first, second), torch.maximum(first, second)
        s[:diagonal] = t[:diagonal] = first[:diagonal]
        return TimePair(s, t)

    def for_size(self, size: int) -> TimeLaw:
        """The law for chunks of ``size`` numbers."""
        return self


def _require_together(diagonal: float, endpoint: float) -> None:
    if diagonal + endpoint > 1:
        raise ConfigError(f"the shares of diagonal {diagonal} and endpoint {endpoint}", expected="together at most 1")


@register("time", "uniform", Reference("Flow Matching for Generative Modeling", "2210.02747"))
@dataclasses.dataclass(frozen=True)
class Uniform(TimeLaw):
    """Uniform on [0, 1)."""

    @override
    def draw(self, count: int, generator: torch.Generator) -> Float[Tensor, " b"]:
        return uniform(count, generator)

    @override
    def log_pdf(self, t: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        return torch.zeros_like(t)


@register("time", "logit-normal", SCALING)
@dataclasses.dataclass(frozen=True)
class LogitNormal(TimeLaw):
    """``sigmoid(mean + std z)`` (Esser et al. 2024, arXiv 2403.03206)."""

    mean: float = 0.0
    """Mean of the logit; above 0 leans to the data."""
    std: Positive = 1.0
    """Its standard deviation."""

    @override
    def draw(self, count: int, generator: torch.Generator) -> Float[Tensor, " b"]:
        return logit_normal(count, generator, self.mean, self.std)

    @override
    def log_pdf(self, t: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        z = (t.logit() - self.mean) / self.std
        return -0.5 * z.square() - math.log(self.std * math.sqrt(2 * math.pi)) - (t * (1 - t)).log()


@register(
    "time",
    "shifted",
    Reference("RiT: Vanilla Diffusion Transformers Suffice in Representation Space", "2605.21981"),
    SCALING,
)
@dataclasses.dataclass(frozen=True)
class Shifted(LogitNormal):
    """Logit-normal time shifted to the noise (RiT; Esser et al. 2024, arXiv 2403.03206, section 5.3.2).

    In the published direction ``X' = shift X / (1 + (shift - 1) X)`` with X logit-normal, and t = 1 - X'. The logit
    of t is therefore normal with the mean ``-mean - log(shift)``.
    """

    shift: Positive = 3.0
    """Above 1 leans to the noise; 1 is the law 'logit-normal'."""
    reference: NonNegative = 0.0
    """Above 0, the shift is ``sqrt(size / reference)`` within [0.5, 3] instead, for chunks of ``size`` numbers."""

    def conflicts(self, spec: Any, setting: Any) -> Iterator[Conflict]:
        """With a constant of images the shift would point the other way on chunks."""
        if self.reference >= IMAGE_SIZES:
            yield Conflict(
                f"{self.flag} --flow.time.reference {self.reference:g}",
                "a constant of images: for chunks the shift would point to the data instead of the noise",
                "--flow.time.reference 56",
            )

    def for_size(self, size: int) -> TimeLaw:
        """The law with its shift for chunks of ``size`` numbers."""
        if not self.reference:
            return self
        return dataclasses.replace(self, shift=min(3.0, max(0.5, math.sqrt(size / self.reference))), reference=0.0)

    @override
    def draw(self, count: int, generator: torch.Generator) -> Float[Tensor, " b"]:
        return self._turned.draw(count, generator)

    @override
    def log_pdf(self, t: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        return self._turned.log_pdf(t)

    @property
    def _turned(self) -> LogitNormal:
        return LogitNormal(-self.mean - math.log(self.shift), self.std)


@register("time", "u-shape", Reference("Improving the Training of Rectified Flows", "2405.20320"))
@dataclasses.dataclass(frozen=True)
class UShape(TimeLaw):
    """Density ``a (e^{at} + e^{a(1-t)}) / (2 (e^a - 1))``: both ends (arXiv 2405.20320, section 4.1).

    Meant for a teacher's pairs; on plain flow matching it gained nothing (measured).
    """

    steepness: Positive = 4.0
    """The a; towards 0 the law is uniform."""

    @override
    def draw(self, count: int, generator: torch.Generator) -> Float[Tensor, " b"]:
        t = (uniform(count, generator) * math.expm1(self.steepness)).log1p() / self.steepness
        return torch.where(uniform(count, generator) < 0.5, t, 1 - t).clamp(1e-5, 1 - 1e-5)

    @override
    def log_pdf(self, t: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        a = self.steepness
        return math.log(a / (2 * math.expm1(a))) + torch.logaddexp(a * t, a * (1 - t))


@register("time", "beta", Reference("pi0: A Vision-Language-Action Flow Model for General Robot Control", "2410.24164"))
@dataclasses.dataclass(frozen=True)
class Beta(TimeLaw):
    """``1 - t`` is Beta(a, 1): leans to the noise where a > 1 (pi0, arXiv 2410.24164, appendix B)."""

    a: Positive = 1.5
    """First parameter of the law."""

    @override
    def draw(self, count: int, generator: torch.Generator) -> Float[Tensor, " b"]:
        return 1 - uniform(count, generator).pow(1 / self.a)

    @override
    def log_pdf(self, t: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        return math.log(self.a) + (self.a - 1) * (1 - t).log()


@register(
    "time",
    "grid",
    Reference("Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow", "2209.03003"),
)
@dataclasses.dataclass(frozen=True)
class Grid(TimeLaw):
    """The left ends 0, 1/k, ..., (k-1)/k alone: k-step distillation (Rectified Flow, arXiv 2209.03003)."""

    steps: Count = 4
    """The k; 1 trains at t = 0 alone, for a single evaluation."""

    @override
    def draw(self, count: int, generator: torch.Generator) -> Float[Tensor, " b"]:
        picked = torch.randint(self.steps, (count,), generator=generator, device=generator.device)
        return picked.float() / self.steps

    def log_pdf(self, t: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Log probability; minus infinity off the grid."""
        on = ((t * self.steps).round() / self.steps - t).abs() < 1e-6
        return torch.where(on & (t < 1), -math.log(self.steps), -math.inf)

    def conflicts(self, spec: Any, setting: Any) -> Iterator[Conflict]:
        """A velocity that is known at k times can be asked for at those only."""
        if spec.consistency.two_time or setting.nfe is None:
            return
        evaluations = spec.guidance.budget(setting.nfe)
        on_grid = spec.solver.left_ends and spec.schedule.name == "uniform" and spec.target.start == 0
        if not on_grid or self.steps % evaluations:
            yield Conflict(
                f"{self.flag} with {evaluations} evaluations of {spec.solver.flag} on {spec.schedule.flag}",
                f"the velocity is trained at the times 0, 1/{self.steps}, 2/{self.steps}, ... alone",
                f"--flow.solver euler --agent.nfe {spec.guidance.total(self.steps)} --flow.schedule uniform",
            )


@register("time", "dyadic", Reference("One Step Diffusion via Shortcut Models", "2410.12557"))
@dataclasses.dataclass(frozen=True)
class Dyadic(Grid):
    """Multiples of ``2^-levels``; intervals have dyadic lengths and start at multiples of them (arXiv 2410.12557)."""

    steps: Count = 128
    """Number of left ends; a power of two."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps & (self.steps - 1):
            raise ConfigError(f"the law dyadic has {self.steps} steps", expected="a power of two")

    def conflicts(self, spec: Any, setting: Any) -> Iterator[Conflict]:
        """None: the grid is fine enough for every solver."""
        yield from ()

    def pairs(self, batch: int, diagonal: int, generator: torch.Generator) -> TimePair:
        """Diagonal rows on the finest grid, then intervals ``[k 2^-j, (k + 1) 2^-j]`` with j uniform."""
        s = self.draw(batch, generator)
        levels = self.steps.bit_length()
        j = torch.randint(levels, (batch,), generator=generator, device=generator.device)
        length = torch.exp2(-j.float())
        start = (s / length).floor() * length
        t = start + length
        start[:diagonal] = t[:diagonal] = s[:diagonal]
        return TimePair(start, t)


@register(
    "time",
    "split",
    Reference("AnyFlow: Any-Step Video Diffusion Model with On-Policy Flow Map Distillation", "2605.13724"),
)
@dataclasses.dataclass(frozen=True)
class Split(Uniform):
    """Exact shares of every batch: diagonal, ending at the data, free (AnyFlow)."""

    share_diagonal: Share = 0.5
    """Share of rows with s = t."""
    share_endpoint: Share = 0.25
    """Share of rows with t = 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_together(self.share_diagonal, self.share_endpoint)

    def diagonal(self, batch: int, share: float) -> int:
        """Its own share, whatever the objective asks for."""
        return math.floor(self.share_diagonal * batch)

    def pairs(self, batch: int, diagonal: int, generator: torch.Generator) -> TimePair:
        """Diagonal rows, then rows with t = 1, then sorted pairs."""
        s, t = TimeLaw.pairs(self, batch, diagonal, generator)
        endpoint = slice(diagonal, diagonal + math.floor(self.share_endpoint * batch))
        t[endpoint] = 1.0
        s[endpoint] = self.draw(batch, generator)[endpoint]
        return TimePair(s, t)


@register("time", "ends", Reference("Mean Flows for One-step Generative Modeling", "2505.13447"))
@dataclasses.dataclass(frozen=True)
class Ends(TimeLaw):
    """DM1's law here: uniform and logit-normal times mixed, with a share of intervals that end at the data.

    The published law (MeanFlow, arXiv 2505.13447, section 4.3) almost never draws the interval (0, 1), the only one a
    one-step policy is asked for (4 of a million rows), so a share of the rows ends at the data, half of it starting at
    pure noise. The shares are exact counts, not probabilities: every batch holds them.
    """

    share_diagonal: Share = 0.25
    """Share of rows with s = t, where the loss is plain velocity matching; whatever the objective asks for."""
    share_endpoint: Share = 0.15
    """Share of rows with t = 1: half of them with s = 0, the others with s uniform on (0, 1/2)."""
    share_uniform: Share = 0.5
    """In all other rows: probability that a time is uniform rather than logit-normal."""
    logit_mean: float = 0.4
    """Mean of the logit-normal times, counted with data at 1 (the published -0.4 counts from the data)."""
    logit_std: Positive = 1.0
    """Standard deviation of the logit-normal times before the sigmoid."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_together(self.share_diagonal, self.share_endpoint)

    def diagonal(self, batch: int, share: float = 0.0) -> int:
        """Its own share, whatever the objective asks for."""
        return math.floor(self.share_diagonal * batch)

    def endpoint(self, batch: int) -> int:
        """Number of rows with t = 1, right after the diagonal ones."""
        return math.floor(self.share_endpoint * batch)

    @override
    def draw(self, count: int, generator: torch.Generator) -> Float[Tensor, " b"]:
        flat = uniform(count, generator)
        peaked = logit_normal(count, generator, self.logit_mean, self.logit_std)
        return torch.where(uniform(count, generator) < self.share_uniform, flat, peaked)

    @override
    def log_pdf(self, t: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        share = self.share_uniform
        return (share + (1 - share) * LogitNormal(self.logit_mean, self.logit_std).log_pdf(t).exp()).log()

    def intervals(self, batch: int, generator: torch.Generator) -> TimePair:
        """Intervals of a batch in its own shares."""
        return self.pairs(batch, self.diagonal(batch), generator)

    @override
    def pairs(self, batch: int, diagonal: int, generator: torch.Generator) -> TimePair:
        """Diagonal rows first, then endpoint rows, then sorted pairs.

        The order lets the loss compute tangents for the rows after the diagonal ones only; it mixes with nothing,
        because the rows of a batch are themselves independent draws.
        """
        endpoint = self.endpoint(batch)
        s, t = TimeLaw.pairs(self, batch, diagonal, generator)
        t[diagonal : diagonal + endpoint] = 1.0
        start = 0.5 * uniform(endpoint, generator)
        start[: (endpoint + 1) // 2] = 0.0
        s[diagonal : diagonal + endpoint] = start
        return TimePair(s, t)
