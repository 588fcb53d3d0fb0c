"""Solvers that carry noise (t = 0) to data (t = 1) on a uniform grid.

No solver evaluates the velocity at t = 1, where it is poorly determined: Heun's last step is a midpoint step
(its corrector at t = 1 made two-step samples ten times worse than Euler's, measured). None clamps on the
way: half-way states are not actions. Clamp once, at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from flowpolicy.core.errors import ConfigError

Field = Callable[[Tensor, Tensor], Tensor]
"""Velocity at (x (b, *d), t (b,)) -> (b, *d)."""

MeanField = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Mean velocity at (x (b, *d), s (b,), t (b,)) -> (b, *d)."""

SolverName = Literal["euler", "midpoint", "heun"]

EVALUATIONS_PER_STEP: dict[str, int] = {"euler": 1, "midpoint": 2, "heun": 2, "map": 1}
"""Network evaluations that one step of each solver costs; ``map`` is :func:`jump`."""


def steps_for(nfe: int, solver: str) -> int:
    """Number of steps that spend exactly ``nfe`` network evaluations; ConfigError when there is none."""
    cost = EVALUATIONS_PER_STEP[solver]
    if nfe < 1 or nfe % cost:
        raise ConfigError(
            f"nfe={nfe} with the solver '{solver}', which costs {cost} evaluations per step",
            expected=f"a positive multiple of {cost}",
        )
    return nfe // cost


def integrate(
    field: Field, x: Float[Tensor, "b *d"], steps: int, solver: SolverName = "euler", start: float = 0.0
) -> Float[Tensor, "b *d"]:
    """Solve dx/dt = field(x, t) from t = ``start`` to t = 1 in ``steps`` equal steps.

    Euler has order 1, midpoint and Heun order 2.
    """
    step = (1.0 - start) / steps
    for index in range(steps):
        t = start + index * step
        if solver == "euler":
            x = x + step * _at(field, x, t)
        elif solver == "midpoint" or index == steps - 1:
            x = x + step * _at(field, x + 0.5 * step * _at(field, x, t), t + 0.5 * step)
        else:
            slope = _at(field, x, t)
            x = x + 0.5 * step * (slope + _at(field, x + step * slope, t + step))
    return x


def jump(mean_field: MeanField, x: Float[Tensor, "b *d"], steps: int, start: float = 0.0) -> Float[Tensor, "b *d"]:
    """Carry x from t = ``start`` to t = 1 in ``steps`` equal jumps of a flow map, x + (t - s) U(x, s, t).

    With the exact mean velocity the result does not depend on ``steps``.
    """
    for index in range(steps):
        s, t = (start + (1 - start) * (index + end) / steps for end in (0, 1))
        x = x + (t - s) * mean_field(x, x.new_full(x.shape[:1], s), x.new_full(x.shape[:1], t))
    return x


def _at(field: Field, x: Tensor, t: float) -> Tensor:
    return field(x, x.new_full(x.shape[:1], t))
