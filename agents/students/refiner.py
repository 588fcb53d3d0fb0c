"""FlowTurbo's velocity refiner: a small network that stands in for the large one between steps (arXiv 2409.18128).

The large network stays as it is. The refiner is told a point, its time and the last velocity, and predicts by how much
the velocity has changed since: ``r(x', t + D, v) = v(x', t + D) - v`` with ``x' = x + D v``. It pays where the large
network is slow; every call of it counts as one evaluation all the same.
"""

from __future__ import annotations

import dataclasses
from typing import Any, cast

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
from flowpolicy.core.streams import Streams
from flowpolicy.flows.axes.losses import matching_loss
from flowpolicy.flows.axes.refusals import Setting
from flowpolicy.flows.axes.registry import make
from flowpolicy.flows.axes.solvers import Plan
from flowpolicy.flows.straight import rows
from flowpolicy.nets.flow_nets import VelocityNet
from flowpolicy.nets.mlp import MLP
from flowpolicy.policy.samplers import FlowSampler, Sampler


@register_config("refiner")
@dataclasses.dataclass(frozen=True)
class Refiner(Flow):
    """A refiner beside the frozen network of the teacher."""

    refiner: MLP = MLP(width=32, depth=2)
    """The refiner's network."""
    reach: float = 0.0
    """Longest distance in time that it bridges; 0 is the plan's step. FlowTurbo, of many steps, has 0.12."""

    @property
    @override
    def asks_teacher(self) -> bool:
        return True

    @property
    def distance(self) -> float:
        """Longest distance in time that the refiner is trained for."""
        return self.reach or 1 / len(cast(Plan, self.flow.solver).letters)

    @override
    def setting(self, action: int) -> Setting:
        return dataclasses.replace(super().setting(action), refiner=True)

    def check(self, action: int) -> None:
        """Refuse plans without a refined step, and guidance."""
        super().check(action)
        solver = self.flow.solver
        if not isinstance(solver, Plan) or "R" not in solver.letters or self.flow.guidance.name != "none":
            raise ConfigError(
                f"a refiner with {solver.flag} and {self.flow.guidance.flag}",
                expected="a plan with an R, and no guidance",
                fix="flowpolicy distill RUN --method refiner --nfe 4",
            )
        if not 0 < self.distance <= 1:
            raise ConfigError(f"the refiner reaches {self.reach}", expected="a distance in time, in (0, 1]")

    @override
    def build(self, *args: Any, **kwargs: Any) -> RefinerAgent:
        return RefinerAgent(self, *args, **kwargs)


class RefinerAgent(FlowAgent):
    """The teacher's networks, frozen, and a refiner in training."""

    config: Refiner

    def __init__(self, config: Refiner, *args: Any, **options: Any) -> None:
        super().__init__(config, *args, **options)
        own = self.actor.state_dict()
        refiner = {name: value for name, value in own.items() if name.startswith("refiner.")}
        # Loading is strict: the teacher has all of the student but the refiner.
        self.actor.load_state_dict({**self.teacher.policy.actor.state_dict(), **refiner})
        for name, parameter in self.actor.named_parameters():
            parameter.requires_grad_(name.startswith("refiner."))
        self.ema.restart(self.actor)

    @property
    @override
    def sampler(self) -> Sampler:
        return FlowSampler(self.sampling, self.config.refiner)

    @torch.no_grad()
    def draws(self, batch: dict[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
        """Points ``x`` at ``t`` that a step of the teacher has led to, its velocity before and the change since."""
        spec, obs, data = self.spec, batch[OBS], batch[ACTION]
        shape = tuple(data.shape)
        place: dict[str, Any] = {"generator": generator, "device": data.device}
        noise = spec.source.sample(shape, generator)
        z = torch.randn(shape, **place) if spec.interpolant.latent else None
        u, distance = torch.rand(len(data), **place), self.config.distance * torch.rand(len(data), **place)
        start = spec.target.start
        t = spec.interpolant.inside(start + (1 - start - distance).clamp(min=0) * u)
        x = spec.interpolant.point(noise, data, t, z)
        v = self.teacher.velocity(obs, x, t)
        later = (t + distance).clamp(max=1)
        x = x + rows(later - t, x) * v
        change = self.teacher.velocity(obs, x, later) - v
        return {"x": x, "t": later, "v": v, "change": change}

    def loss(
        self, obs: Streams, action: Float[Tensor, "b h a"], valid: Bool[Tensor, "b h"], d: dict[str, Tensor]
    ) -> tuple[Float[Tensor, ""], Metrics]:
        """Squared error of the change, and beside it that of predicting none."""
        cond = self.actor.encoder(obs).cond
        net = cast(VelocityNet, self.actor.refiner)
        found = net(d["x"], d["t"], torch.cat([d["v"].flatten(1), cond], dim=1)).value
        loss = matching_loss(found, d["change"], valid)
        return loss, {"unrefined": matching_loss(torch.zeros_like(found), d["change"], valid).detach()}


def letters_for(nfe: int) -> str:
    """The plan of so many evaluations that asks the large network least: once, or twice where they are odd.

    Raises:
        ConfigError: fewer than two.

    """
    if nfe < 2:
        raise ConfigError(
            f"a refiner in {nfe} evaluation", expected="at least 2: it refines a velocity that is there", fix="--nfe 2"
        )
    return ("H" if nfe % 2 else "E") + "R" * (nfe // 2)


@method("refiner")
def refiner(lesson: Lesson) -> Flow:
    """The teacher as it is, and a refiner for all steps but the first."""
    order, trained, sampling = lesson.order, lesson.trained, lesson.teacher.sampling
    plan = make("solver", "plan", letters=letters_for(order.nfe))
    flow = dataclasses.replace(
        lesson.student.flow, coupling=make("coupling", "independent"), target=sampling.target, solver=plan
    )
    flow = dataclasses.replace(flow, consistency=trained.flow.consistency, guidance=sampling.guidance)
    small = MLP(width=order.width or 32, depth=order.depth or 2)
    return as_kind(Refiner, lesson.student, flow=flow, net=trained.net, from_teacher=False, refiner=small)
