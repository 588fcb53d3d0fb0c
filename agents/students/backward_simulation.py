"""On-policy distillation of a flow map by backward simulation: AnyFlow carried from videos to action chunks.

First the map learns the teacher's velocity and its integral, at points of the data. Then, beside that, its own samples
are judged: a number of steps and one of them are picked, the map jumps to that step, takes it, and jumps to the end.
The sample is pushed towards the teacher's law by the difference of two velocities, the teacher's and that of a second
network that follows the samples (distribution matching, arXiv 2311.18828). Any number of steps improves, for the price
of two. See docs/methods/flow-laboratory.md#students.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from typing_extensions import override

from flowpolicy.agents.base.agent import joined, parted
from flowpolicy.agents.base.agent_tags import register_config
from flowpolicy.agents.base.optimizer import Group, Optimizer, Stepper
from flowpolicy.agents.cloning.flow import Draws, Flow, FlowAgent
from flowpolicy.agents.students.distillation import Lesson, as_kind, method
from flowpolicy.core.errors import ConfigError
from flowpolicy.core.keys import ACTION, OBS
from flowpolicy.core.protocols import Metrics
from flowpolicy.core.ranges import Few, NonNegative, Positive, Share
from flowpolicy.core.references import Reference
from flowpolicy.core.streams import Streams
from flowpolicy.flows.axes.guidance import NoGuidance
from flowpolicy.flows.axes.registry import make
from flowpolicy.flows.axes.time_laws import logit_normal, uniform
from flowpolicy.flows.straight import interpolate
from flowpolicy.flows.student_targets import (
    Rollout,
    backward_simulation,
    last_steps,
    line_through,
    matching_gradient,
    step_of,
)
from flowpolicy.nets.flow_nets import MapNet
from flowpolicy.policy.samplers import Decision, FlowSampler

_LATEST = 0.98  # denoised samples of later times hardly differ from the samples


@register_config("backward_simulation")
@dataclasses.dataclass(frozen=True)
class BackwardSimulation(Flow):
    """A flow map of the teacher, improved on its own samples."""

    references: ClassVar[tuple[Reference, ...]] = (
        Reference("AnyFlow: Any-Step Video Diffusion Model with On-Policy Flow Map Distillation", "2605.13724"),
        Reference("One-step Diffusion with Distribution Matching Distillation", "2311.18828"),
    )
    on_policy_from: Share = 0.5
    """Share of the updates after which the map's own samples are judged too."""
    on_policy_weight: NonNegative = 0.1
    """Weight of that judgement."""
    budgets: tuple[Few, ...] = (1, 2, 4, 8)
    """Numbers of steps that the policy may take; one is picked for every row."""
    fake_lr: Positive = 1e-3
    """Learning rate of the network that follows the samples."""

    @property
    @override
    def asks_teacher(self) -> bool:
        return True

    def check(self, action: int) -> None:
        """Refuse anything but a flow map on straight paths from normal noise."""
        super().check(action)
        flow = self.flow
        if not flow.consistency.two_time or flow.interpolant.name != "linear" or not flow.source.standard:
            raise ConfigError(
                f"backward simulation with {flow.consistency.flag}, {flow.interpolant.flag} and {flow.source.flag}",
                expected="a flow map, straight paths and normal noise: velocities differ there as scores do",
            )
        if not self.budgets:
            raise ConfigError("budgets holds no number of steps", expected="at least one, such as 1 2 4 8")

    @override
    def build(self, *args: Any, **kwargs: Any) -> BackwardSimulationAgent:
        return BackwardSimulationAgent(self, *args, **kwargs)


