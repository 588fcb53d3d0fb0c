"""A picture of pictures: what the cameras of a file saw, for people to look at before they train."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from flowpolicy.core.errors import DataError
from flowpolicy.core.files import replacing
from flowpolicy.data.hdf5 import open_hdf5
from flowpolicy.data.hdf5_frames import pictures_of
from flowpolicy.data.lerobot_meta import is_lerobot
from flowpolicy.data.lerobot_recording import LeRobotRecording

_EPISODES, _FRAMES = 6, 8


def draw_contact_sheet(path: Path, png: Path) -> None:
    """Up to six episodes of a RoboMimic file or a LeRobot folder, evenly spread: a row for each camera, eight frames.

    Raises:
        DataError: the file holds no pictures.

    """
    images = pictures_of(path)
    if not images:
        raise DataError(f"{path} holds no pictures", fix="draw them: flowpolicy data render FILE --out FILE")
    rows, episodes = _of_folder(path, list(images)) if is_lerobot(path) else _of_file(path, list(images))
    figure = Figure(figsize=(1.2 * _FRAMES + 1.6, 1.25 * len(rows) + 0.5), layout="constrained")
    axes = figure.subplots(len(rows), _FRAMES, squeeze=False)
    for row, (title, frames) in enumerate(rows):
        for place in axes[row]:
            place.set_xticks([])
            place.set_yticks([])
        for place, (step, frame) in zip(axes[row], frames, strict=False):
            place.imshow(frame, interpolation="nearest")
            place.set_title(f"step {step}", fontsize=6, pad=2)
        axes[row, 0].set_ylabel(title, fontsize=6)
    said = "; ".join(f"{key} {image.height} x {image.width}" for key, image in images.items())
    figure.suptitle(f"{path.name}: {episodes} episodes; {said}", fontsize=8)
    with replacing(png) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


Rows = list[tuple[str, list[tuple[int, NDArray[np.uint8]]]]]
"""Episode and camera, and some frames with their steps."""


def _of_file(path: Path, keys: list[str]) -> tuple[Rows, int]:
    """Rows of the sheet and the number of episodes, of a RoboMimic file."""
    rows: Rows = []
    with open_hdf5(path) as file:
        names = [name for name in file["data"] if f"obs/{keys[0]}" in file["data"][name]]
        for name in [names[row] for row in _spread(_EPISODES, len(names))]:
            for key in keys:
                node = file["data"][name][f"obs/{key}"]
                rows.append((_title(name, key), [(step, node[step]) for step in _spread(_FRAMES, len(node))]))
    return rows, len(names)


def _of_folder(path: Path, keys: list[str]) -> tuple[Rows, int]:
    """The same of a LeRobot folder."""
    recording = LeRobotRecording(path)
    chosen = _spread(_EPISODES, len(recording.names))
    found: dict[tuple[int, str], list[tuple[int, NDArray[np.uint8]]]] = {}
    for key in keys:
        source = recording.pictures_in(key, chosen)
        for number in source.reading_order():
            wanted = set(_spread(_FRAMES, source.lengths[number]))
            frames = enumerate(frame for block in source.blocks(number, 16) for frame in block)
            found[number, key] = [(step, frame) for step, frame in frames if step in wanted]
    names = [recording.names[row] for row in chosen]
    return [(_title(names[k], key), found[k, key]) for k in range(len(chosen)) for key in keys], len(recording.names)


def _spread(count: int, of: int) -> list[int]:
    """So many different places, evenly spread from the first to the last."""
    places: list[int] = np.linspace(0, of - 1, min(count, of)).astype(int).tolist()
    return places


def _title(name: str, key: str) -> str:
    return f"{name}\n{key.removesuffix('_image')}"
