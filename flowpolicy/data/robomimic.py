"""RoboMimic HDF5 (Mandlekar et al., "What Matters in Learning from Offline Human Demonstrations", 2021).

``data/demo_i`` holds ``actions``, ``rewards``, ``dones``, ``states``, ``obs/*`` and ``next_obs/*`` with the
attributes ``num_samples`` and ``model_file``; ``data`` has the attributes ``total`` and ``env_args`` (JSON);
``mask/<filter>`` lists the episodes that a filter key selects.

RoboMimic writes ``dones`` = 1 at success, at the end of a trajectory, or both (``done_mode`` 0, 1, 2) and
does not store which. An end without success is a truncation, so ``mask`` is 0 only where ``dones`` is 1
*and* the reward is that of success: ``reward_scale`` (1 unless ``env_args`` says otherwise). Files that were converted
from formats in which a task can end otherwise say where it did, in ``terminals``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from flowpolicy.core import keys
from flowpolicy.core.errors import DataError, nearest
from flowpolicy.core.files import unchanged_sha256
from flowpolicy.core.spec import INSTRUCTION, UNSTATED, ObservationSpec, Spec, instruction_spec
from flowpolicy.data.controllers import action_of, robot_of
from flowpolicy.data.hdf5 import (
    EpisodeColumns,
    arrays_below,
    choose_keys,
    json_attribute,
    low_dim_keys,
    open_hdf5,
    read_array,
    read_attribute,
    require_flags,
    require_group,
    require_names,
    require_steps,
    unread_keys,
)
from flowpolicy.data.hdf5_frames import Hdf5Frames, find_cameras, holds_pictures, readable_cameras, stated_image
from flowpolicy.data.stored_episode import StoredEpisode, pictures_of_episode

EPISODES_SHA256 = "episodes_sha256"
"""Attribute of an index of episode files: JSON, name of the file beside it -> its hash."""
TERMINALS = "terminals"
"""Array beside ``dones`` that says where a task ended, in converted files, whose rewards do not tell."""
_ROBOSUITE = 1  # robomimic.envs.env_base.EnvType.ROBOSUITE_TYPE


class RobomimicRecording:
    """An open RoboMimic file.

    Args:
        file: the open file.
        path: named in errors.
        filter_key: name in ``mask/``; empty selects every episode.
        obs_keys: observations to read; empty selects every low-dimensional one. Pictures are read where they are named,
            and so is 'instruction', which the texts of the episodes are made of.
        cameras: cameras whose pictures are read too, by their names or those of their observations.

    """

    format = "robomimic"

    def __init__(
        self,
        file: h5py.File,
        path: Path,
        filter_key: str = "",
        obs_keys: Sequence[str] = (),
        cameras: Sequence[str] = (),
    ) -> None:
        self.path = path
        self.data = require_group(file, "data", path)
        require_names(self.data, path)
        _require_linked_files(self.data, path)
        self._masks = _read_masks(file, path)
        self.filters = {name: len(chosen) for name, chosen in self._masks.items()}
        self.names = self._select(filter_key)
        first = self._demo(self.names[0])
        told = INSTRUCTION in obs_keys and INSTRUCTION not in first["obs"]
        pictures = [key for key in obs_keys if holds_pictures(first["obs"].get(key))]
        pictures += [key for key in find_cameras(first["obs"], cameras, path) if key not in pictures]
        states = [key for key in obs_keys if key not in pictures and not (told and key == INSTRUCTION)]
        seeing = not low_dim_keys(first["obs"])  # pictures are all that it observes
        if seeing and not obs_keys:
            pictures = pictures or readable_cameras(first["obs"], path)
        alone = bool(pictures or told) and not states and (seeing or bool(obs_keys))
        self.obs_keys = [] if alone else choose_keys(first["obs"], states, path)
        self._texts = [self._text(name) for name in self.names] if told else []
        self.instructions = tuple(dict.fromkeys(self._texts))
        """Texts of the episodes, each once; where they are read."""
        self.unread = {key: why for key, why in unread_keys(first["obs"]).items() if key not in pictures}
        self.lengths = tuple(self._steps(name) for name in self.names)
        self.remarks = tuple(self._contradictions())
        self.env_args = json_attribute(self.data, "env_args", path)
        self.success_reward = success_reward(self.env_args)
        self.provenance = str(read_attribute(self.data, "provenance", path, ""))
        units = observation_units(self.env_args)
        shapes = {key: ObservationSpec((_width(first["obs"][key]),), units.get(key, UNSTATED)) for key in self.obs_keys}
        groups = {name: self._demo(name) for name in sorted(self._episodes, key=_number)} if pictures else {}
        self.frames = {key: Hdf5Frames(groups, key, self.names, path) for key in pictures}
        """Pictures that are read, by observation."""
        seen = {key: stated_image(key, source.size, self.env_args, path) for key, source in self.frames.items()}
        named = {**shapes, **seen, **({INSTRUCTION: instruction_spec(self.instructions)} if told else {})}
        self.spec = Spec(
            observation={key: named[key] for key in dict.fromkeys((*obs_keys, *named))},
            action=self._stated(action_of, int(first["actions"].shape[1])),
            env_id=_env_id(self.env_args),
            env_version=str(self.env_args.get("env_version") or UNSTATED),
            robot=self._stated(robot_of),
            tool=str(self.env_args.get("tool") or UNSTATED),
        )

    def _stated(self, read: Callable[..., Any], *args: Any) -> Any:
        """What ``env_args`` say; errors name the file."""
        try:
            return read(self.env_args, *args)
        except DataError as error:
            raise DataError(f"{self.path}: {error.what}", expected=error.expected, fix=error.fix) from error

    def episode(self, index: int) -> EpisodeColumns:
        """Columns of the episode ``names[index]``."""
        name, steps = self.names[index], self.lengths[index]
        demo = self._demo(name)
        where = f"data/{name}"
        action = read_array(demo, "actions", self.path)
        require_steps(action.shape, steps, 2, f"{where}/actions", self.path)
        reward, ended = self._rewards_and_ends(demo, name, steps)
        obs = {}
        for key in self.obs_keys:
            value = read_array(demo["obs"], key, self.path)
            value = value[:, None] if value.ndim == 1 else value
            require_steps(value.shape, steps, 2, f"{where}/obs/{key}", self.path)
            obs[key] = value.astype(np.float32)
        task = np.full(steps, self.instructions.index(self._texts[index])) if self._texts else None
        if task is not None:
            obs[INSTRUCTION] = np.eye(len(self.instructions), dtype=np.float32)[task]
        return EpisodeColumns(
            obs=obs,
            action=action.astype(np.float32),
            reward=reward.astype(np.float32),
            mask=1.0 - ended.astype(np.float32),
            task=task,
        )

    def _text(self, name: str) -> str:
        """The instruction of an episode, which is to be used."""
        if not (text := instruction_of(self._demo(name), self.path)):
            raise DataError(
                f"{self.path}: data/{name} has no instruction",
                expected="a text in its attribute 'instruction', or 'lang' in its 'ep_meta'",
                fix="leave 'instruction' out of --data.obs-keys, or the episode",
            )
        return text

    @property
    def cameras(self) -> list[str]:
        """Cameras of which every picture of the first episode can be read."""
        return readable_cameras(self._demo(self.names[0])["obs"], self.path)

    def stored(self, index: int) -> StoredEpisode:
        """The episode ``names[index]`` with everything that its group holds, linked files excepted."""
        name, steps = self.names[index], self.lengths[index]
        demo = self._demo(name)
        reward, ended = self._rewards_and_ends(demo, name, steps)
        obs = {key: self._rows(demo, f"obs/{key}", name, steps) for key in self.obs_keys}
        after = {key: self._rows(demo, f"next_obs/{key}", name, steps) for key in obs if f"next_obs/{key}" in demo}
        follows = after.keys() == obs.keys() and all(
            value.shape == obs[key].shape and np.array_equal(value[:-1], obs[key][1:], equal_nan=True)
            for key, value in after.items()
        )
        states = self._rows(demo, "states", name, steps) if "states" in demo else None
        model = read_attribute(demo, "model_file", self.path)
        known = {"actions", "rewards", TERMINALS, *(f"obs/{key}" for key in (*obs, *self.frames))}
        known |= {f"next_obs/{key}" for key in after} if follows else set()
        known |= {"states"} if states is not None else set()
        return StoredEpisode(
            name=name,
            obs=obs,
            action=read_array(demo, "actions", self.path),
            reward=reward,
            terminated=ended,
            last_obs={key: value[-1] for key, value in after.items()} if follows else {},
            pictures={key: pictures_of_episode(source, name, steps) for key, source in self.frames.items()},
            success=bool((reward >= self.success_reward).any()) if states_success(self.env_args) else None,
            states=states,
            model_xml=None if model is None else str(model),
            text=instruction_of(demo, self.path),
            filters=tuple(key for key, chosen in self._masks.items() if name in chosen),
            aside={place: node for place, node in arrays_below(demo).items() if place not in known},
            notes={
                key: read_attribute(demo, key, self.path)
                for key in demo.attrs
                if key not in ("num_samples", "model_file", INSTRUCTION)
            },
        )

    def _rewards_and_ends(self, demo: h5py.Group, name: str, steps: int) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Rewards (T,) as they are stored, and where the task ended (T,)."""
        where = f"data/{name}"
        reward, done = (read_array(demo, key, self.path) for key in ("rewards", "dones"))
        require_steps(reward.shape, steps, 1, f"{where}/rewards", self.path)
        require_steps(done.shape, steps, 1, f"{where}/dones", self.path)
        ended = require_flags(done, f"{where}/dones", self.path) & (reward >= self.success_reward)
        if TERMINALS in demo:
            stated = read_array(demo, TERMINALS, self.path)
            require_steps(stated.shape, steps, 1, f"{where}/{TERMINALS}", self.path)
            ended = require_flags(stated, f"{where}/{TERMINALS}", self.path)
        return reward, ended

    def _rows(self, demo: h5py.Group, key: str, name: str, steps: int) -> NDArray[Any]:
        value = read_array(demo, key, self.path)
        require_steps(value.shape, steps, value.ndim, f"data/{name}/{key}", self.path)
        return value

    def key(self, index: int, column: str, name: str = "") -> str:
        """Path of a column of an episode in the file."""
        place = "instruction" if name == INSTRUCTION and self._texts else f"obs/{name}"
        parts = {keys.OBS: place, keys.ACTION: "actions", keys.REWARD: "rewards"}
        return f"data/{self.names[index]}/{parts[column]}"

    def _select(self, filter_key: str) -> tuple[str, ...]:
        names = self._episodes
        if not names:
            raise DataError(f"{self.path}: data holds no episode", expected="groups data/demo_0, data/demo_1, ...")
        if filter_key:
            if filter_key not in self.filters:
                known = nearest(filter_key, self.filters) if self.filters else "this file has no filter keys"
                raise DataError(f"{self.path}: the filter key mask/{filter_key} does not exist", expected=known)
            chosen = self._masks[filter_key]
            if not chosen:
                raise DataError(
                    f"{self.path}: the filter key mask/{filter_key} selects no episode",
                    fix=f"choose another one ({', '.join(self.filters)}) or none",
                )
            for name in chosen:
                if name not in names:
                    raise DataError(f"{self.path}: mask/{filter_key} names {name}, but data/{name} is missing")
            if len(set(chosen)) < len(chosen):
                raise DataError(f"{self.path}: mask/{filter_key} names an episode twice", expected="every one once")
            names = chosen
        return tuple(sorted(names, key=_number))

    @functools.cached_property
    def _episodes(self) -> list[str]:
        return [name for name, node in self.data.items() if isinstance(node, h5py.Group)]

    def _contradictions(self) -> Iterator[str]:
        """What the file says of itself and is not so."""
        known = set(self._episodes)
        for name, chosen in self._masks.items():
            if missing := [episode for episode in chosen if episode not in known]:
                yield f"mask/{name} names episodes that the file does not hold: {_few(missing)}"
            if len(set(chosen)) < len(chosen):
                yield f"mask/{name} names an episode twice"
        if both := sorted(set(self._masks.get("train", ())) & set(self._masks.get("valid", ())), key=_number):
            yield f"mask/train and mask/valid share episodes: {_few(both)}"
        stated = read_attribute(self.data, "total", self.path)
        arrays = [self.data[name].get("actions") for name in known]
        rows = sum(len(node) for node in arrays if isinstance(node, h5py.Dataset) and node.shape)
        if stated is not None and not np.array_equal(stated, rows):
            yield f"the attribute total says {stated} steps, and the episodes hold {rows}"

    def _demo(self, name: str) -> h5py.Group:
        demo = require_group(self.data, name, self.path)
        if not isinstance(demo.get("obs"), h5py.Group):
            raise DataError(
                f"{self.path}: data/{name} has no observations (data/{name}/obs); it holds {', '.join(map(str, demo))}",
                expected="the RoboMimic layout; a raw robosuite recording stores simulator states only",
                fix="compute them from the states: flowpolicy data observe FILE --out OUT",
            )
        return demo

    def _steps(self, name: str) -> int:
        demo, key = self._demo(name), f"data/{name}/actions"
        node = demo.get("actions")
        if not isinstance(node, h5py.Dataset):
            raise DataError(f"{self.path}: {key} is missing", expected=f"found: {', '.join(map(str, demo))}")
        width = self._demo(self.names[0])["actions"].shape[-1]
        if node.ndim != 2 or node.shape[0] == 0 or node.shape[1] != width:
            raise DataError(f"{self.path}: {key} has shape {node.shape}", expected=f"(steps, {width}), steps > 0")
        stated = read_attribute(demo, "num_samples", self.path, node.shape[0])
        if not np.array_equal(stated, node.shape[0]):
            raise DataError(f"{self.path}: {key} has {node.shape[0]} rows, but num_samples says {stated}")
        return int(node.shape[0])


