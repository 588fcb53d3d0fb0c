"""References of the impedance loop that let a hand lead the arm (docs/teach.md#guide).

The loop keeps its springs; what makes them soft is that their rest positions move with the arm. Inside the walls the
reference of a tick is where the arm is, so that there is no force but some damping. Outside it stays at the wall, and
the springs push back. An arm that stands still is held where it stands, until a hand pulls it from there: then nothing
drifts, and if this process dies the last reference holds the arm.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from flowpolicy.real_robot.arm.arm_model import ArmModel, Gains
from flowpolicy.real_robot.arm.envelope import Envelope
from flowpolicy.real_robot.arm.envelope_limits import EnvelopeLimits
from flowpolicy.real_robot.arm.kinematics import tool_speed

Array = NDArray[np.float64]

WALL = 0.08
"""The walls stand this far before the soft ends of the joints' ranges, rad."""
_DAMPING = 0.12
"""Of the damping while a policy plays."""
_STILL_SPEED, _STILL_S, _PULL = 0.02, 0.2, 0.004
"""Slower than this for so long, rad/s and s, an arm is held; pulled this far away, rad, it is let go."""
_FIRM, _BRAKING = 3.0, 6.0
"""By how much more is damped where the arm is held or at a wall, and where it is led faster than it may move."""


def hand_gains(arm: ArmModel) -> Gains:
    """Springs that hold an arm and push it back at the walls, with hardly any damping."""
    return Gains(arm.homing_gains.stiffness, tuple(_DAMPING * value for value in arm.gains.damping))


class HandGuide:
    """What the impedance loop is told while a hand leads.

    Args:
        limits: of the arm.
        dt: period of the references, s.

    """

    def __init__(self, limits: EnvelopeLimits, dt: float) -> None:
        self._limits, self._dt = limits, dt
        self._walls = Envelope(dataclasses.replace(limits, margin=limits.margin + WALL), dt)
        self._held: Array | None = None
        self._still = 0.0

    @property
    def holds(self) -> bool:
        """Whether the arm is held where it stands."""
        return self._held is not None

    def reference(self, q: Array, dq: Array, *, free: bool) -> tuple[Array, Array]:
        """(n,) rad and (n,) rad/s for an arm at ``q`` (n,) rad moving with ``dq`` (n,) rad/s.

        Args:
            q: measured.
            dq: measured.
            free: whether it may be led; otherwise it is held where it is.

        """
        inside, _, at_wall = self._walls.clip_reference(q, np.zeros_like(q))
        self._still = self._still + self._dt if np.abs(dq).max() < _STILL_SPEED else 0.0
        if self._held is not None and free and np.abs(q - self._held).max() > _PULL:
            self._held, self._still = None, 0.0
        elif self._held is None and (not free or self._still >= _STILL_S):
            self._held = inside
        if self._held is not None:
            return self._held, -_FIRM * dq
        speed, _ = tool_speed(self._walls.pose(q), dq)
        if float(speed) > 0.75 * self._limits.translation:
            return inside, -_BRAKING * dq
        return inside, -_FIRM * dq if at_wall else np.zeros_like(dq)
