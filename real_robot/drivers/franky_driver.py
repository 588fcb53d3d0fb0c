"""An FR3 through franky-control 2.0 (libfranka 0.21, FCI version 10): the 1 kHz impedance loop is its C++ thread.

Only franky's impedance tracker is used. Its point-to-point motions keep the Panda's joint limits, on an FR3 too, and
its position interface aborts where lost commands are extrapolated: homing goes through the impedance loop.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from flowpolicy.real_robot.arm.limits import COLLISION_FORCE, COLLISION_TORQUE
from flowpolicy.real_robot.bridge.priority import runs_in_real_time
from flowpolicy.real_robot.drivers.client_driver import ClientArm, ClientGripper, gripper_state
from flowpolicy.real_robot.drivers.client_errors import within
from flowpolicy.real_robot.drivers.driver_protocols import ArmState, Array, Gains, GripperState, RobotError


class FrankyArm(ClientArm):
    """An FR3, or its twin.

    Args:
        address: of the robot; libfranka's ports cannot be changed.

    """

    def __init__(self, address: str) -> None:
        super().__init__(address, "franky", "franky-control")

    def _open(self) -> Any:
        import franky

        real_time = franky.RealtimeConfig.Enforce if runs_in_real_time() else franky.RealtimeConfig.Ignore
        robot = franky.Robot(self.address, realtime_config=real_time)
        robot.recover_from_errors()
        robot.set_collision_behavior(
            [COLLISION_TORQUE] * 7, [COLLISION_TORQUE] * 7, [COLLISION_FORCE] * 6, [COLLISION_FORCE] * 6
        )
        return robot

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

    def _command(self, q: Array, dq: Array) -> None:
        self._loop.set_target(q, dq)

    def _running(self) -> bool:
        return bool(self._robot.is_in_control)

    def _raise_reason(self) -> None:
        self._robot.poll_motion()

    def _ender(self, loop: Any) -> Callable[[], Any] | None:
        if self._robot is None:
            return None
        stop: Callable[[], Any] = self._robot.stop if loop is None else loop.stop
        return stop

    def _clear_errors(self) -> None:
        if not within(5.0, self._robot.recover_from_errors, "recovering"):
            raise RobotError("the robot did not recover", fix="look at its lights and at Desk, then recover again")

    def _describe(self, error: Exception) -> str:
        return f"{type(error).__name__} {error}"


class FrankyGripper(ClientGripper):
    """The Franka hand."""

    def _open(self) -> Any:
        import franky

        return franky.Gripper(self.address)

    def state(self) -> GripperState:
        """The newest reading."""
        return gripper_state(self._call(lambda gripper: gripper.state))