def _read_masks(file: h5py.File, path: Path) -> dict[str, list[str]]:
    """Filter key -> names of the episodes that it selects."""
    masks = file.get("mask")
    if masks is None:
        return {}
    if not isinstance(masks, h5py.Group):
        raise DataError(f"{path}: mask is no group", expected="arrays of episode names in mask/")
    found = {}
    for name, node in masks.items():
        if not isinstance(node, h5py.Dataset) or node.ndim != 1 or not _is_text(node):
            raise DataError(f"{path}: mask/{name} is no list of episode names", expected="text, one name each")
        try:
            found[name] = [bytes(value).decode() if isinstance(value, bytes) else str(value) for value in node[()]]
        except (OSError, RuntimeError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: mask/{name} cannot be read: {error}", fix="write the mask anew") from error
    return found


def _is_text(node: h5py.Dataset) -> bool:
    return h5py.check_string_dtype(node.dtype) is not None or node.dtype.kind == "S"


def _require_linked_files(data: h5py.Group, path: Path) -> None:
    """Raise unless the files that an index links to are all here, and those that it was made of.

    The hash of the index stands for the data only because of this: what HDF5 cannot follow it leaves out in silence.
    """
    stated = json_attribute(data, EPISODES_SHA256, path)
    gone = [name for name in stated if not (path.parent / name).is_file()]
    here = {name: path.parent / name for name in stated if name not in gone}
    changed = [name for name, file in here.items() if unchanged_sha256(file) != stated[name]]
    if not stated:
        links = [data.get(name, getlink=True) for name in data]
        files = {link.filename for link in links if isinstance(link, h5py.ExternalLink)}
        gone = sorted(name for name in files if not (path.parent / name).is_file())
    if gone or changed:
        named = [f"{what}: {_few(names)}" for what, names in (("missing", gone), ("changed", changed)) if names]
        raise DataError(
            f"{path} is an index of episode files, and these are not what it was made of; {'; '.join(named)}",
            expected="the folder that `flowpolicy robot record` wrote, copied as a whole",
            fix=f"bring the files back; or accept what is there now: flowpolicy robot salvage {path.parent}",
        )


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def observation_units(env_args: dict[str, Any]) -> dict[str, str]:
    """What a file says of its observations, in words; only recordings of the arm do."""
    stated = env_args.get("observation_units")
    if isinstance(stated, dict):
        return {key: words for key, words in stated.items() if isinstance(words, str)}
    if str(env_args.get("env_name", "")).startswith("franka/"):
        # Recordings of before say nothing, and their quaternions change sign where the tool points straight down.
        return {"robot0_eef_quat": "flange in the base frame, x y z w, w >= 0"}
    return {}


def instruction_of(demo: h5py.Group, path: Path) -> str:
    """The text of an episode's task: of converted files its attribute, else robosuite's word in ``ep_meta``."""
    if said := str(read_attribute(demo, INSTRUCTION, path, "")):
        return said
    try:
        return str(json_attribute(demo, "ep_meta", path).get("lang") or "")
    except DataError:  # somebody else's word, which is kept as it is
        return ""


def states_success(env_args: dict[str, Any]) -> bool:
    """Whether a file says what a success is; one that was converted from a format that does not, says so."""
    return bool(env_args) and env_args.get("success") != UNSTATED


def success_reward(env_args: dict[str, Any]) -> float:
    """Smallest reward that counts as success: robosuite scales every task's best reward to ``reward_scale``."""
    scale = (env_args.get("env_kwargs") or {}).get("reward_scale", 1.0)
    return (1.0 if scale is None else float(scale)) - 1e-6


def read_initial_state(path: Path, name: str) -> tuple[NDArray[Any], str]:
    """Simulator state (n,) at the start of an episode and the XML of its model ("" when not stored)."""
    with open_hdf5(path) as file:
        demo = require_group(require_group(file, "data", path), name, path)
        states = read_array(demo, "states", path)
        return states[0], str(read_attribute(demo, "model_file", path, ""))


class StoredState(NamedTuple):
    """Where an episode stood before one of its actions."""

    state: NDArray[Any]
    """(n,) flat simulator state."""
    model_xml: str
    """The model; empty when not stored."""
    actions: NDArray[Any]
    """(t, a) the actions before it: a gripper remembers them, and the state does not hold that."""


def read_stored_state(path: Path, name: str, step: int) -> StoredState:
    """The simulator state before action ``step`` of an episode.

    Raises:
        DataError: the file holds no simulator states, or the episode is shorter.

    """
    with open_hdf5(path) as file:
        demo = require_group(require_group(file, "data", path), name, path)
        states, actions = read_array(demo, "states", path), read_array(demo, "actions", path)
        if not 0 <= step < len(states):
            raise DataError(f"{path}: data/{name}/states has {len(states)} rows", expected=f"a row {step}")
        return StoredState(states[step], str(read_attribute(demo, "model_file", path, "")), actions[:step])


def _env_id(env_args: dict[str, Any]) -> str:
    name = env_args.get("env_name")
    if not name:
        return UNSTATED
    return f"robosuite/{name}" if env_args.get("type", _ROBOSUITE) == _ROBOSUITE else str(name)


def _width(node: h5py.Dataset) -> int:
    return int(node.shape[1]) if node.ndim == 2 else 1


def _number(name: str) -> tuple[int, str]:
    """Sort demo_2 before demo_10; names without a number come first, by name."""
    tail = name.rpartition("_")[2]
    return (int(tail) if tail.isdigit() else -1, name)
