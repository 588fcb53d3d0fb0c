"""HDF5 access that names file and key when something is wrong, and what a format reader returns."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import h5py
import numpy as np
from numpy.typing import NDArray

from flowpolicy.core.errors import DataError, nearest
from flowpolicy.core.spec import Spec


@dataclasses.dataclass
class EpisodeColumns:
    """One episode of T steps."""

    obs: dict[str, NDArray[Any]]
    """name -> (T, d) float32, observation before the action of the same row."""
    action: NDArray[Any]
    """(T, a) float32."""
    reward: NDArray[Any]
    """(T,) float32."""
    mask: NDArray[Any]
    """(T,) float32, 0 only on true termination."""


@runtime_checkable
class Recording(Protocol):
    """An open dataset file, read episode by episode. One implementation per file format."""

    format: str
    names: tuple[str, ...]
    lengths: tuple[int, ...]
    spec: Spec
    env_args: dict[str, Any]
    filters: dict[str, int]
    provenance: str
    """What the file says of where its episodes come from, JSON; empty where it says nothing."""

    def episode(self, index: int) -> EpisodeColumns:
        """Columns of the episode ``names[index]``."""

    def key(self, index: int, column: str, name: str = "") -> str:
        """Where a column (a word of :mod:`flowpolicy.core.keys`) of an episode stands in the file."""


@contextlib.contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """Open a file for reading; a missing, foreign or truncated one is a :class:`DataError`."""
    if not path.is_file():
        raise DataError(f"{path} is not a file", fix="check the path, or generate data with `flowpolicy data make`")
    if not h5py.is_hdf5(path):
        raise DataError(
            f"{path} is not an HDF5 file ({path.stat().st_size} bytes)",
            expected="a RoboMimic, D4RL or Minari HDF5 file, or an OGBench npz",
            fix="check the path; a download that stopped early must be repeated",
        )
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise DataError(
            f"{path} is truncated or damaged: {error}", fix="copy, download or generate the file again"
        ) from error
    with file:
        yield file


def read_array(group: h5py.Group, name: str, path: Path) -> NDArray[Any]:
    """All values of a dataset; missing and unreadable ones are errors that name the key."""
    key = key_of(group, name)
    if name not in group:
        raise DataError(f"{path}: {key} is missing", expected=f"found: {', '.join(group) or 'nothing'}")
    node = group[name]
    if not isinstance(node, h5py.Dataset):
        raise DataError(f"{path}: {key} is a group", expected="an array")
    if node.dtype.kind not in "fiub":
        raise DataError(f"{path}: {key} holds {node.dtype}", expected="numbers")
    try:
        return np.asarray(node[()])
    except (OSError, RuntimeError) as error:
        raise DataError(f"{path}: {key} cannot be read: {error}", fix="copy or generate the file again") from error


def require_group(group: h5py.Group, name: str, path: Path) -> h5py.Group:
    """A sub-group, or an error that names it."""
    node = group.get(name)
    if not isinstance(node, h5py.Group):
        raise DataError(
            f"{path}: the group {key_of(group, name)} is missing", expected=f"found: {', '.join(group) or 'nothing'}"
        )
    return node


def require_steps(array: NDArray[Any], steps: int, ndim: int, key: str, path: Path) -> None:
    """Raise unless ``array`` has ``steps`` rows and ``ndim`` dimensions."""
    if array.ndim != ndim or array.shape[0] != steps:
        wanted = f"({steps},)" if ndim == 1 else f"({steps}, size)"
        raise DataError(
            f"{path}: {key} has shape {array.shape}",
            expected=f"{wanted}, one row per action",
            fix="remove the episode or record it again",
        )


def low_dim_keys(group: h5py.Group) -> list[str]:
    """Names, in the file's order, of the numeric arrays with at most one dimension per step."""
    return [k for k, v in group.items() if isinstance(v, h5py.Dataset) and v.ndim in (1, 2) and v.dtype.kind in "fiub"]


def choose_keys(group: h5py.Group, wanted: Sequence[str], path: Path) -> list[str]:
    """The observation keys to read: ``wanted``, or every low-dimensional one."""
    known = low_dim_keys(group)
    for name in wanted:
        if name not in known:
            why = "has more than one dimension per step" if name in group else "does not exist"
            raise DataError(f"{path}: the observation {key_of(group, name)} {why}", expected=nearest(name, known))
    if not known:
        raise DataError(f"{path}: {group.name[1:]} holds no low-dimensional observation")
    return list(wanted) or known


def key_of(group: h5py.Group, name: str) -> str:
    """Path of a key inside the file, without the leading slash."""
    return f"{group.name}/{name}".lstrip("/")
