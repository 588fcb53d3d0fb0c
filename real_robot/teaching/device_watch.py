"""May the arm follow the device? A deadman's button with a memory, and everything that ends its trust."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from flowpolicy.real_robot.teaching.teaching_device import Array, DeviceReading, TeachingDevice

_ANEW = "; release the deadman's button, then press it"
_TOP = 1.001
"""Largest share of the full speed that a device may ask for: more is no twist."""


@dataclasses.dataclass(frozen=True)
class DeviceLimits:
    """What a device may say before the arm holds."""

    stuck_s: float = 20.0
    """The deadman's button held for so long while nothing else was said: nobody holds it, s."""
    jump: float = 0.25
    """Joint goals further than this from the arm, or from the goals before, are no goals; largest joint, rad."""
    apart_s: float = 1.0
    """Two readings further apart than this: the session or its clock stood still, s."""


class DeviceWatch:
    """Decides for every reading whether the arm may follow.

    The arm follows while the deadman's button is held. Whatever else ends that, the button must be seen released and
    be pressed anew: nothing goes on by itself that stopped by itself.

    Args:
        device: whose readings.
        limits: thresholds.

    """

    def __init__(self, device: TeachingDevice, limits: DeviceLimits) -> None:
        self.device, self.limits = device, limits
        self.engaged = False
        """Whether the arm may follow."""
        self.trouble = ""
        """Why it may not although the button may be pressed, with the device's name; empty otherwise."""
        self._fresh = False  # the button was seen released since the last trouble
        self._pressed = self._looked = -math.inf
        self._joints: Array | None = None

    def look(self, reading: DeviceReading, now: float, at: Array | None) -> bool:
        """Whether the arm may follow ``reading`` at ``now`` s.

        Args:
            reading: the newest.
            now: s.
            at: (n,) where the arm is commanded to be, rad; None if unknown.

        """
        wrong = self._wrong(reading, now, at)
        self._looked = now
        if wrong:
            self.distrust(wrong)
        elif not reading.held:
            self.engaged, self._fresh, self.trouble = False, True, ""
        elif self._fresh and not self.engaged:
            self.engaged, self._fresh, self._pressed = True, False, now
        elif not self.engaged and not self.trouble.endswith(_ANEW):
            cause = self.trouble or f"{self.device.name}: its deadman's button is pressed already"
            self.trouble = f"{cause}{_ANEW}"
        self._joints = reading.joints if self.engaged else None
        return self.engaged

    def distrust(self, why: str) -> None:
        """Follow no more until the button is released and pressed anew; ``why`` without the device's name."""
        self.engaged = self._fresh = False
        self._joints = None
        self.trouble = f"{self.device.name}: {why}"

    def _wrong(self, reading: DeviceReading, now: float, at: Array | None) -> str:
        """What ends the trust; empty if nothing does."""
        device, limits = self.device, self.limits
        if reading.strange:
            return reading.strange
        if not (np.isfinite(reading.twist).all() and np.abs(reading.twist).max() <= _TOP):
            return "what it said is no twist: not finite, or beyond its full speed"
        if not 0.0 <= now - self._looked <= limits.apart_s and math.isfinite(self._looked):
            return f"the clock moved by {now - self._looked:.1f} s between two readings"
        if not 0.0 <= now - reading.heard <= device.silence_s:
            return f"silent for {1e3 * (now - reading.heard):.0f} ms"
        if not (self.engaged and reading.held):
            return ""
        unchanged = now - max(reading.moved, self._pressed)
        if (np.abs(reading.twist) > 0.0).any() and unchanged > device.unchanged_s:
            return f"it has asked for the same motion for {unchanged:.1f} s and said nothing new"
        if device.speaks == "twist" and unchanged > limits.stuck_s:
            return f"its deadman's button is held and nothing was said for {unchanged:.0f} s: is it stuck?"
        return self._jumped(reading, at)

    def _jumped(self, reading: DeviceReading, at: Array | None) -> str:
        joints = reading.joints
        if joints is None:
            return ""
        if not np.isfinite(joints).all() or (at is not None and joints.shape != at.shape):
            return "its joint positions are not numbers, or not as many as the arm has joints"
        for what, there in (("the arm", at), ("where it was", self._joints)):
            if there is not None and np.abs(joints - there).max() > self.limits.jump:
                joint = int(np.abs(joints - there).argmax())
                return f"its joint {joint + 1} is {abs(joints[joint] - there[joint]):.2f} rad from {what}"
        return ""
