"""Axis 4, continued: laws of times on a grid, and of intervals with exact shares."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from flowpolicy.core.errors import ConfigError
from flowpolicy.flows.axes.registry import Conflict, Reference, register
from flowpolicy.flows.axes.time_laws import LogitNormal, TimeLaw, Uniform
from flowpolicy.flows.times import PairLaw, TimePair


@register(
    "time",
    "grid",
    Reference("Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow", "2209.03003"),
)
@dataclasses.dataclass(frozen=True)
class Grid(TimeLaw):
    """The left ends 0, 1/k, ..., (k-1)/k alone: k-step distillation (Rectified Flow, arXiv 2209.03003)."""

    steps: int = 4
    """The k; 1 trains at the noise only, and the result is good for one evaluation only."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ConfigError(f"the law grid has {self.steps} steps", expected="at least 1")

    def draw(self, count: int, generator: torch.Generator) -> Float[Tensor, " b"]:
        """See :class:`TimeLaw`."""
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

    steps: int = 128
    """Number of left ends; a power of two."""

    def __post_init__(self) -> None:
        Grid.__post_init__(self)
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


@register("time", "split", Reference("AnyFlow: Any-Step Video Diffusion Model with On-Policy Flow Map Distillation"))
@dataclasses.dataclass(frozen=True)
class Split(Uniform):
    """Exact shares of every batch: diagonal, ending at the data, free (AnyFlow)."""

    share_diagonal: float = 0.5
    """Share of rows with s = t."""
    share_endpoint: float = 0.25
    """Share of rows with t = 1."""

    def __post_init__(self) -> None:
        if min(self.share_diagonal, self.share_endpoint) < 0 or self.share_diagonal + self.share_endpoint > 1:
            raise ConfigError(
                f"the law split has the shares {self.share_diagonal} and {self.share_endpoint}",
                expected="shares of at least 0, together at most 1",
            )

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
    """Uniform and logit-normal times mixed, with a share of intervals that end at the data: the law of DM1 here."""

    law: PairLaw = PairLaw()
    """Its shares; ``share_diagonal`` counts, not the objective's."""

    def diagonal(self, batch: int, share: float) -> int:
        """Its own share, whatever the objective asks for."""
        return self.law.diagonal_rows(batch)

    def draw(self, count: int, generator: torch.Generator) -> Float[Tensor, " b"]:
        """See :class:`TimeLaw`."""
        return dataclasses.replace(self.law, share_diagonal=1.0, share_endpoint=0.0).draw(count, generator).s

    def log_pdf(self, t: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """See :class:`TimeLaw`."""
        share = self.law.share_uniform
        return (share + (1 - share) * LogitNormal(self.law.logit_mean, self.law.logit_std).log_pdf(t).exp()).log()

    def pairs(self, batch: int, diagonal: int, generator: torch.Generator) -> TimePair:
        """See :class:`flowpolicy.flows.times.PairLaw`."""
        return self.law.draw(batch, generator)
