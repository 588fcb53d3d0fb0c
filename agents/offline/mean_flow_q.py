"""MeanFlow Q-learning: a one-step flow map that imitates the data and climbs the critic.

Wang et al. 2025 (arXiv 2511.13035, MeanFlowQL); docs/methods/offline-rl.md#meanflowq. The actor is
``z + U(z, 0, 1)``; the same network learns the mean velocity of the behaviour and is pulled up Q where it acts.
Time runs from noise (0) to data (1), opposite to the paper. What differs from the published code:

- Q is divided by its mean size, so that ``alpha`` does not depend on the scale of the rewards (10 to 11000 there);
- what leaves the box is charged with its square, as the gradient of a clamped action is zero;
- critic and actor have optimisers of their own;
- intervals follow :class:`~flowpolicy.flows.axes.time_laws.Ends`, with exact shares of the diagonal and of (0, 1);
- targets are not clipped: the network starts at zero, so that the first targets are the velocities alone;
- alpha is constant. The published rule compares the flow loss with its own moving average every 2000 updates,
  divides alpha by 1.25 unless the loss quintupled, and stops at a tenth: in a calm run that is all it does.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from flowpolicy.agents.base.agent_tags import register_config
from flowpolicy.agents.base.bricks import DERIVATIVE, jump_from, jump_to_action, map_loss, q_term
from flowpolicy.agents.base.value_learning import Transition, ValueAgent, ValueConfig
from flowpolicy.core.protocols import Metrics
from flowpolicy.core.ranges import Few, NonNegative, Share
from flowpolicy.core.references import Reference
from flowpolicy.flows.axes.time_laws import Ends
from flowpolicy.flows.fisher_metric import overflow
from flowpolicy.nets.mlp import MLP
from flowpolicy.policy.actor import Net, PolicyConfig
from flowpolicy.policy.samplers import MAP, best_of_candidates


@register_config("mean_flow_q")
@dataclasses.dataclass(frozen=True)
class MeanFlowQ(ValueConfig):
    """One-step MeanFlow actor with a Q term."""

    references: ClassVar[tuple[Reference, ...]] = (
        Reference("One-Step Generative Policies with Q-Learning: A Reformulation of MeanFlow", "2511.13035"),
        Reference("Mean Flows for One-step Generative Modeling", "2505.13447"),
    )
    net: Net = MLP()
    """Trunk of the actor. 'mlp' has its derivative written out; the others cost a forward pass more."""
    alpha: NonNegative = 1.0
    """Weight of the MeanFlow loss against the critic; the knob to tune. 0.1 to 10 with ``normalize_q``, without it the
    published 10 to 11000."""
    normalize_q: bool = True
    """Divide the actor's Q term by the mean of abs(Q), so that alpha does not depend on the scale of the rewards."""
    overflow: NonNegative = 1.0
    """Weight of the squared distance of the actor's chunks from the box [-1, 1]."""
    pairs: Ends = Ends()
    """Law of the intervals [s, t] that are trained."""
    kappa: Share = 1.0
    """Share of the conditional velocity in the tangent; the rest is the network's own velocity."""
    candidates: Few = 1
    """Chunks generated per decision; the critic chooses. The published code takes 5."""
    target_candidates: Few = 1
    """Chunks generated per bootstrap; the target critic chooses. The published code takes half the candidates."""

    @property
    def nfe(self) -> int:
        """Network evaluations per decision: one for each candidate."""
        return self.candidates

    def build(self, *args: Any, **kwargs: Any) -> MeanFlowQAgent:
        """The agent in training; arguments of :class:`ValueAgent`."""
        return MeanFlowQAgent(self, *args, **kwargs)


class MeanFlowQDraws(NamedTuple):
    """Everything random in one update."""

    next_noise: Float[Tensor, "b k h a"]
    """Of the candidates of the next chunk."""
    z: Float[Tensor, "b h a"]
    """What the actor starts from where it climbs."""
    noise: Float[Tensor, "b h a"]
    """What the flow starts from."""
    start: Float[Tensor, " b"]
    """Of the intervals on which the flow is trained."""
    end: Float[Tensor, " b"]
    """Of the same intervals."""


class MeanFlowQAgent(ValueAgent):
    """Critic and flow map; acts by z + U(z, 0, 1)."""

    config: MeanFlowQ

    def describe_policy(self) -> PolicyConfig:
        """One jump of the flow map per candidate."""
        config = self.config
        sampler = best_of_candidates(MAP, config.candidates, config.critic)
        return PolicyConfig(config.net, config.encoder, sampler)

    @property
    def exact(self) -> str:
        """The MeanFlow loss."""
        return DERIVATIVE

    def draw(self, action: Float[Tensor, "b h a"], generator: torch.Generator) -> MeanFlowQDraws:
        """Noises and intervals."""
        count = self.config.target_candidates
        noises = torch.randn((count + 2, *action.shape), generator=generator, device=action.device)
        ends = self.config.pairs.intervals(len(action), generator)
        return MeanFlowQDraws(noises[:count].transpose(0, 1), noises[count], noises[count + 1], *ends)

    def losses(self, t: Transition, draws: MeanFlowQDraws, **switches: bool) -> tuple[dict[str, Tensor], Metrics]:
        """Temporal difference; MeanFlow minus Q."""
        config = self.config
        with torch.no_grad():
            noises = draws.next_noise.unbind(1)
            chunks = [self.normalizer.within(jump_to_action(self.actor, t.next_obs, n)) for n in noises]
            values = [self.target.value(t.next_obs, chunk) for chunk in chunks]
            target = self.bootstrap(t, torch.stack(values).amax(0))
        critic, metrics = self.critic_loss(t, target)
        flow, measured = map_loss(self.actor, t, draws.noise, draws.start, draws.end, config.pairs, config.kappa)
        chunk = jump_from(self.actor, t.obs, draws.z)
        climb, more = q_term(self.critic, t.obs, self.normalizer.within(chunk), normalize=config.normalize_q)
        beyond = overflow(chunk)
        actor = config.alpha * flow + climb + config.overflow * beyond
        metrics |= {"meanflow": flow.detach(), "overflow": beyond.detach(), **measured, **more}
        return {"critic": critic, "actor": actor}, metrics
