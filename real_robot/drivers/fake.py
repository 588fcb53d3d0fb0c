"""A simulated arm and gripper in NumPy: no sockets, any clock, faults on command."""

from __future__ import annotations

import numpy as np

from flowpolicy.real_robot.arm.arm_model import ArmModel, Gains, Hand
from flowpolicy.real_robot.drivers.driver_protocols import (
    ArmFaultError,
    ArmState,
    Array,
    Clock,
    DriverCaps,
    FaultKind,
    GripperState,
    RobotError,
)

_STEP = 0.001
_ERRORS: dict[str, FaultKind] = {
    "cartesian_reflex": "collision",
    "joint_reflex": "collision",
    "communication_constraints_violation": "communication",
    "user_stop": "user_stop",
    "server closed connection": "network",
}


class FakeArm:
    """A joint impedance law on one separate inertia per joint, in steps of 1 ms of the given clock.

    It moves whenever its state is read, by as much as its clock has moved.

    Args:
        arm: the model that it stands for.
        clock: time source.
        q: (n,) where it stands at first, rad; home unless given.

    """

    def __init__(self, arm: ArmModel, clock: Clock | None = None, q: Array | None = None) -> None:
        self.clock = clock or Clock()
        self.caps = DriverCaps("fake", arm, {"driver": "1"})
        self._inertia, self._still = np.array(arm.inertia), np.zeros(arm.joints)
        self.q, self.dq = np.array(arm.home if q is None else q, dtype=np.float64), self._still.copy()
        self.blocked = np.zeros(arm.joints, dtype=bool)
        """Joints that something holds fast."""
        self.frozen = False
        """Whether the state is not heard any more: every reading is the last one."""
        self.success_rate = 1.0
        """What is reported as command success rate."""
        self.unreachable = False
        """Whether a connection times out."""
        self._gains: Gains | None = None
        self._reference = (self.q.copy(), self._still)
        self._error, self._last, self._torque = "", self.clock.now(), self._still
        self._connected, self._heard = False, self._last

    def inject(self, error: str) -> None:
        """Stop with one of the robot's errors, e.g. 'cartesian_reflex' or 'user_stop'."""
        if error not in _ERRORS:
            raise RobotError(f"unknown error '{error}'", expected=", ".join(_ERRORS))
        self._error, self._gains, self.dq = error, None, self._still.copy()

    def connect(self, deadline_s: float) -> None:
        """Open the connection."""
        if self.unreachable:
            self.clock.sleep(deadline_s)
            raise RobotError(f"the arm did not answer within {deadline_s:g} s", fix="check network and power")
        self._connected, self._last = True, self.clock.now()

    def start_stream(self, gains: Gains) -> None:
        """Switch the impedance loop on."""
        self._require()
        self._reference, self._gains, self._last = (self.q.copy(), self._still), gains, self.clock.now()

    def set_reference(self, q: Array, dq: Array) -> None:
        """Hand a reference to the loop."""
        self._require()
        if self._gains is None:
            raise ArmFaultError("other", "the impedance loop is off")
        self._reference = (np.array(q), np.array(dq))

    def state(self) -> ArmState:
        """The newest reading."""
        now = self.clock.now()
        if not self.frozen:
            self._advance(now)
            self._heard = now
        if not self._connected:
            raise ArmFaultError("network", "not connected")
        return ArmState(
            t_mono=now,
            t_robot=self._heard,
            q=self.q.copy(),
            dq=self.dq.copy(),
            tau=self._torque.copy(),
            tau_ext=self._still.copy(),
            success_rate=self.success_rate,
            errors=(self._error,) if self._error else (),
        )

    def fault(self) -> ArmFaultError | None:
        """Why the arm has stopped by itself."""
        return ArmFaultError(_ERRORS[self._error], self._error) if self._error else None

    def in_control(self) -> bool:
        """Whether the impedance loop runs."""
        return self._gains is not None and not self._error

    def stop(self) -> None:
        """End the impedance loop; the arm stands still."""
        self._gains, self.dq = None, self._still.copy()

    def recover(self) -> None:
        """Clear the error."""
        if self._error == "user_stop":
            raise RobotError("the user stop is still pressed", fix="release it, then recover")
        self._error, self._connected, self.frozen = "", True, False
        self._last = self.clock.now()

    def release_user_stop(self) -> None:
        """What the human does who pressed it."""
        self._error = ""

    def close(self) -> None:
        """End everything."""
        self.stop()
        self._connected = False

    def _require(self) -> None:
        if not self._connected:
            raise ArmFaultError("network", "not connected")
        if self._error:
            raise ArmFaultError(_ERRORS[self._error], self._error)

    def _advance(self, now: float) -> None:
        # A clock that jumped is not made up for: the arm would have held its reference.
        steps = min(round((now - self._last) / _STEP), 500)
        self._last = now if steps == 500 else self._last + steps * _STEP
        if self._gains is None:
            return
        stiffness, damping = np.array(self._gains.stiffness), np.array(self._gains.damping)
        q_ref, dq_ref = self._reference
        for _ in range(steps):
            self._torque = stiffness * (q_ref - self.q) + damping * (dq_ref - self.dq)
            self.dq = np.where(self.blocked, 0.0, self.dq + _STEP * self._torque / self._inertia)
            self.q = self.q + _STEP * self.dq


class FakeGripper:
    """A gripper whose fingers move at the speed that is asked for.

    Args:
        hand: what it stands for.
        clock: time source.
        thing: width of something between the fingers, m; 0 for thin air.
        delay: what every call lasts beyond its motion, s.

    """

    def __init__(self, hand: Hand, clock: Clock | None = None, thing: float = 0.0, delay: float = 0.0) -> None:
        self.hand, self.clock, self.thing, self.delay = hand, clock or Clock(), thing, delay
        self.width, self.grasped, self.calls = hand.width, False, 0

    def connect(self, deadline_s: float) -> None:
        """Open the connection."""

    def move(self, width: float, speed: float) -> None:
        """Open or close to ``width``."""
        self.calls += 1
        self.clock.sleep(self.delay + abs(width - self.width) / speed)
        self.width, self.grasped = max(width, self.thing), False

    def grasp(self, width: float, speed: float, force: float) -> bool:
        """Close until something is held."""
        self.move(0.0, speed)
        self.grasped = self.thing > 0.0
        return self.grasped

    def state(self) -> GripperState:
        """The newest reading."""
        return GripperState(self.clock.now(), self.width, self.hand.width, self.grasped)

    def close(self) -> None:
        """End everything."""
