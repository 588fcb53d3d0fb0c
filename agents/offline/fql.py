"""FQL: a one-step policy distilled from a behaviour flow, and pulled up the critic.

Park, Li and Levine 2025 (arXiv 2502.02538); docs/methods/offline-rl.md#fql. The flow imitates the data; the policy
mu(s, z) imitates what ten Euler steps of the flow make of the noise z, and climbs Q. No gradient passes through the
solver. The target critic follows the parameters after the update; in the published code, those before it.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from flowpolicy.agents.base.agent_tags import register_config
from flowpolicy.agents.base.bricks import SolverName, flow_loss, flow_of, flow_sample, q_term, require_steps
from flowpolicy.agents.base.value_learning import Transition, ValueAgent, ValueConfig
from flowpolicy.core import ranks
from flowpolicy.core.protocols import Metrics
from flowpolicy.core.ranges import Few, NonNegative
from flowpolicy.core.references import Reference
from flowpolicy.core.streams import Streams
from flowpolicy.flows.axes.time_laws import uniform
from flowpolicy.policy.actor import Actor, PolicyConfig
from flowpolicy.policy.samplers import OneStep


@register_config("fql")
@dataclasses.dataclass(frozen=True)
class FQL(ValueConfig):
    """Flow Q-learning."""

    references: ClassVar[tuple[Reference, ...]] = (Reference("Flow Q-Learning", "2502.02538"),)
    alpha: NonNegative = 10.0
    """Weight of the distillation against the critic; the knob to tune. 3 to 30000 by task, 0.03 to 10 with
    ``normalize_q``."""
    normalize_q: bool = False
    """Divide the actor's Q term by the mean of abs(Q), so that alpha does not depend on the scale of the rewards."""
    solver: SolverName = "euler"
    """Solver of the behaviour flow."""
    flow_steps: Few = 10
    """Velocity evaluations of the behaviour flow per sample."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_steps(self.solver, self.flow_steps)

    @property
    def nfe(self) -> int:
        """One evaluation per chunk."""
        return 1

    def build(self, *args: Any, **kwargs: Any) -> ValueAgent:
        """The agent in training; arguments of :class:`ValueAgent`."""
        return FQLAgent(self, *args, **kwargs)


class FQLDraws(NamedTuple):
    """Everything random in one update."""

    next_noise: Float[Tensor, "b h a"]
    """Of the next action."""
    z: Float[Tensor, "b h a"]
    """What the one-step policy starts from."""
    noise: Float[Tensor, "b h a"]
    """What the flow starts from."""
    time: Float[Tensor, " b"]
    """Where the flow is trained."""


class FQLAgent(ValueAgent):
    """Critic, behaviour flow and one-step policy, in one backward pass; acts by mu(s, z), z fresh every time."""

    config: FQL
    flow: Actor

    def describe_policy(self) -> PolicyConfig:
        """One evaluation of mu(s, z)."""
        return PolicyConfig(self.config.net, self.config.encoder, OneStep())

    def build_networks(self) -> None:
        """The behaviour flow."""
        config = self.config
        self.flow = Actor(PolicyConfig(config.net, config.encoder, flow_of(config.solver)), self.contract)

    def groups(self) -> dict[str, Any]:
        """The flow has the actor's optimiser options and a state of its own."""
        return super().groups() | {"flow": (self.config.actor_optimizer, ("flow",))}

    def draw(self, action: Float[Tensor, "b h a"], generator: torch.Generator) -> FQLDraws:
        """Noises and times."""
        next_noise, z, noise = torch.randn((3, *action.shape), generator=generator, device=action.device).unbind(0)
        return FQLDraws(next_noise, z, noise, uniform(action.shape[0], generator))

    def losses(self, t: Transition, draws: FQLDraws, **switches: bool) -> tuple[dict[str, Tensor], Metrics]:
        """Temporal difference, velocity matching, and distillation minus Q."""
        with torch.no_grad():
            next_action = self.normalizer.within(one_step(self.actor, t.next_obs, draws.next_noise))
            target = self.bootstrap(t, self.target.value(t.next_obs, next_action))
        critic, metrics = self.critic_loss(t, target)
        actor, more = self.actor_loss(t, draws.z)
        flow = flow_loss(self.flow, t, draws.noise, draws.time)
        return {"critic": critic, "actor": actor, "flow": flow}, metrics | more

    def actor_loss(self, t: Transition, z: Float[Tensor, "b h a"]) -> tuple[Float[Tensor, ""], Metrics]:
        """``alpha |mu(s, z) - ODE(s, z)|^2 - Q(s, mu(s, z))``, a mean over entries and one over rows."""
        config = self.config
        chunk = one_step(self.actor, t.obs, z)
        behaviour = flow_sample(self.flow, t.obs, z, config.flow_steps, config.solver)
        distill = ranks.mean((chunk - behaviour).square())
        climb, metrics = q_term(self.critic, t.obs, self.normalizer.within(chunk), normalize=config.normalize_q)
        return config.alpha * distill + climb, {"distill": distill.detach(), **metrics}


def one_step(actor: Actor, obs: Streams, z: Float[Tensor, "b h a"]) -> Float[Tensor, "b h a"]:
    """``mu(s, z)``, not clamped."""
    chunk: Tensor = actor.net(z, actor.encoder(obs).cond).value
    return chunk
