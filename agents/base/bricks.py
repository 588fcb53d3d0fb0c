"""Bricks of losses that several agents share: a behaviour as a flow or as a flow map, and the climb up a critic."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from flowpolicy.agents.base.value_learning import Transition
from flowpolicy.core import ranks
from flowpolicy.core.devices import exactly
from flowpolicy.core.protocols import Metrics
from flowpolicy.core.ranges import Share
from flowpolicy.core.streams import Streams
from flowpolicy.flows.axes.consistency import ImprovedMeanFlow, MeanFlow, Problem
from flowpolicy.flows.axes.flow_spec import Sampling
from flowpolicy.flows.axes.interpolants import Linear
from flowpolicy.flows.axes.losses import Squared, matching_loss
from flowpolicy.flows.axes.registry import make
from flowpolicy.flows.axes.solvers import Dynamics
from flowpolicy.flows.axes.time_laws import Ends
from flowpolicy.flows.straight import interpolate, velocity
from flowpolicy.nets.critic import Aggregation, Critic
from flowpolicy.policy.actor import Actor
from flowpolicy.policy.samplers import FlowSampler

DERIVATIVE = "the forward derivative of the flow map"
"""Why the loss of a flow map is computed in float32: it regresses on a derivative of its own network."""
SolverName = Literal["euler", "midpoint", "heun"]
STRAIGHT = Linear()


# Made once: PyTorch's compiler traces what they do, and not how they are made.
_FLOWS = {name: FlowSampler(Sampling(solver=make("solver", name))) for name in get_args(SolverName)}


def flow_of(solver: SolverName) -> FlowSampler:
    """How a behaviour flow acts: Gaussian noise along the straight path."""
    return _FLOWS[solver]


def require_steps(solver: SolverName, evaluations: int) -> None:
    """Raise ConfigError unless a solver can spend so many evaluations."""
    make("solver", solver).steps(evaluations)


def flow_loss(
    flow: Actor, t: Transition, noise: Float[Tensor, "b h a"], time: Float[Tensor, " b"]
) -> Float[Tensor, ""]:
    """Velocity matching on the data: the behaviour flow. The mean counts valid entries only."""
    output = flow.net(interpolate(noise, t.action, time), time, flow.encoder(t.obs).cond)
    return matching_loss(output.value, velocity(noise, t.action), t.valid)


@torch.no_grad()
def flow_sample(
    flow: Actor, obs: Streams, noise: Float[Tensor, "b h a"], evaluations: int, solver: SolverName
) -> Float[Tensor, "b h a"]:
    """What the behaviour flow makes of ``noise``, clamped at the end; without gradients."""
    cond = flow.encoder(obs).cond
    field = Dynamics(lambda x, t: flow.net(x, t, cond).value, STRAIGHT)
    return flow_of(solver).sampling.generate(field, noise, evaluations, None).clamp(-1, 1)


def q_term(
    critic: Critic,
    obs: Streams,
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
    mean, size = ranks.means(q, q.detach().abs()) if normalize else (ranks.mean(q), None)
    metrics = {"q_policy": mean.detach()}
    if critic.config.held_out:
        metrics["q_policy_held_out"] = values[members:].mean().detach()
    scale = 1.0 if size is None else 1 / size.clamp(min=1e-6)
    return -scale * mean, metrics


def map_loss(
    actor: Actor,
    t: Transition,
    noise: Float[Tensor, "b h a"],
    start: Float[Tensor, " b"],
    end: Float[Tensor, " b"],
    pairs: Ends,
    kappa: Share = 1.0,
) -> tuple[Float[Tensor, ""], Metrics]:
    """MeanFlow loss of the data: the behaviour as a flow map. ``start`` and ``end`` were drawn by ``pairs``.

    ``kappa`` is the share of the pair's velocity in what the derivative follows, see :class:`ImprovedMeanFlow`.
    """
    objective = MeanFlow() if kappa == 1 else ImprovedMeanFlow(kappa=kappa)
    with exactly(noise.device):
        problem = Problem(
            actor.net,
            interpolate(noise, t.action, start),
            velocity(noise, t.action),
            start,
            end,
            actor.encoder(t.obs).cond,
            ranks.own(pairs.diagonal(ranks.whole(len(noise)))),
        )
        return objective.loss(problem, t.valid, Squared(), STRAIGHT)


def jump_from(actor: Actor, obs: Streams, noise: Float[Tensor, "b h a"]) -> Float[Tensor, "b h a"]:
    """``z + U(z, 0, 1)``, not clamped."""
    start = noise.new_zeros(len(noise))
    jump: Tensor = actor.net(noise, start, start + 1, actor.encoder(obs).cond).value
    return noise + jump


@torch.no_grad()
def jump_to_action(actor: Actor, obs: Streams, noise: Float[Tensor, "b h a"]) -> Float[Tensor, "b h a"]:
    """:func:`jump_from`, clamped, without gradients."""
    return jump_from(actor, obs, noise).clamp(-1, 1)
