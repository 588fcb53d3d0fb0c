"""Decisions of one robot or episode that reuse work of the ones before."""

from __future__ import annotations

from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from flowpolicy.policy.policy import Policy
from flowpolicy.policy.similarity import SimilarityFilter


class Decider(Protocol):
    """Gives the chunks of one episode in turn; made anew for every episode."""

    def decide(
        self, obs: dict[str, Tensor], generator: torch.Generator, nfe: int | None, executed: int
    ) -> Float[Tensor, "1 h a"]:
        """A chunk in environment units.

        Args:
            obs: name -> (1, o, *shape), environment units.
            generator: source of the noise.
            nfe: evaluations of a full generation; the contract's unless given.
            executed: actions executed since the last decision.

        """


class Skipping:
    """Gives the last chunk again where the observation is like the one that it was computed for.

    Args:
        policy: asked otherwise.
        kappa: see :class:`flowpolicy.policy.similarity.SimilarityFilter`.
        most: skips in a row.

    """

    def __init__(self, policy: Policy, kappa: float, most: int) -> None:
        self._policy, self._filter = policy, SimilarityFilter(kappa, most, min_left=0)
        self._chunk: Tensor | None = None

    def decide(
        self, obs: dict[str, Tensor], generator: torch.Generator, nfe: int | None, executed: int
    ) -> Float[Tensor, "1 h a"]:
        """See :class:`Decider`."""
        seen = self._policy.normalized(self._policy.observed(obs))
        similar = self._filter.skip(seen[0].cpu().numpy(), left=0)
        if self._chunk is None or not similar:
            self._chunk = self._policy.act(obs, generator, nfe)
        return self._chunk
