"""Axis 9, continued: guidance that changes the velocity on the way from noise to chunk."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor

from flowpolicy.core.errors import ConfigError
from flowpolicy.flows.axes.guidance import Aimed, Fields, Guidance, Situation
from flowpolicy.flows.axes.registry import Conflict, Reference, register
from flowpolicy.flows.interpolant import rows
from flowpolicy.flows.real_time import GUIDANCE_LIMIT
from flowpolicy.flows.solvers import Field, MeanField

Look = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Velocity at x, and the chunk that it points to."""


@dataclasses.dataclass(frozen=True)
class Steering(Guidance):
    """Base of what corrects one velocity at a time, of a flow or the mean one of a flow map's jump.

    A jump from s to t points to ``x + (1 - s) u(x, s, t)``, for no evaluation beside its own.
    """

    intermediate: ClassVar[bool] = True

    def steer(
        self, x: Tensor, t: Tensor, step: tuple[float, float], look: Look, at: Situation
    ) -> Float[Tensor, "b h a"]:
        """The velocity to follow at (x, t) in the step from ``step[0]`` to ``step[1]``."""
        raise NotImplementedError

    def field(self, fields: Fields, at: Situation) -> Field:
        """See :class:`Guidance`."""

        def guided(x: Tensor, t: Tensor) -> Tensor:
            def look(x: Tensor) -> tuple[Tensor, Tensor]:
                v = fields.full(x, t)
                return v, at.path.data(x, v, t)

            return self.steer(x, t, at.step(float(t[0])), look, at)

        return guided

    def mean(self, mean: MeanField, at: Situation) -> MeanField:
        """See :class:`Guidance`."""

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
    strength: float = 1.0
    """0 is no guidance."""
    limit: float = GUIDANCE_LIMIT
    """Largest weight w of 'vjp'."""
    converts: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.strength < 0 or self.limit <= 0:
            raise ConfigError(
                f"{self.flag} with the strength {self.strength} and the limit {self.limit}",
                expected="a strength of at least 0 and a limit above 0",
            )

    @property
    def differentiates(self) -> bool:
        """See :class:`Guidance`."""
        return self.jacobian == "vjp"

    def steer(
        self, x: Tensor, t: Tensor, step: tuple[float, float], look: Look, at: Situation
    ) -> Float[Tensor, "b h a"]:
        """See :class:`Steering`."""
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

    held: int = 1
    """Actions that stay as they were planned."""
    power: float = 1.0
    """The policy takes over later where this is smaller."""
    continues: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.held < 0 or not self.power > 0:
            raise ConfigError(
                f"{self.flag} with {self.held} held actions and the power {self.power}",
                expected="at least 0 of them, and a power above 0",
            )

    def mask(self, steps: int) -> Float[Tensor, " h"]:
        """How far every action may leave the previous chunk."""
        ramp = (torch.arange(steps) + 1.0 - self.held) / max(steps - self.held, 1)
        return ramp.clamp(0, 1)

    def steer(
        self, x: Tensor, t: Tensor, step: tuple[float, float], look: Look, at: Situation
    ) -> Float[Tensor, "b h a"]:
        """See :class:`Steering`."""
        v, _ = look(x)
        if at.planned is None or at.noise is None or at.begun is None:
            return v
        straight = at.planned - at.noise
        cosine = torch.nn.functional.cosine_similarity(v.flatten(1), straight.flatten(1), dim=1)
        freedom = self.mask(x.shape[1]).to(x).unsqueeze(1) * rows((1 - max(0.0, 1 - step[1]) ** self.power) * cosine, x)
        return torch.where(at.begun.reshape(-1, 1, 1), straight + freedom * (v - straight), v)


@register(
    "guidance",
    "compose",
    Reference("SplitFlow: Flow Decomposition for Inversion-Free Text-to-Image Editing"),
    Reference("Compositional Visual Generation with Composable Diffusion Models", "2206.01714"),
)
@dataclasses.dataclass(frozen=True)
class Compose(Guidance):
    """One velocity per named observation, composed: K of them cost K + 1 evaluations.

    Each velocity v_i is given one of the named observations and all that are not named. 'split' (SplitFlow) takes from
    v_i what opposes the full velocity v, weighs by ``softmax(cos(v_i, v) / temperature)`` and mixes ``share`` of the
    sum into v. 'product' multiplies the densities: ``v_0 + scale sum (v_i - v_0)``, v_0 without any of them
    (arXiv 2206.01714). Hidden observations read 0 after scaling.
    """

    keys: tuple[str, ...] = ()
    """Observations that are conditions of their own, by key."""
    how: Literal["split", "product"] = "split"
    """Kind of composition."""
    share: float = 0.5
    """Of the composition in 'split'; 0 is no guidance."""
    temperature: float = 0.2
    """Of the weights in 'split'."""
    scale: float = 1.0
    """Of every part in 'product'."""
    dropout: float = 0.2
    """Share of the rows that are trained without all, or all but one, of the named observations."""

    def __post_init__(self) -> None:
        if not (0 < self.dropout < 1 and 0 <= self.share <= 1 and self.temperature > 0):
            raise ConfigError(
                f"{self.flag} with the dropout {self.dropout}, share {self.share}, temperature {self.temperature}",
                expected="0 < dropout < 1, share in [0, 1], temperature above 0",
            )

    @property
    def hides(self) -> tuple[str, ...]:
        """See :class:`Guidance`."""
        return self.keys

    @property
    def hidden_share(self) -> float:
        """See :class:`Guidance`."""
        return self.dropout

    def total(self, evaluations: int) -> int:
        """See :class:`Guidance`."""
        return (1 + len(self.keys)) * evaluations

    def conflicts(self, spec: Any, setting: Any) -> Iterator[Conflict]:
        """R16, and nothing to compose."""
        if not self.keys or len(set(self.keys)) < len(self.keys):
            yield Conflict(
                f"{self.flag} of {'no' if not self.keys else 'repeated'} observations",
                "every named observation is a condition of its own",
                "--flow.guidance.keys KEY KEY, with keys of the training file",
            )
        if spec.solver.two_time:
            yield Conflict(
                f"{self.flag} with {spec.solver.flag}",
                "mean velocities of several conditions do not add up to that of their composition",
                "--flow.solver euler",
            )

    def field(self, fields: Fields, at: Situation) -> Field:
        """See :class:`Guidance`."""

        def guided(x: Tensor, t: Tensor) -> Tensor:
            base = (fields.full if self.how == "split" else fields.null)(x, t)
            parts = torch.stack([part(x, t) for part in fields.parts])
            if self.how == "product":
                return base + self.scale * (parts - base).sum(0)
            return (1 - self.share) * base + self.share * self.aggregate(base, parts)

        return guided

    def aggregate(self, full: Float[Tensor, "b *d"], parts: Float[Tensor, "k b *d"]) -> Float[Tensor, "b *d"]:
        """The weighted sum of velocities that do not oppose the full one."""
        v, each = full.flatten(1), parts.flatten(2)
        along = (each * v).sum(2, keepdim=True) / v.square().sum(1, keepdim=True).clamp(min=1e-12)
        each = each - along.clamp(max=0) * v
        cosine = torch.nn.functional.cosine_similarity(each, v.unsqueeze(0), dim=2)
        weights = (cosine / self.temperature).softmax(0).unsqueeze(2)
        return (weights * each).sum(0).view_as(full)
