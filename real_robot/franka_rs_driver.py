"""An FR3 through franka-rs 0.4 (FCI version 10): the second driver, whose 1 kHz loop is a Rust thread.

No libfranka inside: the protocol is written anew there, so that what passes with both clients hangs on neither. Its
target follower limits jerk a second time, which costs some tracking; the guard's limits are far below its own.
franka-rs speaks the Panda's version 5 too, but no server of that version is at hand: this driver takes an FR3 only.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any, TypeVar

import numpy as np

from flowpolicy.core.errors import MissingExtraError
from flowpolicy.real_robot.client_errors import classify, first_line, within
from flowpolicy.real_robot.limits import COLLISION_FORCE, COLLISION_TORQUE, FR3
from flowpolicy.real_robot.protocols import (
    ArmFaultError,
    ArmState,
    Array,
    DriverCaps,
    Gains,
    GripperState,
    RobotError,
)

T = TypeVar("T")

_FRACTION = 0.8
"""Of the robot's limits that its own follower may use: well above ours, so that it follows and does not lag."""


class FrankaRsArm:
    """An FR3, or its twin.

    Args:
        address: of the robot.

    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.caps = DriverCaps("franka_rs", FR3, {"franka-rs": _version()})
        self._robot: Any = None
        self._loop: Any = None
        self._fault: ArmFaultError | None = None
        self._ending: threading.Thread | None = None

    def connect(self, deadline_s: float) -> None:
        """Open the connection and set what the robot itself watches."""
        import franka

        def work() -> Any:
            robot = franka.Robot(self.address, realtime="ignore")
            if robot.fci_version != 10:
                raise RobotError(f"FCI version {robot.fci_version}", expected="10: FR3 with system 5.9 or later")
            robot.automatic_error_recovery()
            robot.set_collision_behavior_simple(
                [COLLISION_TORQUE] * 7, [COLLISION_TORQUE] * 7, [COLLISION_FORCE] * 6, [COLLISION_FORCE] * 6
            )
            return robot

        self._robot = within(deadline_s, work, f"connecting to the robot at {self.address}")
        self._fault = None

    def start_stream(self, gains: Gains) -> None:
        """Switch the impedance loop on."""
        self._ended()
        robot = self._require()
        self._loop = self._call(
            lambda: robot.joint_targets(
                fraction=_FRACTION,
                backend="impedance",
                joint_stiffness=np.array(gains.stiffness),
                joint_damping=np.array(gains.damping),
                velocity_feedforward=True,
                leash=0.3,
            )
        )

    def set_reference(self, q: Array, dq: Array) -> None:
        """Hand a reference to the loop, which takes positions only."""
        if self._loop is None:
            raise self.fault() or ArmFaultError("other", "the impedance loop is off")
        self._call(lambda: self._loop.move_to(q))

    def state(self) -> ArmState:
        """The newest reading."""
        robot, loop = self._require(), self._loop
        state = self._call(loop.state if loop is not None else robot.read_once)
        return ArmState(
            t_mono=time.monotonic(),
            t_robot=float(state.time),
            q=np.array(state.q),
            dq=np.array(state.dq),
            tau=np.array(state.tau_J),
            tau_ext=np.array(state.tau_ext_hat_filtered),
            success_rate=float(state.control_command_success_rate) if self.in_control() else 1.0,
            errors=tuple(state.current_errors),
        )

    def fault(self) -> ArmFaultError | None:
        """Why the arm has stopped by itself: what its loop ended with."""
        if self._fault is None and self._loop is not None and not self._loop.running:
            try:
                self._call(self._loop.stop)
                self._fault = ArmFaultError("other", "the impedance loop ended without a reason")
            except ArmFaultError as fault:
                self._fault = fault
        return self._fault

    def in_control(self) -> bool:
        """Whether the impedance loop runs."""
        return self._loop is not None and bool(self._loop.running)

    def stop(self) -> None:
        """End the impedance loop; in a thread, for it waits until the arm rests or a network timeout."""
        loop, self._loop = self._loop, None
        if loop is None:
            return

        def end() -> None:
            with contextlib.suppress(BaseException):  # the loop has ended, which is what was wanted
                loop.stop()

        self._ending = threading.Thread(target=end, daemon=True)
        self._ending.start()

    def recover(self) -> None:
        """Clear the error, or connect anew where the old connection is dead."""
        self._ended()
        if self._robot is None or (self._fault is not None and self._fault.kind == "network"):
            self._robot = None  # every reference must go before a new client is let in
            self.connect(5.0)
            return
        within(5.0, self._robot.automatic_error_recovery, "recovering")
        self._fault = None

    def close(self) -> None:
        """End everything."""
        self.stop()
        self._ended()
        self._robot = None

    def _ended(self) -> None:
        if self._ending is not None:
            self._ending.join(5.0)
            self._ending = None

    def _require(self) -> Any:
        if self._robot is None:
            raise ArmFaultError("network", "not connected")
        return self._robot

    def _call(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except Exception as error:
            self._fault = ArmFaultError(classify(f"{getattr(error, 'kind', '')} {error}"), first_line(error))
            raise self._fault from error


class FrankaRsGripper:
    """The Franka hand.

    Args:
        address: of the robot.

    """

    def __init__(self, address: str) -> None:
        self.address, self._gripper = address, None

    def connect(self, deadline_s: float) -> None:
        """Open the connection; homes the fingers, which finds their largest opening."""
        import franka

        self._gripper = within(deadline_s, lambda: franka.Gripper(self.address), "connecting to the gripper")
        self._call(lambda gripper: gripper.homing())

    def move(self, width: float, speed: float) -> None:
        """Open or close to ``width``."""
        self._call(lambda gripper: gripper.move(width, speed))

    def grasp(self, width: float, speed: float, force: float) -> bool:
        """Close until something is held, whatever its width."""
        held = self._call(lambda g: g.grasp(width, speed, force, epsilon_inner=0.005, epsilon_outer=0.1))
        return bool(held and self.state().width > 0.002)

    def state(self) -> GripperState:
        """The newest reading."""
        state = self._call(lambda gripper: gripper.read_once())
        return GripperState(time.monotonic(), float(state.width), float(state.max_width), bool(state.is_grasped))

    def close(self) -> None:
        """Drop the connection."""
        self._gripper = None

    def _call(self, work: Callable[[Any], T]) -> T:
        if self._gripper is None:
            raise RobotError("the gripper is not connected")
        try:
            return work(self._gripper)
        except Exception as error:
            raise RobotError(f"the gripper: {first_line(error)}") from error


def _version() -> str:
    try:
        return metadata.version("franka-rs")
    except metadata.PackageNotFoundError as error:
        raise MissingExtraError("franka-rs", "franka") from error
