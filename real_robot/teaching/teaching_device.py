"""What the session knows of a device in a person's hand (docs/teach.md#devices).

A device says where to go in one of three ways: as a *twist* (which way and how fast the tool should move), as *joint
positions* of another arm, or not at all, where a hand leads the arm itself. Beside that stand the deadman's button and
what the gripper should do. Times are of the bridge's clock, in seconds, unless they are named the device's.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from flowpolicy.core.errors import FlowPolicyError

Array = NDArray[np.float64]

Speaks = Literal["twist", "joints", "hand"]
"""twist: pose increments. joints: goals of every joint. hand: the arm itself is led."""


class DeviceError(FlowPolicyError):
    """A teaching device cannot be opened, or is gone. The arm holds."""


@dataclasses.dataclass(frozen=True, slots=True)
class DeviceReading:
    """The newest that a device said."""

    heard: float
    """When the device last gave a sign of life, s: a report, or an answer to a question."""
    moved: float
    """When it last said something new, s."""
    held: bool
    """Whether the deadman's button is pressed."""
    twist: Array
    """(6,) translation x, y, z and rotation about x, y, z, each from -1 to 1 of the full speed; zeros otherwise."""
    joints: Array | None = None
    """(n,) where the joints should be, rad; None from devices that do not say."""
    toggles: int = 0
    """How often the gripper's button was pressed so far: an odd number asks for a closed gripper."""
    opening: float = float("nan")
    """How far the gripper should be open, m, from devices that have one themselves; not-a-number from others."""
    strange: str = ""
    """What made no sense in what it said since the last reading; empty if all did."""


class TeachingClock:
    """A device's own clock against the bridge's: both go on, and at the same pace."""

    _APART = 1.0  # s by which one may lead the other between two stamps

    def __init__(self) -> None:
        self._stamp = self._heard = float("nan")

    def strange(self, stamp: float, now: float) -> str:
        """What is wrong with a stamp that is heard at ``now``, both s; empty if nothing is. The next begins from it."""
        last, heard, self._stamp, self._heard = self._stamp, self._heard, stamp, now
        if not np.isfinite(stamp):
            self._stamp = self._heard = float("nan")
            return "its time is not a number"
        if stamp < last:
            return f"its packets come in the wrong order, or its clock went back by {last - stamp:.3f} s"
        ahead = (stamp - last) - (now - heard)
        if ahead > self._APART:
            return f"its clock went ahead by {ahead:.1f} s"
        return ""


class TeachingDevice(Protocol):
    """Something in a person's hand. It is asked and never asks back; nothing here waits."""

    released: str
    """What its deadman's button released is called: 'the deadman's button is released'."""
    name: str
    """As the command line and every message name it: 'spacemouse'."""
    speaks: Speaks
    silence_s: float
    """A device that gave no sign of life for so long is not there any more, s."""
    unchanged_s: float
    """One that went on asking for the same motion for so long, and said nothing new, is not there either, s."""

    def open(self, now: float) -> None:
        """Find it and begin to listen. Raises :class:`DeviceError`."""

    def read(self, now: float) -> DeviceReading:
        """Everything that it said until ``now`` s, drawn together. Raises :class:`DeviceError` once it is unplugged."""

    def close(self) -> None:
        """Let go of it; may be called twice."""
