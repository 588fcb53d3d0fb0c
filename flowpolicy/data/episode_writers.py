"""Episodes out: one writer for each format, all of which take one episode after the other and hold one at a time."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import h5py
import numpy as np
from numpy.typing import NDArray

from flowpolicy.core import keys
from flowpolicy.core.errors import ConfigError, DataError, MissingExtraError
from flowpolicy.core.files import naming_full_disk, read_json, replacing, replacing_folder, write_json
from flowpolicy.core.spec import INSTRUCTION, UNSTATED, Spec
from flowpolicy.data.d4rl import STATE
from flowpolicy.data.hdf5 import streamed_whole
from flowpolicy.data.minari import MAIN_FILE, read_metadata
from flowpolicy.data.ogbench import ColumnFiles, pixels_json
from flowpolicy.data.robomimic import TERMINALS, success_reward
from flowpolicy.data.robomimic_writer import RecordedEpisode, RobomimicWriter
from flowpolicy.data.stored_episode import DONES, INFOS, StoredEpisode

_BLOCK = 1 << 16
"""Rows that are put together at a time."""
_BEGINNINGS = "infos/initial_state/"


@dataclasses.dataclass(frozen=True)
class FileHeader:
    """What is said of all episodes of a file."""

    spec: Spec
    """Observations and actions."""
    env_args: Mapping[str, Any]
    """RoboMimic's description of the environment; empty where nothing is known."""
    provenance: Mapping[str, Any]
    """Where the episodes come from, JSON values."""
    origin: Path | None = None
    """A file of the same format whose words are taken over."""
    rewards: bool = True
    """Whether rewards are written where a format can do without."""
    last: bool = True
    """Whether every episode has the observation after its last action."""
    fps: float = 0.0
    """Steps per second, where the files do not say."""
    instruction: str = ""
    """What was to be done, where the files do not say."""


class EpisodeWriter(Protocol):
    """Takes the episodes of a file."""

    def add(self, episode: StoredEpisode) -> None:
        """Append an episode."""


class _RobomimicFile:
    def __init__(self, writer: RobomimicWriter) -> None:
        self._writer, self._enough = writer, success_reward(dict(writer.env_args))

    def add(self, episode: StoredEpisode) -> None:
        reward = np.zeros(episode.steps) if episode.reward is None else episode.reward
        dones = marks_of(episode)
        extra = {place: each for place, each in episode.aside.items() if place != DONES}
        if not np.array_equal((dones != 0) & (reward >= self._enough), episode.terminated):
            extra[TERMINALS] = episode.terminated
        recorded = RecordedEpisode(
            actions=episode.action,
            rewards=reward,
            dones=dones,
            obs={**episode.obs, **episode.pictures},
            next_obs={},
            last_obs=episode.last_obs,
            states=episode.states,
            model_xml=episode.model_xml,
            extra=extra,
            notes=episode.notes | ({INSTRUCTION: episode.text} if episode.text else {}),
        )
        self._writer.add(recorded, episode.filters)


def marks_of(episode: StoredEpisode) -> NDArray[Any]:
    """RoboMimic's ``dones`` (T,): those of the file that an episode is from, or 1 wherever the task or it ended."""
    if DONES in episode.aside:
        return np.asarray(episode.aside[DONES])
    marks = episode.terminated.astype(np.int64)
    marks[-1] = 1
    return marks


@contextlib.contextmanager
def _robomimic(out: Path, header: FileHeader) -> Iterator[EpisodeWriter]:
    env_args = dict(header.env_args)
    if not env_args and header.spec.env_id != UNSTATED:
        env_args = {"env_name": header.spec.env_id, "type": 2, "env_kwargs": {}, "success": UNSTATED}
    with RobomimicWriter(out, env_args, header.provenance, streamed=True) as writer:
        yield _RobomimicFile(writer)


