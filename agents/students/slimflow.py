"""SlimFlow: a small one-step student of a flow policy (arXiv 2407.12718).

Two phases of one training. First annealing reflow: the student learns the teacher's pairs, on noise that starts
fresh and turns into theirs. Then guided distillation at t = 0 alone: half of the rows are the teacher's pairs,
the other half start from fresh noise and are corrected half-way by a guide, the straightened student of the first
phase, which costs one evaluation instead of a trajectory of the teacher.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from flowpolicy.agents.base.agent import joined, parted
from flowpolicy.agents.base.agent_tags import register_config
from flowpolicy.agents.cloning.flow import Draws, Flow, FlowAgent
from flowpolicy.agents.students.distillation import Lesson, as_kind, method
from flowpolicy.core.errors import ConfigError
from flowpolicy.core.protocols import Metrics
from flowpolicy.core.ranges import Few, Inside
from flowpolicy.core.references import Reference
from flowpolicy.core.streams import Streams
from flowpolicy.flows.axes.registry import make
from flowpolicy.flows.student_targets import guided_line
from flowpolicy.policy.actor import Actor


@register_config("slimflow")
@dataclasses.dataclass(frozen=True)
class SlimFlow(Flow):
    """Annealing reflow, then guided one-step distillation."""

    references: ClassVar[tuple[Reference, ...]] = (
        Reference("SlimFlow: Training Smaller One-Step Diffusion Models with Rectified Flow", "2407.12718"),
    )
    nfe: Few = 1
    """Network evaluations per chunk; 1."""
    guided_from: Inside = 0.6
    """Share of the updates after which the second phase begins."""
    guide: Literal["student", "teacher"] = "student"
    """Who corrects fresh noise: the straightened student, or the teacher, if its paths are straight already."""
    low: Inside = 0.2
    """Earliest time at which the guide takes over."""
    high: Inside = 0.8
    """Latest time."""

    @property
    @override
    def everywhere(self) -> bool:
        return False

    def check(self, action: int) -> None:
        """Refuse more than one evaluation, and paths that are not straight."""
        super().check(action)
        if self.nfe != 1 or self.flow.interpolant.name != "linear" or self.flow.target.name != "velocity":
            raise ConfigError(
                f"slimflow with {self.nfe} evaluations on {self.flow.interpolant.flag} with {self.flow.target.flag}",
                expected="one evaluation, a velocity and straight paths: the last phase trains at t = 0 alone",
                fix="--nfe 1, or --method annealed-reflow",
            )
        if self.low >= self.high:
            raise ConfigError(f"guided at times {self.low} to {self.high}", expected="rising ones")

    @override
    def build(self, *args: Any, **kwargs: Any) -> SlimFlowAgent:
        return SlimFlowAgent(self, *args, **kwargs)


class SlimFlowAgent(FlowAgent):
    """A student that is its own guide from the second phase on."""

    config: SlimFlow

    def __init__(self, config: SlimFlow, *args: Any, **options: Any) -> None:
        super().__init__(config, *args, **options)
        # In a list: the guide is no part of this module.
        self._guide = [copy.deepcopy(self.actor).requires_grad_(False)]

    @override
    def taught(self, obs: Streams, data: Float[Tensor, "b h a"], drawn: Draws, generator: torch.Generator) -> Draws:
        if self.progress < self.config.guided_from:
            return super().taught(obs, data, drawn, generator)
        half = len(data) // 2
        first = {name: value[:half] for name, value in obs.items()}
        pairs = super().taught(first, data[:half], {"noise": drawn["noise"][:half]}, generator)
        fresh = {name: value[half:] for name, value in obs.items()}
        noise, u = drawn["noise"][half:], drawn["s"][half:]
        t = self.config.low + (self.config.high - self.config.low) * u
        own = velocity_of(self.actor, fresh, noise, torch.zeros_like(t))
        line = guided_line(noise, own, lambda x, t: self.corrected(fresh, x, t), t)
        return {
            "data": torch.cat([pairs["data"], line.data]),
            "noise": torch.cat([pairs["noise"], noise]),
            "s": torch.zeros_like(drawn["s"]),
            "made": torch.ones_like(drawn["s"], dtype=torch.bool),
        }

    def corrected(self, obs: Streams, x: Tensor, t: Float[Tensor, " b"]) -> Float[Tensor, "b h a"]:
        """The guide's velocity."""
        if self.config.guide == "teacher":
            return self.teacher.velocity(obs, x, t)
        return velocity_of(self._guide[0], obs, x, t)

    def update(self, batch: Any, generator: torch.Generator) -> Metrics:
        """One gradient step; before the first one of the second phase the averaged student becomes the guide."""
        before, now = ((self.updates + k) / max(self.steps, 1) for k in (-1, 0))
        if before < self.config.guided_from <= now:
            self._guide[0].load_state_dict(self.ema.state_dict())
            self.actor.load_state_dict(self.ema.state_dict())
        return super().update(batch, generator)

    def state_dict(self) -> dict[str, dict[str, Tensor]]:  # type: ignore[override]
        """Files of a checkpoint; ``training`` holds the guide."""
        return {**super().state_dict(), "training": joined(guide=self._guide[0].state_dict())}

    @override
    def _load(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        super()._load(state)
        self._guide[0].load_state_dict(parted(state["training"], "guide")["guide"])


def velocity_of(actor: Actor, obs: Streams, x: Tensor, t: Float[Tensor, " b"]) -> Float[Tensor, "b h a"]:
    """Velocity of a network of one time for normalised observations."""
    value: Tensor = actor.net(x, t, actor.encoder(obs).cond).value
    return value


@method("slimflow")
def slimflow(lesson: Lesson) -> Flow:
    """Annealing reflow for most of the updates, then guided distillation."""
    flow = dataclasses.replace(lesson.student.flow, coupling=make("coupling", "table", anneal=0.36))
    return as_kind(SlimFlow, lesson.student, flow=flow)
