"""Replay the stored actions of a dataset in its simulator, open-loop from the stored initial states."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
from flowpolicy.envs.adroit import AdroitConfig, AdroitEnv
from flowpolicy.envs.robosuite import RobosuiteConfig, RobosuiteEnv
from flowpolicy.envs.toy import ToyConfig, ToyEnv
from flowpolicy.envs.vector import Outcome

from flowpolicy.core import keys
from flowpolicy.core.errors import DataError
from flowpolicy.core.protocols import EnvConfig
from flowpolicy.data.d4rl import initial_states
from flowpolicy.data.dataset import Dataset
from flowpolicy.data.hdf5 import open_hdf5, read_array
from flowpolicy.data.robomimic import read_initial_state


@dataclasses.dataclass(frozen=True)
class Replayed:
    """One episode, replayed."""

    success: bool
    """Whether the environment reported success at any step."""
    episode_return: float
    """Sum of the rewards."""


def replay(config: EnvConfig, dataset: Dataset, episodes: int) -> list[Replayed]:
    """Replay the first ``episodes`` episodes of ``dataset`` in the environment of ``config``.

    Raises:
        DataError: the dataset stores no initial states, or belongs to another environment.

    """
    count = min(episodes, len(dataset.names))
    return [_summary(outcomes) for outcomes in _replay_each(config, dataset, count)]


def replay_success(config: EnvConfig) -> Callable[[Dataset, int], list[bool]]:
    """The function that ``flowpolicy doctor FILE --env NAME`` calls."""
    return lambda dataset, episodes: [one.success for one in replay(config, dataset, episodes)]


def playback_success(dataset: Dataset, episodes: int) -> list[bool]:
    """Whether success holds in the last stored simulator state of each robosuite episode, without stepping."""
    env = RobosuiteEnv(dataset.env_args, ())
    found = []
    with open_hdf5(dataset.path) as file:
        for name in dataset.names[:episodes]:
            states = read_array(file["data"][name], "states", dataset.path)
            env.load(str(file["data"][name].attrs["model_file"]), states[0])
            env.show(states[-1])
            found.append(env.success())
    env.close()
    return found


def _replay_each(config: EnvConfig, dataset: Dataset, episodes: int) -> Iterator[list[Outcome]]:
    wanted, stored = config.spec().env_id, dataset.spec.env_id
    if dataset.env_args and wanted != stored:
        raise DataError(f"{dataset.path} was recorded in {stored}, not in {wanted}", fix=f"use --env {stored}")
    names = dataset.names[:episodes]
    if isinstance(config, RobosuiteConfig):
        env = RobosuiteEnv(dataset.env_args, ())
        for row, name in enumerate(names):
            state, xml = read_initial_state(dataset.path, name)
            env.load(xml, state)
            yield [env.step(action) for action in _actions(dataset, row)]
        env.close()
    elif isinstance(config, AdroitConfig):
        door, states = AdroitEnv(), initial_states(dataset.path)
        if "door_body_pos" not in states:
            raise DataError(
                f"{dataset.path}: infos/initial_state/door_body_pos is missing, so the door's place is unknown"
            )
        for row in range(len(names)):
            door.load({name: value[row].astype(np.float64) for name, value in states.items()})
            yield [door.step(action) for action in _actions(dataset, row)]
        door.close()
    elif isinstance(config, ToyConfig):
        for row, name in enumerate(names):
            toy = ToyEnv(config.horizon)
            toy.position = read_initial_state(dataset.path, name)[0]
            yield [toy.step(action) for action in _actions(dataset, row)]
    else:
        raise DataError(f"episodes of {wanted} cannot be replayed")


def _actions(dataset: Dataset, row: int) -> np.ndarray:
    start = int(dataset.starts[row])
    return dataset.steps[keys.ACTION][start : start + int(dataset.lengths[row])].numpy()


def _summary(outcomes: list[Outcome]) -> Replayed:
    return Replayed(any(o.success for o in outcomes), sum(o.reward for o in outcomes))
