"""Whether a camera can be trusted right now: judged from the pictures in its ring, by whoever looks at them.

A camera fails in ways that no error reports: it shows the same picture for ever, or a black one, or what was half a
second ago. A policy would act on it as confidently as before.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowpolicy.real_robot.bridge.ring_records import told
from flowpolicy.real_robot.bridge.shared_ring import Records, Ring

Array = NDArray[np.float64]
_RATE_WINDOW = 2.0  # s


@dataclasses.dataclass(frozen=True)
class CameraLimits:
    """When a camera is not trusted. Seconds, unless named otherwise."""

    age: float = 0.25
    """The newest picture was exposed longer ago than this; the bridge rejects decisions on what is older than 0.3."""
    frozen: float = 0.5
    """The same picture, pixel by pixel, for this long."""
    moved: float = 0.05
    """A drawn scene stands still with the arm: there it counts only if a joint has moved so far meanwhile, rad."""
    dark_mean: float = 6.0
    """Mean grey value below which a picture may be black, of 255."""
    dark_top: float = 30.0
    """And its brightest hundredth is below this."""


class CameraWatch:
    """Follows one camera.

    Args:
        name: of the camera.
        ring: where its pictures are.
        noisy: whether no two pictures of it are alike, as of every real sensor; one that is drawn or played from a file
            may show the same again.
        limits: when it is not trusted.

    """

    def __init__(self, name: str, ring: Ring, noisy: bool, limits: CameraLimits | None = None) -> None:
        self.name, self._ring, self._noisy, self.limits = name, ring, noisy, limits or CameraLimits()
        self.record: Records | None = None
        """The newest picture."""
        self.dropped = 0
        """Pictures that the camera took and its ring never held."""
        self._since: tuple[float, Array | None] = (0.0, None)  # when this very picture was first exposed, and where
        self._arrivals: deque[float] = deque()
        self._dark, self._read = False, 0

    def look(self, q: Array | None = None) -> Records | None:
        """Read the newest picture; ``q`` (n,) rad is where the arm is now, if that is known."""
        before = self.record
        if self._ring.count == self._read:  # a picture is a large copy
            return before
        self._read = self._ring.count
        if (newest := self._ring.latest()) is None:
            return before
        self.record = newest
        exposed = float(newest["t_mono"])
        self._arrivals.append(float(newest["t_seen"]))
        while self._arrivals[0] < self._arrivals[-1] - _RATE_WINDOW:
            self._arrivals.popleft()
        if before is None or not np.array_equal(newest["rgb"], before["rgb"]):
            self._since = (exposed, None if q is None else np.array(q))
            self._dark = _is_dark(newest["rgb"], self.limits)
        if before is not None:
            self.dropped += max(0, int(newest["seq"]) - int(before["seq"]) - 1)
        return newest

    def trouble(self, now: float, q: Array | None = None) -> str:
        """Why the newest picture is not to be trusted, in words that begin with the camera; empty if it is.

        Args:
            now: s of the bridge's clock.
            q: (n,) rad, where the arm is now.

        """
        if self.record is None:
            return f"the camera '{self.name}' has taken no picture"
        return f"the camera '{self.name}' {why}" if (why := self._wrong(self.record, now, q)) else ""

    def _wrong(self, record: Records, now: float, q: Array | None) -> str:
        if complaint := told(record):
            return complaint
        exposed, since_seen = float(record["t_mono"]), now - float(record["t_seen"])
        if since_seen > self.limits.age:
            return f"has given no picture for {1e3 * since_seen:.0f} ms"
        if now - exposed > self.limits.age:
            return f"shows what was {1e3 * (now - exposed):.0f} ms ago"
        if self._dark:
            return "shows a black picture"
        began, at = self._since
        still = exposed - began
        if still > self.limits.frozen and (self._noisy or _moved(at, q) > self.limits.moved):
            return f"has shown the very same picture for {1e3 * still:.0f} ms"
        return ""

    def age(self, now: float) -> float:
        """How long ago the newest picture was exposed, s."""
        return float("inf") if self.record is None else now - float(self.record["t_mono"])

    def line(self, now: float) -> str:
        """For the console: pictures per second, age of the newest, dropped ones."""
        if self.record is None:
            return f"{self.name}: no picture"
        span = self._arrivals[-1] - self._arrivals[0]
        rate = (len(self._arrivals) - 1) / span if span > 0.0 else 0.0
        return f"{self.name} {rate:.0f}/s {1e3 * self.age(now):.0f} ms {self.dropped} dropped"


def _moved(before: Array | None, q: Array | None) -> float:
    return 0.0 if before is None or q is None else float(np.abs(np.asarray(q) - before).max())


def _is_dark(rgb: NDArray[Any], limits: CameraLimits) -> bool:
    some = rgb[::4, ::4].astype(np.float32).mean(-1)
    return bool(some.mean() < limits.dark_mean and np.percentile(some, 99) < limits.dark_top)
