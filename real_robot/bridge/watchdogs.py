"""When to slow down, hold or give up: thresholds and the two clocks that compare against them."""

from __future__ import annotations

import dataclasses
from collections import deque


@dataclasses.dataclass(frozen=True)
class WatchdogLimits:
    """All in seconds, unless named otherwise."""

    starved_hold: float = 0.2
    """Without a chunk for this long after the last one ended: HOLD. Braking begins at once."""
    starved_stop: float = 2.0
    """The same: STOPPING."""
    observation_warn: float = 0.150
    """An observation older than this behind a chunk is reported."""
    observation_age: float = 0.300
    """Older than this: the chunk is rejected."""
    heartbeat_warn: float = 0.200
    """A silent policy process is reported."""
    heartbeat: float = 0.500
    """Silent for this long: HOLD."""
    robot_warn: float = 0.010
    """A robot whose state does not change is reported."""
    robot: float = 0.050
    """For this long: FAULT (network); libfranka itself waits 1 s."""
    tick_warn: float = 0.002
    """A tick that begins this late is reported."""
    tick: float = 0.020
    """This late: counted; three within a second: HOLD."""
    success_warn: float = 0.98
    """Mean command success rate over a second that is reported; a share."""
    success_slow: float = 0.95
    """Below: half speed; a share."""
    success_hold: float = 0.90
    """Below: HOLD; a share."""
    leash: float = 0.5
    """The arm cannot follow its reference for this long: HOLD."""
    rearm: float = 1.0
    """A HOLD for want of chunks that is shorter ends by itself when they arrive again; others need the operator."""
    gripper_warn: float = 1.0
    """A gripper call that lasts this long is reported."""
    gripper: float = 3.0
    """This long: the call is abandoned with its connection."""
    rejections: int = 3
    """Chunks rejected in a row: HOLD."""
    clips: int = 3
    """Times that a reference left the workspace within a second: HOLD."""
    late_ticks: int = 3
    """Late ticks within a second: HOLD."""


class Since:
    """How long a condition has held without a break."""

    def __init__(self) -> None:
        self._start: float | None = None

    def update(self, holds: bool, now: float) -> float:
        """Seconds that ``holds`` has been true, 0 if it is not."""
        if not holds:
            self._start = None
            return 0.0
        if self._start is None:
            self._start = now
        return now - self._start


class Recent:
    """How often something happened within the last second."""

    def __init__(self) -> None:
        self._times: deque[float] = deque()

    def add(self, now: float) -> int:
        """Count one event; returns the number within the last second, this one included."""
        self._times.append(now)
        while self._times[0] < now - 1.0:
            self._times.popleft()
        return len(self._times)

    def clear(self) -> None:
        """Begin anew."""
        self._times.clear()
