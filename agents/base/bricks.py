"""Bricks of losses that several agents share: a behaviour as a flow or as a flow map, and the climb up a critic."""

from __future__ import annotations

from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from flowpolicy.agents.base.value_learning import Transition
from flowpolicy.core.protocols import Metrics
from flowpolicy.core.ranges import Share
from flowpolicy.flows.interpolant import interpolate, velocity
from flowpolicy.flows.matching import matching_loss
from flowpolicy.flows.meanflow import MeanFlow, meanflow
from flowpolicy.flows.solvers import SolverName, integrate, jump, steps_for
from flowpolicy.flows.times import PairLaw
from flowpolicy.nets.critic import Aggregation, Critic
from flowpolicy.nets.flow_nets import MapNet
from flowpolicy.policy.actor import Actor


def flow_loss(
    flow: Actor, t: Transition, noise: Float[Tensor, "b h a"], time: Float[Tensor, " b"]
) -> Float[Tensor, ""]:
    """Velocity matching on the data: the behaviour flow. The mean counts valid entries only."""
    output = flow.net(interpolate(noise, t.action, time), time, flow.encoder(t.obs).cond)
    return matching_loss(output.value, velocity(noise, t.action), t.valid)


@torch.no_grad()
def flow_sample(
    flow: Actor, obs: Float[Tensor, "b n"], noise: Float[Tensor, "b h a"], evaluations: int, solver: SolverName
) -> Float[Tensor, "b h a"]:
    """What the behaviour flow makes of ``noise``, clamped at the end; without gradients."""
    cond = flow.encoder(obs).cond
    chunk = integrate(lambda x, t: flow.net(x, t, cond).value, noise, steps_for(evaluations, solver), solver)
    return chunk.clamp(-1, 1)


def q_term(
    critic: Critic,
    obs: Float[Tensor, "b n"],
    chunk: Float[Tensor, "b h a"],
    *,
    normalize: bool,
    aggregate: Aggregation = "mean",
) -> tuple[Float[Tensor, ""], Metrics]:
    """``-mean Q(s, chunk)``, Q the mean or minimum of the members; divided by ``sg(mean |Q|)`` if asked.

    The gradient reaches the chunk and not the critic. With held-out networks, ``q_policy_held_out`` is their value of
    the same chunks: nothing ever climbed it, so it is the honest one.
    """
    members = critic.config.members
    values = critic.all_values(obs, chunk)
    q = values[:members].mean(0) if aggregate == "mean" else values[:members].amin(0)
    metrics = {"q_policy": q.mean().detach()}
    if critic.config.held_out:
        metrics["q_policy_held_out"] = values[members:].mean().detach()
    scale = 1 / q.detach().abs().mean().clamp(min=1e-6) if normalize else 1.0
    return -scale * q.mean(), metrics


def map_loss(
    actor: Actor,
    t: Transition,
    noise: Float[Tensor, "b h a"],
    start: Float[Tensor, " b"],
    end: Float[Tensor, " b"],
    pairs: PairLaw,
    kappa: Share = 1.0,
) -> MeanFlow:
    """MeanFlow loss of the data: the behaviour as a flow map. ``start`` and ``end`` were drawn by ``pairs``."""
    return meanflow(
        cast(MapNet, actor.net),  # what the actor builds for the sampler 'map'
        interpolate(noise, t.action, start),
        start,
        end,
        velocity(noise, t.action),
        actor.encoder(t.obs).cond,
        t.valid,
        skip=pairs.diagonal_rows(len(noise)),
        kappa=kappa,
    )


def jump_from(actor: Actor, obs: Float[Tensor, "b n"], noise: Float[Tensor, "b h a"]) -> Float[Tensor, "b h a"]:
    """``z + U(z, 0, 1)``, not clamped."""
    cond = actor.encoder(obs).cond
    return jump(lambda x, s, t: actor.net(x, s, t, cond).value, noise, 1)


@torch.no_grad()
def jump_to_action(actor: Actor, obs: Float[Tensor, "b n"], noise: Float[Tensor, "b h a"]) -> Float[Tensor, "b h a"]:
    """:func:`jump_from`, clamped, without gradients."""
    return jump_from(actor, obs, noise).clamp(-1, 1)
