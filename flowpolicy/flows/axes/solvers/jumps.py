"""Solvers that jump: along a flow map, or along the curve of a segment that the network predicts."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from flowpolicy.core.errors import ConfigError
from flowpolicy.flows.axes.registry import Conflict, Reference, register
from flowpolicy.flows.axes.solvers.solver import Dynamics, Solver, Times
from flowpolicy.flows.axes.targets import ARCFLOW


@register("solver", "map", Reference("Mean Flows for One-step Generative Modeling", "2505.13447"))
@dataclasses.dataclass(frozen=True)
class MapJumps(Solver):
    """Jumps of a flow map, ``x + (t - s) u(x, s, t)``; one is enough where the map is exact."""

    usual: ClassVar[int] = 1
    two_time: ClassVar[bool] = True

    @override
    def solve(
        self, flow: Dynamics, x: Float[Tensor, "b *d"], grid: Times, evaluations: int, generator: torch.Generator | None
    ) -> Float[Tensor, "b *d"]:
        if flow.mean is None:
            raise ConfigError("the solver map with a network of one time", fix="--flow.consistency lsd")
        for s, t in itertools.pairwise(grid):
            x = x + (t - s) * flow.mean(x, x.new_full(x.shape[:1], s), x.new_full(x.shape[:1], t))
        return x


@register("solver", "self", ARCFLOW)
@dataclasses.dataclass(frozen=True)
class SelfIntegration(MapJumps):
    """One segment after the other, each in closed form from one evaluation (ArcFlow)."""

    usual: ClassVar[int] = 2
    two_time: ClassVar[bool] = False
    left_ends: ClassVar[bool] = True

    def conflicts(self, spec: Any, setting: Any) -> Iterator[Conflict]:
        """It needs a curve to follow."""
        if not spec.target.integrates:
            yield Conflict(
                f"{self.flag} with {spec.target.flag}",
                "a network that tells one velocity has no curve to follow",
                "--flow.target segment, or --flow.solver euler",
            )
