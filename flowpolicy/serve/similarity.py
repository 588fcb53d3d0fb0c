"""Skip what is like before: a robot that hardly moves need not ask again. No torch.

::

    left = ...  # actions of the last chunk that still wait
    if not similar.skip(client.normalized(obs), left):
        chunk = client.act(obs, budget_ms=20).chunk
"""

from __future__ import annotations

import numpy as np

from flowpolicy.core.errors import ConfigError


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
        self._last: np.ndarray | None = None
        self._skipped = 0

    def probability(self, obs: np.ndarray) -> float:
        """Skip probability of a normalised observation (n,), without its bounds."""
        if self._last is None:
            return 0.0
        return max(0.0, 1.0 - float(np.linalg.norm(obs - self._last)) / self.kappa)

    def skip(self, obs: np.ndarray, left: int) -> bool:
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
