"""NumPy's global random stream, lent to packages that draw from it, and given back untouched."""

from __future__ import annotations

import numpy as np


class GlobalRandom:
    """Inside the block the global stream is this object's own; outside it goes on as if nothing had happened.

    Args:
        seed: of the stream; :meth:`seed` starts another one.

    """

    def __init__(self, seed: int = 0) -> None:
        self.seed(seed)

    def seed(self, seed: int) -> None:
        """Start the stream ``seed`` (any non-negative integer) at the next block."""
        self._state = np.random.RandomState(seed % 2**32).get_state()

    def __enter__(self) -> GlobalRandom:
        self._outside = np.random.get_state()  # noqa: NPY002
        np.random.set_state(self._state)  # noqa: NPY002
        return self

    def __exit__(self, *_: object) -> None:
        self._state = np.random.get_state()  # noqa: NPY002
        np.random.set_state(self._outside)  # noqa: NPY002
