"""An FR3 through franky-control 2.0 (libfranka 0.21, FCI version 10): the 1 kHz impedance loop is its C++ thread.

Only franky's impedance tracker is used. Its point-to-point motions keep the Panda's joint limits, on an FR3 too, and
its position interface aborts where lost commands are extrapolated: homing goes through the impedance loop.
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
from flowpolicy.real_robot.arm.arm_model import Gains
from flowpolicy.real_robot.arm.models.franka import FR3
from flowpolicy.real_robot.drivers.client_errors import classify, first_line, within
from flowpolicy.real_robot.drivers.driver_protocols import (
    ArmFaultError,
    ArmState,
    Array,
    DriverCaps,
    GripperState,
    RobotError,
)
from flowpolicy.real_robot.drivers.priority import runs_in_real_time

T = TypeVar("T")

_PACKAGE = "franky-control"
COLLISION_TORQUE, COLLISION_FORCE = 40.0, 40.0
"""Thresholds of the robot's own reflex, Nm and N; 60 for tasks with contact."""


class FrankyArm:
    """An FR3, or its twin.

    Args:
        address: of the robot; libfranka's ports cannot be changed.

    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.caps = DriverCaps("franky", FR3, {_PACKAGE: installed(_PACKAGE)})
        self._robot: Any = None
        self._loop: Any = None
        self._fault: ArmFaultError | None = None
        self._ending: threading.Thread | None = None

    def connect(self, deadline_s: float) -> None:
        """Open the connection and set what the robot itself watches."""
        self._robot = within(deadline_s, self._open, f"connecting to the robot at {self.address}")
        self._fault = None

    def start_stream(self, gains: Gains) -> None:
        """Switch the impedance loop on."""
        import franky

        self._ended()
        robot = self._require()
        self._loop = self._call(
            lambda: franky.JointImpedanceTracker(
                robot, stiffness=np.array(gains.stiffness), damping=np.array(gains.damping), max_delta_tau=0.9
            )
        )
        # The loop takes a cycle or two to begin.
        deadline = time.monotonic() + 0.5
        while not robot.is_in_control and time.monotonic() < deadline:
            time.sleep(0.001)

    def set_reference(self, q: Array, dq: Array) -> None:
        """Hand a reference to the loop."""
        if self._loop is None:
            raise self.fault() or ArmFaultError("other", "the impedance loop is off")
        self._loop.set_target(q, dq)

    def state(self) -> ArmState:
        """The newest reading."""
        robot = self._require()
        state = self._call(lambda: robot.state)
        return ArmState(
            t_mono=time.monotonic(),
            t_robot=float(state.time.to_sec()),
            q=np.array(state.q),
            dq=np.array(state.dq),
            tau=np.array(state.tau_J),
            tau_ext=np.array(state.tau_ext_hat_filtered),
            success_rate=float(state.control_command_success_rate) if self.in_control() else 1.0,
        )

    def fault(self) -> ArmFaultError | None:
        """Why the arm has stopped by itself: what its loop ended with."""
        if self._fault is None and self._loop is not None and not self._robot.is_in_control:
            try:
                self._call(self._robot.poll_motion)
                self._fault = ArmFaultError("other", "the impedance loop ended without a reason")
            except ArmFaultError as fault:
                self._fault = fault
        return self._fault

    def in_control(self) -> bool:
        """Whether the impedance loop runs."""
        return self._loop is not None and bool(self._robot.is_in_control)

    def stop(self) -> None:
        """End the impedance loop; in a thread, for it waits until the arm rests or a network timeout."""
        loop, self._loop = self._loop, None
        if self._robot is None:
            return
        ender = self._robot.stop if loop is None else loop.stop

        def end() -> None:
            with contextlib.suppress(BaseException):  # the loop has ended, which is what was wanted
                ender()

        self._ending = threading.Thread(target=end, daemon=True)
        self._ending.start()

    def recover(self) -> None:
        """Clear the error, or connect anew where the old connection is dead."""
        self._ended()
        if self._robot is None or (self._fault is not None and self._fault.kind == "network"):
            self._robot = None  # every reference must go before a new client is let in
            self.connect(5.0)
            return
        if not within(5.0, self._robot.recover_from_errors, "recovering"):
            raise RobotError("the robot did not recover", fix="look at its lights and at Desk, then recover again")
        self._fault = None

    def close(self) -> None:
        """End everything."""
        self.stop()
        self._ended()
        self._robot = None

    def _open(self) -> Any:
        """A new connection, errors cleared and collision thresholds set."""
        import franky

        real_time = franky.RealtimeConfig.Enforce if runs_in_real_time() else franky.RealtimeConfig.Ignore
        robot = franky.Robot(self.address, realtime_config=real_time)
        robot.recover_from_errors()
        robot.set_collision_behavior(
            [COLLISION_TORQUE] * FR3.joints,
            [COLLISION_TORQUE] * FR3.joints,
            [COLLISION_FORCE] * 6,
            [COLLISION_FORCE] * 6,
        )
        return robot

    def _ended(self) -> None:
        if self._ending is not None:
            self._ending.join(5.0)
            self._ending = None

    def _require(self) -> Any:
        if self._robot is None:
            raise ArmFaultError("network", "not connected")
        return self._robot

    def _call(self, work: Callable[[], T]) -> T:
        """Turn what the client raises into a fault. Its exceptions share no base class but the built-in one."""
        try:
            return work()
        except Exception as error:
            self._fault = ArmFaultError(classify(f"{type(error).__name__} {error}"), first_line(error))
            raise self._fault from error


class FrankyGripper:
    """The Franka hand.

    Args:
        address: of the robot.

    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._gripper: Any = None

    def connect(self, deadline_s: float) -> None:
        """Open the connection; homes the fingers, which finds their largest opening."""
        import franky

        self._gripper = within(deadline_s, lambda: franky.Gripper(self.address), "connecting to the gripper")
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
        state = self._call(lambda gripper: gripper.state)
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


def installed(package: str) -> str:
    """Version of a client's package; MissingExtraError where it is not there."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError as error:
        raise MissingExtraError(package, "franka") from error
