"""How an actor of the flow laboratory shapes noise and generates chunks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from flowpolicy.core.errors import ConfigError
from flowpolicy.flows.axes.solvers import Dynamics
from flowpolicy.flows.axes.sources import divergence, mix
from flowpolicy.flows.axes.spec import Network, Sampling

if TYPE_CHECKING:
    from flowpolicy.policy.actor import Actor


def shaped(
    actor: Actor, noise: Float[Tensor, "b h a"], cond: Float[Tensor, "b c"], share: Float[Tensor, " b"] | None
) -> tuple[Float[Tensor, "b h a"], Float[Tensor, ""] | None]:
    """Noise of a source that the observation moves by ``share``, and its divergence from N(0, I).

    Noise of all other sources stays as it is.
    """
    if actor.source is None or share is None:
        return noise, None
    mean, log_variance = actor.source(cond)
    return mix(noise, share, mean, log_variance), divergence(mean, log_variance)


def seen(flow: Sampling, cond: Float[Tensor, "b c"], share: Float[Tensor, " b"] | None) -> Float[Tensor, "b e"]:
    """The condition of the network: that of the encoder, and what the source shows."""
    return torch.cat([cond, share.unsqueeze(1)], dim=1) if share is not None and flow.source.inputs else cond


def generate(
    actor: Actor,
    flow: Sampling,
    network: Callable[..., Tensor],
    noise: Float[Tensor, "b h a"],
    cond: Float[Tensor, "b c"],
    nfe: int,
    generator: torch.Generator | None,
    refiner: Callable[..., Tensor] | None = None,
) -> Float[Tensor, "b h a"]:
    """Chunks for the noise, not clamped.

    Args:
        actor: networks beside the one that flows.
        flow: how to sample.
        network: the network, counting its evaluations.
        noise: from the source, before the observation has moved it.
        cond: condition of the encoder.
        nfe: evaluations of the network.
        generator: what solvers and sources draw from beside the noise.
        refiner: the small network of refined steps, counting its evaluations too.

    """
    share = None
    if flow.source.conditioned:
        if generator is None:
            raise ConfigError(f"the source {flow.source.name} without a generator", fix="pass the one of act")
        share = flow.source.shares(len(noise), generator, acting=True)
    noise, _ = shaped(actor, noise, cond, share)

    evaluations = flow.guidance.budget(nfe)
    field = dynamics(actor, flow, network, cond, share)
    if refiner is not None:
        shown = seen(flow, cond, share)
        field = dataclasses.replace(field, refine=lambda x, t, v: refiner(x, t, torch.cat([shown, v.flatten(1)], 1)))
    return flow.generate(field, noise, evaluations, generator)


def dynamics(
    actor: Actor,
    flow: Sampling,
    network: Callable[..., Tensor],
    cond: Float[Tensor, "b c"],
    share: Float[Tensor, " b"] | None,
) -> Dynamics:
    """The guided velocity of an actor for fixed conditions."""

    def predict(cond: Tensor) -> Network:
        shown = seen(flow, cond, share)
        return lambda x, s, t: network(x, s, t, shown) if flow.two_time else network(x, s, shown)

    null = cond if actor.null is None else actor.null.expand_as(cond)
    return flow.dynamics(predict(cond), predict(null))
