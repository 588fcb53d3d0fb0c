"""What a client of the robot's protocol says when something is wrong, and calls that may hang.

libfranka (inside franky-control) uses the robot's own names of errors.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from flowpolicy.real_robot.drivers.driver_protocols import FaultKind, RobotError

T = TypeVar("T")

_KINDS: tuple[tuple[str, FaultKind], ...] = (
    ("cartesian_reflex", "collision"),
    ("joint_reflex", "collision"),
    ("communication_constraints", "communication"),
    ("safety function", "user_stop"),
    ("SafetyFunction", "user_stop"),
    ("user stop", "user_stop"),
    ("UserStopped", "user_stop"),
    ("NetworkException", "network"),
    ("Net Exception", "network"),
    ("UDP", "network"),
    ("TCP", "network"),
    ("closed connection", "network"),
    ("connection", "network"),
    ("discontinuity", "limit"),
    ("violation", "limit"),
)  # libfranka calls every abort "motion aborted by reflex": the name in brackets decides


def classify(text: str) -> FaultKind:
    """Kind of a fault from a client's words."""
    return next((kind for word, kind in _KINDS if word in text), "other")


def within(seconds: float, work: Callable[[], T], what: str) -> T:
    """Result of ``work``, which may block for ever: a second client waits without a timeout.

    Raises:
        RobotError: it failed, or took longer than ``seconds``.

    """
    done: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            done.append(work())
        except BaseException as error:  # handed to the caller below, whatever a binding raises
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if failed:
        hint = ""
        if "ersion" in str(failed[0]) or "incorrect object size" in str(failed[0]):
            hint = "the client speaks FCI version 10: FR3 with system 5.9 or later, and no Panda"
        raise RobotError(f"{what}: {first_line(failed[0])}", fix=hint or "see docs/franka.md")
    if not done:
        raise RobotError(
            f"{what}: no answer within {seconds:g} s",
            fix="check address, cable and power; one client at a time: is another one connected?",
        )
    return done[0]


def first_line(error: BaseException) -> str:
    """What an exception says first; its kind where it says nothing."""
    return (str(error) or type(error).__name__).splitlines()[0]
