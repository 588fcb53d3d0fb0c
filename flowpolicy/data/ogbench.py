"""OGBench npz (Park et al., "OGBench: Benchmarking Offline Goal-Conditioned RL", ICLR 2025).

Flat arrays ``observations``, ``actions``, ``terminals``, ``qpos``, ``qvel`` and, where there are buttons,
``button_states``. ``terminals`` marks the last row of each trajectory: its observation is the trajectory's last
state and its action leads nowhere. All rows are kept; only a row that is followed by another one of its episode
is a transition.

The official files carry no rewards: those depend on the task. ``flowpolicy data make`` and ``flowpolicy data
label`` add them: ``rewards`` and ``masks`` of the default task, ``rewards_task1``, ``masks_task1``, ... of every
task (chosen by the filter key ``task1``, ...), and ``env_id``. Conventions of the labels:

- the reward of a row is measured in the state *before* its action: minus the number of unsolved sub-tasks;
- ``mask`` is 0 exactly where nothing is left unsolved, so where the reward is 0. A trajectory of play data goes
  on after that and ends elsewhere: ``mask`` and ``terminals`` are independent of each other.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import re
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowpolicy.core import keys
from flowpolicy.core.errors import ConfigError, DataError, nearest
from flowpolicy.core.files import replacing
from flowpolicy.core.spec import (
    UNSTATED,
    ActionSpec,
    ImageSpec,
    ObservationSpec,
    RenderSpec,
    Spec,
    image_json,
    read_image,
)
from flowpolicy.data.d4rl import STATE
from flowpolicy.data.hdf5 import EpisodeColumns, require_flags, require_steps
from flowpolicy.data.hdf5_frames import picture_size
from flowpolicy.data.stored_episode import INFOS, StoredEpisode, pictures_of_episode

PIXELS = "pixels"
"""The observation of the visual files and environments, of which it is the only one."""
CAMERA = "front_pixels"
"""What takes their pictures."""
_IMAGES = "images"
"""Member that says how the pictures of a file were drawn, JSON; official files have none."""
_TEXTS = ("env_id", "provenance", _IMAGES)
_LABELS = "flowpolicy data label FILE --env NAME --out FILE"


class OGBenchRecording:
    """An open OGBench file.

    Args:
        file: the open archive.
        path: named in errors.
        filter_key: ``task1`` to ``task5`` for the rewards of that task; empty for ``rewards`` and ``masks``.
        obs_keys: empty or ``("state",)``, of a visual file ``("pixels",)``.
        cameras: likewise the camera of a visual file.

    """

    format = "ogbench"
    remarks: tuple[str, ...] = ()

    def __init__(
        self,
        file: NpzFile,
        path: Path,
        filter_key: str = "",
        obs_keys: Sequence[str] = (),
        cameras: Sequence[str] = (),
    ) -> None:
        visual = file.dimensions("observations") > 2
        observation = PIXELS if visual else STATE
        for key in obs_keys:
            if key != observation:
                raise DataError(f"{path}: the observation {key} does not exist", expected=nearest(key, [observation]))
        for camera in cameras:
            if not visual or camera not in (CAMERA, PIXELS):
                raise DataError(
                    f"{path}: there are no pictures of a camera '{camera}'",
                    expected=CAMERA if visual else "states; pictures are in OGBench's visual files alone",
                    fix="leave --data.cameras out",
                )
        self.path = path
        action = file.column("actions", 2)
        obs = file.column("observations", file.dimensions("observations") if visual else 2, action.rows)
        self._wide = {"observations": obs, "actions": action}
        ends = _ends(file.read("terminals", 1, action.rows), path)
        self.starts, self.ends = np.concatenate([[0], ends[:-1]]), ends
        self.lengths = tuple(int(n) for n in ends - self.starts)
        self.names = tuple(f"episode_{i}" for i in range(len(ends)))
        self.env_args: dict[str, Any] = {}
        self.unread: dict[str, str] = {}
        self.provenance = file.text("provenance")
        self._file = file
        labelled = [name.removeprefix("rewards_") for name in file.names if name.startswith("rewards_task")]
        self.filters = dict.fromkeys(sorted(labelled), len(ends))
        self._rewards = _label_name("rewards", filter_key, file)
        rewards = file.read(self._rewards, 1, action.rows)
        masks = file.read(_label_name("masks", filter_key, file), 1, action.rows)
        _check_labels(rewards, masks, path)
        self._narrow = {"rewards": rewards, "masks": masks}
        seen: ObservationSpec = ObservationSpec((obs.width,)) if not visual else _stated_pixels(file, obs, path)
        self.frames = {PIXELS: NpzFrames(obs, seen.shape, self.names, self.starts)} if visual else {}
        """Pictures that are read, by observation."""
        self.spec = Spec(
            observation={observation: seen},
            action=ActionSpec(action.width),
            env_id=_env_id(file, filter_key),
        )

    def episode(self, index: int) -> EpisodeColumns:
        """Columns of episode ``index``, its last row included."""
        start, end = int(self.starts[index]), int(self.ends[index])
        states = () if self.frames else (STATE,)
        obs = {name: self._wide["observations"].read(start, end).astype(np.float32) for name in states}
        action = self._wide["actions"].read(start, end).astype(np.float32)
        reward, mask = (self._narrow[name][start:end].astype(np.float32) for name in ("rewards", "masks"))
        return EpisodeColumns(obs=obs, action=action, reward=reward, mask=mask)

    def stored(self, index: int) -> StoredEpisode:
        """The episode ``names[index]`` with its rows of ``qpos`` and the like."""
        start, end = int(self.starts[index]), int(self.ends[index])
        return StoredEpisode(
            name=self.names[index],
            obs={} if self.frames else {STATE: self._wide["observations"].read(start, end)},
            action=self._wide["actions"].read(start, end),
            reward=self._narrow["rewards"][start:end],
            terminated=self._narrow["masks"][start:end] == 0,
            pictures={
                key: pictures_of_episode(source, self.names[index], end - start) for key, source in self.frames.items()
            },
            aside={INFOS + name: column.read(start, end) for name, column in self._beside.items()},
        )

    @functools.cached_property
    def _beside(self) -> dict[str, NpzColumn]:
        """Further columns with one row per step."""
        known, rows = {"observations", "actions", "rewards", "masks", "terminals"}, int(self.ends[-1])
        found = {}
        for name in self._file.names:
            if name not in known and name not in _TEXTS:
                column = self._file.any_column(name)
                if column is not None and column.shape[:1] == (rows,):
                    found[name] = column
        return found

    @property
    def left_out(self) -> tuple[str, ...]:
        """What the file holds beside its episodes."""
        known = {"observations", "actions", "rewards", "masks", "terminals", *_TEXTS, *self._beside}
        return tuple(name for name in self._file.names if name not in known)

    def key(self, index: int, column: str, name: str = "") -> str:
        """Name of a column in the file."""
        return {keys.OBS: "observations", keys.ACTION: "actions", keys.REWARD: self._rewards}[column]


class NpzFrames:
    """The pictures of a visual file: a source of frames.

    Args:
        column: all of them.
        size: of one.
        names: of the episodes.
        starts: (E,) first row of each.

    """

    key = PIXELS

    def __init__(
        self, column: NpzColumn, size: tuple[int, ...], names: tuple[str, ...], starts: NDArray[np.int64]
    ) -> None:
        self.size: tuple[int, int, int] = (size[0], size[1], size[2])
        self.names = names
        ends = [*starts[1:].tolist(), column.rows]
        self.lengths = tuple(end - start for start, end in zip(starts.tolist(), ends, strict=True))
        self._column, self._starts = column, starts

    def reading_order(self) -> Sequence[int]:
        """As they are numbered."""
        return range(len(self.names))

    def blocks(self, episode: int, rows: int) -> Iterator[NDArray[np.uint8]]:
        """Pictures of an episode."""
        start = int(self._starts[episode])
        end = start + self.lengths[episode]
        for row in range(start, end, rows):
            yield self._column.read(row, min(end, row + rows))


class NpzFile:
    """An npz archive read without pickle, with errors that name file and key.

    Args:
        archive: the open archive.
        path: named in errors.

    """

    def __init__(self, archive: Any, path: Path) -> None:
        self._archive, self.path = archive, path
        self.names: tuple[str, ...] = tuple(archive.files)

    def read(self, name: str, ndim: int, rows: int | None = None) -> NDArray[Any]:
        """The numbers under ``name``: ``ndim`` dimensions and ``rows`` rows, at least one."""
        self._require(name)
        value = self._load(name)
        self._require_numbers(name, value.dtype, value.shape, ndim, rows)
        return value

    def column(self, name: str, ndim: int, rows: int | None = None) -> NpzColumn:
        """The numbers under ``name``, unread; errors are those of :meth:`read`."""
        self._require(name)
        try:
            found = NpzColumn(self._archive.zip, f"{name}.npy", f"{self.path}: {name}")
        except Exception as error:
            raise _unreadable(f"{self.path}: {name}", error) from error
        self._require_numbers(name, found.dtype, found.shape, ndim, rows)
        return found

    def any_column(self, name: str) -> NpzColumn | None:
        """The numbers under ``name``, unread; None where it holds something else."""
        try:
            found = NpzColumn(self._archive.zip, f"{name}.npy", f"{self.path}: {name}")
        except Exception:
            return None
        return found if found.dtype.kind in "fiub" else None

    def dimensions(self, name: str) -> int:
        """Number of dimensions of an array, unread."""
        self._require(name)
        try:
            return len(NpzColumn(self._archive.zip, f"{name}.npy", f"{self.path}: {name}").shape)
        except Exception as error:
            raise _unreadable(f"{self.path}: {name}", error) from error

    def text(self, name: str) -> str:
        """The string under ``name``; empty when the file has none."""
        return str(self._load(name)) if name in self.names else ""

    def all(self) -> dict[str, NDArray[Any]]:
        """Every array of the file."""
        return {name: self._load(name) for name in self.names}

    def _load(self, name: str) -> NDArray[Any]:
        try:
            return np.asarray(self._archive[name])
        except Exception as error:  # zlib, zipfile and numpy raise a dozen kinds for a damaged or pickled member
            raise _unreadable(f"{self.path}: {name}", error) from error

    def _require(self, name: str) -> None:
        if name not in self.names:
            raise DataError(f"{self.path}: {name} is missing", expected=f"found: {', '.join(self.names) or 'nothing'}")

    def _require_numbers(
        self, name: str, dtype: np.dtype[Any], shape: tuple[int, ...], ndim: int, rows: int | None
    ) -> None:
        if dtype.kind not in "fiub":
            raise DataError(f"{self.path}: {name} holds {dtype}", expected="numbers")
        if len(shape) != ndim:
            raise DataError(f"{self.path}: {name} has shape {shape}", expected=f"{ndim} dimensions")
        if shape[0] == 0:
            raise DataError(f"{self.path}: {name} holds no step")
        if rows is not None:
            require_steps(shape, rows, ndim, name, self.path)


class NpzColumn:
    """An array of an archive, read row by row from the first to the last, so that it need not fit into memory.

    Args:
        archive: the open archive.
        member: its name there.
        place: named in errors.

    """

    def __init__(self, archive: zipfile.ZipFile, member: str, place: str) -> None:
        self._archive, self._member, self._place = archive, member, place
        self.shape, self.dtype = self._rewind()
        self._row = self.dtype.itemsize * math.prod(self.shape[1:])

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.shape[0]

    @property
    def width(self) -> int:
        """Numbers in a row."""
        return math.prod(self.shape[1:])

    def read(self, start: int, end: int) -> NDArray[Any]:
        """Rows from ``start`` to before ``end``; those before what was read last are read from the beginning again."""
        if self._whole is not None:
            return self._whole[start:end]
        try:
            if start < self._at:
                self._rewind()
            while self._at < start:
                self._take(min(start - self._at, max(1, _BLOCK // max(1, self._row))))
            found = np.frombuffer(self._take(end - start), self.dtype).reshape(-1, *self.shape[1:])
            if self._at == self.rows:
                self._stream.read(1)  # which compares the checksum
        except Exception as error:
            raise _unreadable(self._place, error) from error
        return found

    def _take(self, rows: int) -> bytes:
        data: bytes = self._stream.read(rows * self._row)
        if len(data) != rows * self._row:
            raise ValueError(f"it ends after {self._at} of {self.rows} rows")
        self._at += rows
        return data

    def _rewind(self) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """Go to the first row; shape and type."""
        self._stream, self._at = self._archive.open(self._member), 0
        self._whole: NDArray[Any] | None = None
        read = _HEADERS.get(np.lib.format.read_magic(self._stream))
        if read is not None:
            shape, fortran, dtype = read(self._stream)
            if not (fortran or dtype.hasobject):
                return shape, dtype
        with self._archive.open(
            self._member
        ) as stream:  # as columns, or of a version of which there is no other reader
            self._whole = np.lib.format.read_array(stream, allow_pickle=False)
        return self._whole.shape, self._whole.dtype


_BLOCK = 1 << 20
"""Bytes that are skipped at a time."""
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def _unreadable(place: str, error: Exception) -> DataError:
    return DataError(
        f"{place} cannot be read: {error}",
        fix="copy, download or generate the file again; pickled objects are never loaded",
    )


@contextlib.contextmanager
def open_npz(path: Path) -> Iterator[NpzFile]:
    """Open an npz archive; a truncated one is a :class:`DataError`."""
    if not is_npz(path):
        what = "does not exist" if not path.exists() else "is no npz archive"
        raise DataError(f"{path} {what}", expected="an OGBench file (npz)", fix="check the path")
    try:
        archive = np.load(path, allow_pickle=False)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:  # zip "versions" of damaged files
        raise DataError(
            f"{path} is truncated or damaged: {error}", fix="copy, download or generate the file again"
        ) from error
    with archive:
        yield NpzFile(archive, path)


def is_npz(path: Path) -> bool:
    """Whether a file begins like a zip archive, so like every npz."""
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return stream.read(4) == b"PK\x03\x04"


def write_npz(path: Path, columns: Mapping[str, NDArray[Any]]) -> None:
    """Write a compressed npz, whole or not at all; equal arrays give equal bytes (its members carry no date)."""
    with replacing(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, **columns)


class ColumnFiles:
    """Columns of an npz that grow on the disk, so that they need not fit into memory.

    Args:
        folder: where they grow.

    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._columns: dict[str, tuple[np.dtype[Any], tuple[int, ...], int]] = {}

    def append(self, name: str, rows: NDArray[Any]) -> None:
        """Add rows (n, ...) to a column.

        Raises:
            DataError: they have another shape or type than those before.

        """
        dtype, shape, before = self._columns.get(name, (rows.dtype, rows.shape[1:], 0))
        if (dtype, shape) != (rows.dtype, rows.shape[1:]):
            raise DataError(
                f"{name} holds rows of {rows.shape[1:]} {rows.dtype} after rows of {shape} {dtype}",
                expected="rows of one shape and type in all episodes",
            )
        self._columns[name] = (dtype, shape, before + len(rows))
        with self._path(name).open("ab") as stream:
            stream.write(np.ascontiguousarray(rows).data)

    def write(self, path: Path, texts: Mapping[str, str]) -> None:
        """Write all columns, and texts, as a compressed npz; equal columns give equal bytes."""
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, (dtype, shape, rows) in self._columns.items():
                with archive.open(_member(name), "w", force_zip64=True) as stream:
                    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False}
                    np.lib.format.write_array_header_2_0(stream, {**header, "shape": (rows, *shape)})
                    with self._path(name).open("rb") as grown:
                        shutil.copyfileobj(grown, stream, _BLOCK)
            for name, text in texts.items():
                with archive.open(_member(name), "w") as stream:
                    np.lib.format.write_array(stream, np.array(text), allow_pickle=False)

    def _path(self, name: str) -> Path:
        return self._folder / f"{list(self._columns).index(name):03d}.bin"


