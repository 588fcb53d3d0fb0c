"""One flat :class:`Dataset` from a file in any known format, memory-mapped when it is large."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from flowpolicy.core import keys
from flowpolicy.core.columns import Columns
from flowpolicy.core.config import changed
from flowpolicy.core.errors import ConfigError, DataError, DataWarning
from flowpolicy.core.files import cache_root, remembered_sha256, unchanged_sha256
from flowpolicy.core.ranges import Finite, Natural, Positive
from flowpolicy.core.spec import ImageSpec, Spec, read_spec, spec_json
from flowpolicy.data.column_cache import (
    Layout,
    Rows,
    column_folder,
    found_again,
    layout_json,
    map_columns,
    mapped,
    read_layout,
    size_of,
)
from flowpolicy.data.d4rl import D4RLRecording
from flowpolicy.data.frame_conversion import FrameKeeping, is_jpeg, jpeg_remark, open_frames
from flowpolicy.data.frames import FrameStore
from flowpolicy.data.hdf5 import EpisodeColumns, Recording, open_hdf5
from flowpolicy.data.lerobot_recording import ActionConvention, LeRobotRecording, is_lerobot
from flowpolicy.data.minari import MAIN_FILE, MinariRecording, is_minari
from flowpolicy.data.ogbench import OGBenchRecording, is_npz, open_npz
from flowpolicy.data.remote_data import data_place
from flowpolicy.data.robomimic import RobomimicRecording
from flowpolicy.data.thumbnails import thumbnail, write_thumbnail
from flowpolicy.data.zarr_recording import ZarrRecording, is_zarr

_THUMBNAILS = 20
"""Episodes whose first pictures are looked at."""


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which file to learn from."""

    path: str = ""
    """Dataset: RoboMimic, D4RL or Minari HDF5, OGBench npz, a LeRobot folder, or diffusion_policy's zarr; told apart by
    content. s3://, gs://, https:// and hf://datasets/USER/NAME@REVISION are fetched into the cache folder."""
    filter_key: str = ""
    """RoboMimic filter key that selects episodes, e.g. 'better'; in OGBench files the task whose rewards are read,
    e.g. 'task3'; in LeRobot folders a split, or numbers of episodes, e.g. '0:100' or '3,7,20:30'. Empty means all, and
    the default task."""
    obs_keys: tuple[str, ...] = ()
    """Observations to use, in this order; empty means every low-dimensional one. Pictures are read where they are
    named, here or in ``cameras``. 'instruction' is made of the texts of the episodes (LeRobot, RoboMimic)."""
    cameras: tuple[str, ...] = ()
    """Cameras whose pictures are used too, e.g. 'agentview robot0_eye_in_hand'. RoboMimic files and LeRobot folders."""
    action_convention: ActionConvention = ""
    """What an action of a LeRobot folder is, for which the format has no word; empty leaves it unstated. The doctor
    guesses. The contract records it."""
    reward_shift: Finite = 0.0
    """Added to every reward of the file. -1 for D4RL's AntMaze, whose rewards are 0 and 1."""
    reward_scale: Positive | Literal["return_range"] = 1.0
    """Factor of every reward, after the shift: a number, or 'return_range' for 1000 / (largest - smallest return of an
    episode), as is published for IQL on D4RL's locomotion. The contract keeps the number."""
    accept: tuple[Literal["unstated", "env_version", "frame", "controller", "robot"], ...] = ()
    """Accept a RoboMimic file that does not say how its actions are executed ('unstated'), or that differs from the
    environment in the simulator's version, the frame of the action, the controller's gains or the robot. The contract
    records it."""
    short_episodes: Literal["refuse", "pad"] = "refuse"
    """Episodes shorter than a chunk: refuse the file, or repeat their last action (masked out of the loss)."""
    memory_limit_mb: Natural = 2048
    """Datasets larger than this are memory-mapped from a cache folder instead of held in memory."""
    frame_store: FrameKeeping = "auto"
    """How the frames of a camera are kept in the cache folder: 'raw', every pixel; 'jpeg', of quality 95, about a
    sixth of the space, a few times slower to read and not quite the same pixels; 'auto', raw up to 16 GiB a camera."""
    verify: bool = False
    """Read a large file anew for its hash. Otherwise size, times and inode tell whether it is still the one that was
    hashed before; files below 64 MiB are always hashed."""

    def __post_init__(self) -> None:
        if twice := [key for key in dict.fromkeys(self.obs_keys) if self.obs_keys.count(key) > 1]:
            raise ConfigError(f"--data.obs-keys names '{twice[0]}' twice", expected="every observation once")


