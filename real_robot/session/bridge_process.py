"""The bridge as a process: ``python -m flowpolicy.real_robot.session.bridge_process OPTIONS``."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable

from flowpolicy.real_robot.bridge.bridge import Bridge
from flowpolicy.real_robot.bridge.gripper_worker import GripperWorker
from flowpolicy.real_robot.bridge.ring_records import SessionRings
from flowpolicy.real_robot.bridge.supervisor import BridgeConfig
from flowpolicy.real_robot.drivers.driver_protocols import ArmDriver, GripperDriver
from flowpolicy.real_robot.drivers.fake import FakeArm, FakeGripper
from flowpolicy.real_robot.drivers.priority import claim_priority
from flowpolicy.real_robot.session.launch import Setup, orphaned, read_options, run_process


def drivers(setup: Setup) -> tuple[ArmDriver, Callable[[], GripperDriver]]:
    """The arm of a setup, and what makes its gripper."""
    if setup.driver == "fake":
        return FakeArm(setup.arm_model), lambda: FakeGripper(setup.arm_model.hand)
    from flowpolicy.real_robot.drivers.franky_driver import FrankyArm, FrankyGripper

    return FrankyArm(setup.address), lambda: FrankyGripper(setup.address)


def main() -> None:
    """Run until the operator says quit; told by a signal, bring the arm to rest first."""
    setup, options = read_options()
    session = SessionRings(setup.session)
    # A flag, not an exception: one would cut a tick short.
    told = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: told.set())
    for refusal in claim_priority():
        session.event("host", refusal)
    config = BridgeConfig(setup.limits, setup.mode, shadow=setup.shadow, teacher=options.get("teacher", ""))
    arm, make_gripper = drivers(setup)
    gripper = GripperWorker(
        make_gripper, session.arm.hand, config.watch.gripper, lambda text: session.event("gripper", text)
    )

    def ended() -> str:
        if told.is_set():
            return "the bridge was told to end by a signal"
        return "the session's owner has died" if orphaned() else ""

    Bridge(config, arm, gripper, session).run(ended)


if __name__ == "__main__":
    run_process(main)
