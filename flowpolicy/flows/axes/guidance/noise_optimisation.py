"""Guidance that searches for the initial noise whose chunk meets the goal."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from flowpolicy.core.ranges import Few, Positive
from flowpolicy.flows.axes.guidance.method import Aimed, Situation
from flowpolicy.flows.axes.registry import Reference, register


@register(
    "guidance",
    "noise-opt",
    Reference("FlowOpt: Fast Optimization Through Whole Flow Processes for Training-Free Editing", "2510.22010"),
)
@dataclasses.dataclass(frozen=True)
class NoiseOptimisation(Aimed):
    """The noise is moved until its chunk is near the goal; for any solver, and flow maps of one step too (FlowOpt).

    'identity' takes the identity for the sampler's Jacobian, ``x0 - rate gradient``: the distance falls as long as
    ``|1 - rate J| < 1``, and nothing is differentiated. 'gauss-newton' takes the least step that meets the goal if the
    sampler were linear, which costs a backward pass per equation; where it is linear, one step is enough.
    """

    jacobian: Literal["identity", "gauss-newton"] = "identity"
    """How the sampler's Jacobian is taken."""
    iterations: Few = 4
    """Steps; a chunk costs one generation more than that."""
    rate: Positive = 0.5
    """Length of a step; 1 is the whole way to the goal."""
    shell: bool = False
    """Rescale the noise to the length that it was drawn with, so that it stays probable."""
    repeatable: ClassVar[bool] = True

    @property
    @override
    def repeats(self) -> int:
        return self.iterations + 1

    @property
    @override
    def differentiates(self) -> bool:
        return self.jacobian == "gauss-newton"

    @override
    def start(
        self, noise: Float[Tensor, "b h a"], generate: Callable[[Tensor], Tensor], at: Situation
    ) -> Float[Tensor, "b h a"]:
        goal, x = at.goal(self.goal, noise), noise
        for _ in range(self.iterations):
            if self.jacobian == "identity":
                x = x - self.rate * goal.gap(generate(x))
            else:
                x = x - self.rate * _least_step(goal.matrix, goal.value, generate, x)
            if self.shell:
                length = noise.flatten(1).norm(dim=1) / x.flatten(1).norm(dim=1).clamp(min=1e-12)
                x = x * length.reshape(-1, 1, 1)
        return x


def _least_step(
    matrix: Float[Tensor, "m d"], value: Float[Tensor, " m"], generate: Callable[[Tensor], Tensor], x: Tensor
) -> Float[Tensor, "b h a"]:
    """The least change of x whose subtraction meets the goal, if chunks were linear in x."""
    a, b = matrix.to(x), value.to(x)
    chunk, pull = cast("tuple[Tensor, Any]", torch.func.vjp(generate, x))
    rows = [pull(row.view(1, *x.shape[1:]).expand_as(x).contiguous())[0].flatten(1) for row in a]
    slope = torch.stack(rows, dim=1)
    error = (chunk.flatten(1) @ a.mT - b).unsqueeze(2)
    step: Tensor = torch.linalg.pinv(slope) @ error
    return step.view_as(x)