@dataclasses.dataclass(repr=False)
class Dataset:
    """N time steps of E episodes, one after the other."""

    steps: Columns
    """N rows under the names of :mod:`flowpolicy.core.keys`."""
    lengths: Tensor
    """(E,) int64 steps per episode, in row order."""
    names: tuple[str, ...]
    """Episode names in the file, e.g. 'demo_0'."""
    spec: Spec
    """What the file says about observations and actions."""
    env_args: dict[str, Any]
    """RoboMimic's description of the environment; empty for other formats."""
    path: Path
    """The file."""
    sha256: str
    """Hash of the file."""
    filter_key: str
    """Filter key that selected the episodes; empty means all."""
    format: str = ""
    """'robomimic', 'd4rl', 'minari', 'ogbench', 'lerobot' or 'zarr'."""
    frames: dict[str, FrameStore] = dataclasses.field(default_factory=dict)
    """Pictures by observation, a frame per step: in files, and not among ``steps``."""
    reward_scale: float = 1.0
    """Factor that the rewards among ``steps`` have been multiplied by."""
    unread: dict[str, str] = dataclasses.field(default_factory=dict)
    """Observations that the file holds and that were not read, and why."""
    instructions: tuple[str, ...] = ()
    """Texts that rows follow, by their number in the column 'task'; empty where the file has none."""
    remarks: tuple[str, ...] = ()
    """What contradicts itself in the file, or had to be assumed to read it."""
    memory_mapped: bool = False
    """Whether the columns live in files rather than in memory."""
    config: DataConfig = dataclasses.field(default_factory=DataConfig)
    """With which options it was read."""

    @property
    def starts(self) -> Int64[Tensor, " episodes"]:
        """First row of each episode."""
        return self.lengths.cumsum(0) - self.lengths

    def __repr__(self) -> str:
        episodes, obs = len(self.lengths), self.spec.observation.items()
        shapes = ", ".join(f"{key} {tuple(value.shape)}" for key, value in obs)
        return (
            f"<Dataset {self.path}: {episodes:,} episodes, {self.steps.rows:,} steps; "
            f"{shapes} -> action ({self.spec.action.size},)>"
        )


def with_thumbnails(dataset: Dataset) -> dict[str, ImageSpec]:
    """What is said of the pictures of a dataset, with how they begin: the mean over first pictures of episodes."""
    starts = dataset.starts[:_THUMBNAILS].cpu().numpy()
    return {
        key: dataclasses.replace(image, thumbnail=write_thumbnail(thumbnail(dataset.frames[key].take(starts))))
        if key in dataset.frames
        else image
        for key, image in dataset.spec.images.items()
    }


def load_dataset(config: DataConfig | str | os.PathLike[str], **options: Any) -> Dataset:
    """Read a dataset file, given as its path or with options; every value is checked to be finite.

    Args:
        config: path of the file, or all options.
        options: fields of :class:`DataConfig`, such as ``filter_key="better"``.

    Warns (:class:`~flowpolicy.core.errors.DataWarning`) of what contradicts itself in the file, and of observations
    that are not read although no ``obs_keys`` were chosen.

    Raises:
        ConfigError: there is no such option.
        DataError: naming file, key and remedy, when the file is missing, foreign, truncated or inconsistent,
            holds NaN or infinity, or does not have the filter or observation keys asked for.

    """
    given = config if isinstance(config, DataConfig) else DataConfig(path=os.fspath(config))
    chosen: DataConfig = changed(given, options)
    dataset = _load(chosen, check=True)
    dataset.config = chosen  # with the place that was named, not that of a copy on this machine
    for remark in dataset.remarks:
        warnings.warn(f"{dataset.path} {remark}", DataWarning, stacklevel=2)
    if dataset.unread and not (chosen.obs_keys or chosen.cameras):
        listed = "; ".join(f"{name} ({why})" for name, why in dataset.unread.items())
        warnings.warn(
            f"{dataset.path}: observations that are not read: {listed}; "
            "--data.obs-keys says which to use, --data.cameras which pictures",
            DataWarning,
            stacklevel=2,
        )
    return dataset


