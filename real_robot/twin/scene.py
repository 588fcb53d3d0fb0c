"""The twin's MuJoCo scene in this process: an arm and a gripper without sockets, in any time one likes.

Same bodies, same impedance law and same 1 kHz steps as the twin behind libfranka; what is missing is the protocol with
its delays and losses, and real time. (docs/methods/franka-control.md#the-twin-and-its-gaps)
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowpolicy.core.errors import MissingExtraError
from flowpolicy.envs.rendering import choose_opengl
from flowpolicy.real_robot.arm.arm_model import Gains
from flowpolicy.real_robot.arm.models.franka import FR3
from flowpolicy.real_robot.bridge.gripper_worker import Wish
from flowpolicy.real_robot.drivers.driver_protocols import (
    ArmFaultError,
    ArmState,
    Array,
    Clock,
    DriverCaps,
    GripperState,
)

_STEP = 0.001
_N, _WIDTH = FR3.joints, FR3.hand.width
_FINGERS = slice(_N, _N + 2)
_TORQUE, _RATE = np.array(FR3.limits.torque), 0.9  # Nm, Nm per step: what the driver lets through
_HOLD = Gains(stiffness=(1000.0,) * _N, damping=(100.0, 100.0, 100.0, 100.0, 60.0, 50.0, 40.0))
"""How the robot holds by itself: much stiffer than the impedance loop."""
_FINGER_STIFFNESS, _FINGER_DAMPING, _FINGER_FORCE = 1000.0, 20.0, 100.0
"""franka-sim's servo of a finger: N/m, N s/m, N."""
_STILL, _STILL_STEPS, _CALL_STEPS = 0.002, 30, 1000
"""A gripper call ends when the fingers were slower than this, m/s, for so many steps; after so many in any case."""


class Scene:
    """Arm, hand, table and cube, moved on by whoever reads them.

    Args:
        clock: the scene is moved on to its time, in steps of 1 ms.

    """

    def __init__(self, clock: Clock) -> None:
        choose_opengl()  # before the first import, for whoever draws the scene
        try:
            import mujoco
        except ModuleNotFoundError as error:
            raise MissingExtraError("mujoco", "robosuite") from error
        from flowpolicy.real_robot.twin.twin_scene import build_scene

        self._step = mujoco.mj_step
        self.clock, self.model = clock, build_scene(_STEP)
        self.data: Any = mujoco.MjData(self.model)
        self.data.qpos[:_N], self.data.qpos[_FINGERS] = FR3.home, 0.5 * _WIDTH
        mujoco.mj_forward(self.model, self.data)
        self._last = clock.now()
        self._gains: tuple[Array, Array] | None = None
        self._reference = (np.array(FR3.home), np.zeros(_N))
        self._torque, self._finger, self._still = np.zeros(_N), 0.5 * _WIDTH, 0
        self.hold()

    def drive(self, gains: Gains) -> None:
        """Switch the impedance loop on where the arm stands."""
        self._gains = (np.array(gains.stiffness), np.array(gains.damping))
        self.target(self.data.qpos[:_N].copy(), np.zeros(_N))

    def hold(self) -> None:
        """The robot's own hold."""
        self.drive(_HOLD)

    def target(self, q: Array, dq: Array) -> None:
        """Reference of the loop, (n,) rad and (n,) rad/s."""
        self._reference = (q, dq)

    def open(self, width: float) -> None:
        """Drive the fingers to ``width`` m."""
        self._finger, self._still = 0.5 * width, -_CALL_STEPS

    @property
    def fingers_settled(self) -> bool:
        """Whether a gripper call would have returned."""
        return self._still >= _STILL_STEPS or self._still == 0

    def place(self, position: NDArray[np.float64]) -> None:
        """Put the cube on the table at (2,) m."""
        from flowpolicy.real_robot.twin.twin_scene import place_cube

        place_cube(self.data, float(position[0]), float(position[1]))

    def cube(self) -> NDArray[np.float64]:
        """(7,) position of the cube in the base frame, m, and quaternion w x y z."""
        self.advance()
        return np.array(self.data.qpos[-7:])

    def advance(self) -> None:
        """Move the scene on to the clock's time."""
        steps = round((self.clock.now() - self._last) / _STEP)
        self._last += steps * _STEP
        data = self.data
        q, dq, force = data.qpos[:_N], data.qvel[:_N], data.qfrc_applied
        (stiffness, damping), (q_ref, dq_ref) = self._gains or (0.0, 0.0), self._reference
        for _ in range(steps):
            # As libfranka's torque loop: Coriolis is added, gravity is the robot's own business.
            coriolis = data.qfrc_bias[:_N] - data.qfrc_gravcomp[:_N]
            wanted = stiffness * (q_ref - q) + damping * (dq_ref - dq) + coriolis
            wanted = np.minimum(np.maximum(wanted, self._torque - _RATE), self._torque + _RATE)
            self._torque = np.minimum(np.maximum(wanted, -_TORQUE), _TORQUE)
            force[:_N] = self._torque
            push = _FINGER_STIFFNESS * (self._finger - data.qpos[_FINGERS]) - _FINGER_DAMPING * data.qvel[_FINGERS]
            force[_FINGERS] = np.minimum(np.maximum(push, -_FINGER_FORCE), _FINGER_FORCE)
            self._step(self.model, data)
            self._count_still()

    def _count_still(self) -> None:
        moving = max(np.abs(self.data.qvel[_FINGERS])) > _STILL
        if self._still < 0:  # a call is under way, and its fingers may not have begun to move
            begun = self._still >= 20 - _CALL_STEPS
            self._still = self._still + 1 if moving or not begun else 1
        elif self._still < _STILL_STEPS and self._still > 0:
            self._still = 1 if moving else self._still + 1


