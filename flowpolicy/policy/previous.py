"""What a policy did before: the one thing beside observations that a decision may continue."""

from __future__ import annotations

from typing import Any, NamedTuple

from flowpolicy.policy.inputs import require_finite, require_numbers


class Previous(NamedTuple):
    """Actions before the observation, in environment units, for policies that continue them.

    A decision without it is the first of an episode. Nothing here commits the policy to anything:
    :class:`flowpolicy.policy.committed.Committed` does. Arrays where they are kept, tensors where a policy
    continues them.
    """

    executed: Any
    """(b, h, a) the last actions that were executed, oldest first."""
    known: Any
    """(b, h) bool, which of them there are; the others would lie before the episode."""
    planned: Any
    """(b, h, a) the previous chunk from the row that is due now; behind its end its last action repeats."""

    @property
    def begun(self) -> Any:
        """(b,) bool, which rows have a previous chunk."""
        return self.known[:, -1]

    def require(self, shape: tuple[int, int, int]) -> None:
        """Raise ConfigError unless these are chunks of ``shape``, finite where they mean something."""
        require_numbers("the executed actions", self.executed, shape)
        require_numbers("the mask of executed actions", self.known, shape[:2])
        require_numbers("the previous chunk", self.planned, shape)
        require_finite("the executed actions", self.executed[self.known])
        require_finite("the previous chunk", self.planned)
