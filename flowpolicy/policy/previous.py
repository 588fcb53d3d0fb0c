"""What a policy did before: the one thing beside observations that a decision may continue."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Bool, Float
from torch import Tensor

from flowpolicy.policy.inputs import require_finite, require_numbers


class Previous(NamedTuple):
    """Actions before the observation, in environment units, for policies that continue them.

    A decision without it is the first of an episode. Nothing here commits the policy to anything:
    :class:`flowpolicy.policy.committed.Committed` does.
    """

    executed: Float[Tensor, "b h a"]
    """The last actions that were executed, oldest first."""
    known: Bool[Tensor, "b h"]
    """Which of them there are; the others would lie before the episode."""
    planned: Float[Tensor, "b h a"]
    """The previous chunk from the row that is due now; behind its end its last action repeats."""

    @property
    def begun(self) -> Bool[Tensor, " b"]:
        """Which rows have a previous chunk."""
        return self.known[:, -1]

    def require(self, shape: tuple[int, int, int]) -> None:
        """Raise ConfigError unless these are chunks of ``shape``, finite where they mean something."""
        require_numbers("the executed actions", self.executed, shape)
        require_numbers("the mask of executed actions", self.known, shape[:2])
        require_numbers("the previous chunk", self.planned, shape)
        require_finite("the executed actions", self.executed[self.known])
        require_finite("the previous chunk", self.planned)
