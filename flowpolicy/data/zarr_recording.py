"""Zarr folders and zips in the layout of diffusion_policy's ReplayBuffer (Chi et al., "Diffusion Policy", 2023).

``data/action``, ``data/state``, ... hold the steps of all episodes, one after the other, and ``meta/episode_ends`` says
where each ends. Nothing says what an action is, and there are no rewards: all are read as 0, and every end as cut off.
Pictures are (N, height, width, 3), uint8 or whole numbers from 0 to 255 in another type. Points (N, k, 2) become
observations of 2 k numbers.

Metadata are read before the library sees them: only arrays of plain numbers, compressed by codecs that decompress and
do nothing else, are opened. Codecs of objects run what a file contains.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowpolicy.core import keys
from flowpolicy.core.errors import DataError, MissingExtraError, nearest
from flowpolicy.core.files import tree_sha256, unchanged_sha256
from flowpolicy.core.spec import ActionSpec, ImageSpec, ObservationSpec, Spec
from flowpolicy.data.hdf5 import EpisodeColumns
from flowpolicy.data.stored_episode import StoredEpisode, pictures_of_episode

_ACTION = "action"
_REWARDS = ("reward", "rewards")
_TIMES = ("timestamp", "timestamps")
_CODECS = {
    *("blosc", "zlib", "gzip", "zstd", "lz4", "bz2", "lzma", "shuffle", "delta", "crc32", "crc32c", "adler32"),
    *("bytes", "transpose", "sharding_indexed"),
}
"""Codecs that decompress, and nothing else."""
_DTYPE = re.compile(r"[<>|](?:f[248]|[iu][1248]|b1)")
_DTYPES = {"bool", *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)), "float16", "float32"}
_DTYPES |= {"float64"}
_LARGEST_CHUNK = 1 << 30
_LARGEST_TEXT = 1 << 20
_MEMBERS = 1_000_000
_ROWS = 1 << 16


def is_zarr(path: Path) -> bool:
    """Whether a folder, or a zip with one in it, is a zarr group."""
    if path.is_dir():
        return (path / ".zgroup").is_file() or (path / "zarr.json").is_file()
    return path.is_file() and _root_in_zip(path) is not None


def _root_in_zip(path: Path) -> str | None:
    """Folder of the group in a zip: "" or a name and a slash; None where there is none."""
    with path.open("rb") as stream:
        if stream.read(4) != b"PK\x03\x04":
            return None
    with contextlib.suppress(zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        found = [name for name in names[:_MEMBERS] if name.rpartition("/")[2] in (".zgroup", "zarr.json")]
        roots = sorted({name.rpartition("/")[0] for name in found}, key=len)
        if roots and roots[0].count("/") == 0:
            return f"{roots[0]}/" if roots[0] else ""
    return None


class ZarrRecording:
    """An open group.

    Args:
        path: folder or zip.
        filter_key: must be empty, the format has none.
        obs_keys: observations to read; empty selects every one of numbers, times excepted.
        cameras: arrays of pictures that are read too.

    """

    format = "zarr"
    provenance = ""

    def __init__(
        self, path: Path, filter_key: str = "", obs_keys: Sequence[str] = (), cameras: Sequence[str] = ()
    ) -> None:
        if filter_key:
            raise DataError(f"{path}: the filter key {filter_key} does not exist", fix="zarr has none: leave it out")
        self.path = path
        self._said = _Metadata(path)
        arrays = {name: self._said.array(f"data/{name}") for name in self._said.below("data")}
        if _ACTION not in arrays:
            raise DataError(
                f"{path}: data/{_ACTION} is missing",
                expected=f"diffusion_policy's ReplayBuffer; data holds {', '.join(arrays) or 'nothing'}",
            )
        self._group = _opened(path, self._said.root)
        ends = self._ends()
        self._starts = np.concatenate([[0], ends[:-1]])
        self.lengths = tuple(int(n) for n in ends - self._starts)
        self.names = tuple(f"episode_{i}" for i in range(len(ends)))
        rows = int(ends[-1])
        for name, each in arrays.items():
            if each.shape[:1] != (rows,):
                raise DataError(
                    f"{path}: data/{name} has the shape {each.shape}",
                    expected=f"{rows} rows: meta/episode_ends says that the last episode ends there",
                )
        if len(arrays[_ACTION].shape) != 2:
            raise DataError(f"{path}: data/action has the shape {arrays[_ACTION].shape}", expected="(steps, size)")
        self._choose(arrays, obs_keys, cameras)
        self.env_args: dict[str, Any] = {}
        self.filters: dict[str, int] = {}
        self.remarks = tuple(self._assumptions(arrays))
        states = {key: ObservationSpec((math.prod(arrays[key].shape[1:]),)) for key in self._states}
        seen = {key: ImageSpec(frames.size, camera=key) for key, frames in self.frames.items()}
        named: dict[str, ObservationSpec] = {**states, **seen}
        self.spec = Spec(
            observation={key: named[key] for key in dict.fromkeys((*obs_keys, *named))},
            action=ActionSpec(int(arrays[_ACTION].shape[1])),
        )

    def _choose(self, arrays: Mapping[str, _Array], obs_keys: Sequence[str], cameras: Sequence[str]) -> None:
        """Sort the arrays into states, pictures and what is not read."""
        self._reward = next((n for n in _REWARDS if n in arrays and math.prod(arrays[n].shape[1:]) == 1), "")
        others = {name: each for name, each in arrays.items() if name not in (_ACTION, self._reward)}
        pictures = [name for name, each in others.items() if each.is_pictures]
        why = {name: each.why_unread for name, each in others.items() if each.why_unread}
        self.cameras = tuple(pictures)
        numbers = [name for name in others if name not in pictures and name not in why]
        for name in (*obs_keys, *cameras):
            if name not in pictures and (name in cameras or name not in numbers):
                known = pictures if name in cameras else [*numbers, *pictures]
                told = f"is not read: {why[name]}" if name in why else "does not exist"
                raise DataError(
                    f"{self.path}: the observation data/{name} {told}",
                    expected=nearest(name, known) if known else "a zarr with pictures; this one has none",
                )
        wanted = [name for name in dict.fromkeys((*obs_keys, *cameras)) if name in pictures]
        by_name = [name for name in obs_keys if name in numbers]
        self._states = by_name if obs_keys else [name for name in numbers if name not in _TIMES]
        self.frames = {key: _ZarrFrames(self, key, arrays[key]) for key in wanted}
        self.unread = {
            **why,
            **{key: f"pictures, {arrays[key].dtype} {arrays[key].shape[1:3]}" for key in pictures if key not in wanted},
            **{key: "a time, and no observation" for key in numbers if key in _TIMES and key not in self._states},
        }

    def _ends(self) -> NDArray[np.int64]:
        """Rows after the last one of each episode (E,)."""
        where = "meta/episode_ends"
        said = self._said.array(where)
        if len(said.shape) != 1 or not said.shape[0] or said.dtype.kind not in "iu":
            raise DataError(
                f"{self.path}: {where} holds {said.dtype} of shape {said.shape}",
                expected="whole numbers, one per episode",
            )
        ends = self.rows(where, 0, said.shape[0]).astype(np.int64)
        if ends[0] < 1 or (np.diff(ends) < 1).any():
            wrong = 0 if ends[0] < 1 else int(np.flatnonzero(np.diff(ends) < 1)[0]) + 1
            raise DataError(
                f"{self.path}: {where} says {ends[wrong]} for episode {wrong}",
                expected="numbers of rows that grow from episode to episode",
                fix="copy or write the file again",
            )
        return ends

    def _assumptions(self, arrays: Mapping[str, _Array]) -> Iterator[str]:
        if not self._reward:
            yield "has no rewards: all are read as 0, and every end as cut off"
        for name in (_ACTION, *self._states, *self.frames):
            with self._reading(f"data/{name}", "cannot be opened"):
                node = self._group[f"data/{name}"]
                absent = int(node.nchunks) - int(node.nchunks_initialized)
            if absent:
                yield (
                    f"lacks {absent} of {node.nchunks} pieces of data/{name}, which are read as {node.fill_value}: "
                    "they may have been left out because they hold nothing else, or were lost"
                )
        for name, each in arrays.items():
            if len(each.shape) == 3 and name in self._states:
                yield f"holds data/{name} as {each.shape[1]} x {each.shape[2]}, which become one vector"

    def rows(self, place: str, start: int, end: int) -> NDArray[Any]:
        """Rows of an array as they are stored."""
        with self._reading(place, f"cannot be read from row {start} to {end}"):
            return np.asarray(self._group[place][start:end])

    @contextlib.contextmanager
    def _reading(self, place: str, told: str) -> Iterator[None]:
        """Whatever the library raises inside is an error that names the array."""
        try:
            yield
        except Exception as error:  # codecs, stores and metadata raise a dozen kinds where they are damaged
            line = (str(error).splitlines() or [""])[0][:200]
            raise DataError(
                f"{self.path}: {place} {told}: {type(error).__name__}: {line}", fix="copy or download the data again"
            ) from error

    def episode(self, index: int) -> EpisodeColumns:
        """Columns of the episode ``names[index]``."""
        one = self.stored(index)
        reward = np.zeros(one.steps, np.float32) if one.reward is None else one.reward.astype(np.float32)
        return EpisodeColumns(
            obs={key: value.astype(np.float32) for key, value in one.obs.items()},
            action=one.action.astype(np.float32),
            reward=reward,
            mask=np.ones(one.steps, np.float32),
        )

    def stored(self, index: int) -> StoredEpisode:
        """The episode ``names[index]`` in the types that are stored."""
        start, steps = int(self._starts[index]), self.lengths[index]
        end, name = start + steps, self.names[index]
        return StoredEpisode(
            name=name,
            obs={key: self.rows(f"data/{key}", start, end).reshape(steps, -1) for key in self._states},
            action=self.rows(f"data/{_ACTION}", start, end),
            reward=self.rows(f"data/{self._reward}", start, end).reshape(-1) if self._reward else None,
            terminated=np.zeros(steps, dtype=bool),
            pictures={key: pictures_of_episode(source, name, steps) for key, source in self.frames.items()},
        )

    def key(self, index: int, column: str, name: str = "") -> str:
        """Array of a column."""
        return "data/" + {keys.OBS: name, keys.ACTION: _ACTION, keys.REWARD: self._reward or "reward"}[column]

    def sha256(self, *, anew: bool = False) -> str:
        """Hash of the zip, or of the names and contents of the folder's files."""
        if self.path.is_file():
            return unchanged_sha256(self.path, anew=anew)
        return tree_sha256(self.path, self._files, anew=anew)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        if self.path.is_file():
            return self.path.stat().st_size
        return sum((self.path / name).stat().st_size for name in self._files)

    @property
    def _files(self) -> list[str]:
        return [str(file.relative_to(self.path)) for file in self.path.rglob("*") if file.is_file()]

    def span(self, episode: int) -> tuple[int, int]:
        """First row of an episode, and the one after its last."""
        start = int(self._starts[episode])
        return start, start + self.lengths[episode]


