"""What the drivers of the robot's clients share: a loop in a thread of the client's, faults from its exceptions."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any, TypeVar

from flowpolicy.core.errors import MissingExtraError
from flowpolicy.real_robot.arm.limits import FR3
from flowpolicy.real_robot.drivers.client_errors import classify, first_line, within
from flowpolicy.real_robot.drivers.driver_protocols import ArmFaultError, Array, DriverCaps, GripperState, RobotError

T = TypeVar("T")


class ClientArm:
    """An FR3, or its twin, through a client whose impedance loop is a thread of its own.

    A driver adds what the client calls ``open``, ``start_stream``, ``state`` and the four hooks below.

    Args:
        address: of the robot.
        name: of the driver.
        package: that holds the client.

    """

    def __init__(self, address: str, name: str, package: str) -> None:
        self.address = address
        self.caps = DriverCaps(name, FR3, {package: installed(package)})
        self._robot: Any = None
        self._loop: Any = None
        self._fault: ArmFaultError | None = None
        self._ending: threading.Thread | None = None

    def _open(self) -> Any:
        """A new connection, errors cleared and collision thresholds set."""
        raise NotImplementedError

    def _command(self, q: Array, dq: Array) -> None:
        """Hand a reference to the loop that runs."""
        raise NotImplementedError

    def _running(self) -> bool:
        """Whether the loop that was started still runs."""
        raise NotImplementedError

    def _raise_reason(self) -> None:
        """Raise what the loop ended with."""
        raise NotImplementedError

    def _ender(self, loop: Any) -> Callable[[], Any] | None:
        """What ends ``loop``, which may be None; None where nothing is to be ended."""
        raise NotImplementedError

    def _clear_errors(self) -> None:
        """Recover the robot over a connection that lives."""
        raise NotImplementedError

    def _describe(self, error: Exception) -> str:
        """Words by which a fault is classified."""
        raise NotImplementedError

    def connect(self, deadline_s: float) -> None:
        """Open the connection and set what the robot itself watches."""
        self._robot = within(deadline_s, self._open, f"connecting to the robot at {self.address}")
        self._fault = None

    def set_reference(self, q: Array, dq: Array) -> None:
        """Hand a reference to the loop."""
        if self._loop is None:
            raise self.fault() or ArmFaultError("other", "the impedance loop is off")
        self._command(q, dq)

    def fault(self) -> ArmFaultError | None:
        """Why the arm has stopped by itself: what its loop ended with."""
        if self._fault is None and self._loop is not None and not self._running():
            try:
                self._call(self._raise_reason)
                self._fault = ArmFaultError("other", "the impedance loop ended without a reason")
            except ArmFaultError as fault:
                self._fault = fault
        return self._fault

    def in_control(self) -> bool:
        """Whether the impedance loop runs."""
        return self._loop is not None and self._running()

    def stop(self) -> None:
        """End the impedance loop; in a thread, for it waits until the arm rests or a network timeout."""
        loop, self._loop = self._loop, None
        ender = self._ender(loop)
        if ender is None:
            return

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
        self._clear_errors()
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
        """Turn what the client raises into a fault. Its exceptions share no base class but the built-in one."""
        try:
            return work()
        except Exception as error:
            raise self._failed(error) from error

    def _failed(self, error: Exception) -> ArmFaultError:
        self._fault = ArmFaultError(classify(self._describe(error)), first_line(error))
        return self._fault


class ClientGripper:
    """The Franka hand. A driver adds ``_open`` and ``state``.

    Args:
        address: of the robot.

    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._gripper: Any = None

    def _open(self) -> Any:
        """A new connection."""
        raise NotImplementedError

    def connect(self, deadline_s: float) -> None:
        """Open the connection; homes the fingers, which finds their largest opening."""
        self._gripper = within(deadline_s, self._open, "connecting to the gripper")
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
        raise NotImplementedError

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


def gripper_state(state: Any) -> GripperState:
    """A client's reading of the gripper, which has just been taken."""
    return GripperState(time.monotonic(), float(state.width), float(state.max_width), bool(state.is_grasped))


def installed(package: str) -> str:
    """Version of a client's package; MissingExtraError where it is not there."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError as error:
        raise MissingExtraError(package, "franka") from error
