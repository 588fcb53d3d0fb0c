"""Skip what is like before: for a robot that hardly moves the last chunk will do. No torch.

``flowpolicy serve RUN --similarity 0.5`` does so for every robot; one that shall not even ask keeps its own filter::

    left = ...  # actions of the last chunk that still wait
    if not similar.skip(client.normalized(obs), left):
        chunk = client.act(obs, budget_ms=20).chunk
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowpolicy.core.errors import ConfigError


class ChunkCache:
    """The last chunk of one robot, for a server that gives it again while the robot hardly moves.

    Args:
        kappa: see :class:`SimilarityFilter`.
        most: times in a row.

    """

    def __init__(self, kappa: float, most: int) -> None:
        self._filter = SimilarityFilter(kappa, most, min_left=0)
        self._waits_for: int | None = None
        self._kept: tuple[NDArray[Any], str] | None = None

    def find(self, number: int, obs: NDArray[Any], checkpoint: str) -> NDArray[Any] | None:
        """The chunk that answers request ``number`` too; None where one must be computed.

        Args:
            number: of the request.
            obs: (n,) normalised.
            checkpoint: what is served now: a chunk of another one is not given.

        """
        if self._kept is None or self._kept[1] != checkpoint:
            self._kept = None
            self._filter.reset()
        if self._filter.skip(obs, left=0) and self._kept is not None:
            return self._kept[0]
        self._waits_for, self._kept = number, None
        return None

    def keep(self, number: int, chunk: NDArray[Any], checkpoint: str) -> None:
        """Remember the chunk of request ``number``, unless a later one is under way."""
        if number == self._waits_for:
            self._kept = chunk, checkpoint


class SimilarityFilter:
    """Says when the last chunk may be used again: StreamDiffusion's filter (arXiv 2312.12491), on distances.

    The skip probability is ``max(0, 1 - |obs - last| / kappa)``, with the observation of the last chunk that was
    computed, both normalised: angles between states, as between pictures, would mean nothing.

    Args:
        kappa: distance at which nothing is skipped any more, in normalised units.
        most: skips in a row, after which a chunk is computed whatever the observation is.
        min_left: never skip while fewer actions than this are waiting.
        random: draws the skips; None skips where the probability is above 1/2, the choice for a robot.

    """

    def __init__(
        self, kappa: float, most: int = 10, min_left: int = 1, random: np.random.Generator | None = None
    ) -> None:
        if not kappa > 0 or most < 0 or min_left < 0:
            raise ConfigError(f"a similarity filter with kappa {kappa}, most {most}, min_left {min_left}")
        self.kappa, self.most, self.min_left, self._random = kappa, most, min_left, random
        self.reset()

    def reset(self) -> None:
        """Forget the last observation: at the start of an episode, or when the policy changes."""
        self._last: NDArray[Any] | None = None
        self._skipped = 0

    def probability(self, obs: NDArray[Any]) -> float:
        """Skip probability of a normalised observation (n,), without its bounds."""
        if self._last is None:
            return 0.0
        return max(0.0, 1.0 - float(np.linalg.norm(obs - self._last)) / self.kappa)

    def skip(self, obs: NDArray[Any], left: int) -> bool:
        """Whether to reuse the last chunk.

        Args:
            obs: (n,) normalised.
            left: actions of it that are still waiting.

        """
        probability = self.probability(obs)
        wanted = probability > 0.5 if self._random is None else bool(self._random.random() < probability)
        if wanted and self._skipped < self.most and left >= self.min_left:
            self._skipped += 1
            return True
        self._last, self._skipped = np.array(obs, copy=True), 0
        return False
