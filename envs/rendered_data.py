"""Add pictures to a file of simulator states: every stored state is drawn again.

The file is a RoboMimic one of robosuite or PushT, or robosuite's own ``demo.hdf5`` of states and actions, which gets
observations, rewards and ``dones`` on the way. What is written has RoboMimic's layout: ``obs/<camera>_image``, uint8,
rows top down, one picture a chunk so that one can be read without its neighbours. ``next_obs`` gets none: row t + 1 is
the next picture.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from flowpolicy.core.errors import DataError, FlowPolicyError
from flowpolicy.core.files import held_alone, naming_full_disk, read_json, replacing, unchanged_sha256, write_json
from flowpolicy.core.spec import ImageSpec, image_json
from flowpolicy.data.hdf5 import json_attribute, open_hdf5, read_array, read_attribute, require_group
from flowpolicy.envs.pusht import ENV_ID as PUSHT
from flowpolicy.envs.pusht import PushTConfig, PushTEnv
from flowpolicy.envs.recorded_models import require_known_arguments, require_safe_model
from flowpolicy.envs.robosuite import PICTURE, VERSION, RobosuiteConfig, RobosuiteEnv
from flowpolicy.envs.worker import in_order

STATE_KEYS = (
    "object",
    "robot0_eef_pos",
    "robot0_eef_quat",
    "robot0_gripper_qpos",
    "robot0_gripper_qvel",
    "robot0_joint_pos",
    "robot0_joint_vel",
)
"""Observations that are computed for a file that has none."""
_BLOCK = 16 << 20  # bytes of pictures that are held at a time
_WORK = "work.json"
_RAW = "env_info"  # an attribute that robosuite's own recordings have and RoboMimic's files have not


@dataclasses.dataclass(frozen=True)
class StoredStates:
    """A file of simulator states."""

    path: Path
    names: tuple[str, ...]
    """Episodes, in the file's order."""
    lengths: tuple[int, ...]
    env_args: dict[str, Any]
    """RoboMimic's description of the environment."""
    raw: bool
    """Whether it holds states and actions, and no observations."""
    version: str = ""
    """Release of robosuite that it says it is of."""

    @property
    def steps(self) -> int:
        """States of all episodes."""
        return sum(self.lengths)


def read_source(path: Path) -> StoredStates:
    """What a file holds, without reading its states.

    Raises:
        DataError: it holds no simulator states of robosuite or PushT, or not one per action.

    """
    with open_hdf5(path) as file:
        data = require_group(file, "data", path)
        own = _RAW in data.attrs or (("env" in data.attrs) and "env_args" not in data.attrs)
        env_args = _raw_env_args(data, path) if own else json_attribute(data, "env_args", path)
        name = env_args.get("env_name")
        if not name or (env_args.get("type", 1) != 1 and name != PUSHT):
            raise DataError(
                f"{path} was not recorded in robosuite or PushT: {name or 'it does not say where'}",
                expected="a RoboMimic file of one of them, or robosuite's own demo.hdf5",
            )
        names = tuple(name for name, node in data.items() if isinstance(node, h5py.Group))
        if not names:
            raise DataError(f"{path}: data holds no episode", expected="groups data/demo_0, data/demo_1, ...")
        raw = own or not isinstance(data[names[0]].get("obs"), h5py.Group)
        if raw and name == PUSHT:
            raise DataError(f"{path}: data/{names[0]} has no observations", expected="a file of `flowpolicy data make`")
        lengths = tuple(_steps(data[name], name, path, raw) for name in names)
        return StoredStates(path, names, lengths, env_args, raw, str(env_args.get("env_version") or ""))


def _steps(demo: h5py.Group, name: str, path: Path, raw: bool) -> int:
    states, actions = demo.get("states"), demo.get("actions")
    if not isinstance(states, h5py.Dataset) or not isinstance(actions, h5py.Dataset):
        lacking = "simulator states" if isinstance(actions, h5py.Dataset) else "actions"
        raise DataError(
            f"{path}: data/{name} holds no {lacking}",
            expected="states and actions in every episode: pictures are drawn from states",
            fix="use the raw or low-dimensional file that was recorded with states",
        )
    if states.ndim != 2 or len(states) != len(actions) or not len(actions):
        raise DataError(
            f"{path}: data/{name}/states has shape {states.shape}", expected=f"({len(actions)}, size), one per action"
        )
    if not raw and not isinstance(demo.get("obs"), h5py.Group):
        raise DataError(
            f"{path}: data/{name} has no observations", expected="data/demo_0/obs as in every other episode"
        )
    return len(actions)


