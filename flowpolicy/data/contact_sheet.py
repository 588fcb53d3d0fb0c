"""A picture of pictures: what the cameras of a file saw, for people to look at before they train."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from flowpolicy.core.errors import DataError
from flowpolicy.core.files import replacing
from flowpolicy.data.episode_file import EpisodeFile, open_episodes
from flowpolicy.data.hdf5_frames import pictures_of

_EPISODES, _FRAMES = 6, 8
_AT_ONCE = 16  # frames in memory


def draw_contact_sheet(path: Path, png: Path) -> None:
    """Up to six episodes of a dataset in any format, evenly spread: a row for each camera, eight frames.

    Raises:
        DataError: it holds no pictures.

    """
    with open_episodes(path) as file:
        if not file.pictures:
            pictures_of(path)  # says of what has the dimensions of pictures why it is none
            raise DataError(f"{path} holds no pictures", fix="draw them: flowpolicy data render FILE --out FILE")
        rows = _rows(file)
        cameras = "; ".join(f"{key} {source.size[0]} x {source.size[1]}" for key, source in file.pictures.items())
        title = f"{path.name}: {len(file.names)} episodes; {cameras}"
    figure = Figure(figsize=(1.2 * _FRAMES + 1.6, 1.25 * len(rows) + 0.5), layout="constrained")
    axes = figure.subplots(len(rows), _FRAMES, squeeze=False)
    for row, (name, frames) in enumerate(rows):
        for place in axes[row]:
            place.set_xticks([])
            place.set_yticks([])
        for place, (step, frame) in zip(axes[row], frames, strict=False):
            place.imshow(frame, interpolation="nearest")
            place.set_title(f"step {step}", fontsize=6, pad=2)
        axes[row, 0].set_ylabel(name, fontsize=6)
    figure.suptitle(title, fontsize=8)
    with replacing(png) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def _rows(file: EpisodeFile) -> list[tuple[str, list[tuple[int, NDArray[np.uint8]]]]]:
    """Episode and camera, and some frames with their steps."""
    chosen = [file.names[row] for row in _spread(_EPISODES, len(file.names))]
    found: dict[tuple[str, str], list[tuple[int, NDArray[np.uint8]]]] = {}
    for key, source in file.pictures.items():
        for number in source.reading_order():
            if (name := source.names[number]) in chosen:
                wanted = set(_spread(_FRAMES, source.lengths[number]))
                frames = enumerate(frame for block in source.blocks(number, _AT_ONCE) for frame in block)
                found[name, key] = [(step, frame) for step, frame in frames if step in wanted]
    titles = {(name, key): f"{name}\n{key.removesuffix('_image')}" for name in chosen for key in file.pictures}
    return [(titles[place], found[place]) for place in titles]


def _spread(count: int, of: int) -> list[int]:
    """So many different places, evenly spread from the first to the last."""
    places: list[int] = np.linspace(0, of - 1, min(count, of)).astype(int).tolist()
    return places
