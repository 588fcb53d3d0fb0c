"""ReBRAC: TD3 with a penalty on leaving the data's actions, in the actor and in the critic.

Tarasov et al. 2023 (arXiv 2305.09836); docs/methods/offline-rl.md#rebrac. The published critic penalty compares with
the next row of the file even where that row belongs to another trajectory; here the data's action is that of the row
from which the return bootstraps, in the same episode.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flowpolicy.agents.base.agent_tags import register_config
from flowpolicy.agents.base.bricks import q_term
from flowpolicy.agents.base.value_learning import Transition, ValueAgent, ValueConfig
from flowpolicy.core import ranks
from flowpolicy.core.errors import ConfigError
from flowpolicy.core.protocols import Metrics
from flowpolicy.core.ranges import Count, NonNegative
from flowpolicy.core.references import Reference
from flowpolicy.core.streams import Streams
from flowpolicy.nets.critic import CriticConfig, polyak
from flowpolicy.policy.actor import Actor, PolicyConfig
from flowpolicy.policy.samplers import Direct


@register_config("rebrac")
@dataclasses.dataclass(frozen=True)
class ReBRAC(ValueConfig):
    """Behaviour-regularised actor-critic."""

    references: ClassVar[tuple[Reference, ...]] = (
        Reference("Revisiting the Minimalist Approach to Offline Reinforcement Learning", "2305.09836"),
    )
    nfe: ClassVar[int] = 1
    critic: CriticConfig = CriticConfig(aggregate="min")
    """Ensemble of Q networks."""
    alpha_actor: NonNegative = 0.1
    """Weight of the squared distance from the data's action in the actor, against Q of mean size 1; 0.003 to 1."""
    alpha_critic: NonNegative = 0.01
    """Weight of the squared distance from the data's next action in the target; 0 to 0.01."""
    target_noise: NonNegative = 0.2
    """Deviation of the noise on the next action."""
    target_noise_limit: NonNegative = 0.5
    """Largest noise on the next action."""
    actor_every: Count = 2
    """Critic updates per update of actor and targets."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.chunk != 1:
            raise ConfigError(
                f"ReBRAC with --agent.chunk {self.chunk}", expected="chunk 1: its critic penalty is on single actions"
            )

    def build(self, *args: Any, **kwargs: Any) -> ReBRACAgent:
        """The agent in training; arguments of :class:`ValueAgent`."""
        return ReBRACAgent(self, *args, **kwargs)


class ReBRACAgent(ValueAgent):
    """Acts by tanh of one network evaluation, without noise."""

    config: ReBRAC
    target_actor: Actor
    last: Tensor

    def describe_policy(self) -> PolicyConfig:
        """One evaluation through tanh."""
        return PolicyConfig(self.config.net, self.config.encoder, Direct(squashed=True))

    def build_networks(self) -> None:
        """The target actor. The last layer of the actor starts small, so that tanh does not saturate."""
        last = [module for module in self.actor.net.modules() if isinstance(module, nn.Linear)][-1]
        with torch.no_grad():
            last.weight.mul_(0.01)
        self.target_actor = Actor(self.policy_config, self.contract).requires_grad_(False)
        self.target_actor.load_state_dict(self.actor.state_dict())
        # Every update reports the same metrics: those of the actor are the newest ones.
        self.register_buffer("last", torch.zeros(3))

    def draw(self, action: Float[Tensor, "b h a"], generator: torch.Generator) -> Float[Tensor, "b h a"]:
        """Noise on the next action (b, h, a)."""
        return torch.randn(action.shape, generator=generator, device=action.device)

    def switches(self) -> dict[str, bool]:
        """Whether the actor is updated."""
        return {"full": self.updates % self.config.actor_every == 0}

    def losses(
        self, t: Transition, draws: Float[Tensor, "b h a"], **switches: bool
    ) -> tuple[dict[str, Tensor], Metrics]:
        """Temporal difference with the penalised target; every few updates the actor's loss."""
        critic, metrics = self.critic_loss(t, self.penalised_target(t, draws))
        if not switches["full"]:
            return {"critic": critic}, metrics
        actor, more = self.actor_loss(t)
        return {"critic": critic, "actor": actor}, metrics | more

    def penalised_target(self, t: Transition, noise: Float[Tensor, "b 1 a"]) -> Float[Tensor, " b"]:
        """``R + gamma^n m (Q(s', a') - alpha |a' - a'_data|^2)``, the distance summed over dimensions."""
        config = self.config
        with torch.no_grad():
            jitter = (config.target_noise * noise).clamp(-config.target_noise_limit, config.target_noise_limit)
            action = self.normalizer.within(squashed(self.target_actor, t.next_obs, noise) + jitter)
            distance = (action[:, 0] - t.next_action).square().sum(1)
            value = self.target.value(t.next_obs, action) - config.alpha_critic * distance
        return self.bootstrap(t, value)

    def actor_loss(self, t: Transition) -> tuple[Float[Tensor, ""], Metrics]:
        """``alpha |pi(s) - a|^2 - Q(s, pi(s)) / mean |Q|``, the distance summed over dimensions."""
        action = self.normalizer.within(squashed(self.actor, t.obs, t.action))
        distance = ranks.mean((action - t.action).square().sum((1, 2)))
        climb, metrics = q_term(self.critic, t.obs, action, normalize=True, aggregate=self.config.critic.aggregate)
        return self.config.alpha_actor * distance + climb, {"distance": distance.detach(), **metrics}

    def advance(self, loss: Tensor, metrics: Metrics, rows: int, **switches: bool) -> Metrics:
        """The step; the metrics of the actor are those of its newest one."""
        metrics = super().advance(loss, metrics, rows, **switches)
        names = ("actor_loss", "distance", "q_policy")
        if "actor_loss" in metrics:
            self.last.copy_(torch.stack([metrics[name] for name in names]))
        else:
            metrics["loss"] = metrics["loss"] + self.last[0]
        return {**metrics, **dict(zip(names, self.last.clone(), strict=True))}

    def follow(self, **switches: bool) -> None:
        """Both targets follow when the actor moves."""
        if switches["full"]:
            super().follow()
            polyak(self.target_actor, self.actor, self.config.tau)


def squashed(actor: Actor, obs: Streams, like: Float[Tensor, "b h a"]) -> Float[Tensor, "b h a"]:
    """``tanh`` of the network at zero noise and time zero."""
    output = actor.net(torch.zeros_like(like), like.new_zeros(like.shape[0]), actor.encoder(obs).cond)
    chunk: Tensor = output.value.tanh()
    return chunk