def load_unchecked(config: DataConfig) -> Dataset:
    """Like :func:`load_dataset`, but lets NaN and infinity through and warns of nothing, for the doctor to report."""
    return _load(config, check=False)


@contextmanager
def open_recording(config: DataConfig) -> Iterator[Recording]:
    """Open a file with the reader of its format, found by content."""
    if not config.path:
        raise DataError("no dataset file was named", fix="pass --data.path FILE")
    path = data_place(config.path)
    if is_lerobot(path):
        yield LeRobotRecording(path, config.filter_key, config.obs_keys, config.cameras, config.action_convention)
        return
    if config.action_convention:
        raise DataError(
            f"--data.action-convention {config.action_convention} for {path}, which is no LeRobot folder",
            fix="leave it out: what an action is stands in the file or follows from its environment",
        )
    if is_zarr(path):
        yield ZarrRecording(path, config.filter_key, config.obs_keys, config.cameras)
        return
    if path.is_dir() and (path / MAIN_FILE).is_file():
        path = path / MAIN_FILE
    if path.is_dir():
        raise DataError(
            f"{path} is not a file, but a folder, and none of a known layout",
            expected="meta/info.json (LeRobot), data/main_data.hdf5 (Minari) or .zgroup (zarr) in it",
            fix="check the path",
        )
    if config.cameras and not is_npz(path) and not _is_robomimic(path):
        raise DataError(
            f"{path} is read without pictures, and --data.cameras names {', '.join(config.cameras)}",
            expected="a file in RoboMimic's layout: data/demo_0/obs/agentview_image, ...",
            fix="leave --data.cameras out, or convert the file",
        )
    if is_npz(path):
        with open_npz(path) as archive:
            yield OGBenchRecording(archive, path, config.filter_key, config.obs_keys, config.cameras)
        return
    with open_hdf5(path) as file:
        if "data" in file:
            yield RobomimicRecording(file, path, config.filter_key, config.obs_keys, config.cameras)
        elif "observations" in file or "actions" in file:
            yield D4RLRecording(file, path, config.filter_key, config.obs_keys)
        elif is_minari(file):
            yield MinariRecording(file, path, config.filter_key, config.obs_keys)
        else:
            raise DataError(
                f"{path} is in no known layout; it holds {', '.join(map(str, file)) or 'nothing'}",
                expected="RoboMimic (data/demo_0/...), D4RL (observations, actions, ...) or Minari (episode_0/...)",
            )


def _load(config: DataConfig, check: bool) -> Dataset:
    config = _fetched(config)  # once, so that a file that is changed meanwhile is not two
    return _load_again(config, check) or _load_anew(config, check)


def _load_again(config: DataConfig, check: bool) -> Dataset | None:
    """A large dataset from its columns in the cache, its file unopened; None where it must be read."""
    path = Path(config.path)
    digest = "" if config.verify else remembered_sha256(path)
    folder = column_folder(digest, _selection(config, check))
    about = found_again(folder) if digest else None
    if about is None or size_of(layout := read_layout(about["layout"])) <= config.memory_limit_mb << 20:
        return None
    spec = read_spec(about["spec"], str(folder))
    if config.cameras or spec.images:  # whose frames the file names
        return None
    return Dataset(
        steps=as_columns(mapped(folder, layout)),
        lengths=torch.tensor(about["lengths"], dtype=torch.int64),
        names=tuple(about["names"]),
        spec=spec,
        env_args=about["env_args"],
        path=path,
        sha256=digest,
        filter_key=config.filter_key,
        format=about["format"],
        reward_scale=about.get("reward_scale", 1.0),
        unread=about["unread"],
        instructions=tuple(about["instructions"]),
        remarks=tuple(about["remarks"]),
        memory_mapped=True,
        config=config,
    )


