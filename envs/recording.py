"""What a demonstrator hands to the file writer."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import numpy as np

from flowpolicy.core.seed import numpy_generator
from flowpolicy.data.robomimic_writer import RecordedEpisode


@dataclasses.dataclass(frozen=True)
class KeptEpisode:
    """One finished episode."""

    episode: RecordedEpisode
    success: bool
    """Whether the success criterion held at the end."""
    attempts: int
    """Episodes that were simulated until this one was kept."""


class EpisodeRecorder(Protocol):
    """Records episodes of one task; lives in a worker process."""

    def record(self, seed: int, index: int, level: str, keep_failures: bool) -> KeptEpisode:
        """Episode ``index`` under ``seed`` at a quality level."""


def make_episode(rows: list[tuple[Any, ...]], model_xml: str | None = None) -> RecordedEpisode:
    """An episode from rows (observation, state, action, reward, success, next observation)."""
    obs, states, actions, rewards, success, next_obs = zip(*rows, strict=True)
    dones = np.array(success, dtype=np.int64)
    dones[-1] = 1  # RoboMimic's done_mode 2: at success and at the end
    return RecordedEpisode(
        actions=np.stack(actions).astype(np.float64),
        rewards=np.array(rewards, dtype=np.float64),
        dones=dones,
        obs={key: np.stack([row[key] for row in obs]) for key in obs[0]},
        next_obs={key: np.stack([row[key] for row in next_obs]) for key in obs[0]},
        states=np.stack(states),
        model_xml=model_xml,
    )


def validation_episodes(episodes: int, seed: int, *stream: str) -> set[int]:
    """A tenth of the episodes, at least one of two; ``stream`` names what they are."""
    share = max(episodes // 10, int(episodes > 1))
    return set(numpy_generator(seed, *stream, "valid").permutation(episodes)[:share].tolist())
