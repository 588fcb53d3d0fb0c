"""Is everybody still there and in time? Counts and thresholds, looked at once per tick."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from flowpolicy.real_robot.bridge.watchdogs import Recent, Since, WatchdogLimits
from flowpolicy.real_robot.drivers.driver_protocols import ArmFaultError, ArmState


class Health:
    """Lateness of the bridge, age of the robot's state, its command success rate, and the policy's signs of life.

    Args:
        watch: thresholds.
        note: keeps (kind, text).
        rate_hz: ticks per second.
        source: who decides: 'policy', or the device with which a person teaches.

    """

    def __init__(
        self, watch: WatchdogLimits, note: Callable[[str, str], None], rate_hz: float, source: str = "policy"
    ) -> None:
        self.watch, self._note, self.source = watch, note, source
        self._late, self._silent, self._t_robot = Recent(), Since(), float("nan")
        self._share = 1.0 / rate_hz
        self.late_ticks = 0
        """Ticks that began too late, since the start."""
        self.success_rate = 1.0
        """Mean of about the last second."""
        self._warned: dict[str, float] = {}
        self.heard = 0.0
        """When the policy process was heard last, s."""

    def tick(self, now: float, lateness: float) -> str:
        """Count a late tick; returns why the arm should hold, empty if it should not."""
        if lateness > self.watch.tick:
            self.late_ticks += 1
            if self._late.add(now) >= self.watch.late_ticks:
                self._late.clear()
                return f"{self.watch.late_ticks} ticks were late by more than {1e3 * self.watch.tick:.0f} ms"
        elif lateness > self.watch.tick_warn:
            self.warn(now, f"a tick began {1e3 * lateness:.1f} ms late")
        return ""

    def arm(self, state: ArmState, now: float) -> None:
        """Look at a reading. Raises :class:`ArmFaultError` when the robot is not heard any more, or says nothing."""
        if not np.isfinite([*state.q, *state.dq, state.t_robot, state.success_rate]).all():
            raise ArmFaultError("other", "the robot's reading is not a number: what compares with it would never act")
        silent = self._silent.update(state.t_robot == self._t_robot, now)
        self._t_robot = state.t_robot
        if silent >= self.watch.robot:
            self._silent = Since()
            raise ArmFaultError("network", f"the robot's state has not changed for {1e3 * silent:.0f} ms")
        if silent >= self.watch.robot_warn:
            self.warn(now, f"the robot's state has not changed for {1e3 * silent:.0f} ms")
        self.success_rate += self._share * (state.success_rate - self.success_rate)
        if self.success_rate < self.watch.success_warn:
            self.warn(now, f"only {100 * self.success_rate:.0f} % of the commands arrive in time")

    def forget(self) -> None:
        """Begin anew, as after a new connection."""
        self._silent, self._t_robot, self.success_rate = Since(), float("nan"), 1.0

    @property
    def speed(self) -> float:
        """Factor on every speed that the command success rate allows."""
        return 0.5 if self.success_rate < self.watch.success_slow else 1.0

    def hold_reason(self, now: float) -> str:
        """Why a running arm should hold, empty if it should not."""
        if self.success_rate < self.watch.success_hold:
            return f"only {100 * self.success_rate:.0f} % of the commands arrive in time"
        silent = now - self.heard
        if silent > self.watch.heartbeat:
            return f"the {self.source} process has been silent for {1e3 * silent:.0f} ms"
        if silent > self.watch.heartbeat_warn:
            self.warn(now, f"the {self.source} process has been silent for {1e3 * silent:.0f} ms")
        return ""

    def warn(self, now: float, text: str) -> None:
        """Keep a warning, at most one of its kind (first words) per second."""
        kind = text[:12]
        if now - self._warned.get(kind, -1.0) >= 1.0:
            self._warned[kind] = now
            self._note("warning", text)
