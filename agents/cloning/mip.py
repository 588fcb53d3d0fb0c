"""Minimal iterative policy: two evaluations, both plain regression, with noise between them.

The control that says how much of a flow's gain comes from iterating alone (MIP, arXiv 2512.01809). The first prediction
starts from zeros at time 0; the second sees the chunk with Gaussian noise in training, the first prediction as it is
in acting. Errors are taken in units of what is left to remove, the time of the second and its noise.
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
from flowpolicy.core.ranges import Positive
from flowpolicy.core.references import Reference
from flowpolicy.core.streams import Streams
from flowpolicy.flows.axes.losses import matching_loss
from flowpolicy.policy.samplers import Mip, Sampler

REFINING = Mip().again


@register_config("mip")
@dataclasses.dataclass(frozen=True)
class MIP(ImitationConfig):
    """Minimal iterative policy."""

    references: ClassVar[tuple[Reference, ...]] = (
        Reference("Much Ado About Noising: Dispelling the Myths of Generative Robotic Control", "2512.01809"),
    )
    nfe: ClassVar[int] = 2
    noise: Positive = 0.1
    """Deviation of the noise on the chunk that the second prediction is trained on, after scaling to [-1, 1]."""

    def build(self, *args: Any, **kwargs: Any) -> MIPAgent:
        """The agent in training; arguments of :class:`ImitationAgent`."""
        return MIPAgent(self, *args, **kwargs)


class MIPAgent(ImitationAgent):
    """Regression from nothing, and regression from a chunk with noise."""

    config: MIP

    @property
    def sampler(self) -> Sampler:
        """Two evaluations, no noise."""
        return Mip()

    def draw(self, action: Float[Tensor, "b h a"], generator: torch.Generator) -> Float[Tensor, "b h a"]:
        """Noise of the second prediction's input."""
        return torch.randn(action.shape, generator=generator, device=action.device)

    def loss(
        self,
        obs: Streams,
        action: Float[Tensor, "b h a"],
        valid: Bool[Tensor, "b h"],
        draws: Float[Tensor, "b h a"],
    ) -> tuple[Float[Tensor, ""], Metrics]:
        """Sum of the two mean squared errors, over 0.9^2 and ``noise^2``."""
        start, cond = action.new_zeros(len(action)), self.encoded(obs, len(action)).cond
        first = self.actor.net(torch.zeros_like(action), start, cond).value
        second = self.actor.net(action + self.config.noise * draws, start + REFINING, cond).value
        errors = [matching_loss(value, action, valid) for value in (first, second)]
        loss = errors[0] / REFINING**2 + errors[1] / self.config.noise**2
        return loss, {"first": errors[0].detach(), "second": errors[1].detach()}
