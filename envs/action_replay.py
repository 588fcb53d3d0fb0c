"""Replay the stored actions of a dataset open-loop from the stored initial states."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

from flowpolicy.core import keys
from flowpolicy.core.errors import DataError
from flowpolicy.core.spec import Spec
from flowpolicy.envs.vector import SingleEnv

if TYPE_CHECKING:
    from flowpolicy.data.dataset import Dataset  # brings torch, a second of every worker's start


@dataclasses.dataclass(frozen=True)
class Replayed:
    """One episode, replayed."""

    success: bool
    """Whether the environment reported success at any step."""
    episode_return: float
    """Sum of the rewards."""


def replay_episodes(dataset: Dataset, episodes: int, start: Callable[[int], SingleEnv]) -> list[Replayed]:
    """Replay the first ``episodes`` episodes.

    Args:
        dataset: whose actions to replay.
        episodes: how many.
        start: puts an environment into the initial state of episode number i and returns it.

    """
    found = []
    for row in range(min(episodes, len(dataset.names))):
        env, first = start(row), int(dataset.starts[row])
        actions = dataset.steps[keys.ACTION][first : first + int(dataset.lengths[row])].numpy()
        outcomes = [env.step(action) for action in actions]
        found.append(Replayed(any(o.success for o in outcomes), sum(o.reward for o in outcomes)))
    return found


def require_recorded_in(spec: Spec, dataset: Dataset) -> None:
    """Raise :class:`DataError` unless the file says that it was recorded in the environment of ``spec``."""
    if dataset.spec.env_id != spec.env_id:
        raise DataError(
            f"{dataset.path} was recorded in the environment {dataset.spec.env_id}, not in {spec.env_id}",
            fix=f"use --env {dataset.spec.env_id}",
        )