class _Array:
    """What metadata say of an array; refused unless it is made of plain numbers."""

    def __init__(self, said: Mapping[str, Any], where: str) -> None:
        self._where = where
        modern = said.get("zarr_format") == 3
        if not modern and said.get("zarr_format") != 2:
            raise self._refused(f"is of zarr format {said.get('zarr_format')}", "2 or 3")
        if modern and said.get("node_type") != "array":
            raise self._refused("is no array", "numbers")
        stated = said.get("data_type" if modern else "dtype")
        known = isinstance(stated, str) and (stated in _DTYPES if modern else _DTYPE.fullmatch(stated))
        if not known:
            raise self._refused(f"holds {str(stated)[:60]}", "numbers: objects are never decoded")
        self.dtype = np.dtype(str(stated))
        self.shape = self._sizes(said.get("shape"), "shape")
        grid = said.get("chunk_grid") if modern else None
        inner = grid.get("configuration") if isinstance(grid, Mapping) else None
        stated_chunks = (
            (inner if isinstance(inner, Mapping) else {}).get("chunk_shape") if modern else said.get("chunks")
        )
        self.chunks = self._sizes(stated_chunks, "chunks")
        size = math.prod(self.chunks) * self.dtype.itemsize
        if len(self.chunks) != len(self.shape) or 0 in self.chunks or size > _LARGEST_CHUNK:
            raise self._refused(f"has pieces of {self.chunks}", "at most 1 GiB each")
        codecs = said.get("codecs") if modern else [said.get("compressor"), *(said.get("filters") or [])]
        self._require_codecs(codecs)

    def _sizes(self, stated: Any, what: str) -> tuple[int, ...]:
        whole = isinstance(stated, list) and all(type(n) is int and 0 <= n < 1 << 40 for n in stated)
        if not whole or not 1 <= len(stated) <= 8:
            raise self._refused(f"has the {what} {str(stated)[:60]}", "a list of whole numbers")
        return tuple(stated)

    def _require_codecs(self, codecs: Any, depth: int = 0) -> None:
        if not isinstance(codecs, list) or depth > 2:
            raise self._refused("has no list of codecs", "zarr's metadata")
        for codec in codecs:
            if codec is None:
                continue
            name = (codec.get("id") or codec.get("name")) if isinstance(codec, Mapping) else codec
            if not isinstance(name, str) or name not in _CODECS:
                raise self._refused(
                    f"is compressed by '{str(name)[:60]}'", f"one of {', '.join(sorted(_CODECS))}: no other one is run"
                )
            inner = codec.get("configuration") if isinstance(codec, Mapping) else None
            for key in ("codecs", "index_codecs"):
                if isinstance(inner, Mapping) and key in inner:
                    self._require_codecs(inner[key], depth + 1)

    def _refused(self, what: str, expected: str) -> DataError:
        return DataError(
            f"{self._where} {what}",
            expected=expected,
            fix="write the array anew, as numbers compressed by blosc or zstd",
        )

    @property
    def is_pictures(self) -> bool:
        """Whether it has the shape of colour pictures."""
        return len(self.shape) == 4 and self.shape[3] == 3 and 0 not in self.shape

    @property
    def why_unread(self) -> str:
        """Why it is no observation; empty where it is one."""
        if self.is_pictures or (len(self.shape) in (1, 2, 3) and 0 not in self.shape):
            return ""
        return f"{self.dtype} of shape {self.shape[1:]} per step"