class SceneArm:
    """The scene's arm behind the protocol of a driver.

    Args:
        scene: what it is in.

    """

    def __init__(self, scene: Scene) -> None:
        self.scene, self._streaming = scene, False
        self.caps = DriverCaps("scene", FR3, {"driver": "1"})

    def connect(self, deadline_s: float) -> None:
        """Nothing to do."""

    def start_stream(self, gains: Gains) -> None:
        """Switch the impedance loop on."""
        self.scene.advance()
        self.scene.drive(gains)
        self._streaming = True

    def set_reference(self, q: Array, dq: Array) -> None:
        """Hand a reference to the loop."""
        if not self._streaming:
            raise ArmFaultError("other", "the impedance loop is off")
        self.scene.target(np.array(q), np.array(dq))

    def state(self) -> ArmState:
        """The newest reading."""
        self.scene.advance()
        data, now = self.scene.data, self.scene.clock.now()
        return ArmState(
            t_mono=now,
            t_robot=now,
            q=data.qpos[:_N].copy(),
            dq=data.qvel[:_N].copy(),
            tau=data.qfrc_applied[:_N].copy(),
            tau_ext=np.zeros(_N),
            success_rate=1.0,
        )

    def fault(self) -> ArmFaultError | None:
        """It has none."""
        return None

    def in_control(self) -> bool:
        """Whether the impedance loop runs."""
        return self._streaming

    def stop(self) -> None:
        """End the impedance loop; the arm holds."""
        self._streaming = False
        self.scene.hold()

    def recover(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""


class SceneGripper:
    """The scene's hand with the worker's manners, without its thread.

    As there, what is read stays what it was until a call is done.

    Args:
        scene: what it is in.

    """

    def __init__(self, scene: Scene) -> None:
        self.scene, self._wish = scene, Wish()
        self.state = GripperState(0.0, _WIDTH, _WIDTH, grasped=False)

    def command(self, opening: float) -> None:
        """Wish for an opening, m."""
        if self._wish.update(opening):
            self.scene.open(0.0 if self._wish.closed else _WIDTH)

    def supervise(self, now: float) -> float:
        """Read the fingers if they rest; seconds that a call has lasted: never too many."""
        if self.scene.fingers_settled:
            width = float(self.scene.data.qpos[_FINGERS].sum())
            held = bool(self._wish.closed) and width > 0.002
            self.state = GripperState(now, width, _WIDTH, held)
        return 0.0

    def close(self) -> None:
        """Nothing to do."""
