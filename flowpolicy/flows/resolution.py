"""Which flow time to read a score at: the blur that it sees is ``(1 - t) / t``, in action units.

See docs/methods/fisher-decorator.md#the-resolution.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def neighbourhood_std(
    obs: Float[Tensor, "n c"], action: Float[Tensor, "n d"], queries: int = 1024, neighbours: int = 5
) -> Float[Tensor, ""]:
    """Median over states of the standard deviation of actions among the nearest states (DeFlow's rule).

    Args:
        obs: standardised observations.
        action: actions in [-1, 1].
        queries: states looked at, evenly spread over the rows.
        neighbours: nearest states of each, itself included.

    """
    picked = torch.linspace(0, obs.shape[0] - 1, min(queries, obs.shape[0]), device=obs.device).long()
    nearest = torch.cdist(obs[picked], obs).topk(neighbours, largest=False).indices
    return action[nearest].var(1).mean(1).sqrt().median()


def time_for(std: float) -> float:
    """Flow time whose resolution ``(1 - t) / t`` is half the local standard deviation of the actions.

    Earlier times blur what the metric should see; later ones ask the network for detail it has not learned.
    """
    return 1.0 / (1.0 + 0.5 * std)