class _Metadata:
    """The metadata of a group, read without the library."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.root = (_root_in_zip(path) or "") if path.is_file() else ""

    def array(self, place: str) -> _Array:
        """What is said of an array."""
        for name in (".zarray", "zarr.json"):
            text = self._text(f"{place}/{name}")
            if text is None:
                continue
            try:
                said = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise self._damaged(f"{place}/{name} is no JSON: {error}") from error
            if not isinstance(said, dict):
                raise self._damaged(f"{place}/{name} holds no JSON object")
            return _Array(said, f"{self.path}: {place}")
        raise DataError(
            f"{self.path}: {place} is missing",
            expected="diffusion_policy's ReplayBuffer: data/action, ..., meta/episode_ends",
            fix="copy the folder again, with the files whose names begin with a dot",
        )

    def below(self, place: str) -> list[str]:
        """Names of the arrays in a group."""
        if self.path.is_dir():
            folder = self.path / place
            inner = sorted(each for each in folder.iterdir() if each.is_dir()) if folder.is_dir() else []
            return [each.name for each in inner if any((each / name).is_file() for name in (".zarray", "zarr.json"))]
        head, found = f"{self.root}{place}/", set()
        with zipfile.ZipFile(self.path) as archive:
            for name in archive.namelist():
                inner_name, _, rest = name.removeprefix(head).partition("/")
                if name.startswith(head) and rest in (".zarray", "zarr.json"):
                    found.add(inner_name)
        return sorted(found)

    def _text(self, place: str) -> str | None:
        try:
            if self.path.is_dir():
                file = self.path / place
                if not file.is_file():
                    return None
                size, content = file.stat().st_size, b""
                if size <= _LARGEST_TEXT:
                    content = file.read_bytes()
            else:
                with zipfile.ZipFile(self.path) as archive:
                    if self.root + place not in archive.namelist():
                        return None
                    with archive.open(self.root + place) as stream:
                        content = stream.read(_LARGEST_TEXT + 1)
                size = len(content)
            if size > _LARGEST_TEXT:
                raise self._damaged(f"{place} has more than {_LARGEST_TEXT:,} bytes")
            return content.decode()
        except (OSError, zipfile.BadZipFile, UnicodeDecodeError, NotImplementedError, RuntimeError) as error:
            raise self._damaged(f"{place} cannot be read: {error}") from error

    def _damaged(self, what: str) -> DataError:
        return DataError(f"{self.path}: {what}", fix="copy or download the data again")


class _ZarrFrames:
    """The pictures of one array: a source of frames."""

    def __init__(self, recording: ZarrRecording, key: str, array: _Array) -> None:
        self.key, self._recording, self._array = key, recording, array
        self.size: tuple[int, int, int] = (array.shape[1], array.shape[2], 3)
        self.names, self.lengths = recording.names, recording.lengths

    def reading_order(self) -> Sequence[int]:
        """One after the other."""
        return range(len(self.names))

    def blocks(self, episode: int, rows: int) -> Iterator[NDArray[np.uint8]]:
        """Pictures of an episode, a piece of the file at a time."""
        start, end = self._recording.span(episode)
        piece = self._array.chunks[0]
        while start < end:
            stop = min(end, (start // piece + 1) * piece)
            yield self._as_bytes(self._recording.rows(f"data/{self.key}", start, stop), start)
            start = stop

    def _as_bytes(self, found: NDArray[Any], start: int) -> NDArray[np.uint8]:
        if found.dtype == np.uint8:
            return found
        whole = found.astype(np.uint8)
        if wrong := np.flatnonzero((whole != found).reshape(len(found), -1).any(axis=1)).tolist():
            row = start + wrong[0]
            raise DataError(
                f"{self._recording.path}: data/{self.key} holds no whole numbers from 0 to 255 in row {row}",
                expected="pictures of uint8",
                fix="write them as uint8; values from 0 to 1 times 255 before that",
            )
        return whole


def _opened(path: Path, root: str) -> Any:
    """The group, by the library."""
    try:
        import zarr
        from zarr.storage import LocalStore, ZipStore
    except ImportError as error:
        raise MissingExtraError("zarr", "zarr") from error
    try:
        store = LocalStore(path, read_only=True) if path.is_dir() else ZipStore(path, mode="r", read_only=True)
        return zarr.open_group(store, path=root.rstrip("/"), mode="r")
    except Exception as error:  # the library raises whatever metadata of other layouts make it raise
        raise DataError(
            f"{path} cannot be opened as zarr: {type(error).__name__}: {error}", fix="copy or download the data again"
        ) from error
