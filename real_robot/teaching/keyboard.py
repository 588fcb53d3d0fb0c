"""The terminal of the session as a device: keys that move the tool, or that only allow a hand to lead the arm."""

from __future__ import annotations

import math

import numpy as np

from flowpolicy.real_robot.bridge.ring_records import SessionRings
from flowpolicy.real_robot.teaching.teaching_device import Array, DeviceReading, Speaks

MOVES: dict[bytes, tuple[int, int]] = {
    b"i": (0, 1), b"k": (0, -1), b"j": (1, 1), b"l": (1, -1), b"u": (2, 1), b"m": (2, -1),
    b"1": (3, -1), b"2": (3, 1), b"3": (4, -1), b"4": (4, 1), b"5": (5, -1), b"6": (5, 1),
}  # fmt: skip
"""Key -> axis of the twist and direction."""
GRIP = b"c"
HELP = "keys: i/k forward/back  j/l left/right  u/m up/down  1 to 6 turn  c gripper"
_PRESSED_S = 0.1
"""A key counts as pressed for so long: a terminal repeats those that are held, and never tells of a release."""


class TerminalKeys:
    """What was typed, from the ring that the session's owner writes.

    Args:
        session: rings.

    """

    def __init__(self, session: SessionRings) -> None:
        self._session, self._cursor = session, session.typed.count
        self.heard, self.toggles = -math.inf, 0

    def forget(self) -> None:
        """What was typed before is of no interest."""
        self._cursor, self.heard, self.toggles = self._session.typed.count, -math.inf, 0

    def read(self) -> list[tuple[float, bytes]]:
        """When each key was typed, s, and which, since the last call."""
        records, self._cursor, _ = self._session.typed.read(self._cursor)
        if len(records):
            self.heard = float(records[-1]["t_mono"])
        typed = [(float(record["t_mono"]), bytes(record["key"])) for record in records if bytes(record["key"])]
        self.toggles += sum(key == GRIP for _, key in typed)
        return typed


class Keyboard:
    """Each key is a deadman's button of its own: the tool moves as long as the terminal repeats it.

    Args:
        session: rings.

    """

    name, silence_s, unchanged_s, released = "keyboard", 0.5, 0.5, "no key is pressed"
    speaks: Speaks = "twist"

    def __init__(self, session: SessionRings) -> None:
        self._keys = TerminalKeys(session)
        self._pressed: dict[bytes, float] = {}

    def open(self, now: float) -> None:
        """Begin with what is typed from now on."""
        self._keys.forget()
        self._keys.heard, self._pressed = now, {}

    def read(self, now: float) -> DeviceReading:
        """What is pressed at ``now``."""
        for when, key in self._keys.read():
            if key in MOVES:
                self._pressed[key] = when
        self._pressed = {key: when for key, when in self._pressed.items() if 0.0 <= now - when < _PRESSED_S}
        twist: Array = np.zeros(6)
        for axis, sign in (MOVES[key] for key in self._pressed):
            twist[axis] += sign
        return DeviceReading(
            heard=self._keys.heard,
            moved=max(self._pressed.values(), default=now),
            held=bool(self._pressed),
            twist=twist,
            toggles=self._keys.toggles,
        )

    def close(self) -> None:
        """Nothing to do."""


class LedByHand:
    """A hand leads the arm itself; the terminal only says when, and what the gripper does.

    Args:
        session: rings.

    """

    name, silence_s, unchanged_s, released = "guide", 0.5, math.inf, "the arm is not to be led"
    speaks: Speaks = "hand"

    def __init__(self, session: SessionRings) -> None:
        self._keys = TerminalKeys(session)

    def open(self, now: float) -> None:
        """Begin with what is typed from now on."""
        self._keys.forget()
        self._keys.heard = now

    def read(self, now: float) -> DeviceReading:
        """Allowed, unless the session is paused."""
        self._keys.read()
        return DeviceReading(
            heard=self._keys.heard, moved=now, held=True, twist=np.zeros(6), toggles=self._keys.toggles
        )

    def close(self) -> None:
        """Nothing to do."""
