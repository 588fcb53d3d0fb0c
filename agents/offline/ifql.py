"""IFQL: implicit values as in IQL, a behaviour flow as policy, and the best of N of its samples as action.

The flow counterpart of IDQL (Hansen-Estruch et al. 2023, arXiv 2304.10573) in the FQL study (arXiv 2502.02538);
docs/methods/offline-rl.md#ifql. The published code repeats observations along the batch axis, which is right for one
observation at a time only; here every row has candidates of its own.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from flowpolicy.agents.base.agent_tags import register_config
from flowpolicy.agents.base.bricks import SolverName, flow_loss, flow_of, require_steps
from flowpolicy.agents.base.value_learning import Transition
from flowpolicy.agents.offline.iql import ImplicitAgent, ImplicitConfig
from flowpolicy.core.protocols import Metrics
from flowpolicy.core.ranges import Few
from flowpolicy.core.references import Reference
from flowpolicy.flows.axes.time_laws import uniform
from flowpolicy.policy.actor import PolicyConfig
from flowpolicy.policy.samplers import best_of_candidates


@register_config("ifql")
@dataclasses.dataclass(frozen=True)
class IFQL(ImplicitConfig):
    """Implicit values with the best of N flow samples."""

    references: ClassVar[tuple[Reference, ...]] = (
        Reference("Flow Q-Learning", "2502.02538"),
        Reference("IDQL: Implicit Q-Learning as an Actor-Critic Method with Diffusion Policies", "2304.10573"),
    )
    candidates: Few = 32
    """N, chunks among which the critic chooses; the knob to tune, 32 to 128. 1 is flow behaviour cloning."""
    solver: SolverName = "euler"
    """Solver of the flow."""
    flow_steps: Few = 10
    """Velocity evaluations per candidate."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_steps(self.solver, self.flow_steps)

    @property
    def nfe(self) -> int:
        """Velocity evaluations per chunk: those of every candidate count."""
        return self.flow_steps * self.candidates

    def build(self, *args: Any, **kwargs: Any) -> IFQLAgent:
        """The agent in training; arguments of :class:`ValueAgent`."""
        return IFQLAgent(self, *args, **kwargs)


class FlowDraws(NamedTuple):
    """What velocity matching draws."""

    noise: Float[Tensor, "b h a"]
    time: Float[Tensor, " b"]


class IFQLAgent(ImplicitAgent):
    """Regresses the velocity of the data; acts by the candidate of the largest Q."""

    config: IFQL

    def describe_policy(self) -> PolicyConfig:
        """The flow, and the critic that chooses."""
        config = self.config
        sampler = best_of_candidates(flow_of(config.solver), config.candidates, config.critic)
        return PolicyConfig(config.net, config.encoder, sampler)

    def draw(self, action: Float[Tensor, "b h a"], generator: torch.Generator) -> FlowDraws:
        """Noise (b, h, a) and times (b,)."""
        noise = torch.randn(action.shape, generator=generator, device=action.device)
        return FlowDraws(noise, uniform(action.shape[0], generator))

    def losses(self, t: Transition, draws: FlowDraws, **switches: bool) -> tuple[dict[str, Tensor], Metrics]:
        """Critic, value, and velocity matching."""
        losses, _, metrics = self.implicit(t)
        losses["flow"] = flow_loss(self.actor, t, draws.noise, draws.time)
        return losses, metrics
