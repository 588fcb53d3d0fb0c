"""Pictures in RoboMimic's HDF5 layout: what they must look like, and how they are read once, in the file's order."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from flowpolicy.core.errors import ConfigError, DataError, nearest
from flowpolicy.core.spec import UNSTATED, ImageSpec, RenderSpec, read_image
from flowpolicy.data.hdf5 import json_attribute, open_hdf5, require_group, require_numbers
from flowpolicy.data.lerobot_meta import is_lerobot
from flowpolicy.data.lerobot_recording import LeRobotRecording

SUFFIX = "_image"
"""How the pictures of a camera are called: 'agentview_image' of 'agentview'."""

_AS_ROBOSUITE = RenderSpec("mujoco", geoms="visual", msaa=4, reflections="on", shadows="on")
"""How robosuite draws what robomimic's scripts write, unless told otherwise."""


def holds_pictures(node: Any) -> bool:
    """Whether an observation has the dimensions of pictures, whatever else may be wrong with them."""
    return isinstance(node, h5py.Dataset) and node.shape is not None and node.ndim > 2


def find_cameras(group: h5py.Group, cameras: Sequence[str], path: Path) -> list[str]:
    """The observations of the cameras that are named, or named by their key."""
    known = {key.removesuffix(SUFFIX): key for key, node in group.items() if holds_pictures(node)}
    found = []
    for camera in cameras:
        key = known.get(camera.removesuffix(SUFFIX))
        if key is None:
            has = nearest(camera, known) if known else "a file with pictures; this one has none"
            raise DataError(
                f"{path}: there are no pictures of a camera '{camera}' in {group.name[1:]}",
                expected=has,
                fix="draw them from the stored states: flowpolicy data render FILE --cameras NAME ...",
            )
        found.append(key)
    return found


def readable_cameras(group: h5py.Group, path: Path) -> list[str]:
    """The observations that are pictures of three colours in uint8."""
    found = []
    for key, node in group.items():
        if holds_pictures(node):
            with contextlib.suppress(DataError):
                require_pictures(node, key, path)
                found.append(key)
    return found


def require_pictures(node: h5py.Dataset, where: str, path: Path) -> tuple[int, int, int]:
    """(height, width, 3) of the pictures in an array; anything else is an error that says what it is."""
    require_numbers(node, where, path)
    return picture_size(node.dtype, node.shape, where, path)


def picture_size(dtype: np.dtype[Any], shape: tuple[int, ...], where: str, path: Path) -> tuple[int, int, int]:
    """(height, width, 3) of an array (steps, height, width, 3) uint8; an error says what anything else is."""
    found = f"{path}: {where} has shape {shape}"
    wanted = "(steps, height, width, 3), uint8"
    if dtype != np.uint8:
        raise DataError(
            f"{path}: {where} holds pictures of {dtype}",
            expected="uint8, 0 to 255",
            fix="write them as uint8; values from 0 to 1 times 255 before that",
        )
    if len(shape) != 4:
        raise DataError(f"{found}: no pictures", expected=wanted)
    if shape[3] not in (1, 3, 4) and shape[1] in (1, 3, 4):
        raise DataError(
            f"{found}: its colour channels come first", expected=wanted, fix="write them with np.moveaxis(x, 1, 3)"
        )
    if shape[3] != 3:
        kinds = {1: "grey pictures", 4: "pictures with a fourth channel (transparency or depth)"}
        raise DataError(
            f"{found}: {kinds.get(shape[3], 'no colour pictures')}",
            expected=wanted,
            fix="keep the three colours: x[..., :3]" if shape[3] == 4 else "record them in colour",
        )
    if 0 in shape:
        raise DataError(f"{found}: no picture", expected=wanted)
    return (int(shape[1]), int(shape[2]), 3)


def stated_image(key: str, size: tuple[int, int, int], env_args: dict[str, Any], path: Path) -> ImageSpec:
    """What a file says of the pictures of an observation, in ``env_args['images']``, or what is known of such files.

    Raises:
        DataError: it says something else than it holds.

    """
    stated = env_args.get("images")
    if isinstance(stated, dict) and key in stated:
        try:
            image = read_image(stated[key], f"env_args.images.{key}")
        except ConfigError as error:
            raise DataError(f"{path}: {error.what}", expected=error.expected, fix=error.fix) from error
        if image.shape != size:
            raise DataError(
                f"{path}: env_args.images says that {key} has the shape {image.shape}, and it has {size}",
                fix="correct the attribute env_args, or draw the pictures anew",
            )
        return image
    simulated = env_args.get("type") == 1 and bool(env_args.get("env_name"))
    camera = key.removesuffix(SUFFIX) if key.endswith(SUFFIX) else UNSTATED
    return ImageSpec(size, camera=camera, render=_AS_ROBOSUITE if simulated else None)


