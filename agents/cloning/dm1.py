"""DM1: MeanFlow with dispersive regularisation, one network evaluation per action chunk.

Zou et al. 2025 (arXiv 2510.07865) on MeanFlow (Geng et al. 2025, arXiv 2505.13447) and dispersive losses
(Wang and He 2025, arXiv 2506.09027). Time runs from noise (0) to data (1), opposite to the papers, which changes a sign
in MeanFlow's identity. The mathematics, and where the published code differs: docs/methods/dm1.md.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from flowpolicy.agents.base.imitation import ImitationAgent, ImitationConfig
from flowpolicy.core.protocols import Metrics
from flowpolicy.core.ranges import Few, NonNegative, Share
from flowpolicy.core.references import Reference
from flowpolicy.flows.dispersive import Dispersive, dispersive_loss, spread
from flowpolicy.flows.interpolant import interpolate, velocity
from flowpolicy.flows.meanflow import meanflow
from flowpolicy.flows.real_time import hold
from flowpolicy.flows.times import PairLaw
from flowpolicy.nets.flow_nets import MapNet
from flowpolicy.policy.actor import Sampler


@dataclasses.dataclass(frozen=True)
class DM1(ImitationConfig):
    """MeanFlow with dispersive regularisation."""

    references: ClassVar[tuple[Reference, ...]] = (
        Reference("DM1: MeanFlow with Dispersive Regularization for 1-Step Robotic Manipulation", "2510.07865"),
        Reference("Mean Flows for One-step Generative Modeling", "2505.13447"),
    )
    nfe: Few = 1
    """Network evaluations per chunk: jumps of the flow map."""
    pairs: PairLaw = PairLaw()
    """Law of the intervals [s, t] that are trained."""
    kappa: Share = 1.0
    """Share of the conditional velocity in the tangent; the rest is the network's own velocity."""
    adaptive_power: NonNegative = 0.0
    """Exponent of the adaptive loss weight; 0 switches it off, above 0 the policy is biased to a mode."""
    dispersive: Dispersive = Dispersive()
    """Regulariser on the encoder's output."""

    def build(self, *args: Any, **kwargs: Any) -> DM1Agent:
        """The agent in training; arguments of :class:`ImitationAgent`."""
        return DM1Agent(self, *args, **kwargs)


class DM1Agent(ImitationAgent):
    """Trains the mean velocity U(x_s, s, t); acts by noise + U(noise, 0, 1)."""

    config: DM1
    takes_prefix = True

    @property
    def sampler(self) -> Sampler:
        """Jumps of the flow map."""
        return "map"

    def draw(self, action: Float[Tensor, "b h a"], generator: torch.Generator) -> tuple[Tensor, ...]:
        """Noise (b, h, a), interval ends s, t (b,), the diagonal rows first; committed rows (b, h) with a prefix."""
        noise = torch.randn(action.shape, generator=generator, device=action.device)
        return noise, *self.config.pairs.draw(action.shape[0], generator), *self.draw_committed(action, generator)

    def loss(
        self, obs: dict[str, Tensor], action: Float[Tensor, "b h a"], valid: Bool[Tensor, "b h"], *draws: Tensor
    ) -> tuple[Float[Tensor, ""], Metrics]:
        """MeanFlow loss plus the dispersive loss of the encoder features of the same forward pass."""
        config = self.config
        noise, s, t, *committed = draws
        data = self.normalizer.action(action)
        cond, feature = self.actor.condition(self.normalizer.obs(obs))
        held = hold(interpolate(noise, data, s), velocity(noise, data), data, valid, cond, *committed)
        flow = meanflow(
            cast(MapNet, self.actor.net),  # what the actor builds for the sampler 'map'
            held.x,
            s,
            t,
            held.velocity,
            held.cond,
            held.valid,
            skip=config.pairs.diagonal_rows(action.shape[0]),
            kappa=config.kappa,
            power=config.adaptive_power,
        )
        metrics = {"meanflow": flow.loss.detach(), **flow.metrics}
        if config.dispersive.weight == 0:
            return flow.loss, metrics
        repulsion = dispersive_loss(feature, config.dispersive)
        metrics |= {"dispersive": repulsion.detach(), **spread(feature)}
        return flow.loss + config.dispersive.weight * repulsion, metrics
