"""Minari HDF5 (Farama Foundation, "Minari", 2023): the layout of ``main_data.hdf5``, read without the library.

``episode_<i>`` holds ``actions`` (T, a), ``rewards``, ``terminations``, ``truncations`` (T,) and ``observations``:
one array (T + 1, d), which is read as ``state``, or a group of them, which keep their names. The T rows of an episode
are read; the observation after its last action has no row of its own, so of an episode that was cut off the last
row has no successor. ``mask`` = 1 - termination. ``metadata.json`` beside the file names the environment.

The library itself downloads data sets and knows where they lie (:func:`fetch_minari`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from flowpolicy.core import keys
from flowpolicy.core.errors import DataError, MissingExtraError
from flowpolicy.core.files import unchanged_sha256
from flowpolicy.core.spec import UNSTATED, ActionSpec, ObservationSpec, Spec
from flowpolicy.data.d4rl import STATE
from flowpolicy.data.hdf5 import (
    EpisodeColumns,
    choose_keys,
    read_array,
    read_attribute,
    require_flags,
    require_group,
    require_steps,
    unread_keys,
)
from flowpolicy.data.stored_episode import INFOS, StoredEpisode

PREFIX = "minari:"
"""Begins the names of Minari's data sets, e.g. ``minari:D4RL/door/human-v2``."""


MAIN_FILE = Path("data", "main_data.hdf5")
"""Where the episodes lie in the folder of a data set."""


class MinariRecording:
    """An open ``main_data.hdf5``.

    Args:
        file: the open file.
        path: named in errors.
        filter_key: must be empty, the format has none.
        obs_keys: observations to read; empty selects every low-dimensional one.

    """

    format = "minari"

    def __init__(self, file: h5py.File, path: Path, filter_key: str = "", obs_keys: Sequence[str] = ()) -> None:
        if filter_key:
            raise DataError(
                f"{path}: the filter key {filter_key} does not exist", fix="Minari files have none: leave it out"
            )
        self.path, self.file = path, file
        self.provenance = str(read_metadata(path).get("provenance", ""))
        self.names = tuple(sorted((name for name in file if name.startswith("episode_")), key=_number))
        first = require_group(file, self.names[0], path)
        self._grouped = isinstance(first.get("observations"), h5py.Group)
        self.obs_keys = choose_keys(first["observations"], obs_keys, path) if self._grouped else [STATE]
        for key in obs_keys if not self._grouped else ():
            if key != STATE:
                raise DataError(f"{path}: the observation {key} does not exist", expected=STATE)
        self.unread = unread_keys(first["observations"]) if self._grouped else {}
        self.remarks: tuple[str, ...] = ()
        self.lengths = tuple(self._steps(name) for name in self.names)
        self.env_args: dict[str, Any] = {}
        self.filters: dict[str, int] = {}
        episode = self.episode(0)
        self.spec = Spec(
            observation={key: ObservationSpec((int(value.shape[1]),)) for key, value in episode.obs.items()},
            action=ActionSpec(int(episode.action.shape[1])),
            env_id=_env_id(path),
        )

    def sha256(self, *, anew: bool = False) -> str:
        """Hash of the file of episodes."""
        return unchanged_sha256(self.path, anew=anew)

    @property
    def size(self) -> int:
        """Bytes of the file of episodes."""
        return self.path.stat().st_size

    def episode(self, index: int) -> EpisodeColumns:
        """Columns of the episode ``names[index]``."""
        name, steps = self.names[index], self.lengths[index]
        group = require_group(self.file, name, self.path)
        columns = {key: read_array(group, key, self.path) for key in ("actions", "rewards", "terminations")}
        if "truncations" in group:
            require_flags(read_array(group, "truncations", self.path), f"{name}/truncations", self.path)
        for key, value in columns.items():
            require_steps(value.shape, steps, 2 if key == "actions" else 1, f"{name}/{key}", self.path)
        return EpisodeColumns(
            obs={key: self._observation(group, key, steps) for key in self.obs_keys},
            action=columns["actions"].astype(np.float32),
            reward=columns["rewards"].astype(np.float32),
            mask=1.0 - require_flags(columns["terminations"], f"{name}/terminations", self.path).astype(np.float32),
        )

    def stored(self, index: int) -> StoredEpisode:
        """The episode ``names[index]`` with its ``infos``."""
        name, steps = self.names[index], self.lengths[index]
        group = require_group(self.file, name, self.path)
        flags = {}
        for key in ("terminations", "truncations"):
            stated = read_array(group, key, self.path) if key in group else np.zeros(steps)
            require_steps(stated.shape, steps, 1, f"{name}/{key}", self.path)
            flags[key] = require_flags(stated, f"{name}/{key}", self.path)
        seen = {key: self._raw(group, key, steps) for key in self.obs_keys}
        reward = read_array(group, "rewards", self.path)
        require_steps(reward.shape, steps, 1, f"{name}/rewards", self.path)
        aside: dict[str, NDArray[Any] | h5py.Dataset] = {}

        def note(place: str, node: Any) -> None:
            if isinstance(node, h5py.Dataset) and place.startswith(INFOS):
                aside[place] = node

        group.visititems(note)
        return StoredEpisode(
            name=name,
            obs={key: value[:-1] for key, value in seen.items()},
            action=read_array(group, "actions", self.path),
            reward=reward,
            terminated=flags["terminations"],
            cut_off=bool(flags["truncations"][-1]),
            last_obs={key: value[-1] for key, value in seen.items()},
            aside=aside,
            notes={
                key: read_attribute(group, key, self.path) for key in group.attrs if key not in ("id", "total_steps")
            },
        )

    def key(self, index: int, column: str, name: str = "") -> str:
        """Path of a column of an episode in the file."""
        observations = f"observations/{name}" if self._grouped else "observations"
        return (
            f"{self.names[index]}/" + {keys.OBS: observations, keys.ACTION: "actions", keys.REWARD: "rewards"}[column]
        )

    def _observation(self, group: h5py.Group, key: str, steps: int) -> NDArray[Any]:
        return self._raw(group, key, steps)[:-1].astype(np.float32)

    def _raw(self, group: h5py.Group, key: str, steps: int) -> NDArray[Any]:
        """(T + 1, d) as it is stored."""
        where = require_group(group, "observations", self.path) if self._grouped else group
        value = read_array(where, key if self._grouped else "observations", self.path)
        value = value[:, None] if value.ndim == 1 else value
        require_steps(value.shape, steps + 1, 2, f"{group.name[1:]}/observations", self.path)
        return value

    def _steps(self, name: str) -> int:
        node = require_group(self.file, name, self.path).get("actions")
        if not isinstance(node, h5py.Dataset) or node.ndim != 2 or len(node) == 0:
            found = node.shape if isinstance(node, h5py.Dataset) else "nothing"
            raise DataError(f"{self.path}: {name}/actions holds {found}", expected="(steps, size), steps > 0")
        return len(node)