class _D4RLFile:
    def __init__(self, file: h5py.File, header: FileHeader) -> None:
        self._file, self._header = file, header

    def add(self, episode: StoredEpisode) -> None:
        for rows in flat_blocks(episode):
            self._append("observations", rows)
        self._append("actions", episode.action)
        self._append("rewards", np.zeros(episode.steps) if episode.reward is None else episode.reward)
        marks = np.zeros((2, episode.steps), dtype=bool)
        marks[0, -1] = episode.terminated[-1]
        marks[1, -1] = episode.cut_off or not episode.terminated[-1]
        self._append("terminals", marks[0])
        self._append("timeouts", marks[1])
        if self._header.last:
            for rows in flat_blocks(episode.cut(1, episode.steps) if episode.steps > 1 else None):
                self._append("next_observations", rows)
            self._append("next_observations", _beside([value[None] for value in episode.last_obs.values()]))
        for place in infos_of(episode):
            self._append(place, np.asarray(episode.aside[place]))

    def _append(self, place: str, rows: NDArray[Any]) -> None:
        if place not in self._file:
            each = max(1, int(np.prod(rows.shape[1:])) * rows.itemsize)
            self._file.create_dataset(
                place,
                (0, *rows.shape[1:]),
                rows.dtype,
                maxshape=(None, *rows.shape[1:]),
                chunks=(max(1, min((1 << 18) // each, 1 << 16)), *rows.shape[1:]),
                track_times=False,
            )
        node = self._file[place]
        if (node.shape[1:], node.dtype) != (rows.shape[1:], rows.dtype):
            raise DataError(
                f"{place} holds rows of {rows.shape[1:]} {rows.dtype} after rows of {node.shape[1:]} {node.dtype}",
                expected="rows of one shape and type in all episodes",
            )
        before = len(node)
        node.resize(before + len(rows), axis=0)
        node[before:] = rows


def infos_of(episode: StoredEpisode) -> list[str]:
    """What lies beside an episode and D4RL, Minari and OGBench can hold too: numbers below ``infos``, row by row."""
    found = [place for place in episode.aside if place.startswith(INFOS)]
    return [
        place
        for place in found
        if episode.aside[place].dtype.kind in "fiub"
        and (episode.by_row(place) or (place.startswith(_BEGINNINGS) and len(episode.aside[place]) == 1))
    ]


def flat_blocks(episode: StoredEpisode | None) -> Iterator[NDArray[Any]]:
    """The observations of an episode side by side, some rows at a time: (n, d)."""
    if episode is None:
        return
    for start in range(0, episode.steps, _BLOCK):
        yield _beside([value[start : start + _BLOCK] for value in episode.obs.values()])


def _beside(parts: list[NDArray[Any]]) -> NDArray[Any]:
    """Arrays (n, ...) side by side, as (n, d)."""
    flat = [part.reshape(len(part), -1) for part in parts]
    return flat[0] if len(flat) == 1 else np.concatenate(flat, axis=1)


@contextlib.contextmanager
def _d4rl(out: Path, header: FileHeader) -> Iterator[EpisodeWriter]:
    with streamed_whole(out) as file:
        file.attrs["provenance"] = json.dumps(header.provenance, sort_keys=True)
        yield _D4RLFile(file, header)


class _OGBenchFile:
    def __init__(self, columns: ColumnFiles, header: FileHeader) -> None:
        self._columns, self._header = columns, header

    def add(self, episode: StoredEpisode) -> None:
        for rows in flat_blocks(episode) if episode.obs else next(iter(episode.pictures.values())).blocks():
            self._columns.append("observations", rows)
        self._columns.append("actions", episode.action)
        self._columns.append("terminals", np.arange(episode.steps) == episode.steps - 1)
        if self._header.rewards and episode.reward is not None:
            self._columns.append("rewards", episode.reward)
            self._columns.append("masks", (~episode.terminated).astype(episode.reward.dtype))
        for place in infos_of(episode):
            self._columns.append(place.removeprefix(INFOS), np.asarray(episode.aside[place]))


@contextlib.contextmanager
def _ogbench(out: Path, header: FileHeader) -> Iterator[EpisodeWriter]:
    texts = {"provenance": json.dumps(header.provenance, sort_keys=True)}
    if header.spec.env_id != UNSTATED:
        texts["env_id"] = header.spec.env_id
    images = header.spec.images
    if images and len(images) == len(header.spec.observation):
        texts |= {name: str(text) for name, text in pixels_json(next(iter(images.values()))).items()}
    with replacing(out) as temporary, tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
        columns = ColumnFiles(Path(folder))
        yield _OGBenchFile(columns, header)
        columns.write(temporary, texts)


class _MinariFolder:
    """Minari's own storage does the writing."""

    def __init__(self, folder: Path, name: str, header: FileHeader) -> None:
        try:
            import minari
            from minari.data_collector.episode_buffer import EpisodeBuffer
            from minari.dataset.minari_storage import MinariStorage
            from minari.serialization import deserialize_space
        except ImportError as error:
            raise MissingExtraError("minari", "minari") from error
        self._folder, self._header, self._version = folder, header, str(minari.__version__)
        self._name = f"converted/{re.sub('[^A-Za-z0-9]+', '-', name).strip('-') or 'data'}-v0"
        self._storage_type, self._buffer, self._space = MinariStorage, EpisodeBuffer, deserialize_space
        self._storage: Any = None
        self._episodes = 0
        self._notes: list[dict[str, Any]] = []

    def add(self, episode: StoredEpisode) -> None:
        if self._storage is None:
            self._storage = self._storage_type.new(
                self._folder / MAIN_FILE.parent,
                self._space(json.dumps(_space({key: _signed(value) for key, value in episode.obs.items()}))),
                self._space(json.dumps(_box(episode.action))),
                data_format="hdf5",
            )
        self._storage.update_episodes(self._parts(episode))
        self._notes.append({**episode.notes, "total_steps": episode.steps})
        self._episodes += 1

    def finish(self) -> None:
        """Write what is said of the whole."""
        self._storage.update_episode_metadata(self._notes)
        path = self._folder / MAIN_FILE.with_name("metadata.json")
        counted = {**read_json(path), "minari_version": self._version, "dataset_id": self._name}
        said = {} if self._header.origin is None else read_metadata(self._header.origin)
        said = {key: value for key, value in said.items() if key not in counted or key.endswith("_space")}
        write_json(path, {**counted, **said, "provenance": json.dumps(self._header.provenance, sort_keys=True)})

    def _parts(self, episode: StoredEpisode) -> Iterator[Any]:
        """The episode in pieces, which the library appends to each other."""
        obs = {key: _signed(value) for key, value in episode.obs.items()}
        last = episode.last_obs or {key: value[-1] for key, value in episode.obs.items()}
        single = list(obs) == [STATE]
        cut_off = episode.cut_off or not episode.terminated[-1]
        infos = {place.removeprefix(INFOS): episode.aside[place] for place in minari_infos(episode)}
        rewards = np.zeros(episode.steps) if episode.reward is None else episode.reward
        for start in range(0, episode.steps, _MINARI_BLOCK):
            end = min(start + _MINARI_BLOCK, episode.steps)
            whole = end == episode.steps
            seen = {
                key: np.concatenate([value[start:end], _signed(last[key])[None]]) if whole else value[start:end]
                for key, value in obs.items()
            }
            marks = np.zeros(end - start, dtype=bool)
            marks[-1] = whole and cut_off
            yield self._buffer(
                id=self._episodes,
                observations=seen[STATE] if single else seen,
                actions=episode.action[start:end],
                rewards=rewards[start:end],
                terminations=episode.terminated[start:end],
                truncations=marks,
                infos=_nested({place: _rows_of(each, start, end, whole) for place, each in infos.items()}),
            )


_MINARI_BLOCK = 1 << 18
"""Rows that are handed to the library at a time."""


def minari_infos(episode: StoredEpisode) -> list[str]:
    """What Minari can hold beside an episode: numbers below ``infos``, one row per action or per observation."""
    return [
        place
        for place, each in episode.aside.items()
        if place.startswith(INFOS)
        and each.dtype.kind in "fiub"
        and each.shape[:1] in ((episode.steps,), (episode.steps + 1,))
        and not (each.dtype == np.uint8 and len(each.shape) in (2, 3, 4))
    ]


def _rows_of(each: NDArray[Any] | h5py.Dataset, start: int, end: int, whole: bool) -> NDArray[Any]:
    return np.asarray(each[start:] if whole else each[start:end])


def _nested(flat: Mapping[str, NDArray[Any]]) -> dict[str, Any] | None:
    """Arrays by path, as groups in groups."""
    found: dict[str, Any] = {}
    for place, value in flat.items():
        *groups, name = place.split("/")
        into = found
        for group in groups:
            into = into.setdefault(group, {})
        into[name] = value
    return found or None


def _signed(value: NDArray[Any]) -> NDArray[Any]:
    """The library would take rows of uint8 for pictures, and compress them with loss."""
    return value.astype(np.int16) if value.dtype == np.uint8 else value


def _box(rows: NDArray[Any]) -> dict[str, Any]:
    """A space in which any rows lie, in the library's words: the bounds of what was recorded are not known."""
    kind, shape = rows.dtype, rows.shape[1:]
    if kind.kind == "f":
        low, high = -np.inf, np.inf
    else:
        low, high = (0, 1) if kind.kind == "b" else (np.iinfo(kind).min, np.iinfo(kind).max)
    ends = {name: np.full(shape, end).tolist() for name, end in (("low", low), ("high", high))}
    return {"type": "Box", "dtype": "int8" if kind.kind == "b" else str(kind), "shape": list(shape), **ends}


def _space(obs: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    if list(obs) == [STATE]:
        return _box(obs[STATE])
    return {"type": "Dict", "subspaces": {key: _box(value) for key, value in obs.items()}}


@contextlib.contextmanager
def _minari(out: Path, header: FileHeader) -> Iterator[EpisodeWriter]:
    with replacing_folder(out.absolute()) as temporary:  # the library loses its way with relative paths
        (temporary / MAIN_FILE.parent).parent.mkdir(exist_ok=True)
        writer = _MinariFolder(temporary, out.name, header)
        yield writer
        writer.finish()


class _LeRobotFolder:
    """Gathers episodes in files, of which the folder is made when all of them are there."""

    def __init__(self, place: Path) -> None:
        self._place, self._streams = place, contextlib.ExitStack()
        self._files: dict[str, BinaryIO] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._lengths: list[int] = []
        self._names: list[str] = []
        self._texts: dict[str, int] = {}
        self._splits: dict[str, list[int]] = {}

    def add(self, episode: StoredEpisode) -> None:
        for key in episode.filters:
            self._splits.setdefault(key, []).append(len(self._names))
        self._names.append(episode.name)
        for key, value in episode.obs.items():
            self._append(f"{keys.OBS}.{key}", value.reshape(episode.steps, -1).astype(np.float32))
        self._append(keys.ACTION, episode.action.astype(np.float32))
        reward = np.zeros(episode.steps) if episode.reward is None else episode.reward
        self._append(keys.REWARD, reward.astype(np.float32))
        self._append(keys.MASK, (~episode.terminated).astype(np.float32))
        task = self._texts.setdefault(episode.text, len(self._texts))
        self._append(keys.TASK, np.full(episode.steps, task, np.int64))
        for key, pictures in episode.pictures.items():
            for block in pictures.blocks():
                self._append(f"pictures.{key}", block)
        self._lengths.append(episode.steps)

    def write(self, out: Path, header: FileHeader) -> None:
        """Make the folder."""
        import torch

        from flowpolicy.data.dataset import Dataset, as_columns
        from flowpolicy.data.frames import RawFrames
        from flowpolicy.data.lerobot_writer import LeRobotOptions, write_lerobot

        self._streams.close()
        rows, frames = sum(self._lengths), {}
        columns: dict[str, torch.Tensor] = {}
        for number, (name, shape) in enumerate(self._shapes.items()):
            path = self._place / f"{number}.bin"
            if name.startswith("pictures."):
                frames[name.removeprefix("pictures.")] = RawFrames(path, (rows, *shape))
                continue
            dtype = torch.int64 if name == keys.TASK else torch.float32
            size = rows * int(np.prod(shape))
            columns[name] = torch.from_file(str(path), size=size, dtype=dtype).reshape(rows, *shape)
        source = dict(header.provenance["sources"][0])
        dataset = Dataset(
            steps=as_columns(columns),
            lengths=torch.tensor(self._lengths),
            names=tuple(self._names),
            spec=header.spec,
            env_args=dict(header.env_args),
            path=Path(source["path"]),
            sha256=str(source["sha256"]),
            filter_key="",
            frames=dict(frames),
            instructions=() if list(self._texts) == [""] else tuple(self._texts),
        )
        options = LeRobotOptions(fps=header.fps, instruction=header.instruction)
        provenance = json.dumps(header.provenance, sort_keys=True)
        write_lerobot(dataset, out, options, overwrite=True, provenance=provenance, splits=self._splits)

    def _append(self, name: str, rows: NDArray[Any]) -> None:
        if rows.dtype.kind == "f" and not (whole := np.isfinite(rows.reshape(len(rows), -1)).all(axis=1)).all():
            step, episode = int(np.flatnonzero(~whole)[0]), self._names[-1]
            raise DataError(
                f"{name.removeprefix(f'{keys.OBS}.')} of {episode} is no number of float32 in step {step}",
                expected="finite numbers: LeRobot's statistics have no word for others",
                fix=f"leave the episode out: flowpolicy data edit FILE --drop {episode} --out OUT",
            )
        if name not in self._files:
            path = self._place / f"{len(self._files)}.bin"
            self._files[name] = self._streams.enter_context(path.open("wb"))
            self._shapes[name] = rows.shape[1:]
        self._files[name].write(np.ascontiguousarray(rows).data)

    def close(self) -> None:
        self._streams.close()


@contextlib.contextmanager
def _lerobot(out: Path, header: FileHeader) -> Iterator[EpisodeWriter]:
    if not (header.fps or header.spec.action.rate_hz):
        raise ConfigError("the data does not say how many steps it has per second", fix="name it: --fps N")
    out.parent.mkdir(parents=True, exist_ok=True)
    with (
        naming_full_disk(out, "what stood there before is untouched"),
        tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder,
        contextlib.closing(_LeRobotFolder(Path(folder))) as writer,
    ):
        yield writer
        writer.write(out, header)


WRITERS: dict[str, Callable[[Path, FileHeader], contextlib.AbstractContextManager[EpisodeWriter]]] = {
    "robomimic": _robomimic,
    "d4rl": _d4rl,
    "minari": _minari,
    "ogbench": _ogbench,
    "lerobot": _lerobot,
}
"""Format -> context manager that yields a writer; what it writes appears whole when the block ends, or not at all."""
FOLDERS = ("minari", "lerobot")
"""Formats that are folders of files."""
