"""Flow behaviour cloning: velocity matching, many network evaluations per chunk.

Lipman et al. 2023 (arXiv 2210.02747), Liu et al. 2023 (arXiv 2209.03003); docs/methods/dm1.md#flow-behaviour-cloning.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from flowpolicy.agents.base.imitation import ImitationAgent, ImitationConfig
from flowpolicy.core.protocols import Metrics
from flowpolicy.core.ranges import Few
from flowpolicy.core.references import Reference
from flowpolicy.flows.interpolant import interpolate, velocity
from flowpolicy.flows.matching import matching_loss
from flowpolicy.flows.real_time import hold
from flowpolicy.flows.solvers import SolverName, steps_for
from flowpolicy.flows.times import uniform
from flowpolicy.policy.actor import Sampler


@dataclasses.dataclass(frozen=True)
class FlowBC(ImitationConfig):
    """Flow behaviour cloning."""

    references: ClassVar[tuple[Reference, ...]] = (
        Reference("Flow Matching for Generative Modeling", "2210.02747"),
        Reference("Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow", "2209.03003"),
    )
    solver: SolverName = "euler"
    """Solver of the generating differential equation."""
    nfe: Few = 10
    """Network evaluations per chunk."""

    def __post_init__(self) -> None:
        super().__post_init__()
        steps_for(self.nfe, self.solver)

    def build(self, *args: Any, **kwargs: Any) -> FlowBCAgent:
        """The agent in training; arguments of :class:`ImitationAgent`."""
        return FlowBCAgent(self, *args, **kwargs)


class FlowBCAgent(ImitationAgent):
    """Regresses the velocity a - noise at uniform times."""

    config: FlowBC
    takes_prefix = True

    @property
    def sampler(self) -> Sampler:
        """The configured solver."""
        return self.config.solver

    def draw(self, action: Float[Tensor, "b h a"], generator: torch.Generator) -> tuple[Tensor, ...]:
        """Noise (b, h, a), times (b,), and committed rows (b, h) where the policy is to take a prefix."""
        noise = torch.randn(action.shape, generator=generator, device=action.device)
        return noise, uniform(action.shape[0], generator), *self.draw_committed(action, generator)

    def loss(
        self, obs: dict[str, Tensor], action: Float[Tensor, "b h a"], valid: Bool[Tensor, "b h"], *draws: Tensor
    ) -> tuple[Float[Tensor, ""], Metrics]:
        """Velocity-matching loss."""
        noise, t, *committed = draws
        data = self.normalizer.action(action)
        cond, _ = self.actor.condition(self.normalizer.obs(obs))
        flow = hold(interpolate(noise, data, t), velocity(noise, data), data, valid, cond, *committed)
        output = self.actor.net(flow.x, t, flow.cond)
        return matching_loss(output.value, flow.velocity, flow.valid), {}
