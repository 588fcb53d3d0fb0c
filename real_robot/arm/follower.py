"""Turns references into a jerk-limited trajectory at the bridge's rate: Ruckig, watched by the envelope's guard."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from ruckig import InputParameter, OutputParameter, Ruckig, RuckigError, Synchronization

from flowpolicy.real_robot.arm.braking import Motion, along, stop
from flowpolicy.real_robot.arm.envelope import Envelope

Array = NDArray[np.float64]

LOOKAHEAD = 0.12
"""The trajectory is planned to meet the reference this much later, s: about as long as it takes to change speed."""


class Follower:
    """The commanded trajectory of one arm.

    Args:
        envelope: limits and period.

    """

    def __init__(self, envelope: Envelope) -> None:
        self.envelope, n = envelope, envelope.limits.arm.joints
        self._planner, self._input, self._output = Ruckig(n, envelope.dt), InputParameter(n), OutputParameter(n)
        self._input.max_acceleration, self._input.max_jerk = list(envelope.acceleration), list(envelope.jerk)
        # Without a time of arrival the shortest way to a position *and* a velocity may be to back off and take a run.
        self._input.minimum_duration = LOOKAHEAD
        self.motion = Motion(np.zeros(n), np.zeros(n), np.zeros(n))

    def seed(self, q: Array) -> None:
        """Start at rest at ``q`` (n,) rad."""
        self.motion = self._at_rest(q)

    def fits(self, q: Array) -> bool:
        """Whether an arm at rest at ``q`` (n,) rad is inside every limit, so that it may start."""
        return bool(self.envelope.admissible(self._at_rest(q)))

    def _at_rest(self, q: Array) -> Motion:
        still = np.zeros(len(q))
        return Motion(np.array(q, dtype=np.float64), still, still.copy())

    @property
    def resting(self) -> bool:
        """Whether the commanded trajectory stands still."""
        return bool(np.abs(self.motion.v).max() < 1e-6 and np.abs(self.motion.a).max() < 1e-3)

    def step(self, q: Array, dq: Array, speed: float = 1.0) -> bool:
        """Advance one period; True where the guard braked instead.

        Args:
            q: (n,) reference :data:`LOOKAHEAD` from now, inside the limits, rad.
            dq: (n,) its velocity, rad/s.
            speed: factor in (0, 1] on every velocity limit.

        """
        envelope, given = self.envelope, self._input
        top = envelope.velocity * speed
        given.current_position, given.current_velocity, given.current_acceleration = self.motion
        away = q - self.motion.q
        largest = np.abs(away / top).max()
        if largest > 1e-3:
            # Catching up in a straight line at full speed may be too fast for the tool, though not for the joints.
            top = np.maximum(top * envelope.speed_factor(self.motion.q, away / largest), 1.05 * np.abs(dq))
        # Where the reference moves towards the end of a joint's range, it must be able to stop before it.
        reach = 0.5 * dq * (np.abs(dq) / envelope.acceleration + envelope.acceleration / envelope.jerk)
        ends = (q + reach >= envelope.low) & (q + reach <= envelope.high)
        given.max_velocity = top
        given.target_position, given.target_velocity = q, np.where(ends, np.clip(dq, -0.95 * top, 0.95 * top), 0.0)
        proposed = self._plan()
        if proposed is None:
            self.brake()
            return True
        self.motion, refused = envelope.guard(self.motion, proposed)
        return bool(refused)

    def _plan(self) -> Motion | None:
        """The state one period ahead on the shortest way to the target; None where Ruckig finds no way.

        The joints are to arrive together. Their earliest common time often lies on the very edge of what one of them
        can do, several joints being equally slow, and there Ruckig's search for that joint's path may miss by a
        rounding error (1 homing in 60 meets such a period). Planned each by itself the joints need no such search;
        one period later they are planned together again.
        """
        for together in (Synchronization.Time, Synchronization.No):
            self._input.synchronization = together
            try:
                self._planner.update(self._input, self._output)
            except RuckigError:  # its Python binding raises where C++ returns a code
                continue
            output = self._output
            return Motion(
                np.array(output.new_position), np.array(output.new_velocity), np.array(output.new_acceleration)
            )
        return None

    def brake(self) -> None:
        """Advance one period of the shortest stop; standing still once there."""
        envelope = self.envelope
        self.motion = along(stop(self.motion, envelope.acceleration, envelope.jerk), envelope.dt)
