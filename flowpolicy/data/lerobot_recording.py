"""LeRobot folders (Hugging Face), v2.0, v2.1 and v3.0: parquet tables of numbers and videos, read without the library.

``observation.state`` is read as ``state``, ``observation.images.front`` as ``front_image``. What an action means the
format has no word for: it is *unstated* unless ``--data.action-convention`` says it, or ``meta/flowpolicy.json`` beside
the meta files does, which flowpolicy writes.

Rewards are ``next.reward``; where there is none, 1 at the end of an episode whose ``next.success`` was ever true, and
else 0. An episode terminates where ``next.terminated`` says so, or at its end where ``next.success`` was true; all
other ends are cut off, because ``next.done`` is true at every end.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from flowpolicy.core import keys
from flowpolicy.core.errors import ConfigError, nearest
from flowpolicy.core.files import tree_sha256
from flowpolicy.core.spec import (
    INSTRUCTION,
    UNSTATED,
    ActionSpec,
    ImageSpec,
    ObservationSpec,
    Spec,
    instruction_spec,
    read_spec,
)
from flowpolicy.data.hdf5 import EpisodeColumns, require_flags
from flowpolicy.data.lerobot_meta import OWN, EpisodePlace, LeRobotFeature, LeRobotFolder, stream_name
from flowpolicy.data.lerobot_meta import is_lerobot as is_lerobot
from flowpolicy.data.lerobot_pictures import LeRobotFrames
from flowpolicy.data.lerobot_rows import Columns, LeRobotRows
from flowpolicy.data.stored_episode import StoredEpisode, pictures_of_episode

ActionConvention = Literal["", "joint-absolute", "joint-delta", "pose-absolute", "pose-delta"]
"""What an action is, where a file has no word for it."""

_MOST_WORDS = 1000
_DECODERS = {
    "h264": {"h264", "libx264", "h264_nvenc"},
    "av1": {"av1", "libdav1d", "libsvtav1", "libaom-av1"},
    "hevc": {"hevc", "libx265", "h265"},
}
"""Codec as the format names it -> names of its coders."""
_NUMBERS = ("float16", "float32", "float64", "bool", *(f"{u}int{b}" for u in ("", "u") for b in (8, 16, 32, 64)))
_ROWS = ("timestamp", "frame_index", "episode_index", "index", "task_index")


class LeRobotRecording:
    """An open folder.

    Args:
        path: the folder.
        filter_key: name of a split, or numbers of episodes, e.g. '0:100' or '3,7,20:30'; empty selects every one.
        obs_keys: observations to read; empty selects every one of numbers.
        cameras: cameras whose pictures are read too.
        convention: what an action is, where the folder does not say.

    """

    format = "lerobot"

    def __init__(
        self,
        path: Path,
        filter_key: str = "",
        obs_keys: Sequence[str] = (),
        cameras: Sequence[str] = (),
        convention: ActionConvention = "",
    ) -> None:
        self.path, self.folder = path, LeRobotFolder(path)
        self._chosen = self.folder.select(filter_key)
        self.names = tuple(episode.name for episode in self._chosen)
        self.lengths = tuple(episode.length for episode in self._chosen)
        members = {name: {one.number for one in self.folder.within(name)} for name in self.folder.splits}
        self.filters = {name: len(numbers) for name, numbers in members.items()}
        # Every folder calls all of its episodes 'train': that says nothing of any of them.
        self._splits = {k: v for k, v in members.items() if k != "train" or len(v) < len(self.folder.episodes)}
        self._own = read_own(self.folder)
        self._action = self._find_action()
        self._streams = self._find_streams()
        chosen = self._choose(obs_keys, cameras)
        self.frames = {
            key: LeRobotFrames(self.folder, self._streams[key], self._chosen)
            for key in chosen
            if key != INSTRUCTION and self._streams[key].is_picture
        }
        """Pictures that are read, by observation."""
        self._states = [key for key in chosen if key not in self.frames]
        self.unread = self._unread(chosen)
        self._rows = LeRobotRows(self.folder, self._chosen, self._columns())
        self._chosen = self._found_again(self._chosen)
        self.env_args: dict[str, Any] = self._own.env_args
        self.provenance = self._own.provenance
        self.spec = self._spec(chosen, convention)

    @property
    def remarks(self) -> tuple[str, ...]:
        """What contradicts itself in the folder, or was mended; more are met while its rows are read."""
        return tuple(dict.fromkeys((*self.folder.remarks, *self._rows.remarks)))

    @functools.cached_property
    def files(self) -> list[str]:
        """Files that decide what is read, by their paths in the folder; of pictures those of the chosen cameras."""
        own = [OWN] if self.folder.exists(OWN) else []
        pictures = [name for source in self.frames.values() for name in source.files]
        return sorted({*self.folder.meta_files, *own, *(episode.data for episode in self._chosen), *pictures})

    def sha256(self, *, anew: bool = False) -> str:
        """Hash of the names and contents of :attr:`files`."""
        return tree_sha256(self.path, self.files, anew=anew)

    @property
    def size(self) -> int:
        """Bytes of :attr:`files`."""
        return sum((self.path / name).stat().st_size for name in self.files)

    @functools.cached_property
    def instructions(self) -> tuple[str, ...]:
        """Texts of the folder, each once, in the order of their numbers."""
        return tuple(dict.fromkeys(self.folder.texts.values()))

    @functools.cached_property
    def pictures(self) -> dict[str, ImageSpec]:
        """Streams of pictures that can be read, and what is known of them."""
        found = {}
        for key, feature in self._streams.items():
            if feature.is_picture and not feature.why_unread:
                found[key] = self._seen(key, feature.size)
        return found

    def feature(self, key: str) -> LeRobotFeature:
        """The feature that an observation is read from."""
        return self._streams[key]

    @property
    def action_names(self) -> tuple[str, ...]:
        """What the numbers of an action are called; empty where the folder does not say."""
        return self._action.names

    @property
    def state_names(self) -> list[str]:
        """What the numbers of all states are called."""
        return [name for key in self._states if key != INSTRUCTION for name in self._streams[key].names]

    def declared_codec(self, key: str) -> set[str]:
        """Words for the codec that ``info.json`` gives the videos of a camera, as decoders call it."""
        said = str(self._streams[key].info.get("video.codec", self._streams[key].info.get("codec", "")))
        return _DECODERS.get(said, {said} if said else set())

    def episode(self, index: int) -> EpisodeColumns:
        """Columns of the episode ``names[index]``."""
        episode = self._chosen[index]
        rows = self._rows.read(episode)
        self._compare_times(episode, rows)
        obs: dict[str, NDArray[Any]] = {}
        task = self._tasks(episode, rows)
        for key in self._states:
            if key == INSTRUCTION and task is not None:
                obs[key] = np.eye(len(self.instructions), dtype=np.float32)[task]
                continue
            feature, start, width = self._part(key)
            value = rows[feature].reshape(episode.length, -1)
            obs[key] = value[:, start : start + width].astype(np.float32)
        return EpisodeColumns(
            obs=obs,
            action=rows[self._action.name].reshape(episode.length, -1).astype(np.float32),
            reward=self._reward(episode, rows),
            mask=self._mask(episode, rows),
            task=task,
        )

    @property
    def cameras(self) -> list[str]:
        """Observations that are pictures of three colours."""
        return [key for key, feature in self._streams.items() if feature.is_picture and not feature.why_unread]

    def stored(self, index: int) -> StoredEpisode:
        """The episode ``names[index]`` with its pictures, its instruction and whether it succeeded."""
        columns, episode = self.episode(index), self._chosen[index]
        rows, task = self._rows.read(episode), columns.task
        texts = (
            []
            if task is None
            else [self.instructions[number] for number in dict.fromkeys(task.tolist()) if number >= 0]
        )
        success = None
        if "next.success" in rows:
            success = bool(self._flags(episode, rows, "next.success").any())
        return StoredEpisode(
            name=self.names[index],
            obs={key: value for key, value in columns.obs.items() if key != INSTRUCTION},
            action=columns.action,
            reward=columns.reward,
            terminated=columns.mask == 0,
            pictures={
                key: pictures_of_episode(source, self.names[index], episode.length)
                for key, source in self.frames.items()
            },
            success=success,
            text=texts[0] if texts else "",
            filters=tuple(name for name, numbers in self._splits.items() if episode.number in numbers),
            aside={"task": task} if task is not None and len(texts) > 1 else {},
        )

    def key(self, index: int, column: str, name: str = "") -> str:
        """Column of an episode's file."""
        state = "task_index" if name == INSTRUCTION else self._part(name)[0] if column == keys.OBS else ""
        feature = state or self._action.name
        return f"{self._chosen[index].data}: " + ("next.reward" if column == keys.REWARD else feature)

    def _find_action(self) -> LeRobotFeature:
        found = [self.folder.features[name] for name in ("action", "actions") if name in self.folder.features]
        if not found or found[0].dtype not in _NUMBERS or len(found[0].shape) != 1:
            raise self.folder.error(
                "there is no feature 'action' of numbers in one dimension",
                expected=f"among {', '.join(self.folder.features)[:300]}",
                fix="put its parts side by side in one feature 'action'",
            )
        return found[0]

    def _find_streams(self) -> dict[str, LeRobotFeature]:
        """Every observation that can be read, by the name that it has here, states first."""
        found: dict[str, LeRobotFeature] = {}
        self._parts: dict[str, tuple[int, int]] = {}
        for feature in self.folder.features.values():
            if feature == self._action or feature.name in _ROWS or feature.name.startswith("next."):
                continue
            start = 0
            for key, width in self._own.parts.get(feature.name, ()):
                found[key], self._parts[key] = feature, (start, width)
                start += width
            if start and start != math.prod(feature.shape):
                raise self.folder.error(
                    f"{OWN} takes {feature.name} apart into {start} numbers", expected=f"{math.prod(feature.shape)}"
                )
            if not start and (feature.is_picture or (feature.dtype in _NUMBERS and len(feature.shape) == 1)):
                name = stream_name(feature.name)
                key = name if name not in found and name != INSTRUCTION else feature.name.replace(".", "_")
                found[key], self._parts[key] = feature, (0, math.prod(feature.shape))
        return found

    def _choose(self, obs_keys: Sequence[str], cameras: Sequence[str]) -> list[str]:
        """Keys that are read, in order."""
        own = {feature.name: key for key, feature in self._streams.items()}  # as the folder calls them
        states = [key for key, feature in self._streams.items() if not feature.is_picture]
        usual = [k for k in states if (f := self._streams[k].name).startswith("observation.") or f == "state"] or states
        texts = [INSTRUCTION] if self.instructions else []
        chosen = []
        for word in obs_keys:
            key = own.get(word, word)
            if key not in (*self._streams, *texts):
                why = f"is not read: {found}" if (found := self._unreadable().get(word)) else "does not exist"
                raise self.folder.error(
                    f"the observation {word} {why}", expected=nearest(word, [*self._streams, *texts]), fix="name others"
                )
            chosen.append(key)
        pictures = {key: key.removesuffix("_image") for key, feature in self._streams.items() if feature.is_picture}
        for word in cameras:
            known = [key for key, camera in pictures.items() if own.get(word, word) in (key, camera)]
            if not known:
                has = nearest(word, pictures.values()) if pictures else "a folder with pictures; this one has none"
                raise self.folder.error(f"there is no camera '{word}'", expected=has, fix="name others")
            chosen.append(known[0])
        if not obs_keys:
            several = texts if len(self.instructions) > 1 else []
            chosen = [*usual, *(several if len(self.instructions) <= _MOST_WORDS else []), *chosen]
        if not chosen:  # pictures are all that it observes
            chosen = [key for key in pictures if not self._streams[key].why_unread]
        if not chosen:
            raise self.folder.error("it holds no observation of numbers", fix="name others: --data.obs-keys")
        return list(dict.fromkeys(chosen))

    def _unreadable(self) -> dict[str, str]:
        """Features that are no observation that can be read, and why."""
        used = {feature.name for feature in self._streams.values()} | {self._action.name}
        return {
            stream_name(name): "text" if feature.dtype == "string" else f"{feature.dtype} of shape {feature.shape}"
            for name, feature in self.folder.features.items()
            if name not in used and name not in _ROWS and not name.startswith("next.")
        }

    def _unread(self, chosen: Sequence[str]) -> dict[str, str]:
        found = self._unreadable()
        for key, feature in self._streams.items():
            if key not in chosen:
                height, width, _ = feature.size
                seen = feature.why_unread or f"pictures, {feature.dtype} {height} x {width}"
                found[key] = seen if feature.is_picture else f"no observation by its name, {feature.name}"
        if INSTRUCTION not in chosen and len(self.instructions) > 1:
            found[INSTRUCTION] = f"{len(self.instructions)} different texts"
        return found

    def _part(self, key: str) -> tuple[str, int, int]:
        """LeRobotFeature of a state, its first number there, and how many it has."""
        return (self._streams[key].name, *self._parts[key])

    def _columns(self) -> dict[str, int]:
        """Features that are read, and how many numbers each has in a row."""
        names = [self._action.name, *(self._streams[key].name for key in self._states if key != INSTRUCTION)]
        names += [name for name in ("next.reward", "next.success", "next.terminated") if name in self.folder.features]
        return {name: math.prod(self.folder.features[name].shape) for name in names}

    def _found_again(self, chosen: Sequence[EpisodePlace]) -> list[EpisodePlace]:
        """The episodes, with the files in which their rows really are (trap: the table names the file before)."""
        found, elsewhere, spans = [], None, {}
        for episode in chosen:
            if self.folder.version != "v3.0":
                if not self.folder.exists(episode.data):
                    raise self.folder.error(f"{episode.data}, the file of {episode.name}, is missing")
                found.append(episode)
                continue
            if episode.data not in spans:
                spans[episode.data] = self._rows.spans(episode.data) if self.folder.exists(episode.data) else []
            here = spans[episode.data]
            if here is None or any(low <= episode.number <= high for low, high in here):
                found.append(episode)
                continue
            elsewhere = elsewhere if elsewhere is not None else self._all_spans()
            other = [name for name, held in elsewhere.items() if any(a <= episode.number <= b for a, b in held)]
            if not other:
                raise self.folder.error(f"no file holds rows of {episode.name}; its table says {episode.data}")
            self._rows.remarks.append(f"says that {episode.name} stands in {episode.data}, and it stands in {other[0]}")
            found.append(dataclasses.replace(episode, data=other[0]))
        return found

    def _all_spans(self) -> dict[str, list[tuple[int, int]]]:
        """Episodes in every data file, by its footer."""
        top = Path(self._chosen[0].data).parts[0]
        names = sorted(str(path.relative_to(self.path)) for path in (self.path / top).rglob("*.parquet"))
        return {name: self._rows.spans(name) or [] for name in names}

    def _spec(self, chosen: Sequence[str], convention: ActionConvention) -> Spec:
        stated = self._own.spec
        observation = {key: self._observation(key) for key in chosen}
        kind, _, way = convention.partition("-")
        size = math.prod(self._action.shape)
        said = stated.action if stated else ActionSpec(size, rate_hz=self.folder.fps)
        if said.size != size:
            raise self.folder.error(f"{OWN} says {said.size} numbers in an action", expected=f"{size}")
        if convention:
            if UNSTATED != said.convention != way:
                raise self.folder.error(
                    f"{OWN} says that actions are {said.convention}",
                    fix=f"leave --data.action-convention {convention} out",
                )
            frame = "joints" if kind == "joint" else said.frame
            said = dataclasses.replace(said, convention=way, frame=frame)
        if stated:
            return dataclasses.replace(stated, observation=observation, action=said)
        return Spec(observation=observation, action=said, robot=self.folder.robot_type or UNSTATED)

    def _observation(self, key: str) -> ObservationSpec:
        stated = self._own.spec.observation.get(key) if self._own.spec else None
        if key == INSTRUCTION:
            if len(self.instructions) > _MOST_WORDS:
                raise self.folder.error(
                    f"it holds {len(self.instructions)} different instructions",
                    expected=f"at most {_MOST_WORDS}, one number of the observation for each",
                    fix="choose episodes of fewer: --data.filter-key",
                )
            return instruction_spec(self.instructions)
        if key in self.frames:
            return self._seen(key, self.frames[key].size)
        width = self._parts[key][1]
        if stated is not None and stated.shape != (width,):
            raise self.folder.error(f"{OWN} says that {key} has the shape {stated.shape}", expected=f"({width},)")
        names = self._streams[key].names
        units = ", ".join(names) if len(names) == width else UNSTATED
        return stated or ObservationSpec((width,), units)

    def _seen(self, key: str, size: tuple[int, int, int]) -> ImageSpec:
        stated = self._own.spec.observation.get(key) if self._own.spec else None
        if isinstance(stated, ImageSpec) and stated.shape == size:
            return stated
        return ImageSpec(size, camera=key.removesuffix("_image"), rate_hz=self.folder.fps)

    def _reward(self, episode: EpisodePlace, rows: Columns) -> NDArray[Any]:
        if "next.reward" in rows:
            return rows["next.reward"].reshape(-1).astype(np.float32)
        reward = np.zeros(episode.length, np.float32)
        reward[-1] = float("next.success" in rows and bool(self._flags(episode, rows, "next.success").any()))
        return reward

    def _mask(self, episode: EpisodePlace, rows: Columns) -> NDArray[Any]:
        if "next.terminated" in rows:
            return 1.0 - self._flags(episode, rows, "next.terminated").astype(np.float32)
        mask = np.ones(episode.length, np.float32)
        if "next.success" in rows:
            mask[-1] = 1.0 - float(self._flags(episode, rows, "next.success").any())
        return mask

    def _flags(self, episode: EpisodePlace, rows: Columns, name: str) -> NDArray[Any]:
        return require_flags(rows[name].reshape(-1), f"{episode.data}: {name} of {episode.name}", self.path)

    def _tasks(self, episode: EpisodePlace, rows: Columns) -> NDArray[np.int64] | None:
        """Which of the instructions every row has, -1 where nothing says it; None where the folder has none."""
        if not self.instructions:
            return None
        places = {number: self.instructions.index(text) for number, text in self.folder.texts.items()}
        if "task_index" in rows:
            numbers = rows["task_index"].reshape(-1)
            known = np.isin(numbers, list(places))
            if known.all():
                return np.array([places[int(number)] for number in numbers], dtype=np.int64)
            frame = int(np.flatnonzero(~known)[0])
            wrong = f"the instruction {numbers[frame]} of {episode.name}, frame {frame}, has no text"
        else:
            wrong = f"{episode.name} has no task_index"
        texts = [text for text in dict.fromkeys(episode.tasks) if text in self.instructions]
        if len(texts) == 1:  # the table of episodes knows it
            return np.full(episode.length, self.instructions.index(texts[0]), dtype=np.int64)
        if INSTRUCTION in self._states:
            raise self.folder.error(
                wrong, expected="one of meta/tasks", fix="add the text to meta/tasks, or leave 'instruction' out"
            )
        self._rows.remarks.append(f"gives no text for some of its rows: {wrong}")
        return np.full(episode.length, -1, dtype=np.int64)

    def _compare_times(self, episode: EpisodePlace, rows: Columns) -> None:
        """Tell once where times are not those of the numbers of the frames."""
        times = rows.get("timestamp")
        if times is None or self._told_times:
            return
        times = times.reshape(-1).astype(np.float64)
        off = np.flatnonzero(~(np.abs(times - np.arange(len(times)) / self.folder.fps) < 0.5 / self.folder.fps))
        if off.size:
            step = int(off[0])
            each = float(np.median(np.diff(times))) if len(times) > 1 else 0.0
            rate = f", about {1 / each:.4g} rows per second" if each > 0 and math.isfinite(each) else ""
            self._rows.remarks.append(
                f"has other times than the numbers of its frames at {self.folder.fps:g} per second: {episode.name}, "
                f"frame {step}, at {times[step]:.4f} s instead of {step / self.folder.fps:.4f} s{rate}; rows and "
                "pictures are taken by number"
            )
            self._told_times = True

    _told_times = False