def pictures_of(path: Path) -> dict[str, ImageSpec]:
    """The pictures that a RoboMimic file or a LeRobot folder holds and what it says of them; else empty.

    Raises:
        DataError: they are no pictures of three colours in uint8.

    """
    if is_lerobot(path):
        return LeRobotRecording(path).pictures
    if not path.is_file() or not h5py.is_hdf5(path):
        return {}
    with open_hdf5(path) as file:
        if not isinstance(file.get("data"), h5py.Group):
            return {}
        data = require_group(file, "data", path)
        demo = next((node for node in data.values() if isinstance(node, h5py.Group)), None)
        obs = demo.get("obs") if demo is not None else None
        if not isinstance(obs, h5py.Group):
            return {}
        env_args = json_attribute(data, "env_args", path)
        found = {}
        for key, node in obs.items():
            if holds_pictures(node):
                size = require_pictures(node, f"{obs.name[1:]}/{key}", path)
                found[key] = stated_image(key, size, env_args, path)
        return found


class Hdf5Frames:
    """The pictures of one observation in all episodes of a file: a source of frames.

    Args:
        episodes: name -> its group, in the order of the store.
        key: of the observation.
        wanted: episodes that are used; what is wrong with others leaves them out.
        path: named in errors.

    Raises:
        DataError: pictures of a used episode are missing, or of another kind or size than those of the first.

    """

    def __init__(self, episodes: dict[str, h5py.Group], key: str, wanted: Sequence[str], path: Path) -> None:
        self.key, self._path = key, path
        self._nodes: dict[str, h5py.Dataset] = {}
        self.size: tuple[int, int, int] = require_pictures(
            self._find(episodes[wanted[0]], wanted[0]), self._where(wanted[0]), path
        )
        used = set(wanted)
        for name, group in episodes.items():
            try:
                self._nodes[name] = self._checked(group, name, wanted[0])
            except DataError:
                if name in used:
                    raise
        self.names = tuple(self._nodes)
        self.lengths = tuple(int(node.shape[0]) for node in self._nodes.values())

    def reading_order(self) -> Sequence[int]:
        """By the place of the first picture in the file."""
        places = [_place(node) for node in self._nodes.values()]
        return sorted(range(len(places)), key=places.__getitem__)

    def blocks(self, episode: int, rows: int) -> Iterator[NDArray[np.uint8]]:
        """Pictures of an episode, a whole number of the file's chunks at a time."""
        name = self.names[episode]
        node = self._nodes[name]
        chunk = node.chunks[0] if node.chunks else 1
        step = max(chunk, rows // chunk * chunk)
        for start in range(0, len(node), step):
            try:
                yield np.asarray(node[start : start + step])
            except (OSError, RuntimeError) as error:
                raise DataError(
                    f"{self._path}: {self._where(name)} cannot be read from picture {start} on: {error}",
                    fix="copy, download or render the file again",
                ) from error

    def _where(self, name: str) -> str:
        return f"data/{name}/obs/{self.key}"

    def _find(self, group: h5py.Group, name: str) -> h5py.Dataset:
        obs = group.get("obs")
        node = obs.get(self.key) if isinstance(obs, h5py.Group) else None
        if not isinstance(node, h5py.Dataset):
            raise DataError(
                f"{self._path}: {self._where(name)} is missing",
                expected="pictures in every episode",
                fix="remove the episode, or draw its pictures: flowpolicy data render",
            )
        return node

    def _checked(self, group: h5py.Group, name: str, first: str) -> h5py.Dataset:
        node = self._find(group, name)
        size = require_pictures(node, self._where(name), self._path)
        if size != self.size:
            raise DataError(
                f"{self._path}: {self._where(name)} has pictures of {size[0]} x {size[1]}",
                expected=f"{self.size[0]} x {self.size[1]}, as in {first}",
                fix="remove the episode, or resize its pictures",
            )
        steps = group["actions"].shape[0] if isinstance(group.get("actions"), h5py.Dataset) else 0
        if node.shape[0] != steps:
            raise DataError(
                f"{self._path}: {self._where(name)} has {node.shape[0]} pictures for {steps} actions",
                expected="one picture per action",
                fix="remove the episode, or record or render it again",
            )
        return node


def _place(node: h5py.Dataset) -> tuple[str, int]:
    """File and byte of the first picture."""
    try:
        place = node.id.get_offset() if node.chunks is None else node.id.get_chunk_info(0).byte_offset
    except (OSError, RuntimeError, ValueError, AttributeError):
        place = None  # compact, or an HDF5 library that does not say
    return (str(node.file.filename), int(place or 0))
