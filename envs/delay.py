"""Any simulator as it looks to a robot whose policy takes time: observations arrive late, or never.

That a chunk computed from the observation of step k only acts from step k + d on is the same as acting at once on an
observation that is d steps old, so the delay is put on the observation, and the policy side is told its age. The age
is counted in actions that were executed since, which is what has to be skipped or continued of a chunk; seconds only
enter where a delay in milliseconds is turned into steps.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from flowpolicy.core.errors import ConfigError
from flowpolicy.core.protocols import Observation, Step, VecEnv
from flowpolicy.core.seed import numpy_generator


@dataclasses.dataclass(frozen=True)
class Delay:
    """How late observations are."""

    steps: int = 0
    """Actions executed between an observation and the first action that can depend on it."""
    jitter: int = 0
    """Up to so many more, drawn uniformly for every observation. None overtakes: the newest that arrived counts."""
    dropped: float = 0.0
    """Probability that an observation never arrives."""
    seed: int = 0
    """Seeds jitter and losses, together with the initial state of the episode."""

    def __post_init__(self) -> None:
        if min(self.steps, self.jitter, self.seed) < 0 or not 0 <= self.dropped < 1:
            raise ConfigError(f"{self}", expected="numbers from 0 on, and a probability below 1")


def delay_steps(milliseconds: float, rate_hz: float) -> int:
    """Actions that are executed during a delay at a control rate, rounded up."""
    if rate_hz <= 0:
        raise ConfigError("a delay in milliseconds needs a control rate and the spec states none", fix="state rate_hz")
    return math.ceil(milliseconds * rate_hz / 1000 - 1e-9)


class DelayedVecEnv:
    """A vector environment (:class:`flowpolicy.core.protocols.VecEnv`) behind a delay.

    The first observation of an episode comes at once: the robot stands still until the policy has decided. Rewards,
    success and the end of an episode are the environment's own, undelayed. Which observations are late or lost
    depends on the seed and the initial state alone, not on slots or on other episodes.

    Args:
        env: any simulator.
        delay: what happens to its observations.

    """

    def __init__(self, env: VecEnv, delay: Delay) -> None:
        self.env, self.delay = env, delay
        self.spec, self.num_envs = env.spec, env.num_envs
        self._lines: dict[int, _Line] = {}

    def reset(self, indices: Sequence[int], slots: Sequence[int]) -> Observation:
        """Start the initial states ``indices`` in ``slots``; observations in the same order, fresh."""
        obs = self._whole(self.env.reset(indices, slots), slots)
        for row, (index, slot) in enumerate(zip(indices, slots, strict=True)):
            self._lines[slot] = _Line(self.delay, index, {name: value[row] for name, value in obs.items()})
        return obs

    def step(self, action: np.ndarray, slots: Sequence[int]) -> Step:
        """Step ``slots`` with ``action`` (len(slots), a); the newest observations that have arrived, and their age."""
        step = self.env.step(action, slots)
        fresh = self._whole(step.obs, slots)
        rows, ages = [], []
        for row, slot in enumerate(slots):
            obs, age = self._lines[slot].send({name: value[row] for name, value in fresh.items()})
            rows.append(obs)
            ages.append(age)
        delayed = {name: np.stack([row[name] for row in rows]) for name in fresh}
        return dataclasses.replace(step, obs=delayed, age=np.array(ages, dtype=np.int64))

    def look(self, slots: Sequence[int]) -> Observation:
        """Nothing: which picture is seen when is not known when it is taken, so that ``step`` returns all of them."""
        return {}

    def _whole(self, obs: Observation, slots: Sequence[int]) -> Observation:
        """Observations with the pictures of this moment."""
        return obs | self.env.look(slots) if self.spec.images.keys() - obs.keys() else obs

    def render(self, slot: int) -> np.ndarray:
        """(height, width, 3) uint8 picture of one slot, undelayed."""
        return self.env.render(slot)

    @property
    def simulation(self) -> str:
        """How the simulator is stepped, where there is a choice; empty where there is none."""
        return getattr(self.env, "simulation", "")

    def close(self) -> None:
        """Close the environment."""
        self.env.close()


class _Line:
    """Observations on their way from one episode to the policy."""

    def __init__(self, delay: Delay, index: int, first: dict[str, Any]) -> None:
        self.delay = delay
        self._random = numpy_generator(delay.seed, "delay", index)
        self._now = 0
        self._newest, self._taken = first, 0
        self._under_way: list[tuple[int, int, dict[str, Any]]] = []  # arrival, step it was taken at, observation

    def send(self, obs: dict[str, Any]) -> tuple[dict[str, Any], int]:
        """Send the observation after one more action; returns the newest that has arrived, and its age."""
        self._now += 1
        # Both are drawn whatever the delay is, so that one setting does not shift the draws of another.
        late, lost = int(self._random.integers(self.delay.jitter + 1)), self._random.random() < self.delay.dropped
        if not lost:
            self._under_way.append((self._now + self.delay.steps + late, self._now, obs))
        for arrival, taken, candidate in self._under_way:
            if arrival <= self._now and taken > self._taken:
                self._newest, self._taken = candidate, taken
        self._under_way = [one for one in self._under_way if one[1] > self._taken]
        return self._newest, self._now - self._taken
