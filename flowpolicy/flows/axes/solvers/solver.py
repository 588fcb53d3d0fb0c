"""What a solver is, and the dynamics that it integrates.

No solver evaluates the velocity at t = 1 unless it is told to: it is poorly determined there, and one evaluation at
t = 1 made two-step samples ten times worse than Euler's (measured). Last steps are Euler or midpoint steps.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import ClassVar, cast

import torch
from jaxtyping import Float
from torch import Tensor

from flowpolicy.core.errors import ConfigError
from flowpolicy.flows.axes.interpolants import Interpolant
from flowpolicy.flows.axes.registry import Value
from flowpolicy.flows.straight import Field, MeanField, rows

Times = tuple[float, ...]
"""Rising times of a grid."""


@dataclasses.dataclass(frozen=True)
class Dynamics:
    """What a solver integrates."""

    velocity: Field
    """Velocity at (x, t)."""
    path: Interpolant
    """Path, which turns a velocity into data, noise and score."""
    mean: MeanField | None = None
    """Mean velocity at (x, s, t), of a flow map."""
    refine: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
    """Change of the velocity at (x, t) since the velocity that is given, of a policy with a refiner."""

    def at(self, x: Tensor, t: float) -> Tensor:
        """Velocity of all rows at one time."""
        return self.velocity(x, x.new_full(x.shape[:1], t))

    def refined(self, x: Tensor, t: float, slope: Tensor) -> Tensor:
        """Velocity of all rows at one time from an earlier one, for one evaluation of the refiner.

        Raises:
            ConfigError: the policy has none.

        """
        if self.refine is None:
            raise ConfigError("a refined step without a refiner", fix="flowpolicy distill RUN --method refiner")
        return slope + self.refine(x, x.new_full(x.shape[:1], t), slope)

    def after(self, start: Float[Tensor, " b"]) -> Dynamics:
        """The rest of the flow from each row's time ``start``, rescaled to the unit interval.

        For solvers that integrate the velocity and nothing else.
        """
        left, mean = 1 - start, self.mean

        def velocity(x: Tensor, t: Tensor) -> Tensor:
            return rows(left, x) * self.velocity(x, start + left * t)

        def jumps(x: Tensor, s: Tensor, t: Tensor) -> Tensor:
            return rows(left, x) * cast(MeanField, mean)(x, start + left * s, start + left * t)

        return Dynamics(velocity, self.path, None if mean is None else jumps)

    def ends(self, x: Tensor, t: float) -> tuple[Tensor, Tensor]:
        """Posterior means of data and noise, for one evaluation."""
        time = x.new_full(x.shape[:1], t)
        v = self.velocity(x, time)
        return self.path.data(x, v, time), self.path.noise(x, v, time)


@dataclasses.dataclass(frozen=True)
class Solver(Value):
    """Base of the solvers. ``solve`` visits the times of a grid and may take some evaluations per step."""

    order: ClassVar[int] = 1
    """The error falls with this power of the step."""
    usual: ClassVar[int] = 10
    """Evaluations per chunk unless told otherwise."""
    two_time: ClassVar[bool] = False
    """Whether it needs a flow map."""
    left_ends: ClassVar[bool] = False
    """Whether it evaluates only at the left ends of its steps."""
    stochastic: ClassVar[bool] = False
    """Whether it draws noise on the way."""
    converts: ClassVar[bool] = False
    """Whether it splits a velocity into data and noise."""
    needs_score: ClassVar[bool] = False
    """Whether it needs the score, which a velocity gives for standard Gaussian noise only."""

    @property
    def belongs_to(self) -> str:
        """Hash of the weights that the solver was fitted on; empty for all others."""
        return ""

    def steps(self, evaluations: int) -> int:
        """Number of steps that spend exactly ``evaluations``; ConfigError when there is none."""
        if evaluations < 1:
            raise ConfigError(f"{evaluations} evaluations of the solver {self.name}", expected="at least 1")
        return evaluations

    def solve(
        self, flow: Dynamics, x: Float[Tensor, "b *d"], grid: Times, evaluations: int, generator: torch.Generator | None
    ) -> Float[Tensor, "b *d"]:
        """Carry x from the first to the last time of ``grid`` in ``evaluations`` evaluations."""
        raise NotImplementedError

    def invert(self, flow: Dynamics, x: Float[Tensor, "b *d"], grid: Times) -> Float[Tensor, "b *d"]:
        """Carry x from the last time of ``grid`` to the first: Euler backwards, one evaluation per step."""
        for s, t in itertools.pairwise(reversed(grid)):
            x = x + (t - s) * flow.at(x, s)
        return x