class BackwardSimulationAgent(FlowAgent):
    """A flow map, and the network that follows its samples."""

    config: BackwardSimulation

    def __init__(self, config: BackwardSimulation, *args: Any, **options: Any) -> None:
        super().__init__(config, *args, **options)
        # In lists: neither is a part of this module.
        self._fake = [copy.deepcopy(self.teacher.policy.actor).requires_grad_(True)]
        self._fake_sampling = dataclasses.replace(self.teacher.sampling, guidance=NoGuidance())
        follows = Optimizer(config.fake_lr, 0.0, config.optimizer.scaling, 0.01, 0, "constant")
        self._follower = Stepper({"": Group(follows, dict(self._fake[0].named_parameters()))}, self.steps)

    @property
    def on_policy(self) -> bool:
        """Whether the next update judges the map's own samples."""
        return self.updates >= self.config.on_policy_from * self.steps

    def taught(self, obs: Streams, data: Float[Tensor, "b h a"], drawn: Draws, generator: torch.Generator) -> Draws:
        """Lines with the teacher's velocity through points of the data, and a judged sample."""
        x = interpolate(drawn["noise"], data, drawn["s"])
        line = line_through(x, drawn["s"], self.teacher.velocity(obs, x, drawn["s"]))
        found = {"noise": line.noise, "data": line.data}
        if not self.on_policy:
            return found
        s, t, rollout = self.rollout(obs, tuple(data.shape), generator)
        noise = torch.randn(data.shape, generator=generator, device=data.device)
        push = matching_gradient(
            rollout.data,
            noise,
            _LATEST * uniform(len(data), generator),
            lambda x, t: self.fake_velocity(obs, x, t),
            lambda x, t: self.teacher.velocity(obs, x, t),
        )
        return found | {"start": rollout.start, "from": s, "to": t, "push": push}

    @torch.no_grad()
    def rollout(
        self, obs: Streams, shape: tuple[int, ...], generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Rollout]:
        """Ends of a random step of a random number of steps, and the trajectory through it."""
        place: dict[str, Any] = {"generator": generator, "device": generator.device}
        budgets = torch.tensor(self.config.budgets, device=generator.device)
        count = budgets[torch.randint(len(budgets), shape[:1], **place)]
        s, t = step_of(count, torch.rand(shape[:1], **place))
        noise = self.spec.source.sample(shape, generator)
        return s, t, backward_simulation(self.mean(obs), noise, s, t)

    def mean(self, obs: Streams) -> Any:
        """The map's mean velocity for normalised observations."""
        cond, network = self.actor.encoder(obs).cond, cast(MapNet, self.actor.net)
        return lambda x, s, t: network(x, s, t, cond).value

    def fake_velocity(self, obs: Streams, x: Tensor, t: Float[Tensor, " b"]) -> Float[Tensor, "b h a"]:
        """Velocity of the network that follows the samples."""
        fake = self._fake[0]
        decision = Decision(fake, self.normalizer, obs, fake.encoder(obs).cond)
        return FlowSampler(self._fake_sampling).dynamics(decision).velocity(x, t)

    def loss(
        self, obs: Streams, action: Float[Tensor, "b h a"], valid: Bool[Tensor, "b h"], d: dict[str, Tensor]
    ) -> tuple[Float[Tensor, ""], Metrics]:
        """The flow map's loss; on policy the judged sample too."""
        loss, metrics = super().loss(obs, action, valid, d)
        if "push" not in d:
            return loss, metrics
        mean = self.mean(obs)
        data = last_steps(mean, d["start"], d["from"], d["to"], torch.ones_like(d["to"]))
        # Its gradient in the sample is ``push``.
        judged = 0.5 * (data - (data - d["push"]).detach()).square().sum() / data.numel()
        return loss + self.config.on_policy_weight * judged, metrics | {"push": judged.detach()}

    def update(self, batch: Mapping[str, Any], generator: torch.Generator) -> Metrics:
        """One gradient step of the map and, on policy, one of the network that follows its samples."""
        judged = self.on_policy
        metrics = super().update(batch, generator)
        return metrics | self._follow(self.streams(batch[OBS]), len(batch[ACTION]), generator) if judged else metrics

    def _follow(self, obs: Streams, count: int, generator: torch.Generator) -> Metrics:
        shape = (count, self.contract.chunk, self.contract.spec.action.size)
        data = self.rollout(obs, shape, generator)[2].data
        noise, t = self.spec.source.sample(shape, generator), logit_normal(count, generator, 0.0, 1.0)
        error = self.fake_velocity(obs, interpolate(noise, data, t), t) - (data - noise)
        loss = error.square().mean()
        self._follower.step(loss, count)
        return {"fake_loss": loss.detach()}

    def state_dict(self) -> dict[str, dict[str, Tensor]]:  # type: ignore[override]
        """Files of a checkpoint; ``training`` holds the network that follows the samples, and its optimiser."""
        training = joined(fake=self._fake[0].state_dict(), follower=self._follower.state_dict())
        return {**super().state_dict(), "training": training}

    @override
    def _load(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        super()._load(state)
        parts = parted(state["training"], "fake", "follower")
        self._fake[0].load_state_dict(parts["fake"])
        self._follower.load_state_dict(parts["follower"])


@method("backward-simulation")
def backward(lesson: Lesson) -> Flow:
    """A flow map that learns the teacher's velocity, then from its own samples."""
    same = lesson.trained.flow.consistency.two_time and lesson.trained.net == lesson.student.net
    flow = dataclasses.replace(
        lesson.student.flow,
        coupling=make("coupling", "independent"),
        time=make("time", "split", share_diagonal=0.25, share_endpoint=0.25),
        consistency=make("consistency", "meanflow"),
        solver=make("solver", "map"),
    )
    from_teacher = same and not lesson.trained.flow.guidance.null
    return as_kind(BackwardSimulation, lesson.student, flow=flow, from_teacher=from_teacher, fake_lr=lesson.order.lr)
