"""Real-time chunking: generate a chunk whose first actions are already decided.

While a policy computes, the robot goes on executing. Of the new chunk the first d actions ("committed") are those
that it will have executed by then; only the rest is free. Two ways to make the rest continue them:

- :func:`guided`, at inference time, for solvers with several steps: pseudo-inverse guidance (Song et al. 2023;
  Black et al. 2025, arXiv 2506.07339) pulls the denoised chunk towards the previous one under :func:`soft_mask`.
- :func:`hold`, at training time (arXiv 2512.05964): the committed rows enter clean and do not move, the loss is that
  of the others. The only way for a map of one step, and free at inference.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from flowpolicy.flows.straight import Field, rows, velocity_to_data

GUIDANCE_LIMIT = 5.0
"""Largest strength of the guidance (arXiv 2506.07339, section 4.2)."""


def committed_rows(length: Int64[Tensor, " b"], chunk: int) -> Bool[Tensor, "b h"]:
    """True for the first ``length`` rows of chunks of ``chunk`` actions."""
    return torch.arange(chunk, device=length.device) < length[:, None]


class Held(NamedTuple):
    """A training batch whose committed rows do not move."""

    x: Float[Tensor, "b h a"]
    """Points of the flow; the committed rows are the data itself."""
    velocity: Float[Tensor, "b h a"]
    """Velocity; zero in the committed rows."""
    valid: Bool[Tensor, "b h"]
    """False in the committed rows too: they have no loss."""
    cond: Float[Tensor, "b c"]
    """One number per row of the chunk, 1 where it is committed, followed by the condition."""


def hold(
    x: Float[Tensor, "b h a"],
    velocity: Float[Tensor, "b h a"],
    data: Float[Tensor, "b h a"],
    valid: Bool[Tensor, "b h"],
    cond: Float[Tensor, "b n"],
    committed: Bool[Tensor, "b h"] | None = None,
) -> Held:
    """Hold the committed rows at the data; None changes nothing, the condition included."""
    if committed is None:
        return Held(x, velocity, valid, cond)
    rows_ = committed.unsqueeze(2)
    return Held(
        torch.where(rows_, data, x),
        velocity.masked_fill(rows_, 0.0),
        valid & ~committed,
        torch.cat([committed.to(cond.dtype), cond], dim=1),
    )


def soft_mask(length: Int64[Tensor, " b"], overlap: Int64[Tensor, " b"], chunk: int) -> Float[Tensor, "b h"]:
    """How much each row must agree with the previous chunk (arXiv 2506.07339, equation 5).

    1 in the ``length`` committed rows, decaying exponentially over the rows that the previous chunk planned
    (up to ``overlap``), 0 beyond it.
    """
    row = torch.arange(chunk, device=length.device, dtype=torch.float32)
    length_, overlap_ = length[:, None].float(), overlap[:, None].float()
    share = (overlap_ - row) / (overlap_ - length_ + 1).clamp(min=1.0)
    decay = share * torch.expm1(share) / math.expm1(1.0)
    weight = torch.where(row < length_, 1.0, decay)
    return torch.where(row < torch.maximum(overlap_, length_), weight, 0.0)


def guidance_strength(t: Float[Tensor, " b"], limit: float = GUIDANCE_LIMIT) -> Float[Tensor, " b"]:
    """``min(limit, (1 - t) / t / r^2)`` with ``r^2 = (1 - t)^2 / (t^2 + (1 - t)^2)``; ``limit`` at t = 0."""
    return ((t.square() + (1 - t).square()) / (t * (1 - t))).clamp(max=limit)


def guided(
    field: Field,
    target: Float[Tensor, "b h a"],
    weight: Float[Tensor, "b h"],
    limit: float = GUIDANCE_LIMIT,
) -> Field:
    """The velocity field that steers the denoised chunk towards ``target`` where ``weight`` is above 0.

    ``v + strength(t) J^T W (target - denoised)``, ``denoised = x + (1 - t) v`` and J its derivative in x: one
    backward pass per evaluation. Weight zero is ``field`` itself.
    """

    def at(x: Tensor, t: Tensor) -> Tensor:
        def denoise(x: Tensor) -> tuple[Tensor, Tensor]:
            v = field(x, t)
            return velocity_to_data(x, v, t), v

        denoised, pull, v = cast("tuple[Tensor, Any, Tensor]", torch.func.vjp(denoise, x, has_aux=True))
        (correction,) = pull(weight.unsqueeze(2) * (target - denoised))
        steered: Tensor = v + rows(guidance_strength(t, limit), x) * correction
        return steered

    return at
