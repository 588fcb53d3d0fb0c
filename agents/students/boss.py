"""BOSS: a student whose steps are the chords of its teacher's trajectories on the best few nodes (arXiv 2312.16414).

The nodes are those on which Euler's method loses least on the teacher's flow, found by dynamic programming; the
student is then straightened on every segment between them.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from flowpolicy.agents.base.agent_tags import register_config
from flowpolicy.agents.cloning.flow import Draws, Flow, FlowAgent
from flowpolicy.agents.students.distillation import Lesson, as_kind, method
from flowpolicy.core.errors import ConfigError
from flowpolicy.core.references import Reference
from flowpolicy.core.seed import torch_generator
from flowpolicy.core.streams import Streams
from flowpolicy.flows.axes.registry import make
from flowpolicy.flows.axes.schedules import Boss
from flowpolicy.flows.fitting import bellman, step_costs, trajectories
from flowpolicy.flows.student_targets import segment_lines


@register_config("boss_segments")
@dataclasses.dataclass(frozen=True)
class BossSegments(Flow):
    """Velocity matching on the chords of the teacher's trajectories between the nodes of ``flow.schedule``."""

    references: ClassVar[tuple[Reference, ...]] = (
        Reference("Bellman Optimal Step-size Straightening of Flow-Matching Models", "2312.16414"),
    )

    def check(self, action: int) -> None:
        """Refuse nodes that the teacher's steps do not meet, and paths that are not straight."""
        super().check(action)
        if not isinstance(self.flow.schedule, Boss) or self.flow.interpolant.name != "linear":
            raise ConfigError(
                f"boss with {self.flow.schedule.flag} on {self.flow.interpolant.flag}",
                expected="fitted nodes and straight paths",
                fix="flowpolicy distill RUN --method boss",
            )
        self.nodes()

    def nodes(self) -> tuple[int, ...]:
        """The nodes as steps of the teacher; ConfigError where they lie between them."""
        times = self.flow.schedule.nodes if isinstance(self.flow.schedule, Boss) else ()
        steps = tuple(round(t * self.teacher_nfe) for t in times)
        if any(abs(step / self.teacher_nfe - t) > 1e-6 for step, t in zip(steps, times, strict=True)):
            raise ConfigError(
                f"the nodes {times} are no multiples of 1 / {self.teacher_nfe}",
                expected="nodes that were fitted with as many evaluations of the teacher",
            )
        return steps

    @override
    def build(self, *args: Any, **kwargs: Any) -> BossAgent:
        return BossAgent(self, *args, **kwargs)


class BossAgent(FlowAgent):
    """Straightens its flow segment by segment."""

    config: BossSegments

    def __init__(self, config: BossSegments, *args: Any, **options: Any) -> None:
        super().__init__(config, *args, **options)
        # On the device once: a copy in every draw would make a GPU wait.
        self._nodes = torch.tensor(config.nodes(), device=options.get("device", "cpu")) / config.teacher_nfe

    def taught(self, obs: Streams, data: Float[Tensor, "b h a"], drawn: Draws, generator: torch.Generator) -> Draws:
        """Chords, and times inside them."""
        steps, nodes = self.config.nodes(), self._nodes
        place: dict[str, Any] = {"generator": generator, "device": data.device}
        segment = torch.randint(len(steps) - 1, (len(data),), **place)
        states = self.teacher.along(obs, drawn["noise"], steps, self.config.teacher_nfe)
        line = segment_lines(states, nodes, segment)
        s = torch.lerp(nodes[segment], nodes[segment + 1], drawn["s"])
        return {"data": line.data, "noise": line.noise, "s": s, "made": torch.ones_like(segment, dtype=torch.bool)}


@method("boss")
def boss(lesson: Lesson) -> Flow:
    """Nodes fitted to the teacher, then a student on the segments between them."""
    order, teacher, policy = lesson.order, lesson.teacher, lesson.teacher.policy
    if teacher.sampling.target.start:
        raise ConfigError(f"boss with {teacher.sampling.target.flag}", expected="a flow from noise at time 0")
    obs = lesson.observe()
    shape = (len(next(iter(obs.values()))), policy.contract.chunk, policy.contract.spec.action.size)
    noise = teacher.sampling.source.sample(shape, torch_generator(0, "boss"))
    with torch.no_grad():
        paths = trajectories(teacher.dynamics(teacher.policy.streams(obs)), noise, order.teacher_nfe)
    nodes = tuple(float(paths.times[node]) for node in bellman(step_costs(paths), order.nfe))
    # Bound to no weights: the student is trained on these nodes, whatever its weights become.
    flow = dataclasses.replace(lesson.student.flow, schedule=make("schedule", "boss", nodes=nodes))
    return as_kind(BossSegments, lesson.student, flow=flow)
