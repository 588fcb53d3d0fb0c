"""D4RL HDF5 (Fu et al., "D4RL: Datasets for Deep Data-Driven Reinforcement Learning", 2020).

Flat arrays ``observations``, ``actions``, ``rewards``, ``terminals`` and, in most files, ``timeouts`` and
``infos/*``. An episode ends at a terminal or a timeout; a last episode that ends at neither is kept. In a
file without ``timeouts`` episodes end at terminals only, and a remark says so. ``mask`` = 1 - terminal.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from flowpolicy.core import keys
from flowpolicy.core.errors import DataError, nearest
from flowpolicy.core.spec import ActionSpec, ObservationSpec, Spec
from flowpolicy.data.hdf5 import (
    EpisodeColumns,
    arrays_below,
    find_array,
    open_hdf5,
    read_array,
    read_attribute,
    require_flags,
    require_numbers,
    require_steps,
)
from flowpolicy.data.stored_episode import INFOS, StoredEpisode

STATE = "state"
"""Name of the one observation key."""
_NEXT = "next_observations"


class D4RLRecording:
    """An open D4RL file.

    Args:
        file: the open file.
        path: named in errors.
        filter_key: must be empty, the format has none.
        obs_keys: empty or ``("state",)``.

    """

    format = "d4rl"

    def __init__(self, file: h5py.File, path: Path, filter_key: str = "", obs_keys: Sequence[str] = ()) -> None:
        if filter_key:
            raise DataError(
                f"{path}: the filter key {filter_key} does not exist", fix="D4RL files have none: leave it out"
            )
        for key in obs_keys:
            if key != STATE:
                raise DataError(f"{path}: the observation {key} does not exist", expected=nearest(key, [STATE]))
        self.path, self.file = path, file
        self.provenance = str(read_attribute(file, "provenance", path, ""))
        self.starts, self.ends, self.terminals = _split(file, path)
        self.remarks = _assumptions(file, self.terminals)
        self.lengths = tuple(int(n) for n in self.ends - self.starts)
        self.names = tuple(f"episode_{i}" for i in range(len(self.lengths)))
        self.env_args: dict[str, Any] = {}
        self.unread: dict[str, str] = {}
        self.filters: dict[str, int] = {}
        steps = int(self.ends[-1])
        for key, ndim in (("observations", 2), ("actions", 2), ("rewards", 1)):
            _require_shape(file, key, steps, ndim, path)
        self.spec = Spec(
            observation={STATE: ObservationSpec((int(file["observations"].shape[1]),))},
            action=ActionSpec(int(file["actions"].shape[1])),
        )

    def episode(self, index: int) -> EpisodeColumns:
        """Columns of episode ``index``."""
        rows = slice(int(self.starts[index]), int(self.ends[index]))
        obs, action, reward = (self._rows(key, rows) for key in ("observations", "actions", "rewards"))
        mask = 1.0 - self.terminals[rows].astype(np.float32)
        return EpisodeColumns(obs={STATE: obs}, action=action, reward=reward, mask=mask)

    def stored(self, index: int) -> StoredEpisode:
        """The episode ``names[index]`` with its rows of ``infos``."""
        start, end = int(self.starts[index]), int(self.ends[index])
        rows = slice(start, end)
        last = {}
        if isinstance(self.file.get(_NEXT), h5py.Dataset) and self.file[_NEXT].shape == self.file["observations"].shape:
            last = {STATE: self._raw(_NEXT, slice(end - 1, end))[0]}
        aside = {place: self._raw(place, rows) for place in self._infos}
        aside |= {place: self._raw(place, slice(index, index + 1)) for place in self._beginnings}
        timeouts = self._raw("timeouts", slice(end - 1, end)) if "timeouts" in self.file else np.zeros(1)
        return StoredEpisode(
            name=self.names[index],
            obs={STATE: self._raw("observations", rows)},
            action=self._raw("actions", rows),
            reward=self._raw("rewards", rows),
            terminated=self.terminals[rows],
            cut_off=bool(timeouts[0]),
            last_obs=last,
            aside=aside,
        )

    @functools.cached_property
    def _infos(self) -> list[str]:
        """Arrays below ``infos`` with one row per step."""
        return [place for place, node in _below_infos(self.file).items() if node.shape[:1] == (int(self.ends[-1]),)]

    @functools.cached_property
    def _beginnings(self) -> list[str]:
        """Arrays with the states at the start of every episode."""
        found = [place for place in _below_infos(self.file) if place.startswith("infos/initial_state/")]
        return [place for place in found if self.file[place].shape[:1] == (len(self.names),)]

    @property
    def left_out(self) -> tuple[str, ...]:
        """What the file holds beside its episodes."""
        known = {"observations", "actions", "rewards", "terminals", "timeouts", *self._infos, *self._beginnings}
        return tuple(place for place in arrays_below(self.file) if place not in known and place != _NEXT)

    def key(self, index: int, column: str, name: str = "") -> str:
        """Name of a column in the file."""
        return {keys.OBS: "observations", keys.ACTION: "actions", keys.REWARD: "rewards"}[column]

    def _rows(self, key: str, rows: slice) -> NDArray[Any]:
        return self._raw(key, rows).astype(np.float32, copy=False)

    def _raw(self, key: str, rows: slice) -> NDArray[Any]:
        try:
            return np.asarray(self.file[key][rows])
        except (OSError, RuntimeError) as error:
            raise DataError(f"{self.path}: {key} cannot be read: {error}", fix="copy the file again") from error


def initial_states(path: Path) -> dict[str, NDArray[Any]]:
    """Simulator state at the start of every episode, for replay: name -> (E, n) float64.

    Taken from ``infos/initial_state/*`` (one row per episode) where present, else from the rows of
    ``infos/*`` at which episodes start, for instance ``qpos`` and ``qvel``.

    Raises:
        DataError: the file holds no ``infos``, or their lengths do not fit.

    """
    with open_hdf5(path) as file:
        starts, ends, _ = _split(file, path)
        infos = _infos(file, path)
        stored = infos.get("initial_state")
        if isinstance(stored, h5py.Group):
            found = {name: read_array(stored, name, path) for name in stored}
            for name, value in found.items():
                require_steps(value.shape, len(starts), value.ndim, f"infos/initial_state/{name}", path)
            return found
        rows = [name for name, node in infos.items() if isinstance(node, h5py.Dataset) and len(node) == ends[-1]]
        return {name: read_array(infos, name, path)[starts] for name in rows}


def row_states(path: Path) -> dict[str, NDArray[Any]]:
    """Simulator state before every action, for replay: ``qpos`` and ``qvel`` -> (N, n), as far as they are there.

    Raises:
        DataError: the file holds no ``infos``, or their lengths do not fit.

    """
    with open_hdf5(path) as file:
        _, ends, _ = _split(file, path)
        infos = _infos(file, path)
        found = {name: read_array(infos, name, path) for name in ("qpos", "qvel") if name in infos}
        for name, value in found.items():
            require_steps(value.shape, int(ends[-1]), 2, f"infos/{name}", path)
        return found


def _infos(file: h5py.File, path: Path) -> h5py.Group:
    infos = file.get("infos")
    if not isinstance(infos, h5py.Group) or not len(infos):
        raise DataError(f"{path}: infos is missing, so episodes cannot be replayed")
    return infos


def _split(file: h5py.File, path: Path) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """First rows (E,), rows after the last (E,) and terminal flags (N,)."""
    terminals = require_flags(read_array(file, "terminals", path), "terminals", path)
    steps = len(find_array(file, "actions", path)) if "actions" in file else len(terminals)
    if steps == 0:
        raise DataError(f"{path}: actions holds no step")
    require_steps(terminals.shape, steps, 1, "terminals", path)
    last = terminals.copy()
    if "timeouts" in file:
        timeouts = require_flags(read_array(file, "timeouts", path), "timeouts", path)
        require_steps(timeouts.shape, steps, 1, "timeouts", path)
        last |= timeouts
    last[-1] = True
    ends = np.flatnonzero(last) + 1
    return np.concatenate([[0], ends[:-1]]), ends, terminals


def _assumptions(file: h5py.File, terminals: NDArray[Any]) -> tuple[str, ...]:
    if "timeouts" in file:
        return ()
    if not terminals.any():
        return (f"has no timeouts and no terminal: all {len(terminals)} steps are read as one episode",)
    return ("has no timeouts: episodes are split at terminals only",)


def _below_infos(file: h5py.File) -> dict[str, h5py.Dataset]:
    """Arrays of numbers below ``infos`` by their path."""
    return {
        place: node
        for place, node in arrays_below(file).items()
        if place.startswith(INFOS) and node.shape and node.dtype.kind in "fiub"
    }


def _require_shape(file: h5py.File, key: str, steps: int, ndim: int, path: Path) -> None:
    node = file.get(key)
    if not isinstance(node, h5py.Dataset):
        raise DataError(f"{path}: {key} is missing", expected=f"found: {', '.join(map(str, file))}")
    if node.ndim != ndim or node.shape[0] != steps:
        wanted = f"({steps},)" if ndim == 1 else f"({steps}, size)"
        raise DataError(f"{path}: {key} has shape {node.shape}", expected=f"{wanted}, one row per action")
    require_numbers(node, key, path)
