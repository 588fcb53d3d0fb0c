"""Write RoboMimic HDF5, whole or not at all, with the same bytes for the same episodes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from flowpolicy.core.errors import DataError
from flowpolicy.data.hdf5 import streamed_whole, written_whole
from flowpolicy.data.stored_episode import Pictures


@dataclasses.dataclass(frozen=True)
class RecordedEpisode:
    """One episode of T steps; row t is the observation before action t and what followed."""

    actions: np.ndarray
    """(T, a) in environment units."""
    rewards: np.ndarray
    """(T,) reward after the action."""
    dones: np.ndarray
    """(T,) 1 at success or at the end of the episode."""
    obs: Mapping[str, np.ndarray | Pictures]
    """name -> (T, d) before the action, or pictures that are read while they are written."""
    next_obs: Mapping[str, np.ndarray]
    """name -> (T, d) after the action."""
    last_obs: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    """name -> (d,) after the last action: written with the rows of ``obs`` as ``next_obs``, of which there are none."""
    states: np.ndarray | None = None
    """(T, n) flattened simulator states before the action."""
    model_xml: str | None = None
    """MuJoCo model of the episode."""
    extra: Mapping[str, np.ndarray | h5py.Dataset] = dataclasses.field(default_factory=dict)
    """Path in the episode's group -> any array, of any length; no reader needs it. Arrays of files are copied as they
    lie there."""
    notes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Further attributes of the episode's group."""


class RobomimicWriter:
    """Context manager that writes episodes to ``path``, numbered in the order in which they are added.

    The file appears at ``path`` when the block ends without an error. Until then, on a full disk and after
    ``kill -9``, whatever stood there before stays. The episodes are held in memory until then, unless ``streamed``.

    Args:
        path: the file to write.
        env_args: RoboMimic's description of the environment (``env_name``, ``type``, ``env_kwargs``, ...).
        provenance: where the episodes come from, if the file is to say it (attribute ``provenance``, JSON).
        streamed: write to the disk at once: for files that need not fit into memory.

    """

    def __init__(
        self,
        path: Path | str,
        env_args: Mapping[str, Any],
        provenance: Mapping[str, Any] | None = None,
        *,
        streamed: bool = False,
    ) -> None:
        self.path, self.env_args, self.provenance, self._streamed = Path(path), env_args, provenance, streamed
        self._members: dict[str, list[str]] = {}
        self._episodes = self._total = 0

    def __enter__(self) -> RobomimicWriter:
        self._whole = (streamed_whole if self._streamed else written_whole)(self.path)
        self._file = self._whole.__enter__()
        self._data = self._file.create_group("data")
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if error is None:
            self._finish()
        self._whole.__exit__(kind, error, trace)

    def add(self, episode: RecordedEpisode, filters: Sequence[str] = ()) -> str:
        """Append an episode and enter it in the filter keys ``filters``; returns its name, e.g. ``demo_3``.

        Raises:
            DataError: the columns differ in length or the episode is empty.

        """
        name = f"demo_{self._episodes}"
        steps = len(episode.actions)
        columns: dict[str, Any] = {"actions": episode.actions, "rewards": episode.rewards, "dones": episode.dones}
        columns |= {f"obs/{key}": value for key, value in episode.obs.items()}
        columns |= {f"next_obs/{key}": value for key, value in episode.next_obs.items()}
        if episode.states is not None:
            columns["states"] = episode.states
        for key, value in columns.items():
            rows = value.rows if isinstance(value, Pictures) else len(value)
            if rows != steps or steps == 0:
                raise DataError(f"{self.path}: data/{name}/{key} has {rows} rows", expected=f"{steps}, at least 1")
        group = self._data.create_group(name)
        for key, value in columns.items():
            if isinstance(value, Pictures):
                _write_pictures(group, key, value)
            else:
                # Without time stamps equal episodes give equal bytes.
                group.create_dataset(key, data=np.asarray(value), track_times=False)
        for key, last in episode.last_obs.items():
            before = np.asarray(episode.obs[key])
            node = group.create_dataset(f"next_obs/{key}", before.shape, before.dtype, track_times=False)
            node[:-1], node[-1] = before[1:], last
        for key, extra in episode.extra.items():
            if isinstance(extra, h5py.Dataset):
                group.require_group(key.rpartition("/")[0] or group.name)
                extra.file.copy(extra, group, key)
            else:
                group.create_dataset(key, data=np.asarray(extra), track_times=False)
        for key, note in episode.notes.items():
            group.attrs[key] = note
        group.attrs["num_samples"] = steps
        if episode.model_xml is not None:
            group.attrs["model_file"] = episode.model_xml
        for key in filters:
            self._members.setdefault(key, []).append(name)
        self._episodes += 1
        self._total += steps
        return name

    def _finish(self) -> None:
        self._data.attrs["total"] = self._total
        self._data.attrs["env_args"] = json.dumps(self.env_args, indent=4)
        if self.provenance is not None:
            self._data.attrs["provenance"] = json.dumps(self.provenance, sort_keys=True)
        mask = self._file.create_group("mask")
        for key, names in self._members.items():
            mask.create_dataset(key, data=np.array(names, dtype="S"), track_times=False)


def _write_pictures(group: h5py.Group, key: str, pictures: Pictures) -> None:
    """One picture a chunk, so that one is read without its neighbours."""
    node = group.create_dataset(
        key, (pictures.rows, *pictures.size), np.uint8, chunks=(1, *pictures.size), track_times=False
    )
    row = 0
    for block in pictures.blocks():
        node[row : row + len(block)] = block
        row += len(block)
    if row != pictures.rows:
        raise DataError(f"{group.name[1:]}/{key} has {row} pictures", expected=f"{pictures.rows}, one per step")