def _member(name: str) -> zipfile.ZipInfo:
    """A member without a date."""
    found = zipfile.ZipInfo(f"{name}.npy")
    found.compress_type = zipfile.ZIP_DEFLATED
    return found


def _ends(terminals: NDArray[Any], path: Path) -> NDArray[Any]:
    """Rows after the last one of each trajectory (E,)."""
    require_flags(terminals, "terminals", path)
    if not terminals[-1]:
        raise DataError(
            f"{path}: the last row is not marked in terminals, so the file has been cut",
            expected="terminals = 1 on the last row of every trajectory",
            fix="download or generate the file again, or mark the end",
        )
    return np.flatnonzero(terminals) + 1


def _label_name(label: str, filter_key: str, file: NpzFile) -> str:
    name = f"{label}_{filter_key}" if filter_key else label
    if name in file.names:
        return name
    known = sorted(n.removeprefix("rewards_") for n in file.names if n.startswith("rewards_task"))
    if filter_key and known:
        raise DataError(f"{file.path}: there are no {label} for '{filter_key}'", expected=nearest(filter_key, known))
    raise DataError(
        f"{file.path}: {name} is missing: OGBench files carry no rewards, those depend on the task",
        expected="rewards and masks of a single task",
        fix=f"add them with: {_LABELS}",
    )


