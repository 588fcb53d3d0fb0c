"""How much likelier a policy makes the candidates of a group than the reference does, by two estimates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from flowpolicy.agents.groups.assessment import field, velocity_errors
from flowpolicy.core.seed import torch_generator
from flowpolicy.data.groups import Groups
from flowpolicy.data.normalize import Normalizer
from flowpolicy.flows import groups as mathematics
from flowpolicy.flows.trajectory_balance import Kernels, kernels, noised_path, path_log_ratio
from flowpolicy.policy.actor import Actor

_GROUPS = 256  # on which the reference's uncertainty is measured


class Draws(NamedTuple):
    """Everything random in one update, but what the map needs."""

    t: Float[Tensor, "g m"]
    density: Float[Tensor, "g m"]
    """Density with which the times are drawn; 1 where they are uniform."""
    noise: Float[Tensor, "g m h a"]
    tie: Float[Tensor, "g k"]
    member: Float[Tensor, " g"]
    """Which candidate the map is trained on, see :func:`flowpolicy.flows.groups.tilted_choice`."""
    bc_t: Float[Tensor, " b"]
    bc_noise: Float[Tensor, "b h a"]
    path: Float[Tensor, "g n k h a"]
    """Noise of the trajectories of 'trajectory_balance'; n is 0 for the other objectives."""


class Scored(NamedTuple):
    """Candidates of groups under a policy."""

    scores: Float[Tensor, "g k"]
    """Log-ratios to the reference."""
    errors: Float[Tensor, "g k"]
    """Velocity errors, in the units of a velocity-matching loss."""


def scored(
    config: Any,
    beta: float,
    chain: Kernels | None,
    actor: Actor,
    reference: Actor,
    obs: Mapping[str, Tensor],
    chunks: Float[Tensor, "g k h a"],
    valid: Bool[Tensor, "g h"],
    random: Draws,
) -> Scored:
    """Scores and errors of normalised chunks; gradients pass through both.

    Args:
        config: of the agent, :class:`flowpolicy.agents.groups.gdro.GDRO`.
        beta: factor of the velocity errors.
        chain: steps of 'trajectory_balance'; None estimates log-ratios from velocity errors.
        actor: the policy's networks.
        reference: those of the reference.
        obs: normalised observations.
        chunks: normalised candidates.
        valid: steps of a chunk that count.
        random: draws of the update.

    """
    error = velocity_errors(actor, obs, chunks, valid, random.t, random.noise)
    errors = (error / random.density.unsqueeze(2)).mean(1) / (valid.sum(1, keepdim=True) * chunks.shape[3]).clamp(min=1)
    if chain is not None:
        states = noised_path(chunks, random.path)
        predicted = predicted_chunks(actor, obs, states[:, :-1], chain)
        with torch.no_grad():
            known = predicted_chunks(reference, obs, states[:, :-1], chain)
        return Scored(path_log_ratio(states, predicted, known, chain, valid), errors)
    with torch.no_grad():
        known = velocity_errors(reference, obs, chunks, valid, random.t, random.noise)
    weight = mathematics.time_weight(random.t, config.weight) / random.density
    return Scored(mathematics.log_ratio(error, known, weight, beta, limit=20.0), errors)


def predicted_chunks(
    actor: Actor, obs: Mapping[str, Tensor], states: Float[Tensor, "g n k h a"], chain: Kernels
) -> Float[Tensor, "g n k h a"]:
    """Chunks that a policy predicts from the states of trajectories, ``x + (1 - t) v(x, t)``."""
    g, n, k, h, a = states.shape
    cond, _ = actor.condition(dict(obs))
    conds = cond[:, None, None].expand(g, n, k, cond.shape[1]).reshape(-1, cond.shape[1])
    times = chain.start.reshape(1, n, 1).expand(g, n, k).reshape(-1)
    velocity = field(actor, states.reshape(-1, h, a), times, conds).view(states.shape)
    return states + (1 - chain.start).reshape(1, n, 1, 1, 1) * velocity


@torch.no_grad()
def chain_of(reference: Actor, groups: Groups, normalizer: Normalizer, steps: int) -> Kernels:
    """The chain of a reference, whose uncertainty about the chunk is measured on candidates; the same every time."""
    place = normalizer.action(groups.action[:1]).device
    chunks = normalizer.action(groups.action[:_GROUPS].to(place))
    obs = normalizer.obs({name: value[:_GROUPS].to(place) for name, value in groups.obs.items()})
    noise = torch.randn((len(chunks), steps, *chunks.shape[1:]), generator=torch_generator(0, "chain")).to(place)
    states = noised_path(chunks, noise)[:, :-1]
    start = kernels(torch.zeros(steps, device=place))
    error = (predicted_chunks(reference, obs, states, start) - chunks.unsqueeze(1)).square()
    valid = groups.valid[:_GROUPS].to(place)[:, None, None, :, None].expand_as(error)
    return kernels((error * valid).sum((0, 2)) / valid.sum((0, 2)).clamp(min=1))
