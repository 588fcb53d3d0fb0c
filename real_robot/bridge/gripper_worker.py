"""The gripper worker: a thread that may block, so that the bridge never does. The newest command wins."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol

from flowpolicy.real_robot.arm.arm_model import Hand
from flowpolicy.real_robot.drivers.client_errors import first_line
from flowpolicy.real_robot.drivers.driver_protocols import GripperDriver, GripperState

_SPEED, _FORCE = 0.1, 20.0  # m/s, N
_CLOSES_BELOW, _OPENS_ABOVE = 0.03, 0.05  # m: between them the last command stands


class Wish:
    """Whether the gripper should be closed; between the two thresholds the last wish stands."""

    def __init__(self) -> None:
        self.closed: bool | None = None

    def update(self, opening: float) -> bool:
        """Wish for an opening, m; whether that changes anything."""
        before = self.closed
        self.closed = True if opening < _CLOSES_BELOW else False if opening > _OPENS_ABOVE else before
        return self.closed != before


class Gripper(Protocol):
    """What the bridge asks of a gripper."""

    state: GripperState
    """The newest reading."""

    def command(self, opening: float) -> None:
        """Wish for an opening, m. Returns at once."""

    def supervise(self, now: float) -> float:
        """Seconds that the call under way has lasted."""

    def close(self) -> None:
        """End it."""


class GripperWorker:
    """Opens and closes a gripper as openings in m are wished for.

    A wish below 0.03 m closes until something is held, above 0.05 m opens wide; in between nothing changes. A call that
    fails is told and ends the connection; the next change of mind makes a new one.

    Args:
        make: creates a driver; called again after one has hung.
        hand: that it drives.
        timeout: seconds after which a call is abandoned with its connection.
        log: is told of what went wrong.
        clock: the bridge's.

    """

    def __init__(
        self,
        make: Callable[[], GripperDriver],
        hand: Hand,
        timeout: float,
        log: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._make, self._hand, self._timeout, self._log, self._clock = make, hand, timeout, log, clock
        self._wished = Wish()
        self._wish: bool | None = None  # as the thread knows it; True: closed
        self._done: bool | None = None
        self._changed, self._closing, self._failed = threading.Condition(), False, False
        self._generation, self._busy_since = 0, 0.0
        self.state = GripperState(0.0, hand.width, hand.width, grasped=False)
        """The newest reading; replaced as a whole."""
        self._start()

    def command(self, opening: float) -> None:
        """Wish for an opening, m. Returns at once."""
        if self._wished.update(opening):
            with self._changed:
                self._wish = self._wished.closed
                self._changed.notify()
            if self._failed:
                self._start()

    def supervise(self, now: float) -> float:
        """Seconds that the call under way has lasted; one beyond the timeout is abandoned."""
        if not self._busy_since:
            return 0.0
        busy = now - self._busy_since
        if busy > self._timeout:
            self._log(f"a gripper call hung for {busy:.1f} s and was abandoned; connecting anew")
            self._busy_since = 0.0
            self._start()
        return busy

    def close(self) -> None:
        """End the thread; a call under way is left alone."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()

    def _start(self) -> None:
        self._generation += 1
        self._done, self._failed = None, False
        threading.Thread(target=self._work, args=(self._generation,), name="gripper", daemon=True).start()

    def _work(self, generation: int) -> None:
        try:
            driver = self._make()
            driver.connect(5.0)
            while not self._closing and generation == self._generation:
                self.state = driver.state()
                with self._changed:
                    if self._wish is self._done:
                        self._changed.wait(0.05)
                    wish = self._wish
                if wish is not None and wish is not self._done:
                    self._call(driver, wish, generation)
            driver.close()
        except BaseException as error:  # whatever a binding raises: the thread would end without a word
            if generation == self._generation:
                self._busy_since, self._failed = 0.0, True
                self._log(f"gripper: {first_line(error)}; it is connected anew when it is next asked to open or close")

    def _call(self, driver: GripperDriver, wish: bool, generation: int) -> None:
        self._busy_since = self._clock()
        if wish:
            driver.grasp(0.0, _SPEED, _FORCE)
        else:
            driver.move(self._hand.width, _SPEED)
        if generation == self._generation:
            self._done, self._busy_since, self.state = wish, 0.0, driver.state()
