"""IQL: an expectile of Q over the actions of the data as state value, and a policy that imitates the better actions.

Kostrikov, Nair and Levine 2022 (arXiv 2110.06169); docs/methods/offline-rl.md#iql. The critic is only ever asked for
actions of the data. :class:`ImplicitAgent` is the value half, which IFQL shares.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from flowpolicy.agents.base.agent_tags import register_config
from flowpolicy.agents.base.value_learning import Transition, ValueAgent, ValueConfig
from flowpolicy.core import ranks
from flowpolicy.core.protocols import Metrics
from flowpolicy.core.ranges import Inside, NonNegative, Share
from flowpolicy.core.references import Reference
from flowpolicy.nets.critic import Critic, CriticConfig
from flowpolicy.policy.actor import PolicyConfig
from flowpolicy.policy.samplers import Direct

LARGEST_WEIGHT = 100.0
"""Cap of the exponential weights of the published code."""


@dataclasses.dataclass(frozen=True)
class ImplicitConfig(ValueConfig):
    """Options of the agents that learn values from actions of the data alone."""

    critic: CriticConfig = CriticConfig(aggregate="min")
    """Ensemble of Q networks."""
    expectile: Inside = 0.9
    """Which expectile of Q over the actions of the data the state value is; 0.5 is the mean, towards 1 the maximum."""


class ImplicitAgent(ValueAgent):
    """Base of IQL and IFQL: V is an expectile of the target critic, the critic bootstraps from V."""

    config: ImplicitConfig
    value: Critic

    def build_networks(self) -> None:
        """The value network, of the critic's size."""
        single = dataclasses.replace(self.config.critic, members=1, held_out=0)
        self.value = single.build(self.contract.spec.observation, self.contract.history, encoder=self.config.encoder)

    def groups(self) -> dict[str, Any]:
        """The value network has the critic's optimiser options and a state of its own."""
        return super().groups() | {"value": (self.config.critic_optimizer, ("value",))}

    def implicit(self, t: Transition) -> tuple[dict[str, Tensor], Float[Tensor, " b"], Metrics]:
        """Losses of critic and value network, the advantages of the data's actions, and metrics."""
        q = self.target.value(t.obs, t.action).detach()
        v = self.value(t.obs)[0]
        total, count = ranks.totals((expectile_loss(q - v, self.config.expectile) * t.exact).sum(), t.exact.sum())
        value = total / count.clamp(min=1)
        target = self.bootstrap(t, self.value.value(t.next_obs))
        critic, metrics = self.critic_loss(t, target)
        return {"critic": critic, "value": value}, (q - v).detach(), {**metrics, "v_mean": v.mean().detach()}


@register_config("iql")
@dataclasses.dataclass(frozen=True)
class IQL(ImplicitConfig):
    """Implicit Q-learning with advantage-weighted regression."""

    references: ClassVar[tuple[Reference, ...]] = (
        Reference("Offline Reinforcement Learning with Implicit Q-Learning", "2110.06169"),
    )
    nfe: ClassVar[int] = 1
    alpha: NonNegative = 10.0
    """Inverse temperature of the weights exp(alpha * advantage): 0.3 to 10 by task, larger is greedier."""

    def build(self, *args: Any, **kwargs: Any) -> IQLAgent:
        """The agent in training; arguments of :class:`ValueAgent`."""
        return IQLAgent(self, *args, **kwargs)


class IQLAgent(ImplicitAgent):
    """Acts by the mean of a Gaussian of constant deviation."""

    config: IQL

    def describe_policy(self) -> PolicyConfig:
        """One evaluation, no noise."""
        return PolicyConfig(self.config.net, self.config.encoder, Direct())

    def draw(self, action: Float[Tensor, "b h a"], generator: torch.Generator) -> tuple[Tensor, ...]:
        """Nothing is random."""
        return ()

    def losses(self, t: Transition, draws: Any, **switches: bool) -> tuple[dict[str, Tensor], Metrics]:
        """Critic, value, and the weighted log-likelihood of the data's actions.

        The weights come from the same evaluation of the target critic as the value loss.
        """
        losses, advantage, metrics = self.implicit(t)
        weight = awr_weight(advantage, self.config.alpha)
        mean = self.actor.net(torch.zeros_like(t.action), torch.zeros_like(t.returns), self.actor.encoder(t.obs).cond)
        error = ((mean.value - t.action).square() * t.valid.unsqueeze(2)).sum((1, 2))
        losses["actor"] = 0.5 * ranks.mean(weight * error)
        return losses, {**metrics, "awr_weight": weight.mean()}


def expectile_loss(difference: Float[Tensor, "*b"], expectile: Share) -> Float[Tensor, "*b"]:
    """``|tau - 1(d < 0)| d^2``; in ``d = q - v``, its sum is least where v is the tau-expectile of q."""
    weight = torch.where(difference < 0, 1 - expectile, expectile)
    return weight * difference.square()


def awr_weight(advantage: Float[Tensor, "*b"], alpha: NonNegative) -> Float[Tensor, "*b"]:
    """``min(exp(alpha A), 100)``."""
    return (alpha * advantage).exp().clamp(max=LARGEST_WEIGHT)