def _check_labels(rewards: NDArray[Any], masks: NDArray[Any], path: Path) -> None:
    """Refuse rewards and masks that the convention of the single-task variants does not explain."""
    values = np.unique(rewards[np.isfinite(rewards)])
    if values.size and (values.max() > 0 or not np.array_equal(values, np.round(values))):
        shown = ", ".join(f"{value:g}" for value in values[:6]) + (", ..." if values.size > 6 else "")
        raise DataError(
            f"{path}: no OGBench task has the rewards {{{shown}}}",
            expected="whole numbers: minus the number of unsolved sub-tasks (mazes: -1, and 0 at the goal)",
            fix=f"label the file again: {_LABELS}",
        )
    require_flags(masks, "masks", path)
    wrong = np.flatnonzero((masks == 0) != (rewards == 0))
    if wrong.size:
        row = int(wrong[0])
        raise DataError(
            f"{path}: masks and rewards contradict each other in {wrong.size} of {len(masks)} rows, first in row "
            f"{row}: mask {masks[row]:g}, reward {rewards[row]:g}",
            expected="mask 0 exactly where the task is solved (reward 0), whatever terminals says: "
            "terminals mark the ends of trajectories, not success",
            fix=f"label the file again: {_LABELS}",
        )


def pixels_spec(size: tuple[int, int, int], version: str = UNSTATED) -> ImageSpec:
    """What OGBench's visual environments show, drawn by this version of MuJoCo."""
    render = RenderSpec("mujoco", version, geoms="visual", msaa=4, shadows="on", settings={"arm": "transparent"})
    return ImageSpec(size, camera=CAMERA, mount="world", fov_deg=45.0, rate_hz=20.0, render=render)


