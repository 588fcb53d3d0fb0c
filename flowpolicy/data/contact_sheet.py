"""A picture of pictures: what the cameras of a file saw, for people to look at before they train."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from flowpolicy.core.errors import DataError
from flowpolicy.core.files import replacing
from flowpolicy.data.hdf5 import open_hdf5
from flowpolicy.data.hdf5_frames import pictures_of

_EPISODES, _FRAMES = 6, 8


def draw_contact_sheet(path: Path, png: Path) -> None:
    """Up to six episodes of a RoboMimic file, evenly spread: a row for each camera, eight frames from first to last.

    Raises:
        DataError: the file holds no pictures.

    """
    images = pictures_of(path)
    if not images:
        raise DataError(f"{path} holds no pictures", fix="draw them: flowpolicy data render FILE --out FILE")
    with open_hdf5(path) as file:
        names = [name for name in file["data"] if f"obs/{next(iter(images))}" in file["data"][name]]
        chosen = [names[row] for row in np.linspace(0, len(names) - 1, min(_EPISODES, len(names))).astype(int)]
        count = len(chosen) * len(images)
        figure = Figure(figsize=(1.2 * _FRAMES + 1.6, 1.25 * count + 0.5), layout="constrained")
        axes = figure.subplots(count, _FRAMES, squeeze=False)
        for row, (name, key) in enumerate((name, key) for name in chosen for key in images):
            node = file["data"][name][f"obs/{key}"]
            for column, step in enumerate(np.linspace(0, len(node) - 1, _FRAMES).astype(int)):
                place = axes[row, column]
                place.imshow(node[step], interpolation="nearest")
                place.set_xticks([])
                place.set_yticks([])
                place.set_title(f"step {step}", fontsize=6, pad=2)
            axes[row, 0].set_ylabel(f"{name}\n{key.removesuffix('_image')}", fontsize=6)
        said = "; ".join(f"{key} {image.height} x {image.width}" for key, image in images.items())
        figure.suptitle(f"{path.name}: {len(names)} episodes; {said}", fontsize=8)
        with replacing(png) as temporary:
            figure.savefig(temporary, format="png", dpi=110)
