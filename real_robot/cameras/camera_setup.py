"""What ``--cameras`` says of a camera, and what becomes of its pictures before anybody sees them.

``NAME=KIND:ARGUMENT[,OPTION=VALUE...]``, for example ``front=uvc:/dev/v4l/by-id/usb-C920-video-index0,crop=480x480,
resize=84x84,exposure=156``. Sizes are WIDTHxHEIGHT, as cameras state them.
"""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowpolicy.core.errors import ConfigError, DataError
from flowpolicy.core.spec import ImageSpec
from flowpolicy.data.thumbnails import area_mean

KINDS = ("replay", "twin", "realsense", "uvc", "video")
"""Recorded pictures of an episode, a camera of the twin, RealSense, any camera of V4L2, a video file."""
OPTIONS = ("size", "rate", "crop", "resize", "colour", "exposure", "intrinsics")
_LARGEST = 8192
_OPTION = re.compile(rf",(?=(?:{'|'.join(OPTIONS)})=)")


@dataclasses.dataclass(frozen=True)
class CameraSetup:
    """One camera of a session."""

    name: str
    """Of the camera; its pictures are the observation NAME_image."""
    kind: str
    """One of :data:`KINDS`."""
    argument: str
    """Which one: a camera of the twin's scene, a serial number, a device, a file."""
    size: tuple[int, int] | None = None
    """Width and height that the camera is asked for, pixels; its own unless given."""
    rate: float | None = None
    """Pictures per second that it is asked for."""
    crop: tuple[int, int, int, int] | None = None
    """Left, top, width and height of what is kept, pixels; left -1: in the middle."""
    resize: tuple[int, int] | None = None
    """Width and height of what is seen, pixels: each is the mean of those that it covers."""
    colour: str = "rgb"
    """Order of the channels as the source gives them; 'bgr' is turned round. What is seen is always rgb."""
    exposure: float | None = None
    """Fixed exposure in the device's own units (V4L2: 0.1 ms); 'uvc' only. Automatic unless given."""
    intrinsics: tuple[float, ...] = ()
    """Focal lengths and principal point fx, fy, cx, cy of the camera's own picture, pixels, if they are known."""

    @property
    def key(self) -> str:
        """Of the observation."""
        return f"{self.name}_image"

    def shaped(self, rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The picture (h, w, 3) that is seen, of what the camera took.

        Raises:
            DataError: the crop is not inside it, or it is no picture.

        """
        if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8:
            raise DataError(f"the camera '{self.name}' gave {rgb.shape} {rgb.dtype}", expected="(h, w, 3) uint8")
        left, top, width, height = self._window(rgb.shape[1], rgb.shape[0])
        kept = rgb[top : top + height, left : left + width]
        if self.colour == "bgr":
            kept = kept[:, :, ::-1]
        if self.resize is not None and self.resize != (width, height):
            kept = area_mean(kept, *self.resize)
        return np.ascontiguousarray(kept)

    def seen_intrinsics(self, width: int, height: int) -> tuple[float, ...]:
        """fx, fy, cx, cy of the picture that is seen, of a camera that takes ``width`` x ``height``; () if unknown."""
        if not self.intrinsics:
            return ()
        fx, fy, cx, cy = self.intrinsics
        left, top, kept_width, kept_height = self._window(width, height)
        to_width, to_height = self.resize or (kept_width, kept_height)
        across, down = to_width / kept_width, to_height / kept_height
        # Pixel centres: the first is at 0, so that its edge is at -0.5.
        centre = ((cx - left + 0.5) * across - 0.5, (cy - top + 0.5) * down - 0.5)
        return tuple(round(value, 4) for value in (fx * across, fy * down, *centre))

    def spec(self, taken: tuple[int, int], seen: tuple[int, int]) -> ImageSpec:
        """What a contract says of it.

        Args:
            taken: height and width of the camera's own pictures.
            seen: the same of those that are seen.

        """
        crop = self._window(taken[1], taken[0])
        return ImageSpec(
            (*seen, 3),
            camera=self.name,
            rate_hz=self.rate or 0.0,
            crop=() if crop == (0, 0, taken[1], taken[0]) else crop,
            intrinsics=self.seen_intrinsics(taken[1], taken[0]),
        )

    def _window(self, width: int, height: int) -> tuple[int, int, int, int]:
        if self.crop is None:
            return 0, 0, width, height
        left, top, kept_width, kept_height = self.crop
        if left < 0:
            left, top = (width - kept_width) // 2, (height - kept_height) // 2
        if left < 0 or top < 0 or left + kept_width > width or top + kept_height > height:
            raise DataError(
                f"the camera '{self.name}' takes {width} x {height} pixels, and crop={kept_width}x{kept_height} at "
                f"{left}, {top} is not inside",
                fix="a smaller crop, or size=WIDTHxHEIGHT",
            )
        return left, top, kept_width, kept_height


def parse_camera(text: str) -> CameraSetup:
    """What ``NAME=KIND:ARGUMENT[,OPTION=VALUE...]`` says.

    Raises:
        ConfigError: it says nothing that is understood.

    """
    head, *options = _OPTION.split(text)
    name, equals, rest = head.partition("=")
    kind, colon, argument = rest.partition(":")
    if not (equals and colon and argument and name.isidentifier() and name.isascii() and kind in KINDS):
        raise ConfigError(
            f"--cameras {text}",
            expected=f"NAME=KIND:ARGUMENT[,OPTION=VALUE...], KIND one of {', '.join(KINDS)}, "
            f"OPTION one of {', '.join(OPTIONS)}",
        )
    values: dict[str, str] = {}
    for option in options:
        key, _, value = option.partition("=")
        if key in values:
            raise ConfigError(f"--cameras {text}: {key} is given twice")
        values[key] = value
    try:
        return CameraSetup(name, kind, argument, **_read(values, kind))
    except ValueError as error:
        raise ConfigError(f"--cameras {text}: {error}") from error


def parse_cameras(texts: tuple[str, ...]) -> tuple[CameraSetup, ...]:
    """Every camera of a session; ConfigError where two have one name."""
    found = tuple(parse_camera(text) for text in texts)
    names = [one.name for one in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"--cameras: two are named {', '.join(twice)}", fix="give each a name of its own")
    return found


def noisy_cameras(texts: tuple[str, ...]) -> frozenset[str]:
    """Names of the cameras no two pictures of which are alike: real ones, not what is drawn or played."""
    return frozenset(one.name for one in parse_cameras(texts) if one.kind in ("realsense", "uvc"))


def _read(values: dict[str, str], kind: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        if key in ("size", "resize"):
            found[key] = _size(value)
        elif key == "crop":
            found[key] = _crop(value)
        elif key == "colour":
            if value not in ("rgb", "bgr"):
                raise ValueError(f"colour={value}, which is none of rgb, bgr")
            found[key] = value
        elif key == "intrinsics":
            found[key] = _intrinsics(value)
        else:
            found[key] = _positive(key, value)
    if "exposure" in found and kind != "uvc":
        raise ValueError(f"exposure is set of a camera of kind uvc, and this is {kind}")
    return found


def _size(value: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", value)
    sides = tuple(int(side) for side in match.groups()) if match else ()
    if len(sides) != 2 or not all(1 <= side <= _LARGEST for side in sides):
        raise ValueError(f"'{value}' is no WIDTHxHEIGHT of 1 to {_LARGEST} pixels, such as 84x84")
    return sides[0], sides[1]


def _crop(value: str) -> tuple[int, int, int, int]:
    size, plus, place = value.partition("+")
    width, height = _size(size)
    if not plus:
        return -1, -1, width, height
    match = re.fullmatch(r"(\d{1,5})\+(\d{1,5})", place)
    if not match:
        raise ValueError(f"crop={value} is no WIDTHxHEIGHT or WIDTHxHEIGHT+LEFT+TOP")
    return int(match[1]), int(match[2]), width, height


def _intrinsics(value: str) -> tuple[float, ...]:
    numbers = tuple(_number("intrinsics", part) for part in value.split("/"))
    if len(numbers) != 4 or min(numbers[:2]) <= 0.0:
        raise ValueError(f"intrinsics={value} is no FX/FY/CX/CY in pixels, such as 615/615/320/240")
    return numbers


def _positive(key: str, value: str) -> float:
    number = _number(key, value)
    if not number > 0.0:
        raise ValueError(f"{key}={value}, which is not above 0")
    return number


def _number(key: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{key}={value} is no number")
    return number
