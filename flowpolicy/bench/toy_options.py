"""Options of the chunk toy, apart from what draws it: the command line reads them without torch."""

from __future__ import annotations

import dataclasses

from flowpolicy.core.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Toy:
    """Which toy."""

    steps: int = 4
    """Steps of a chunk."""
    action: int = 2
    """Numbers of a step; a chunk has steps times action of them."""
    obs: int = 2
    """Numbers of an observation."""
    modes: int = 2
    """Modes of an observation that has several."""
    share: float = 0.65
    """Share of the observations that have several."""
    first: float = 0.7
    """Probability of the first mode there; the others share the rest."""
    narrow: float = 0.02
    """Deviation of the even numbers of a chunk."""
    wide: float = 0.2
    """Deviation of the odd ones."""
    size: int = 20_000
    """Training chunks."""
    seed: int = 0
    """Which functions of the observation the modes are."""

    def __post_init__(self) -> None:
        if min(self.steps, self.action, self.obs, self.modes, self.size) < 1 or not 0 <= self.share <= 1:
            raise ConfigError(f"the toy {self}", expected="positive sizes and a share in [0, 1]")
        if not 0 < self.first <= 1 or min(self.narrow, self.wide) <= 0:
            raise ConfigError(f"the toy {self}", expected="a probability in (0, 1] and deviations above 0")
