"""When a request arrived: a deadline counts from there, not from when the server came to read it."""

from __future__ import annotations

import math
import selectors
import time
from collections.abc import Callable
from typing import Any

_WINDOW_S = 10.0
"""Clocks of two machines drift apart by a tenth of a millisecond in so long."""
_ELSEWHERE_S = 60.0
"""A longer delay than any budget is none: one of the clocks was set."""


class PollClock(selectors.DefaultSelector):
    """The selector of the server's event loop, which remembers when it looked at the sockets.

    What a look finds at once came after the look before it; what it waited for has just come.

    Args:
        clock: monotonic seconds.

    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self.looked = clock()
        self.since = self.looked

    looked: float
    """When the sockets were last looked at: what was found had arrived by then."""
    since: float
    """What was found then had not arrived before."""

    def select(self, timeout: float | None = None) -> Any:
        """Look, and remember when."""
        found, before = super().select(0), self.looked
        waits = not found and timeout != 0
        if waits:
            found = super().select(timeout)
        self.looked = self._clock()
        self.since = self.looked if waits else before
        return found


class StampDelay:
    """How long messages of one client were under way, from stamps of its own clock.

    The two clocks have nothing in common. The quickest message of late is taken to have needed no time, and what
    another one took longer it spent in a network or in the socket of a busy server.
    """

    def __init__(self) -> None:
        self._start = -math.inf
        self._least = self._before = math.inf

    def of(self, received: float, sent: float) -> float:
        """Seconds, at least 0, that a message was under way longer than the quickest.

        Args:
            received: when it was read, by the server's clock.
            sent: its stamp, by the client's.

        """
        difference = received - sent
        if received - self._start > _WINDOW_S:
            self._start, self._before, self._least = received, self._least, difference
        self._least = min(self._least, difference)
        delay = difference - min(self._least, self._before)
        if delay > _ELSEWHERE_S:
            self._least, self._before, delay = difference, math.inf, 0.0
        return delay
