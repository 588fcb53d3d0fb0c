"""Plain regression of the chunk: the control that any generative policy must beat.

Same network as flow behaviour cloning, asked at zero noise and time zero, trained on the mean squared error.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from flowpolicy.agents.base.agent_tags import register_config
from flowpolicy.agents.base.imitation import ImitationAgent, ImitationConfig
from flowpolicy.core.protocols import Metrics
from flowpolicy.core.streams import Streams
from flowpolicy.flows.axes.losses import matching_loss
from flowpolicy.flows.real_time import hold
from flowpolicy.policy.samplers import Direct, Sampler


@register_config("regression")
@dataclasses.dataclass(frozen=True)
class Regression(ImitationConfig):
    """Plain regression."""

    nfe: ClassVar[int] = 1
    compile_from: ClassVar[int | None] = None

    def build(self, *args: Any, **kwargs: Any) -> RegressionAgent:
        """The agent in training; arguments of :class:`ImitationAgent`."""
        return RegressionAgent(self, *args, **kwargs)


class RegressionAgent(ImitationAgent):
    """Mean squared error between predicted and demonstrated chunk."""

    config: Regression

    @property
    def sampler(self) -> Sampler:
        """One evaluation, no noise."""
        return Direct()

    def draw(self, action: Float[Tensor, "b h a"], generator: torch.Generator) -> tuple[Tensor, ...]:
        """Committed rows (b, h) where the policy is to take a prefix; else nothing is random."""
        return self.draw_committed(action, generator)

    def loss(
        self, obs: Streams, action: Float[Tensor, "b h a"], valid: Bool[Tensor, "b h"], draws: Any
    ) -> tuple[Float[Tensor, ""], Metrics]:
        """Mean squared error in normalised units."""
        held = hold(torch.zeros_like(action), action, action, valid, self.encoded(obs, len(action)).cond, *draws)
        output = self.actor.net(held.x, action.new_zeros(len(action)), held.cond)
        return matching_loss(output.value, held.velocity, held.valid), {}
