"""A 3Dconnexion SpaceMouse, by its raw HID reports (extra 'teach'; docs/teach.md#spacemouse)."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from flowpolicy.core.errors import MissingExtraError
from flowpolicy.real_robot.teaching.teaching_device import Array, DeviceError, DeviceReading, Speaks

_VENDORS = (0x256F, 0x046D)
"""3Dconnexion, and Logitech, who sold its devices before."""
_PRODUCTS = {
    0x046D: (0xC603, 0xC605, 0xC606, 0xC621, 0xC623, 0xC625, 0xC626, 0xC627, 0xC628, 0xC629, 0xC62B),
    0x256F: (0xC62E, 0xC62F, 0xC631, 0xC632, 0xC633, 0xC635, 0xC636, 0xC63A, 0xC641, 0xC652),
}
_FULL = 350
"""Deflection of an axis that counts as full; the firmware's counts."""
_NONSENSE = 2000
"""No cap can be pushed this far: another device, or a torn report."""
_DEADBAND = 0.06
"""Share of the full deflection that counts as none: caps do not come back to zero exactly."""
_MOST = 256
"""Reports that are read at one time: what is older than those is of no interest."""
TO_BASE = np.array([[0.0, -1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])
"""From the cap's axes (right, towards the person, down) to those of the base (forward, left, up)."""


class HidStream(Protocol):
    """What is asked of a HID device; ``hid.device`` of the package hidapi has it."""

    def read(self, size: int) -> Any:
        """One report as bytes or a list of numbers, its number first; empty if none waits. OSError once it is gone."""

    def close(self) -> None:
        """Let go of it."""


def open_hid() -> HidStream:
    """The first SpaceMouse that is plugged in.

    Raises:
        DeviceError: there is none, or it may not be read.
        MissingExtraError: hidapi is not installed.

    """
    try:
        import hid
    except ModuleNotFoundError as error:
        raise MissingExtraError("hidapi", "teach") from error
    found = [one for vendor in _VENDORS for one in hid.enumerate(vendor, 0) if one["product_id"] in _PRODUCTS[vendor]]
    if not found:
        raise DeviceError("no SpaceMouse is plugged in", fix="plug it in; `lsusb` should show 3Dconnexion")
    device = hid.device()
    try:
        device.open_path(found[0]["path"])
    except OSError as error:
        raise DeviceError(
            f"the SpaceMouse at {found[0]['path'].decode()} cannot be read: {error}",
            fix="give yourself the right: docs/teach.md has the rule for /etc/udev/rules.d",
        ) from error
    device.set_nonblocking(1)
    stream: HidStream = device
    return stream


def deflection(values: tuple[int, ...]) -> Array:
    """Counts of three axes as shares of the full deflection, -1 to 1; zero within the deadband."""
    share = np.clip(np.array(values, dtype=np.float64) / _FULL, -1.0, 1.0)
    return np.asarray(np.sign(share) * np.maximum(np.abs(share) - _DEADBAND, 0.0) / (1.0 - _DEADBAND))


class SpaceMouse:
    """Cap: twist. Left button: the deadman's. Right button: the gripper.

    Report 1 holds the translation (three little-endian 16-bit numbers), report 2 the rotation; newer devices send both
    in report 1. Report 3 holds the buttons, one bit each. A cap at rest and unmoved buttons are silent.

    Args:
        connect: finds the device.

    """

    name, silence_s, unchanged_s = "spacemouse", 0.25, 0.25
    released = "the deadman's button is released"
    speaks: Speaks = "twist"

    def __init__(self, connect: Callable[[], HidStream] | None = None) -> None:
        self._connect = connect
        self._stream: HidStream | None = None
        self._forget(-math.inf)

    def open(self, now: float) -> None:
        """Find it."""
        self.close()
        self._stream = (self._connect or open_hid)()
        self._forget(now)

    def read(self, now: float) -> DeviceReading:
        """Everything that waits."""
        if self._stream is None:
            raise DeviceError("it is not connected")
        strange = ""
        try:
            for _ in range(_MOST):
                report = bytes(self._stream.read(64))
                if not report:
                    break
                strange = self._take(report, now) or strange
        except (OSError, ValueError) as error:  # hidapi raises ValueError on what was closed
            self.close()
            raise DeviceError(f"unplugged: {str(error) or type(error).__name__}") from error
        twist = np.concatenate([TO_BASE @ self._translation, TO_BASE @ self._rotation])
        return DeviceReading(
            heard=now,  # the question was answered
            moved=self._moved,
            held=bool(self._buttons & 1),
            twist=twist,
            toggles=self._toggles,
            strange=strange,
        )

    def close(self) -> None:
        """Let go of it."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _forget(self, now: float) -> None:
        self._translation, self._rotation, self._moved = np.zeros(3), np.zeros(3), now
        self._buttons = self._toggles = 0

    def _take(self, report: bytes, now: float) -> str:
        """Learn from one report; what is strange about it."""
        number, body = report[0], report[1:]
        if number == 3 and body:
            self._toggles += bool(body[0] & 2) and not self._buttons & 2
            self._buttons, self._moved = body[0], now
            return ""
        if number not in (1, 2) or len(body) < 6:
            return ""  # batteries and lights
        values = struct.unpack_from("<3h", body)
        both = number == 1 and len(body) >= 12
        more = struct.unpack_from("<3h", body, 6) if both else ()
        if max(map(abs, values + more)) > _NONSENSE:
            return f"a report makes no sense: {values + more}"
        self._moved = now
        if number == 1:
            self._translation = deflection(values)
        if number == 2 or both:
            self._rotation = deflection(more if both else values)
        return ""
