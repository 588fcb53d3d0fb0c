"""Devices that are not there: HID reports and evdev events, as the real ones send them; faults on command."""

import struct
from collections import deque
from types import MappingProxyType, SimpleNamespace

import numpy as np

from flowpolicy.real_robot.teaching.spacemouse import TO_BASE


class FakeHid:
    """A SpaceMouse's reports. ``cap`` and ``buttons`` are what the hand does; time passes with ``reports``."""

    def __init__(self):
        self.waiting, self.gone, self.silent, self.closed = deque(), False, False, False
        self._buttons, self._twist = 0, np.zeros(6)
        self.before_read = lambda: None

    def hand(self, twist=(0,) * 6, held=False, grip=False, both=True):
        """What a hand does now, in shares of the full speed along the base's axes."""
        twist, buttons = np.asarray(twist, float), int(held) | int(grip) << 1
        share = np.concatenate([TO_BASE.T @ twist[:3], TO_BASE.T @ twist[3:]])
        counts = np.round(350 * np.sign(share) * np.where(share == 0, 0, 0.06 + 0.94 * np.abs(share))).astype(int)
        if twist.any() or self._twist.any():  # a cap at rest is silent
            if both:
                self.waiting.append(struct.pack("<B6h", 1, *counts))
            else:
                self.waiting.append(struct.pack("<B3h", 1, *counts[:3]))
                self.waiting.append(struct.pack("<B3h", 2, *counts[3:]))
        if buttons != self._buttons:
            self.waiting.append(struct.pack("<BH", 3, buttons))
        self._buttons, self._twist = buttons, twist

    def read(self, size):
        if self.gone:
            raise OSError("read error")
        if self.silent:
            return b""
        self.before_read()
        return self.waiting.popleft() if self.waiting else b""

    def close(self):
        self.closed = True


class FakePad:
    """A gamepad's events and state, as evdev gives them."""

    RANGES = MappingProxyType({**dict.fromkeys((0, 1, 3, 4), (-32768, 32767)), 16: (-1, 1), 17: (-1, 1)})
    SOUTH, SHOULDER = 304, 311

    def __init__(self, clock):
        self.clock, self.waiting, self.gone, self.silent = clock, deque(), False, False
        self.offset = 1.7e9
        self.axes, self.keys = dict.fromkeys(self.RANGES, 0), set()
        self.before_read = lambda: None

    def hand(self, twist=(0,) * 6, held=False, grip=False):
        """What two hands do now, in shares of the full speed along the base's axes; tilts by the cross."""
        x, y, z, rx, ry, rz = twist
        for axis, share in ((1, -x), (0, -y), (4, -z), (3, -rz)):
            share = np.sign(share) * (0.12 + 0.88 * abs(share)) if share else 0.0
            self._axis(axis, int(np.clip(round(32767.5 * share - 0.5), -32768, 32767)) if share else 0)
        self._axis(16, int(np.sign(round(rx))))
        self._axis(17, -int(np.sign(round(ry))))
        for key, pressed in ((self.SHOULDER, held), (self.SOUTH, grip)):
            if pressed != (key in self.keys):
                (self.keys.add if pressed else self.keys.discard)(key)
                self.event(1, key, int(pressed))

    def _axis(self, axis, value):
        if value != self.axes[axis]:
            self.axes[axis] = value
            self.event(3, axis, value)

    def event(self, kind, code, value, late=0.0):
        stamp = self.clock() + self.offset - late
        self.waiting.append(
            SimpleNamespace(sec=int(stamp), usec=int(1e6 * (stamp % 1)), type=kind, code=code, value=value)
        )

    def read(self):
        if self.gone:
            raise OSError(19, "No such device")
        self.before_read()
        if self.silent or not self.waiting:
            raise BlockingIOError
        events = list(self.waiting)
        self.waiting.clear()
        return iter(events)

    def active_keys(self):
        if self.gone:
            raise OSError(19, "No such device")
        return [] if self.silent else sorted(self.keys)

    def absinfo(self, axis):
        if self.gone:
            raise OSError(19, "No such device")
        low, high = self.RANGES[axis]
        return SimpleNamespace(value=self.axes[axis], min=low, max=high)

    def capabilities(self):
        return {1: [self.SOUTH, self.SHOULDER], 3: [(axis, None) for axis in self.RANGES]}

    def close(self):
        pass
