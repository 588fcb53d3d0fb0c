"""An FR3 through franka-rs 0.4 (FCI version 10): the second driver, whose 1 kHz loop is a Rust thread.

No libfranka inside: the protocol is written anew there, so that what passes with both clients hangs on neither. Its
target follower limits jerk a second time, which costs some tracking; the guard's limits are far below its own.
franka-rs speaks the Panda's version 5 too, but no server of that version is at hand: this driver takes an FR3 only.
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

_FRACTION = 0.8
"""Of the robot's limits that its own follower may use: well above ours, so that it follows and does not lag."""


class FrankaRsArm(ClientArm):
    """An FR3, or its twin.

    Args:
        address: of the robot.

    """

    def __init__(self, address: str) -> None:
        super().__init__(address, "franka_rs", "franka-rs")

    def _open(self) -> Any:
        import franka

        robot = franka.Robot(self.address, realtime="enforce" if runs_in_real_time() else "ignore")
        if robot.fci_version != 10:
            raise RobotError(f"FCI version {robot.fci_version}", expected="10: FR3 with system 5.9 or later")
        robot.automatic_error_recovery()
        robot.set_collision_behavior_simple(
            [COLLISION_TORQUE] * 7, [COLLISION_TORQUE] * 7, [COLLISION_FORCE] * 6, [COLLISION_FORCE] * 6
        )
        return robot

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

    def _command(self, q: Array, dq: Array) -> None:
        try:
            self._loop.move_to(q)  # it takes positions only
        except Exception as error:
            # A loop that has ended says no more than that here; its result says why.
            raise self.fault() or self._failed(error) from error

    def _running(self) -> bool:
        return bool(self._loop.running)

    def _raise_reason(self) -> None:
        self._loop.stop()

    def _ender(self, loop: Any) -> Callable[[], Any] | None:
        return None if loop is None else loop.stop

    def _clear_errors(self) -> None:
        within(5.0, self._robot.automatic_error_recovery, "recovering")

    def _describe(self, error: Exception) -> str:
        return f"{getattr(error, 'kind', '')} {error}"


class FrankaRsGripper(ClientGripper):
    """The Franka hand."""

    def _open(self) -> Any:
        import franka

        return franka.Gripper(self.address)

    def state(self) -> GripperState:
        """The newest reading."""
        return gripper_state(self._call(lambda gripper: gripper.read_once()))
