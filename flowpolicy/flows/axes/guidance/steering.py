"""Guidance that changes the velocity on the way from noise to chunk."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from flowpolicy.core.ranges import Natural, NonNegative, Positive
from flowpolicy.flows.axes.guidance.method import Aimed, Fields, Guidance, Situation
from flowpolicy.flows.axes.registry import Reference, register
from flowpolicy.flows.real_time import GUIDANCE_LIMIT
from flowpolicy.flows.straight import Field, MeanField, rows

Look = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Velocity at x, and the chunk that it points to."""


@dataclasses.dataclass(frozen=True)
class Steering(Guidance):
    """Base of the methods that correct one velocity at a time: a flow's, or the mean velocity of a flow map's jump.

    A jump from s to t points to ``x + (1 - s) u(x, s, t)``, at no extra evaluation.
    """

    intermediate: ClassVar[bool] = True
    waits: ClassVar[str] = "which step of the solver a velocity is asked for is read from its time"

    def steer(
        self, x: Tensor, t: Tensor, step: tuple[float, float], look: Look, at: Situation
    ) -> Float[Tensor, "b h a"]:
        """The velocity to follow at (x, t) in the step from ``step[0]`` to ``step[1]``."""
        raise NotImplementedError

    @override
    def field(self, fields: Fields, at: Situation) -> Field:

        def guided(x: Tensor, t: Tensor) -> Tensor:
            def look(x: Tensor) -> tuple[Tensor, Tensor]:
                v = fields.full(x, t)
                return v, at.path.data(x, v, t)

            return self.steer(x, t, at.step(float(t[0])), look, at)

        return guided

    @override
    def mean(self, mean: MeanField, at: Situation) -> MeanField:

        def guided(x: Tensor, s: Tensor, t: Tensor) -> Tensor:
            def look(x: Tensor) -> tuple[Tensor, Tensor]:
                u = mean(x, s, t)
                return u, x + rows(1 - s, x) * u

            return self.steer(x, s, (float(s[0]), float(t[0])), look, at)

        return guided


@register(
    "guidance",
    "gradient",
    Reference("Steering Rectified Flow Models in the Vector Field for Controlled Image Generation", "2412.00100"),
    Reference("Training-free Linear Image Inverses via Flows", "2310.04432"),
)
@dataclasses.dataclass(frozen=True)
class Gradient(Aimed, Steering):
    """Every step is pulled towards a goal, by the gradient of half the squared distance that the denoised chunk has.

    'skip' moves the state by ``-strength (1 - t) gradient`` per step, as if the denoised chunk moved with it one to one
    (FlowChef, arXiv 2412.00100): nothing but the goal is differentiated. 'vjp' keeps the Jacobian J of
    the denoised chunk: ``v - strength w(t) J' gradient`` with the weight of pseudo-inverse guidance,
    ``w = (1 - t) / t / r^2``, ``r^2 = (1 - t)^2 / (t^2 + (1 - t)^2)`` on the straight path (arXiv 2310.04432).
    """

    jacobian: Literal["skip", "vjp"] = "skip"
    """Leave the Jacobian out, or pay a backward pass per evaluation."""
    strength: NonNegative = 1.0
    """0 is no guidance."""
    limit: Positive = GUIDANCE_LIMIT
    """Largest weight w of 'vjp'."""
    converts: ClassVar[bool] = True

    @property
    @override
    def differentiates(self) -> bool:
        return self.jacobian == "vjp"

    @override
    def steer(
        self, x: Tensor, t: Tensor, step: tuple[float, float], look: Look, at: Situation
    ) -> Float[Tensor, "b h a"]:
        goal = at.goal(self.goal, x)
        if self.jacobian == "skip":
            v, data = look(x)
            return v - self.strength * rows(1 - t, x) / (step[1] - step[0]) * goal.gap(data)

        def denoise(x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            v, data = look(x)
            return data, (v, data)

        _, pull, (v, data) = cast("tuple[Tensor, Any, Any]", torch.func.vjp(denoise, x, has_aux=True))
        (slope,) = pull(goal.gap(data))
        e = at.path.effective(t, x)
        weight = e.wronskian * (e.sigma.square() + e.beta.square()) / (e.sigma * e.beta)
        steered: Tensor = v - self.strength * weight.clamp(max=self.limit) * slope
        return steered


@register(
    "guidance",
    "trajectory-blend",
    Reference("SteerFlow: Steering Rectified Flows for Faithful Inversion-Based Image Editing"),
)
@dataclasses.dataclass(frozen=True)
class TrajectoryBlend(Steering):
    """The new chunk leaves the previous one gradually (SteerFlow, trajectory interpolation).

    ``V = w + m (1 - sigma^power) cos(v, w) (v - w)``: w leads straight to the previous chunk, v is the policy's
    velocity, sigma the noise left behind the step. The mask m is 0 in the first ``held`` actions, which thus come out
    as they were planned, and rises to 1 in the last one. The first decision of an episode is not steered.
    """

    held: Natural = 1
    """Actions that stay as they were planned."""
    power: Positive = 1.0
    """The policy takes over later where this is smaller."""
    continues: ClassVar[bool] = True

    def mask(self, steps: int) -> Float[Tensor, " h"]:
        """How far every action may leave the previous chunk."""
        ramp = (torch.arange(steps) + 1.0 - self.held) / max(steps - self.held, 1)
        return ramp.clamp(0, 1)

    @override
    def steer(
        self, x: Tensor, t: Tensor, step: tuple[float, float], look: Look, at: Situation
    ) -> Float[Tensor, "b h a"]:
        v, _ = look(x)
        if at.planned is None or at.noise is None or at.begun is None:
            return v
        straight = at.planned - at.noise
        cosine = torch.nn.functional.cosine_similarity(v.flatten(1), straight.flatten(1), dim=1)
        freedom = self.mask(x.shape[1]).to(x).unsqueeze(1) * rows((1 - max(0.0, 1 - step[1]) ** self.power) * cosine, x)
        return torch.where(at.begun.reshape(-1, 1, 1), straight + freedom * (v - straight), v)
