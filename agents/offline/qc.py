"""QC: the critic values whole action chunks; the policy is the best of N flow chunks, or a distilled one-step policy.

Li, Zhou and Levine 2025, Reinforcement learning with action chunking (arXiv 2507.07969);
docs/methods/offline-rl.md#qc. A chunk is executed open-loop, so its h rewards are an unbiased h-step return. Chunks
that the end of their episode cuts off teach the flow what they hold, averaged over those entries, and the critic only
if the episode truly terminated.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from flowpolicy.agents.base.agent_tags import register_config
from flowpolicy.agents.base.bricks import flow_loss, flow_of, flow_sample
from flowpolicy.agents.base.value_learning import Transition, ValueAgent
from flowpolicy.agents.offline.fql import FQL, FQLAgent
from flowpolicy.core.protocols import Metrics
from flowpolicy.core.ranges import Few, NonNegative
from flowpolicy.core.references import Reference
from flowpolicy.core.streams import Streams, repeated_streams
from flowpolicy.flows.axes.time_laws import uniform
from flowpolicy.policy.actor import PolicyConfig
from flowpolicy.policy.samplers import best_of, best_of_candidates


@register_config("qc")
@dataclasses.dataclass(frozen=True)
class QC(FQL):
    """Q-learning on action chunks."""

    references: ClassVar[tuple[Reference, ...]] = (
        Reference("Reinforcement Learning with Action Chunking", "2507.07969"),
        Reference("Flow Q-Learning", "2502.02538"),
    )
    mode: Literal["best_of_n", "distilled"] = "best_of_n"
    """'best_of_n' chooses among samples of the flow, in targets too; 'distilled' is FQL on chunks (QC-FQL)."""
    candidates: Few = 32
    """N of 'best_of_n' when acting."""
    target_candidates: Few = 32
    """N of 'best_of_n' in the targets, which is what an update costs."""
    alpha: NonNegative = 100.0
    """Weight of the distillation against the critic, 'distilled' only."""
    chunk: Few = 5
    """Actions per decision; the critic values whole chunks."""
    execute: Few = 5
    """Actions of a chunk that are executed before the next decision."""

    @property
    def nfe(self) -> int:
        """Network evaluations per chunk: those of every candidate count."""
        return self.flow_steps * self.candidates if self.mode == "best_of_n" else 1

    def build(self, *args: Any, **kwargs: Any) -> ValueAgent:
        """The agent in training; arguments of :class:`ValueAgent`."""
        agent = QCAgent if self.mode == "best_of_n" else FQLAgent
        return agent(self, *args, **kwargs)


class QCDraws(NamedTuple):
    """Everything random in one update."""

    next_noise: Float[Tensor, "n h a"]
    """Of the candidates of the next chunk, k for every row."""
    noise: Float[Tensor, "b h a"]
    """What the flow starts from."""
    time: Float[Tensor, " b"]
    """Where the flow is trained."""


class QCAgent(ValueAgent):
    """Acts by the flow chunk that the critic values most; so do the targets."""

    config: QC

    def describe_policy(self) -> PolicyConfig:
        """The flow, and the critic that chooses."""
        config = self.config
        sampler = best_of_candidates(flow_of(config.solver), config.candidates, config.critic)
        return PolicyConfig(config.net, config.encoder, sampler)

    def draw(self, action: Float[Tensor, "b h a"], generator: torch.Generator) -> QCDraws:
        """Noises and times."""
        rows, *shape = action.shape
        candidates = rows * self.config.target_candidates
        drawn = torch.randn((candidates + rows, *shape), generator=generator, device=action.device)
        next_noise, noise = drawn.split([candidates, rows])
        return QCDraws(next_noise, noise, uniform(rows, generator))

    def losses(self, t: Transition, draws: QCDraws, **switches: bool) -> tuple[dict[str, Tensor], Metrics]:
        """Temporal difference of chunks, and velocity matching."""
        with torch.no_grad():
            chunk = self.best(t.next_obs, draws.next_noise)
            target = self.bootstrap(t, self.target.value(t.next_obs, chunk))
        critic, metrics = self.critic_loss(t, target)
        return {"critic": critic, "flow": flow_loss(self.actor, t, draws.noise, draws.time)}, metrics

    @torch.no_grad()
    def best(self, obs: Streams, noise: Float[Tensor, "bk h a"]) -> Float[Tensor, "b h a"]:
        """Among the k flow samples of each row the one that the critic, not its target, values most."""
        count = self.config.target_candidates
        rows = repeated_streams(obs, count)
        chunk = self.normalizer.within(flow_sample(self.actor, rows, noise, self.config.flow_steps, self.config.solver))
        value = self.critic.value(rows, chunk)
        return best_of(chunk.view(-1, count, *chunk.shape[1:]), value.view(-1, count))
