"""The solver whose coefficients are fitted to one velocity field."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from flowpolicy.core.errors import ConfigError
from flowpolicy.flows.axes.registry import Conflict, Reference, register
from flowpolicy.flows.axes.solvers.solver import Dynamics, Solver, Times


@register(
    "solver",
    "olss",
    Reference(
        "Optimal Linear Subspace Search: Learning to Construct Fast and High-Quality Schedulers for Diffusion Models",
        "2305.14677",
    ),
)
@dataclasses.dataclass(frozen=True)
class Fitted(Solver):
    """Every state is a fitted combination of the noise and all velocities so far (OLSS, arXiv 2305.14677).

    Every linear multistep method is a special case. ``flowpolicy fit`` finds the coefficients by least squares on a
    finely integrated flow; see :func:`flowpolicy.flows.fitting.fit_subspace`. They belong to the weights, the nodes and
    the source that they were fitted on.
    """

    nodes: tuple[float, ...] = ()
    """Times, 0 first and 1 last."""
    coefficients: tuple[tuple[float, ...], ...] = ()
    """Row k: factor of the noise, then of the velocities at the nodes 0 ... k; gives the state at node k + 1."""
    weights: str = ""
    """Hash of the weights that it was fitted on."""

    @property
    @override
    def belongs_to(self) -> str:
        return self.weights

    def steps(self, evaluations: int) -> int:
        """The number that it was fitted for; ConfigError for any other."""
        if evaluations != len(self.coefficients):
            raise ConfigError(
                f"nfe={evaluations} with a solver that was fitted for {len(self.coefficients)}",
                fix=f"flowpolicy fit RUN --nfe {evaluations}",
            )
        return evaluations

    def solve(
        self, flow: Dynamics, x: Float[Tensor, "b *d"], grid: Times, evaluations: int, generator: torch.Generator | None
    ) -> Float[Tensor, "b *d"]:
        """Combinations at its own nodes; ``grid`` is ignored."""
        noise, slopes = x, []
        for node, (first, *rest) in zip(self.nodes[:-1], self.coefficients, strict=True):
            slopes.append(flow.at(x, node))
            x = first * noise + sum(factor * slope for factor, slope in zip(rest, slopes, strict=True))
        return x

    def conflicts(self, spec: Any, setting: Any) -> Iterator[Conflict]:
        """A fit belongs to weights that do not exist yet."""
        if not self.coefficients:
            yield Conflict(
                f"{self.flag} before there are weights",
                "its coefficients are fitted to the field of a trained policy",
                "train with --flow.solver euler, then: flowpolicy fit RUN --nfe 4",
            )
        elif spec.schedule.name not in ("uniform", "boss"):
            yield Conflict(
                f"{self.flag} with {spec.schedule.flag}", "its nodes are fitted too", "--flow.schedule uniform"
            )
