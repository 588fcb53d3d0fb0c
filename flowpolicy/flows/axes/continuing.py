"""Axes 1 and 2, continued: flows that start from the previous chunk and not from noise alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from flowpolicy.core.errors import ConfigError
from flowpolicy.flows.axes.interpolants import STOCHASTIC_INTERPOLANTS, Latent
from flowpolicy.flows.axes.registry import Conflict, Reference, register
from flowpolicy.flows.axes.sources import Source


@register("interpolant", "bridge", STOCHASTIC_INTERPOLANTS)
@dataclasses.dataclass(frozen=True)
class Bridge(Latent):
    """From the actions that were executed last to the chunk: a two-sided interpolant (arXiv 2303.08797).

    At t = 0 stand the h actions before the chunk with Gaussian noise of the deviation ``spread``; a latent Gaussian
    widens the way. Actions that would lie before the episode stand in the middle of the action range, in training and
    in acting, so that the first chunk of an episode starts from ``N(0, spread^2)`` after scaling.
    """

    spread: float = 0.1
    """Deviation at the start; with 0 the policy is deterministic."""
    continues: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.spread < 0:
            raise ConfigError(f"{self.flag} with the deviation {self.spread}", expected="at least 0")

    def begin(self, noise: Float[Tensor, "b h a"], past: Float[Tensor, "b h a"]) -> Float[Tensor, "b h a"]:
        """See :class:`flowpolicy.flows.axes.interpolants.Interpolant`."""
        return past + self.spread * noise

    def conflicts(self, spec: Any, setting: Any) -> Iterator[Conflict]:
        """R9 and R17: what takes the start for a standard Gaussian, or pairs it anew."""
        wrong = {
            spec.target.flag: spec.target.converts,
            spec.solver.flag: spec.solver.converts or spec.solver.needs_score,
            spec.guidance.flag: spec.guidance.converts,
            spec.source.flag: spec.source.name != "normal",
            spec.coupling.flag: spec.coupling.name != "independent",
        }
        for flag in (flag for flag, is_wrong in wrong.items() if is_wrong):
            yield Conflict(
                f"{self.flag} with {flag}",
                "the flow starts from the previous chunk, not from noise",
                "--flow.target velocity, --flow.solver euler, --flow.source normal and --flow.coupling independent",
            )


@register(
    "source",
    "warm-start",
    Reference("StreamDiffusionV2: A Streaming System for Dynamic and Interactive Video Generation", "2511.07399"),
)
@dataclasses.dataclass(frozen=True)
class WarmStart(Source):
    """The flow starts on its way, from the previous chunk with noise (StreamDiffusionV2, motion-aware controller).

    ``x = path(noise, previous chunk, start)``, and the evaluations are spent on the rest. A fast change of the
    observation starts earlier: ``start = most (1 - min(1, change / motion))``. Training is as from plain noise, and
    so is the first decision of an episode.
    """

    most: float = 0.6
    """Time of the start where nothing moves; 0 is plain noise."""
    motion: float = 0.0
    """Change (root mean square) of the scaled observation in one step at which the start is plain noise; 0 does not
    look. Needs a history of two observations."""
    continues: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.most < 1 or self.motion < 0:
            raise ConfigError(
                f"{self.flag} at most at {self.most} with the motion {self.motion}",
                expected="0 <= most < 1, a motion of at least 0",
            )

    def begin(self, history: Float[Tensor, "b o n"]) -> Float[Tensor, " b"]:
        """Time of the start of every row, for scaled observation histories."""
        if not self.motion:
            return torch.full_like(history[:, 0, 0], self.most)
        if history.shape[1] < 2:
            raise ConfigError(f"{self.flag} that looks at the motion sees one observation", fix="--agent.history 2")
        change = (history[:, -1] - history[:, -2]).square().mean(1).sqrt()
        return self.most * (1 - (change / self.motion).clamp(max=1))

    def conflicts(self, spec: Any, setting: Any) -> Iterator[Conflict]:
        """What needs the whole way from noise: R9, R14 and R17 among them."""
        wrong = {
            spec.interpolant.flag: spec.interpolant.latent,
            spec.target.flag: bool(spec.target.start),
            spec.solver.flag: spec.solver.converts or spec.solver.needs_score or bool(spec.solver.belongs_to),
            spec.schedule.flag: bool(spec.schedule.belongs_to),
            spec.guidance.flag: spec.guidance.intermediate,
            spec.coupling.flag: spec.coupling.name == "table",
        }
        for flag in (flag for flag, is_wrong in wrong.items() if is_wrong):
            yield Conflict(
                f"{self.flag} with {flag}",
                "the flow starts on its way, at a time that differs from row to row",
                "--flow.source normal, or --flow.solver euler",
            )
