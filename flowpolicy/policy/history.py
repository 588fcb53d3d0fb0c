"""The last observations of one episode, as a policy takes them; no torch."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowpolicy.core.errors import ConfigError
from flowpolicy.core.spec import Contract
from flowpolicy.policy.inputs import require_keys, require_numbers


class ObservationHistory:
    """Keeps as many observations as the contract asks for; the first one of an episode fills them all.

    Args:
        contract: names the keys and the number of observations.

    """

    def __init__(self, contract: Contract) -> None:
        self._shapes = {key: spec.shape for key, spec in contract.spec.observation.items()}
        self._pictures = frozenset(contract.spec.images)
        self._past: deque[dict[str, NDArray[Any]]] = deque(maxlen=contract.history)

    def __len__(self) -> int:
        return len(self._past)

    @property
    def newest(self) -> dict[str, NDArray[Any]]:
        """The last observation, name -> (*shape). IndexError where there is none."""
        return self._past[-1]

    def append(self, obs: Mapping[str, NDArray[Any]], whole: bool = True) -> None:
        """Copy one observation, name -> (*shape); keys beside the contract's are ignored.

        Args:
            obs: what was seen.
            whole: whether pictures must be among it; :meth:`stacked` refuses to give one that was not taken.

        Raises:
            ConfigError: a key is missing, or holds no real numbers of its shape.

        """
        wanted = {key: shape for key, shape in self._shapes.items() if whole or key not in self._pictures or key in obs}
        require_keys(obs, wanted)
        for key, shape in wanted.items():
            require_numbers(f"observation '{key}'", obs[key], shape)
        current = {key: np.array(obs[key]) for key in wanted}
        self._past.extend([current] * (1 if self._past else self._past.maxlen or 1))

    def stacked(self) -> dict[str, NDArray[Any]]:
        """Name -> (o, *shape), oldest first. ConfigError where a picture of one of these moments was not taken."""
        for key in self._pictures:
            if any(key not in past for past in self._past):
                raise ConfigError(f"the policy decides on a moment of which no picture '{key}' was taken")
        return {key: np.stack([past[key] for past in self._past]) for key in self._shapes}

    def clear(self) -> None:
        """Forget everything: the next observation begins an episode."""
        self._past.clear()
