"""Pictures made small: by means over areas, and as thumbnails that tell one camera's view from another's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowpolicy.core.spec import ImageSpec

Array = NDArray[np.float64]

THUMB = 16
"""Side of a thumbnail, pixels."""


def area_mean(rgb: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """A picture of ``width`` x ``height``: every pixel the mean of the area that it covers.

    Edges that fall inside a pixel share it. Larger than before, pixels are repeated, so to say.
    """
    down, across = _shares(rgb.shape[0], height), _shares(rgb.shape[1], width)
    rows = np.tensordot(down, rgb, (1, 0))  # (height, w, 3)
    found = np.tensordot(across, rows, (1, 1)).transpose(1, 0, 2)
    return np.rint(found).astype(np.uint8)


def _shares(before: int, after: int) -> NDArray[np.float32]:
    """(after, before) share of each old pixel in each new one; rows add up to one."""
    edges = np.arange(after + 1) * (before / after)
    low, high = edges[:-1, None], edges[1:, None]
    pixels = np.arange(before)[None]
    overlap = np.clip(np.minimum(high, pixels + 1) - np.maximum(low, pixels), 0.0, None)
    return (overlap / (before / after)).astype(np.float32)


def thumbnail(rgb: NDArray[Any]) -> Array:
    """(16, 16) grey values of a picture (h, w, 3), or the mean of those of several (k, h, w, 3)."""
    if rgb.ndim == 4:
        return np.asarray(np.mean([thumbnail(one) for one in rgb], axis=0))
    return np.asarray(area_mean(rgb, THUMB, THUMB).astype(np.float64).mean(-1))


def write_thumbnail(grey: Array) -> str:
    """As a contract keeps it."""
    return bytes(np.rint(grey).astype(np.uint8).flatten()).hex()


def read_thumbnail(text: str) -> Array:
    """Inverse of :func:`write_thumbnail`; a text that is none is all grey, like nothing."""
    try:
        values = np.frombuffer(bytes.fromhex(text), np.uint8).astype(np.float64)
    except ValueError:
        values = np.zeros(0)
    return values.reshape(THUMB, THUMB) if values.size == THUMB * THUMB else np.full((THUMB, THUMB), 128.0)


def likeness(one: Array, other: Array) -> float:
    """Correlation of two thumbnails, -1 to 1: blind to brightness and contrast."""
    a, b = one - one.mean(), other - other.mean()
    size = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float((a * b).sum() / size) if size > 1e-9 else 0.0


def swapped_cameras(stated: Mapping[str, ImageSpec], seen: Mapping[str, NDArray[Any]]) -> list[str]:
    """Warnings where pictures look like those of another camera, or of none, of what a policy was trained on.

    Args:
        stated: what a contract says of its cameras, by name of the camera.
        seen: (h, w, 3) a picture of each, as it is now, or several, (k, h, w, 3).

    """
    known = {name: read_thumbnail(image.thumbnail) for name, image in stated.items() if image.thumbnail}
    now = {name: thumbnail(rgb) for name, rgb in seen.items()}
    lines = []
    for name in known.keys() & now.keys():
        alike = {other: likeness(known[other], now[name]) for other in known}
        best = max(alike, key=lambda other: alike[other])
        if best != name and alike[best] > max(alike[name], 0.0) + 0.2:
            lines.append(
                f"the camera '{name}' shows what '{best}' showed in training (likeness {alike[best]:.2f}, with its own "
                f"{alike[name]:.2f}): are they swapped?"
            )
        elif alike[name] < 0.2:
            lines.append(
                f"the camera '{name}' shows something else than in training (likeness {alike[name]:.2f} of 1): was it "
                "moved, or is the scene another one?"
            )
    return sorted(lines)
