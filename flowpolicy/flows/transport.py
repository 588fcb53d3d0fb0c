"""Optimal assignment of the rows of a batch."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor


def assignment(cost: Float[Tensor, "n n"]) -> Int64[Tensor, " n"]:
    """Column of every row in the assignment of least total cost."""
    from scipy.optimize import linear_sum_assignment

    columns = linear_sum_assignment(cost.detach().cpu().numpy())[1]
    return torch.as_tensor(columns, device=cost.device)


def weight_for_share(near: Float[Tensor, "n n"], apart: Float[Tensor, "n n"], share: float) -> float:
    """Weight at which the share of exchanges cheaper than the pair as drawn is ``share``; bisection.

    Source: C2OT (arXiv 2503.10636, section 4.2). 0 where even without a price there are fewer.
    """

    def cheaper(weight: float) -> float:
        cost = near + weight * apart
        return float((cost < cost.diagonal().unsqueeze(1)).float().mean())

    low, high = 0.0, 1.0
    if cheaper(low) <= share:
        return low
    while cheaper(high) > share and high < 1e9:
        high *= 2
    for _ in range(40):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if cheaper(middle) > share else (low, middle)
    return high
