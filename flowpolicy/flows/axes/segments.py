"""Axes 5 and 8a, continued: a network that describes its velocity over a whole segment, and the steps that use it."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from flowpolicy.core.errors import ConfigError
from flowpolicy.flows.axes.interpolants import Interpolant
from flowpolicy.flows.axes.registry import Conflict, Reference, register
from flowpolicy.flows.axes.solvers import Dynamics, Solver, Times
from flowpolicy.flows.axes.targets import Target
from flowpolicy.flows.momentum import Momentum

ARCFLOW = Reference("ArcFlow: 2-Step Text-to-Image Generation via High-Precision Non-Linear Flow Distillation")
_STEEP = 8.0  # bound of the rates: exp(8) over a whole flow


@register("target", "segment", ARCFLOW)
@dataclasses.dataclass(frozen=True)
class Segment(Target):
    """Momentum modes: velocities that grow or fade exponentially from the segment's start on (ArcFlow)."""

    count: int = 4
    """Number of modes; 1 is a constant velocity."""

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ConfigError(f"a segment of {self.count} modes", expected="at least 1")

    @property
    def modes(self) -> int:
        """See :class:`Target`."""
        return self.count

    def read(self, prediction: Float[Tensor, "b h n"]) -> Momentum:
        """What the network :class:`flowpolicy.nets.segment.SegmentNet` says of a segment.

        Rates are told apart from the start, 0, 2, -2, 4, ... plus what is learned: modes that are equal would stay so.
        """
        k = self.count
        action = (prediction.shape[2] - 2 * k + 1) // k
        modes = prediction[:, :, : k * action].unflatten(2, (k, action)).transpose(1, 2)
        numbers = prediction[:, :, k * action :].mean(1)
        index = torch.arange(k - 1, device=prediction.device)
        apart = 2 * (index // 2 + 1) * (1 - 2 * (index % 2))
        rates = _STEEP * torch.tanh((numbers[:, k:] + apart) / _STEEP)
        return Momentum(modes, torch.cat([torch.zeros_like(numbers[:, :1]), rates], dim=1), numbers[:, :k])

    def velocity(
        self, prediction: Float[Tensor, "b *n"], x: Float[Tensor, "b *d"], t: Float[Tensor, " b"], path: Interpolant
    ) -> Float[Tensor, "b *d"]:
        """Velocity at the segment's start."""
        return self.read(prediction).velocity(torch.zeros_like(t))

    def error(
        self,
        prediction: Float[Tensor, "b *n"],
        noise: Float[Tensor, "b *d"],
        data: Float[Tensor, "b *d"],
        z: Tensor | None,
        t: Float[Tensor, " b"],
        path: Interpolant,
    ) -> Float[Tensor, "b *d"]:
        """Error of the velocity at the segment's start."""
        return self.velocity(prediction, noise, t, path) - path.velocity(noise, data, t, z)

    def conflicts(self, spec: Any, setting: Any) -> Iterator[Conflict]:
        """R13, and it is learned from trajectories of a teacher alone."""
        if not setting.trajectories:
            yield Conflict(
                f"{self.flag} without a teacher's trajectories",
                "a pair of noise and data says nothing about how a velocity changes within a segment",
                "flowpolicy distill RUN --method arcflow",
            )
        if spec.solver.name != "self":
            yield Conflict(f"{self.flag} with {spec.solver.flag}", "it integrates itself", "--flow.solver self")
        for value in (spec.consistency, spec.guidance):
            if value.name != "none":
                yield Conflict(
                    f"{self.flag} with {value.flag}",
                    "there is no velocity inside a segment that could be changed",
                    f"--flow.{value.axis} none",
                )


@register("solver", "self", ARCFLOW)
@dataclasses.dataclass(frozen=True)
class SelfIntegrated(Solver):
    """Segments of a network that integrates itself, one evaluation each (ArcFlow)."""

    segments: int = 2
    """Number of segments that the network was trained for."""
    left_ends: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.segments < 1:
            raise ConfigError(f"{self.segments} segments", expected="at least 1")

    @property
    def usual(self) -> int:  # type: ignore[override]
        """One evaluation per segment."""
        return self.segments

    def steps(self, evaluations: int) -> int:
        """See :class:`Solver`."""
        if evaluations != self.segments:
            raise ConfigError(
                f"nfe={evaluations} with a network of {self.segments} segments",
                fix=f"flowpolicy distill RUN --method arcflow --nfe {evaluations}",
            )
        return evaluations

    def solve(
        self, flow: Dynamics, x: Float[Tensor, "b *d"], grid: Times, evaluations: int, generator: torch.Generator | None
    ) -> Float[Tensor, "b *d"]:
        """See :class:`Solver`."""
        if flow.segment is None:
            raise ConfigError("the solver self with a network that predicts no segment", fix="--flow.solver euler")
        for s, t in itertools.pairwise(grid):
            time = x.new_full(x.shape[:1], s)
            x = x + flow.segment(x, time).displacement(torch.zeros_like(time), torch.full_like(time, t - s))
        return x

    def conflicts(self, spec: Any, setting: Any) -> Iterator[Conflict]:
        """R13."""
        if not spec.target.modes:
            yield Conflict(
                f"{self.flag} with {spec.target.flag}", "its network gives one velocity only", "--flow.solver euler"
            )
        if spec.schedule.name != "uniform":
            yield Conflict(
                f"{self.flag} with {spec.schedule.flag}", "its segments are equally long", "--flow.schedule uniform"
            )
