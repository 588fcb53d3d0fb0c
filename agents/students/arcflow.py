"""ArcFlow: a student that describes the teacher's whole trajectory over a segment in one evaluation.

The student's curve is followed, without a gradient, to a few times inside a segment; there the teacher is asked for its
velocity, and the curve's mean velocity over a short window is regressed on it. At first part of the way is the
teacher's own, so that the points are points of its trajectories. Source: the code of pnotp/ArcFlow;
docs/methods/flow-laboratory.md#students.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from typing_extensions import override

from flowpolicy.agents.base.agent_tags import register_config
from flowpolicy.agents.cloning.flow import Flow, FlowAgent
from flowpolicy.agents.students.distillation import Lesson, as_kind, method
from flowpolicy.core.errors import ConfigError
from flowpolicy.core.keys import ACTION, OBS
from flowpolicy.core.protocols import Metrics
from flowpolicy.core.ranges import Few, Range, Share, SomeShare
from flowpolicy.core.streams import Streams
from flowpolicy.flows.axes.losses import matching_loss
from flowpolicy.flows.axes.registry import make
from flowpolicy.flows.axes.targets import Curve, Segment
from flowpolicy.flows.straight import interpolate, rows


@register_config("arcflow")
@dataclasses.dataclass(frozen=True)
class ArcFlow(Flow):
    """Segments with momentum modes, matched to the teacher's velocity along their own curve."""

    segments: Few = 2
    """Segments from noise to data; the student takes one evaluation for each."""
    states: Few = 4
    """Times inside a segment at which the teacher is asked."""
    window: SomeShare = 3 / 128
    """Time over which the curve's velocity is averaged; at most the segment."""
    mixing: Share = 0.5
    """Share of the updates over which the teacher's part of the way falls from all to none."""
    drop: Annotated[float, Range(0, 1, below=True)] = 0.1
    """Probability that a mode is left out of the curve that is followed."""

    @property
    @override
    def asks_teacher(self) -> bool:
        return True

    @property
    @override
    def everywhere(self) -> bool:
        return False

    def check(self, action: int) -> None:
        """Refuse anything but a segment head on straight paths."""
        super().check(action)
        if not isinstance(self.flow.target, Segment) or self.flow.interpolant.name != "linear":
            raise ConfigError(
                f"arcflow with {self.flow.target.flag} on {self.flow.interpolant.flag}",
                expected="a segment head and straight paths",
                fix="flowpolicy distill RUN --method arcflow",
            )

    @override
    def build(self, *args: Any, **kwargs: Any) -> ArcFlowAgent:
        return ArcFlowAgent(self, *args, **kwargs)


class ArcFlowAgent(FlowAgent):
    """Regresses its curve on the teacher's velocities along it."""

    config: ArcFlow

    @property
    @override
    def settles(self) -> float:
        return self.config.mixing

    @torch.no_grad()
    def draws(self, batch: dict[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
        """Starts ``x``, ``s`` of segments; times ``after`` (b, n) in them, ``span``s and the teacher's ``slope``s."""
        config, obs, data = self.config, batch[OBS], batch[ACTION]
        count, shape = len(data), tuple(data.shape)
        place: dict[str, Any] = {"generator": generator, "device": data.device}
        s = torch.randint(config.segments, (count,), **place) / config.segments
        x = interpolate(self.spec.source.sample(shape, generator), data, s)
        curve = self.segment(obs, x, s)
        if config.drop:
            curve = curve.without(torch.rand(count, curve.weight.shape[2], **place) < config.drop)
        ratio = max(0.0, 1 - self.progress / config.mixing) if config.mixing else 0.0
        own, taught = self.intervals(count, ratio, generator)
        return {"x": x, "s": s, **self.follow(obs, curve, x, s, own, taught)}

    def intervals(
        self, count: int, ratio: float, generator: torch.Generator
    ) -> tuple[Float[Tensor, "b n"], Float[Tensor, "b n"]]:
        """Times for which the student's curve and the teacher are followed, in turns; ``ratio`` is the teacher's."""
        n = self.config.states
        place: dict[str, Any] = {"generator": generator, "device": generator.device}
        free = 1 / self.config.segments - self.width
        cuts = (1 - ratio) * free * torch.rand(count, n, **place).sort(1).values
        ends = ratio * free * torch.rand(count, n - 1, **place).sort(1).values
        zero, whole = cuts.new_zeros(count, 1), cuts.new_full((count, 1), ratio * free)
        return cuts.diff(dim=1, prepend=zero), torch.cat([ends, whole], dim=1).diff(dim=1, prepend=zero)

    @property
    def width(self) -> float:
        """The window, at most a segment."""
        return min(self.config.window, 1 / self.config.segments)

    def follow(
        self,
        obs: Streams,
        curve: Curve,
        x: Float[Tensor, "b h a"],
        s: Float[Tensor, " b"],
        own: Float[Tensor, "b n"],
        taught: Float[Tensor, "b n"],
    ) -> dict[str, Tensor]:
        """Where the teacher is asked, and what it says."""
        after, afters, spans, slopes = torch.zeros_like(s), [], [], []
        for k in range(own.shape[1]):
            x = x + rows(own[:, k], x) * curve.mean(after, own[:, k])
            after = after + own[:, k]
            slope = self.teacher.velocity(obs, x, (s + after).clamp(max=1))
            x = x + rows(taught[:, k], x) * slope
            afters.append(after)
            spans.append(taught[:, k] + self.width)
            slopes.append(slope)
            after = after + taught[:, k]
        return {"after": torch.stack(afters, 1), "span": torch.stack(spans, 1), "slope": torch.stack(slopes, 1)}

    def segment(self, obs: Streams, x: Tensor, s: Float[Tensor, " b"]) -> Curve:
        """The student's segments for normalised observations."""
        target = cast(Segment, self.spec.target)
        return target.curve(self.actor.net(x, s, self.actor.encoder(obs).cond).value)

    def loss(
        self, obs: Streams, action: Float[Tensor, "b h a"], valid: Bool[Tensor, "b h"], d: dict[str, Tensor]
    ) -> tuple[Float[Tensor, ""], Metrics]:
        """Squared error of the curve's mean velocities after all times."""
        curve = self.segment(obs, d["x"], d["s"])
        losses = []
        for k in range(d["after"].shape[1]):
            after, span = d["after"][:, k], d["span"][:, k]
            losses.append(matching_loss(curve.mean(after, span), d["slope"][:, k], valid))
        return torch.stack(losses).mean(), {}


@method("arcflow")
def arcflow(lesson: Lesson) -> Flow:
    """As many segments as the student has evaluations."""
    if lesson.teacher.sampling.target.start:
        raise ConfigError(f"arcflow of {lesson.teacher.sampling.target.flag}", expected="a flow from noise at time 0")
    flow = dataclasses.replace(
        lesson.student.flow,
        coupling=make("coupling", "independent"),
        target=make("target", "segment"),
        solver=make("solver", "self"),
    )
    return as_kind(ArcFlow, lesson.student, flow=flow, from_teacher=False, segments=lesson.order.nfe)