def fetch_minari(name: str) -> Path:
    """The ``main_data.hdf5`` of a Minari data set, downloaded by the library when it is not there yet.

    Args:
        name: with or without ``minari:``, e.g. ``minari:D4RL/door/human-v2``.

    Raises:
        MissingExtraError: the library is not installed.
        DataError: it cannot give the data set; says where to put it by hand.

    """
    try:
        import minari
        from minari.storage import get_dataset_path
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "minari", "minari") from error
    name = name.removeprefix(PREFIX)
    path = Path(get_dataset_path(name)) / MAIN_FILE
    if not path.exists():
        try:
            minari.download_dataset(name)
        except Exception as error:  # the library lets through whatever its several back ends raise
            raise DataError(
                f"Minari cannot download {name}: {error}",
                fix=f"on a machine with a network run `minari download {name}`, and put it at {path.parents[1]}",
            ) from error
    if not path.exists():
        raise DataError(
            f"the data set {name} of Minari is not stored as HDF5 ({path.parent} has no {path.name})",
            fix="choose another version of the data set",
        )
    return path


def is_minari(file: h5py.File) -> bool:
    """Whether an HDF5 file holds groups ``episode_<i>``, as Minari's do."""
    return any(name.startswith("episode_") and isinstance(node, h5py.Group) for name, node in file.items())


def _env_id(path: Path) -> str:
    """Package and name of the recorded environment: ``gymnasium-robotics/AdroitHandDoor-v1``."""
    try:
        stated = read_metadata(path)["env_spec"]
        spec = json.loads(stated) if isinstance(stated, str) else stated
        return f"{spec['entry_point'].partition('.')[0].replace('_', '-')}/{spec['id']}"
    except (ValueError, KeyError, TypeError, AttributeError):
        return UNSTATED


def read_metadata(path: Path) -> dict[str, Any]:
    """What ``metadata.json`` beside a file says; empty where it is missing or says nothing."""
    try:
        found = json.loads(path.with_name("metadata.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _number(name: str) -> int:
    tail = name.removeprefix("episode_")
    return int(tail) if tail.isdigit() else -1
