"""What the bridge knows of an arm, a gripper and a camera.

SI units and radians throughout. Every time is of the bridge's monotonic clock, in seconds, unless its name says
otherwise; on Linux that clock is the same in all processes of a host. The 1 kHz loop is the driver's own, in native
code: nothing here is called from it. (docs/methods/franka-control.md#drivers)
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from flowpolicy.core.errors import FlowPolicyError
from flowpolicy.core.spec import UNSTATED, RenderSpec
from flowpolicy.real_robot.arm.arm_model import ArmModel, Gains

Array = NDArray[np.float64]
"""Shape (n,) where it stands for the n joints of an arm: rad, rad/s or Nm."""


@dataclasses.dataclass
class Clock:
    """A time source and a way to let it pass; the default is the monotonic clock of the host."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


FaultKind = Literal["collision", "communication", "network", "user_stop", "limit", "other"]
"""collision: a reflex of the robot. communication: it missed too many commands. network: it is not heard any more.
user_stop: a human pressed the stop. limit: a command violated a limit, which must never occur."""


class RobotError(FlowPolicyError):
    """The robot cannot be driven: unreachable, refused, or not in a state for what was asked."""


class ArmStoppedError(RobotError):
    """An episode cannot go on: the bridge is in FAULT or LOCKED until somebody recovers it."""


class ArmFaultError(RobotError):
    """The arm stopped by itself or cannot be heard.

    Args:
        kind: decides what the state machine allows next.
        what: the robot's own words.

    """

    def __init__(self, kind: FaultKind, what: str) -> None:
        self.kind: FaultKind = kind
        super().__init__(what)


@dataclasses.dataclass(frozen=True, slots=True)
class ArmState:
    """One reading of the arm, taken once per bridge tick."""

    t_mono: float
    """When it was read, s."""
    t_robot: float
    """The robot's own clock, s. It stands still when the robot is not heard."""
    q: Array
    """(n,) measured joint positions, rad."""
    dq: Array
    """(n,) measured joint velocities, rad/s."""
    tau: Array
    """(n,) measured joint torques, Nm."""
    tau_ext: Array
    """(n,) external torques as estimated by the robot, Nm."""
    success_rate: float
    """Share of the last 100 commands that arrived in time, 0 to 1."""
    errors: tuple[str, ...] = ()
    """The robot's names of its active errors."""


@dataclasses.dataclass(frozen=True, slots=True)
class GripperState:
    """One reading of the gripper."""

    t_mono: float
    """When it was read, s."""
    width: float
    """Opening between the fingers, m."""
    max_width: float
    """Largest opening, m."""
    grasped: bool
    """Whether something is held."""


@dataclasses.dataclass(frozen=True, slots=True)
class ActionChunk:
    """Actions of one decision of a policy, with absolute times."""

    seq: int
    """Number of the decision, from 1; grows."""
    t_obs: float
    """When the observation behind it was taken, s."""
    t0: float
    """When row 0 is due, s."""
    dt: float
    """Period of the rows, s."""
    q: Array
    """(h, n) absolute joint positions, rad."""
    gripper: Array
    """(h,) opening, m."""
    frozen: int = 0
    """Rows at the start that repeat what was committed before (real-time chunking)."""

    @property
    def end(self) -> float:
        """When the last row is due, s."""
        return self.t0 + (len(self.q) - 1) * self.dt


@dataclasses.dataclass(frozen=True)
class DriverCaps:
    """What a driver drives."""

    driver: str
    """Name of the driver."""
    arm: ArmModel
    """The model. Never another one."""
    versions: dict[str, str]
    """Versions of client library and robot, for the record."""


class ArmDriver(Protocol):
    """An arm with its own 1 kHz loop. Every method but ``connect``, ``stop`` and ``recover`` returns at once.

    There is no motion but the impedance loop: homing too is a reference of the bridge's own follower.

    Errors of the robot surface as :class:`ArmFaultError` from the call under way, and in :meth:`fault`.
    """

    caps: DriverCaps

    def connect(self, deadline_s: float) -> None:
        """Open the connection. Raises :class:`RobotError` after ``deadline_s``; never blocks longer."""

    def start_stream(self, gains: Gains) -> None:
        """Switch the impedance loop on, with the measured position as reference."""

    def set_reference(self, q: Array, dq: Array) -> None:
        """Hand a reference (n,) rad, (n,) rad/s to the 1 kHz loop."""

    def state(self) -> ArmState:
        """The newest reading, after a fault too. Raises :class:`ArmFaultError` (network) when there is none."""

    def fault(self) -> ArmFaultError | None:
        """Why the arm has stopped by itself; None while it has not."""

    def in_control(self) -> bool:
        """Whether the impedance loop runs."""

    def stop(self) -> None:
        """End the impedance loop; the robot then holds by itself. Never raises."""

    def recover(self) -> None:
        """Clear the robot's error; after a lost connection, build a new one. Raises :class:`RobotError`."""

    def close(self) -> None:
        """End everything; may be called twice."""


class GripperDriver(Protocol):
    """A gripper. Every call may block for seconds, so only the gripper worker calls it."""

    def connect(self, deadline_s: float) -> None:
        """Open the connection."""

    def move(self, width: float, speed: float) -> None:
        """Open or close to ``width``, m, at ``speed``, m/s."""

    def grasp(self, width: float, speed: float, force: float) -> bool:
        """Close until ``force``, N, is reached; whether something of about ``width``, m, is held."""

    def state(self) -> GripperState:
        """The newest reading."""

    def close(self) -> None:
        """End everything; may be called twice."""


@dataclasses.dataclass(frozen=True, slots=True)
class Frame:
    """One picture."""

    seq: int
    """Number of the picture; a gap is a dropped one."""
    t_mono: float
    """When it was exposed, s."""
    t_device: float
    """The camera's own time stamp, s."""
    rgb: NDArray[Any]
    """(height, width, 3) uint8."""


@dataclasses.dataclass(frozen=True)
class CameraFacts:
    """What only the camera itself knows of its pictures; a contract keeps it."""

    intrinsics: tuple[float, ...] = ()
    """fx, fy, cx, cy of its own picture, pixels; empty if unknown."""
    fov_deg: float = 0.0
    """Vertical field of view, degrees; 0 if unknown."""
    rate_hz: float = 0.0
    """Pictures per second; 0 if unknown."""
    mount: str = UNSTATED
    """What it is fixed to."""
    render: RenderSpec | None = None
    """How a simulator draws them; None for a real camera."""


class Camera(Protocol):
    """A camera that keeps the newest picture only."""

    latency_s: float
    """From exposure to availability, s."""
    facts: CameraFacts
    """Known from the first picture on."""

    def start(self) -> None:
        """Begin to take pictures."""

    def latest(self) -> Frame | None:
        """The newest picture; None before the first."""

    def close(self) -> None:
        """End everything; may be called twice."""