def _load_anew(config: DataConfig, check: bool) -> Dataset:
    with open_recording(config) as recording:
        path = Path(config.path)
        digest = sha256_of(recording, path, anew=config.verify)
        scale = _reward_scale(recording, config)
        layout, rows = _layout(recording), _rows(recording, config, scale, check)
        spec = dataclasses.replace(recording.spec, reward_shift=config.reward_shift)
        large = size_of(layout) > config.memory_limit_mb << 20
        if large:
            folder = column_folder(digest, _selection(config, check))
            if found_again(folder) is None:
                map_columns(folder, layout, config.path, rows, _about(recording, spec, layout, scale))
            columns = mapped(folder, layout)
        else:
            columns = {name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in layout.items()}
            row = 0
            for part, steps in zip(rows, recording.lengths, strict=True):
                for name, value in part.items():
                    columns[name][row : row + steps] = torch.from_numpy(value)
                row += steps
        sources, store = getattr(recording, "frames", {}), cache_root() / "frames" / digest
        roots = {key: getattr(source, "root", store) for key, source in sources.items()}
        frames = {
            key: open_frames(roots[key], source, path, recording.names, config.frame_store)
            for key, source in sources.items()
        }
        lossy = [
            jpeg_remark(roots[key], source)
            for key, source in sources.items()
            if config.frame_store == "auto" and is_jpeg(source, "auto")
        ]
        return Dataset(
            steps=as_columns(columns),
            lengths=torch.tensor(recording.lengths, dtype=torch.int64),
            names=recording.names,
            spec=spec,
            env_args=recording.env_args,
            path=path,
            sha256=digest,
            filter_key=config.filter_key,
            format=recording.format,
            reward_scale=scale,
            frames=frames,
            unread=recording.unread,
            instructions=getattr(recording, "instructions", ()),
            remarks=(*recording.remarks, *lossy),
            memory_mapped=large,
            config=config,
        )


def _fetched(config: DataConfig) -> DataConfig:
    """The configuration with a path of this machine."""
    return dataclasses.replace(config, path=str(data_place(config.path))) if config.path else config


def dataset_sha256(config: DataConfig) -> str:
    """Hash of what a dataset is read from: a file, or the files of a folder that the configuration asks for."""
    config = _fetched(config)
    path = Path(config.path)
    if path.is_file():
        return unchanged_sha256(path, anew=config.verify)
    with open_recording(config) as recording:
        return sha256_of(recording, path, anew=config.verify)


def sha256_of(recording: Recording, path: Path, *, anew: bool = False) -> str:
    """Hash of what an open recording is read from."""
    if isinstance(recording, (LeRobotRecording, MinariRecording, ZarrRecording)):
        return recording.sha256(anew=anew)
    return unchanged_sha256(path, anew=anew)


def _selection(config: DataConfig, check: bool) -> Any:
    """What decides, beside the file, which values the columns hold."""
    scaled = [] if config.reward_scale == 1.0 else [config.reward_scale]  # columns of before there was a scale serve on
    said = [config.action_convention] if config.action_convention else []
    return [config.filter_key, config.obs_keys, config.reward_shift, check, *scaled, *said]


def _about(recording: Recording, spec: Spec, layout: Layout, reward_scale: float) -> dict[str, Any]:
    """What a dataset is made of beside its columns and its file, JSON values."""
    return {
        "layout": layout_json(layout),
        "lengths": list(recording.lengths),
        "names": list(recording.names),
        "spec": spec_json(spec),
        "env_args": recording.env_args,
        "format": recording.format,
        "reward_scale": reward_scale,
        "unread": recording.unread,
        "instructions": list(getattr(recording, "instructions", ())),
        "remarks": list(recording.remarks),
    }


def _layout(recording: Recording) -> Layout:
    """Shape and type of every column, under names that also serve as file names."""
    rows = sum(recording.lengths)
    layout: Layout = {
        f"{keys.OBS}.{name}": ((rows, *spec.shape), torch.float32)
        for name, spec in recording.spec.observation.items()
        if spec.kind == "state"
    }
    layout[keys.ACTION] = ((rows, recording.spec.action.size), torch.float32)
    layout[keys.REWARD] = ((rows,), torch.float32)
    layout[keys.MASK] = ((rows,), torch.float32)
    layout[keys.TERMINAL] = ((rows,), torch.bool)
    layout[keys.EPISODE] = ((rows,), torch.int64)
    if getattr(recording, "instructions", ()):
        layout[keys.TASK] = ((rows,), torch.int64)
    return layout


RETURN_RANGE = 1000.0
"""What the returns of a file span when their scale is 'return_range'."""