@dataclasses.dataclass(frozen=True)
class OwnStatement:
    """What flowpolicy wrote beside the meta files."""

    spec: Spec | None = None
    parts: dict[str, list[tuple[str, int]]] = dataclasses.field(default_factory=dict)
    """LeRobotFeature -> the states that lie side by side in it, with their widths."""
    env_args: dict[str, Any] = dataclasses.field(default_factory=dict)
    provenance: str = ""


def read_own(folder: LeRobotFolder) -> OwnStatement:
    """``meta/flowpolicy.json``; says nothing where there is none.

    Raises:
        DataError: it is not understood.

    """
    if not folder.exists(OWN):
        return OwnStatement()
    value = folder.read_object(OWN)
    try:
        if value["schema"] != 1:
            raise folder.error(f"{OWN} has the schema {str(value['schema'])[:20]!r}", expected="1")
        spec = read_spec(value["spec"], OWN)
        parts = {
            str(feature): [(str(key), int(width)) for key, width in states]
            for feature, states in value["parts"].items()
        }
        env_args, provenance = value.get("env_args", {}), value.get("provenance", "")
        if not isinstance(env_args, dict) or not isinstance(provenance, str):
            raise TypeError("env_args or provenance")
    except ConfigError as error:
        raise folder.error(f"{OWN}: {error.what}", expected=error.expected, fix=error.fix) from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise folder.error(f"{OWN} is not understood: {error}"[:200], fix="restore it, or delete it") from error
    return OwnStatement(spec, parts, env_args, provenance)
