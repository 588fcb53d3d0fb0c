"""Relative trajectory balance of a flow policy on groups of finished candidates.

A generative flow network samples in proportion to a reward; relative to a reference it is to sample

    pi*(x) = pi_ref(x) exp(Q(x) / tau) / Z.

Seen as a chain with Gaussian steps, noise x_0 to chunk x_n, that is so where for EVERY trajectory
``log Z + sum_k log pi(x_k+1 | x_k) / pi_ref(x_k+1 | x_k) - Q(x_n) / tau = 0`` (Venkatraman et al. 2024, arXiv
2405.20971). Squared, that is the loss; log Z is replaced by the mean over the candidates of a state (VarGrad, arXiv
2010.10436), so that there is nothing to learn beside the policy. No gradient of Q is needed.

The chain is the memoryless one, in which the noise says nothing about the chunk: with any other, the fixed law of the
noise would have to be tilted as well. Its trajectories that end in given candidates are drawn backwards, by noising.
Its steps are those of the noising process turned round, ``E[x_t | x_s, a]`` at the predicted chunk, with the variance
of that law and of what the reference does not know about the chunk at s. For a Gaussian law this is exact for any
number of steps; without the second part ten steps have half of the variance, and of the tilt (closed form).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

_LEAST = 1e-6  # smallest variance of a step: a dimension that the reference knows exactly must not divide by zero


class Kernels(NamedTuple):
    """Steps from ``start`` to ``end``: mean ``reach`` times the predicted chunk plus ``keep`` times the state."""

    start: Float[Tensor, " n"]
    end: Float[Tensor, " n"]
    reach: Float[Tensor, " n"]
    keep: Float[Tensor, " n"]
    variance: Float[Tensor, "n *d"]


def kernels(residual: Float[Tensor, "n *d"]) -> Kernels:
    """The chain of n equal steps.

    Args:
        residual: mean squared errors of the chunks that the reference predicts at the times 0, 1/n, ... (n-1)/n.

    """
    n = len(residual)
    end = torch.arange(1, n + 1, dtype=residual.dtype, device=residual.device) / n
    start = end - 1 / n
    back = start / end  # x_s = back x_t + noise: the noising process of the straight line, run backwards
    late, fresh = (1 - end).square(), (1 - start).square() - (back * (1 - end)).square()
    whole = (1 - start).square()
    reach, keep = end * fresh / whole, back * late / whole
    inside = [-1, *[1] * (residual.ndim - 1)]
    variance = (late * fresh / whole).reshape(inside) + reach.square().reshape(inside) * residual
    return Kernels(start, end, reach, keep, variance.clamp(min=_LEAST))


def noised_path(chunk: Float[Tensor, "g k *d"], noise: Float[Tensor, "g n k *d"]) -> Float[Tensor, "g m k *d"]:
    """Trajectories that end in the chunks: m = n + 1 states, at 0, 1/n, ... 1; the first is pure noise."""
    n = noise.shape[1]
    states = [chunk]
    for k in reversed(range(n)):
        s, t = k / n, (k + 1) / n
        back = s / t
        states.append(back * states[-1] + float((1 - s) ** 2 - (back * (1 - t)) ** 2) ** 0.5 * noise[:, k])
    return torch.stack(states[::-1], dim=1)


def path_log_ratio(
    states: Float[Tensor, "g m k h a"],
    predicted: Float[Tensor, "g n k h a"],
    reference: Float[Tensor, "g n k h a"],
    steps: Kernels,
    valid: Bool[Tensor, "g h"],
) -> Float[Tensor, "g k"]:
    """``sum_k log pi(x_k+1 | x_k) - log pi_ref(x_k+1 | x_k)`` of every trajectory, over valid entries.

    Args:
        states: of the trajectories.
        predicted: chunks that the policy predicts at all states but the last.
        reference: those of the reference.
        steps: the chain.
        valid: steps of a chunk that count.

    """
    shape = [1, -1, 1, 1, 1]
    rest = states[:, 1:] - steps.keep.reshape(shape) * states[:, :-1]
    reach = steps.reach.reshape(shape)
    change = (rest - reach * reference).square() - (rest - reach * predicted).square()
    change = change / (2 * steps.variance.unsqueeze(0).unsqueeze(2))
    return (change * valid[:, None, None, :, None]).sum((1, 3, 4))


def trajectory_balance(
    scores: Float[Tensor, "g k"], rewards: Float[Tensor, "g k"], temperature: float
) -> Float[Tensor, " g"]:
    """Mean square of what a group's trajectories are out of balance, with the group's mean as ``-log Z``.

    Args:
        scores: log-ratios of whole trajectories, one per candidate.
        rewards: higher is better.
        temperature: tau of ``pi_ref exp(r / tau)``.

    """
    gap = scores - rewards / temperature
    return (gap - gap.mean(1, keepdim=True)).square().mean(1)