def pixels_json(image: ImageSpec) -> dict[str, NDArray[Any]]:
    """The member of a file that says how its pictures were drawn."""
    return {_IMAGES: np.array(json.dumps({PIXELS: image_json(image)}))}


def _stated_pixels(file: NpzFile, column: NpzColumn, path: Path) -> ImageSpec:
    """The pictures of a file, and how they were drawn: as OGBench draws them unless it says otherwise."""
    size = picture_size(column.dtype, column.shape, "observations", path)
    if not (text := file.text(_IMAGES)):
        return pixels_spec(size)
    try:
        image = read_image(json.loads(text)[PIXELS], f"{_IMAGES}.{PIXELS}")
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: {_IMAGES} does not say how {PIXELS} were drawn: {text[:80]}") from error
    except ConfigError as error:
        raise DataError(f"{path}: {error.what}", expected=error.expected, fix=error.fix) from error
    if image.shape != size:
        raise DataError(f"{path}: {_IMAGES} says that {PIXELS} have the shape {image.shape}, and they have {size}")
    return image


def _env_id(file: NpzFile, filter_key: str) -> str:
    stated = file.text("env_id")
    if filter_key and stated:
        return re.sub(r"-task\d+-", f"-{filter_key}-", stated)
    return stated or UNSTATED
