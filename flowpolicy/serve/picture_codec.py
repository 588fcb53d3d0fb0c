"""Pictures in a request: raw uint8, or one JPEG per frame, looked at before anything is decoded.

A JPEG of a few hundred bytes may ask for a picture of gigabytes: its header is read first, and one whose size is not
the contract's is refused with nothing decoded.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from flowpolicy.core.errors import MissingExtraError, ServingError
from flowpolicy.serve.protocol import array_from

_HEAD = 1 << 16
"""Bytes of a JPEG beyond those of its raw pixels: more than any header has, and no picture needs them."""


def pictures_from(value: Any, shape: tuple[int, ...], name: str) -> np.ndarray:
    """Pictures (o, h, w, 3) uint8 of one observation of a request.

    Args:
        value: an array as of :func:`~flowpolicy.serve.protocol.array_from`, or ``{"jpeg": [bytes, ...]}``, a frame
            each.
        shape: what they must have.
        name: of the observation.

    Raises:
        ServingError: code 'shape': they are something else.

    """
    where = f"observation {name}"
    if isinstance(value, dict) and set(value) == {"jpeg"}:
        return _decoded(value["jpeg"], shape, where)
    array = array_from(value, where)
    if array.dtype != np.uint8:
        raise ServingError(
            "shape",
            f"{where} holds pictures of {array.dtype}",
            expected="uint8, 0 to 255, red green blue, rows from the top down",
            fix="send them as the camera gives them",
        )
    if array.shape != shape:
        raise ServingError("shape", f"{where} has the shape {array.shape}", expected=f"{shape}, oldest first")
    return array


def _decoded(frames: Any, shape: tuple[int, ...], where: str) -> np.ndarray:
    steps, height, width, channels = shape
    if not isinstance(frames, list) or len(frames) != steps or not all(isinstance(frame, bytes) for frame in frames):
        raise ServingError("shape", f"{where}: no list of {steps} JPEG", expected="bytes of one JPEG for every frame")
    if channels != 3:
        raise ServingError("shape", f"{where}: JPEG for pictures of {channels} channels", fix="send them as an array")
    return np.stack([_picture(frame, height, width, where) for frame in frames])


def _picture(frame: bytes, height: int, width: int, where: str) -> np.ndarray:
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise MissingExtraError("pillow", "serve") from error
    if len(frame) > 3 * height * width + _HEAD:
        raise ServingError("shape", f"{where}: a JPEG of {len(frame)} bytes", expected=f"a picture {height} x {width}")
    try:
        with Image.open(io.BytesIO(frame), formats=["JPEG"]) as picture:  # reads the header alone
            if picture.size != (width, height) or picture.mode != "RGB":
                raise ServingError(
                    "shape",
                    f"{where}: a JPEG of {picture.size[1]} x {picture.size[0]} in {picture.mode}",
                    expected=f"{height} x {width} in RGB; nothing was decoded",
                )
            return np.asarray(picture)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ServingError("shape", f"{where}: no whole JPEG: {error}"[:200], fix="send the frame again") from error