def _raw_env_args(data: h5py.Group, path: Path) -> dict[str, Any]:
    """``env_args`` of robosuite's own recording: what it says, and this project's configuration for the rest."""
    said = json_attribute(data, _RAW, path)
    name = str(said.pop("env_name", "") or read_attribute(data, "env", path, ""))
    args = RobosuiteConfig().env_args()
    taken = {key: said[key] for key in ("robots", "controller_configs", "env_configuration") if said.get(key)}
    version = str(read_attribute(data, "repository_version", path, "")) or args["env_version"]
    return {**args, "env_name": name, "env_version": version, "env_kwargs": {**args["env_kwargs"], **taken}}


def render_file(
    source: Path,
    out: Path,
    config: RobosuiteConfig | PushTConfig,
    *,
    compress: bool = False,
    own_model: bool = False,
    workers: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> StoredStates:
    """Write ``source`` with pictures of every state to ``out``, which appears whole or not at all.

    Finished episodes wait in the folder ``.OUT.parts`` beside it: stopped, the same call goes on after them.

    Args:
        source: the file; it is not changed.
        out: file to write; what stands there is replaced.
        config: its cameras, and how they draw; without cameras only observations are computed.
        compress: compress pictures without loss (gzip): about a third of the size, ten times slower to read.
        own_model: put the states into the model of the installed release instead of the stored one.
        workers: processes; one per core unless given, 0 for none.
        progress: called with the number of states that are drawn.

    Raises:
        DataError: the file cannot be drawn again; names the episode.
        FlowPolicyError: not enough space on the disk, other work under way in the same place.

    """
    found = read_source(source)
    if isinstance(config, RobosuiteConfig):
        config = dataclasses.replace(config, task=found.env_args["env_name"])
    images = config.images()
    folder = out.with_name(f".{out.name}.parts")
    work = {
        "source_sha256": unchanged_sha256(source),
        "images": {key: image_json(image) for key, image in images.items()},
        "compress": compress,
        **({"own_model": True} if own_model else {}),
    }
    with held_alone(folder, f"flowpolicy data render --out {out}"):
        _begin(folder, work)
        parts = [
            _Part(folder, name, steps, images, found.raw)
            for name, steps in zip(found.names, found.lengths, strict=True)
        ]
        left = [part for part in parts if not part.finished]
        _require_space(out, found, images, left)
        drawn = found.steps - sum(part.steps for part in left)
        if progress is not None:
            progress(drawn)
        count = min(len(left), len(os.sched_getaffinity(0)) if workers is None else workers)
        create = functools.partial(_Drawer, found, config, source.absolute(), own_model)
        with naming_full_disk(out, "finished episodes are kept: the same command goes on after them"):
            for part, _ in zip(
                left, in_order(create, "draw", [(part,) for part in left], count) if left else (), strict=True
            ):
                drawn += part.steps
                if progress is not None:
                    progress(drawn)
        with replacing(out) as temporary:
            _assemble(temporary, found, images, parts, compress)
    shutil.rmtree(folder, ignore_errors=True)
    return found


def _begin(folder: Path, work: Mapping[str, Any]) -> None:
    """Keep what an earlier call of the same work left, and nothing of another one's."""
    if (folder / _WORK).exists() and read_json(folder / _WORK) == work:
        return
    for path in folder.iterdir():
        if path.name != ".lock":
            path.unlink()
    write_json(folder / _WORK, work)


def _require_space(out: Path, found: StoredStates, images: Mapping[str, ImageSpec], left: Sequence[_Part]) -> None:
    """Refuse a disk on which the parts that are left and the finished file do not fit."""
    frame = sum(image.height * image.width * 3 for image in images.values())
    needed = found.path.stat().st_size + frame * (found.steps + sum(part.steps for part in left))
    free = shutil.disk_usage(out.parent).free
    if needed * 1.02 > free:
        raise FlowPolicyError(
            f"{found.steps:,} x {len(images)} pictures for {out} need {needed / 1e9:.3g} GB, and {free / 1e9:.3g} GB "
            "are free",
            fix="free some space, choose a smaller --size, or write to another disk",
        )


@dataclasses.dataclass(frozen=True)
class _Part:
    """The files of one episode: raw pictures of each camera, and the observations of a file that has none."""

    folder: Path
    name: str
    steps: int
    images: Mapping[str, ImageSpec]
    raw: bool

    @property
    def finished(self) -> bool:
        """Whether every file is there, whole."""
        whole = [self.pictures(key).is_file() for key in self.images]
        return all(whole) and (not self.raw or self.observations.is_file())

    @property
    def observations(self) -> Path:
        return self.folder / f"{self.name}.npz"

    def pictures(self, key: str) -> Path:
        return self.folder / f"{self.name}.{key}"

    def unfinished(self, key: str) -> Path:
        return self.folder / f"{self.name}.{key}.tmp"

    def blocks(self, key: str) -> Iterator[NDArray[np.uint8]]:
        """Pictures of a camera, some at a time."""
        shape = self.images[key].shape
        size = int(np.prod(shape))
        with self.pictures(key).open("rb") as stream:
            while block := stream.read(max(1, _BLOCK // size) * size):
                yield np.frombuffer(block, dtype=np.uint8).reshape(-1, *shape)


class _Drawer:
    """Draws episodes; lives in a worker process.

    Args:
        found: the source.
        config: cameras and settings.
        source: its place.
        own_model: put the states into the installed release's model.

    """

    def __init__(
        self, found: StoredStates, config: RobosuiteConfig | PushTConfig, source: Path, own_model: bool
    ) -> None:
        self._source, self._version, self._own_model, self._steps_alike = source, found.version, own_model, False
        self._env: RobosuiteEnv | PushTEnv
        if isinstance(config, PushTConfig):
            self._env = PushTEnv(dataclasses.replace(config, horizon=0))
            return
        default = RobosuiteConfig().env_args()["env_kwargs"]["controller_configs"]
        env_args = require_known_arguments(found.env_args, default, source)
        stated = env_args["env_kwargs"].get("controller_configs")
        self._steps_alike = not own_model and stated is not default and _same_release(found.version)
        keys = STATE_KEYS if found.raw else ()
        try:
            self._env = RobosuiteEnv(env_args, keys, 0, config.cameras, config.render)
            if found.raw:
                self._env.reset(0)
        except FlowPolicyError:
            raise
        except Exception as error:  # robosuite raises whatever its parts raise
            raise DataError(
                f"{source}: robosuite cannot make the environment {env_args['env_name']} with one robot that has "
                f"{', '.join(keys) or 'cameras'}: {type(error).__name__}: {error}",
                expected=f"a task of robosuite {VERSION} with an arm and a gripper",
            ) from error

    def draw(self, part: _Part) -> None:
        """Write the files of one episode."""
        with open_hdf5(self._source) as file:
            demo = require_group(require_group(file, "data", self._source), part.name, self._source)
            states, actions = (read_array(demo, key, self._source) for key in ("states", "actions"))
            model = "" if self._own_model else str(read_attribute(demo, "model_file", self._source, ""))
        where = f"{self._source}, {part.name}"
        if wrong := np.flatnonzero(~np.isfinite(states).all(axis=1)).tolist():
            raise DataError(f"{where}: row {wrong[0]} of states holds NaN or infinity", fix="leave the episode out")
        if model:
            require_safe_model(model, where)
        try:
            self._env.load(model, states[0])
        except Exception as error:  # robosuite raises whatever a model of another release makes it raise
            raise DataError(
                f"{self._source}: the model of {part.name} cannot be loaded: {type(error).__name__}: {error}",
                expected=f"a file of robosuite {VERSION}, and it says {self._version or 'nothing'}",
                fix="put the states into the model of the installed release, whose objects and mounts may have other "
                "sizes: --own-model",
            ) from error
        streams = {key: part.unfinished(key).open("wb") for key in part.images}
        try:
            for state in states if streams else ():
                self._env.put(state)
                for key, picture in self._env.look().items():
                    streams[key].write(picture.data)
        finally:
            for stream in streams.values():
                stream.close()
        if part.raw and isinstance(self._env, RobosuiteEnv):
            _write_observations(part.observations, self._env, model, states, actions if self._steps_alike else None)
        for key in part.images:
            part.unfinished(key).replace(part.pictures(key))


def _same_release(version: str) -> bool:
    """Whether a release simulates as the installed one does: the first two numbers are the same, or it is unknown."""
    return not version or version.split(".")[:2] == VERSION.split(".")[:2]


def _write_observations(
    path: Path, env: RobosuiteEnv, model: str, states: NDArray[Any], actions: NDArray[Any] | None
) -> None:
    """Observations before and after every action, its reward, and whether the task was solved or the episode over.

    Without ``actions``, those of another release, the last one is not simulated: what followed it stays unknown.
    """
    seen, rewards, solved = [env.load(model, states[0])], [], []
    still = np.zeros(env.sim_env.action_dim)
    for row in range(len(states)):
        if row + 1 < len(states):
            env.put(states[row + 1])
            seen.append(env.observe())
        elif actions is not None:  # where the last action led was not recorded
            env.load(model, states[row])
            seen.append(env.step(actions[row]).obs)
        rewards.append(env.reward(still if actions is None else actions[row]))
        solved.append(env.success())
    dones = np.array(solved, dtype=np.int64)
    dones[-1] = 1
    keys = [key for key, value in seen[0].items() if value.size]  # a tool without fingers has no positions of them
    columns = {f"obs/{key}": np.stack([one[key] for one in seen[: len(states)]]) for key in keys}
    if actions is not None:
        columns |= {f"next_obs/{key}": np.stack([one[key] for one in seen[1:]]) for key in keys}
    with replacing(path) as temporary, temporary.open("wb") as stream:
        np.savez(stream, rewards=np.array(rewards, dtype=np.float64), dones=dones, **columns)


def _assemble(
    path: Path, found: StoredStates, images: Mapping[str, ImageSpec], parts: Sequence[_Part], compress: bool
) -> None:
    """Copy the source and put the pictures in."""
    options: dict[str, Any] = {"compression": "gzip", "compression_opts": 1} if compress else {}
    with open_hdf5(found.path) as source, h5py.File(path, "w") as file:
        for name, node in source.items():
            if name != "data":
                source.copy(node, file, name)
        data = file.create_group("data")
        _copy_attributes(source["data"], data)
        data.attrs["env_args"] = json.dumps(_described(found.env_args, images), indent=4)
        data.attrs["rendered_from_sha256"] = unchanged_sha256(found.path)
        data.attrs["total"] = found.steps
        for part in parts:
            demo = data.create_group(part.name)
            _copy_episode(source["data"][part.name], demo, images)
            if part.raw:
                with np.load(part.observations) as columns:
                    for key, column in columns.items():
                        if key not in demo:  # rewards and dones that the file has are its own
                            demo.create_dataset(key, data=column, track_times=False)
            demo.attrs["num_samples"] = part.steps
            for key, image in images.items():
                node = demo.create_dataset(
                    f"obs/{key}",
                    (part.steps, *image.shape),
                    np.uint8,
                    chunks=(1, *image.shape),
                    track_times=False,
                    **options,
                )
                row = 0
                for block in part.blocks(key):
                    node[row : row + len(block)] = block
                    row += len(block)


def _copy_episode(source: h5py.Group, demo: h5py.Group, images: Mapping[str, ImageSpec]) -> None:
    """Everything but older pictures of the same cameras."""
    _copy_attributes(source, demo)
    for name, node in source.items():
        if isinstance(node, h5py.Group) and name in ("obs", "next_obs"):
            inner = demo.create_group(name)
            for key, column in node.items():
                if key not in images:
                    source.copy(column, inner, key)
        else:
            source.copy(node, demo, name)


def _copy_attributes(source: h5py.Group, target: h5py.Group) -> None:
    for name, value in source.attrs.items():
        target.attrs[name] = value


def _described(env_args: Mapping[str, Any], images: Mapping[str, ImageSpec]) -> dict[str, Any]:
    """``env_args`` with the pictures: in RoboMimic's words for its tools, and in ours, which say how they are drawn."""
    if not images:
        return dict(env_args)
    cameras = {
        "camera_names": [key.removesuffix(PICTURE) for key in images],
        "camera_heights": [image.height for image in images.values()],
        "camera_widths": [image.width for image in images.values()],
        "camera_depths": False,
        "use_camera_obs": True,
        "has_offscreen_renderer": True,
    }
    said = {**env_args.get("images", {}), **{key: image_json(image) for key, image in images.items()}}
    return {**env_args, "env_kwargs": {**env_args.get("env_kwargs", {}), **cameras}, "images": said}
