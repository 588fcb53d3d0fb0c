"""A gamepad, by the events of Linux (extra 'teach'; docs/teach.md#gamepad)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import numpy as np

from flowpolicy.core.errors import MissingExtraError
from flowpolicy.real_robot.teaching.teaching_device import Array, DeviceError, DeviceReading, Speaks, TeachingClock

_SYN, _KEY, _ABS, _DROPPED = 0, 1, 3, 3
_SOUTH, _SHOULDER = 304, 311
X, Y, Z, RX, RY, RZ, HAT_X, HAT_Y = 0, 1, 2, 3, 4, 5, 16, 17
_DEADBAND = 0.12
_ASK_S = 0.1
"""Seconds between two questions for the whole state: they find out whether the pad is there."""


class InputEvents(Protocol):
    """What is asked of an input device; ``evdev.InputDevice`` has it."""

    def read(self) -> Iterable[Any]:
        """Events with sec, usec, type, code and value. BlockingIOError if none waits, OSError once it is gone."""

    def active_keys(self) -> list[int]:
        """Codes of the buttons that are pressed."""

    def absinfo(self, axis: int) -> Any:
        """Value, min and max of an axis."""

    def capabilities(self) -> Any:
        """Event type -> what it has: codes, or pairs of code and range."""

    def close(self) -> None:
        """Let go of it."""


def open_gamepad() -> InputEvents:
    """The first gamepad that is plugged in.

    Raises:
        DeviceError: there is none, or it may not be read.
        MissingExtraError: evdev is not installed.

    """
    try:
        import evdev
    except ModuleNotFoundError as error:
        raise MissingExtraError("evdev", "teach") from error
    for path in sorted(evdev.list_devices()):
        device = evdev.InputDevice(path)
        has: Any = device.capabilities()
        axes = {entry[0] for entry in has.get(_ABS, [])}
        if _SOUTH in has.get(_KEY, []) and {X, Y} <= axes:
            found: InputEvents = device
            return found
        device.close()
    raise DeviceError(
        "no gamepad is plugged in, or it may not be read",
        fix="plug it in, and be in the group 'input': docs/teach.md has the command",
    )


class Gamepad:
    """Two sticks and a cross: twist. Right shoulder: the deadman's button. Lower button (A): the gripper.

    Left stick: forward and aside. Right stick: up and down, and turn. Cross: tilt.

    Events come when something changes; a stick that is held still says nothing. One that stays away from its middle
    without the slightest change is not in a hand, or its radio is out of reach.

    Args:
        connect: finds the device.

    """

    name, silence_s, unchanged_s = "gamepad", 0.5, 1.0
    released = "the deadman's button is released"
    speaks: Speaks = "twist"

    def __init__(self, connect: Callable[[], InputEvents] | None = None) -> None:
        self._connect = connect
        self._pad: InputEvents | None = None
        self._ranges: dict[int, tuple[float, float]] = {}
        self._forget(-math.inf)

    def open(self, now: float) -> None:
        """Find it and learn where its sticks are."""
        self.close()
        pad = (self._connect or open_gamepad)()
        self._forget(now)
        try:
            axes = [entry[0] for entry in pad.capabilities().get(_ABS, [])]
            self._ranges = {axis: (float(pad.absinfo(axis).min), float(pad.absinfo(axis).max)) for axis in axes}
            # Pads of the older kind call their right stick Z and RZ.
            self._right = (RX, RY) if RX in self._ranges else (Z, RZ)
            self._pad = pad
            self._ask(now)
        except OSError as error:
            self.close()
            raise DeviceError(f"unplugged: {error}") from error

    def read(self, now: float) -> DeviceReading:
        """Every event that waits, and now and then the whole state."""
        if self._pad is None:
            raise DeviceError("it is not connected")
        strange = ""
        try:
            try:
                for event in self._pad.read():
                    strange = self._take(event, now) or strange
            except BlockingIOError:
                pass
            if now - self._asked >= _ASK_S:
                self._ask(now)
        except OSError as error:
            self.close()
            raise DeviceError(f"unplugged: {error}") from error
        return DeviceReading(
            heard=self._asked,
            moved=self._moved,
            held=_SHOULDER in self._keys,
            twist=self._twist(),
            toggles=self._toggles,
            strange=strange,
        )

    def close(self) -> None:
        """Let go of it."""
        if self._pad is not None:
            pad, self._pad = self._pad, None
            pad.close()

    def _forget(self, now: float) -> None:
        self._moved, self._asked, self._toggles = now, -math.inf, 0
        self._keys: set[int] = set()
        self._axes: dict[int, float] = {}
        self._ranges = {}
        self._right, self._clock = (RX, RY), TeachingClock()

    def _ask(self, now: float) -> None:
        assert self._pad is not None
        self._keys = set(self._pad.active_keys())
        self._axes = {axis: float(self._pad.absinfo(axis).value) for axis in self._ranges}
        self._asked = now

    def _take(self, event: Any, now: float) -> str:
        """Learn from one event; what is strange about it."""
        if event.type == _SYN:
            if event.code == _DROPPED:  # the kernel's queue was full: what follows is not all that was
                self._asked = -math.inf
            return ""
        if event.type not in (_KEY, _ABS):
            return ""
        strange = self._clock.strange(event.sec + 1e-6 * event.usec, now)
        self._moved = now
        if event.type == _KEY:
            self._toggles += event.code == _SOUTH and event.value == 1
            (self._keys.add if event.value else self._keys.discard)(event.code)
        elif event.code in self._ranges:
            low, high = self._ranges[event.code]
            if not low - 1.0 <= event.value <= high + 1.0:
                return f"axis {event.code} is at {event.value}, outside its range of {low:g} to {high:g}"
            self._axes[event.code] = float(event.value)
        return strange

    def _twist(self) -> Array:
        right_x, right_y = self._right
        return np.array(
            [
                -self._share(Y),
                -self._share(X),
                -self._share(right_y),
                self._share(HAT_X),
                -self._share(HAT_Y),
                -self._share(right_x),
            ]
        )

    def _share(self, axis: int) -> float:
        """Deflection of an axis, -1 to 1, down and right positive; 0 within the deadband, and for no such axis."""
        low, high = self._ranges.get(axis, (0.0, 0.0))
        if high <= low or axis not in self._axes:
            return 0.0
        share = min(max(2.0 * (self._axes[axis] - low) / (high - low) - 1.0, -1.0), 1.0)
        return math.copysign(max(abs(share) - _DEADBAND, 0.0) / (1.0 - _DEADBAND), share)