def _reward_scale(recording: Recording, config: DataConfig) -> float:
    """The factor of every reward, a number."""
    if config.reward_scale != "return_range":
        return float(config.reward_scale)
    every = (recording.episode(index).reward for index in range(len(recording.lengths)))
    returns = [float(np.sum(reward.astype(np.float64) + config.reward_shift)) for reward in every]
    low, high = min(returns), max(returns)
    if not np.isfinite(returns).all():
        return 1.0  # whoever reads the rows says where
    if low == high:
        raise DataError(
            f"{config.path}: the returns of its {len(returns)} episodes reach from {low:g} to {high:g}, which gives "
            "rewards no scale 'return_range'",
            expected="episodes of different returns",
            fix="--data.reward-scale 1, or another number",
        )
    return RETURN_RANGE / (high - low)


def _rows(recording: Recording, config: DataConfig, scale: float, check: bool) -> Iterator[Rows]:
    """The columns of the file, one episode at a time."""
    path = Path(config.path)
    for index, steps in enumerate(recording.lengths):
        episode = recording.episode(index)
        require_layout(episode, recording, index, path)
        if check:
            _require_finite(episode, recording, index, path)
            _require_unshifted(episode, recording, index, config)
        yield {
            **{f"{keys.OBS}.{name}": value for name, value in episode.obs.items()},
            keys.ACTION: episode.action,
            keys.REWARD: (episode.reward + np.float32(config.reward_shift)) * np.float32(scale),
            keys.MASK: episode.mask,
            keys.TERMINAL: np.arange(steps) == steps - 1,
            keys.EPISODE: np.full(steps, index),
            **({} if episode.task is None else {keys.TASK: episode.task}),
        }


def require_layout(episode: EpisodeColumns, recording: Recording, index: int, path: Path) -> None:
    """Refuse an episode whose columns are wider or narrower than those of the first one: copying would spread them."""
    spec, steps = recording.spec, recording.lengths[index]
    states = {name: each for name, each in spec.observation.items() if each.kind == "state"}
    wanted = {(keys.OBS, name): (steps, *each.shape) for name, each in states.items()}
    wanted |= {(keys.ACTION, ""): (steps, spec.action.size), (keys.REWARD, ""): (steps,)}
    found = {(keys.OBS, name): value for name, value in episode.obs.items()}
    found |= {(keys.ACTION, ""): episode.action, (keys.REWARD, ""): episode.reward}
    for (column, name), shape in wanted.items():
        if found[column, name].shape != shape:
            raise DataError(
                f"{path}: {recording.key(index, column, name)} of {recording.names[index]} has the shape "
                f"{found[column, name].shape}",
                expected=f"{shape}, as in {recording.names[0]}",
                fix="remove the episode or record it again",
            )


def _require_finite(episode: EpisodeColumns, recording: Recording, index: int, path: Path) -> None:
    named = {recording.key(index, keys.ACTION): episode.action, recording.key(index, keys.REWARD): episode.reward}
    named |= {recording.key(index, keys.OBS, name): value for name, value in episode.obs.items()}
    for key, value in named.items():
        if not np.isfinite(value).all():
            step = int(np.argwhere(~np.isfinite(value))[0][0])
            raise DataError(
                f"{path}: {key} holds NaN or infinity, first at step {step} of {recording.names[index]}",
                expected="finite numbers",
                fix="remove or repair the episode; `flowpolicy doctor FILE` lists every such place",
            )


def _require_unshifted(episode: EpisodeColumns, recording: Recording, index: int, config: DataConfig) -> None:
    """A shift of -1 is the convention for rewards of 0 and 1, and for no others."""
    if config.reward_shift == -1.0 and not np.isin(episode.reward, (0.0, 1.0)).all():
        wrong = float(episode.reward[~np.isin(episode.reward, (0.0, 1.0))][0])
        raise DataError(
            f"{config.path}: {recording.key(index, keys.REWARD)} holds {wrong:g} in {recording.names[index]}, "
            "but a reward shift of -1 is asked for: the file is shifted already, or belongs to another environment",
            expected="rewards of 0 and 1 (AntMaze)",
            fix="leave --data.reward-shift out",
        )


def _is_robomimic(path: Path) -> bool:
    with open_hdf5(path) as file:
        return "data" in file


def as_columns(flat: Mapping[str, Tensor]) -> Columns:
    """Columns whose observations are named ``obs.<name>``, as those of a dataset."""
    prefix = f"{keys.OBS}."
    obs = {name.removeprefix(prefix): value for name, value in flat.items() if name.startswith(prefix)}
    rest = {name: value for name, value in flat.items() if not name.startswith(prefix)}
    return Columns({keys.OBS: Columns(obs), **rest})
