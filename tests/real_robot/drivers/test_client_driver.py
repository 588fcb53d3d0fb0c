"""What the drivers of the robot's clients make of a loop that has ended, without a client and without a socket."""

import numpy as np
import pytest

from flowpolicy.real_robot.drivers import client_driver
from flowpolicy.real_robot.drivers.driver_protocols import ArmFaultError
from flowpolicy.real_robot.drivers.franka_rs_driver import FrankaRsArm


class EndedLoop:
    """As a loop of franka-rs: a target is refused without the reason, the result has it."""

    running = False

    def __init__(self, reason):
        self.reason = reason

    def move_to(self, q):
        raise RuntimeError("franka target control: the control loop has ended; stop() returns its result.")

    def stop(self):
        raise RuntimeError(self.reason)


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("motion aborted by reflex: communication_constraints_violation", "communication"),
        ("motion aborted by reflex: cartesian_reflex", "collision"),
        ("UDP receive: timeout", "network"),
    ],
)
def test_a_reference_to_an_ended_loop_is_refused_with_the_loop_s_reason(reason, kind, monkeypatch):
    monkeypatch.setattr(client_driver, "installed", lambda package: "0.4.0")
    arm = FrankaRsArm("127.0.0.1")
    arm._robot, arm._loop = object(), EndedLoop(reason)
    with pytest.raises(ArmFaultError) as refused:
        arm.set_reference(np.zeros(7), np.zeros(7))
    assert refused.value.kind == kind
    assert arm.fault() is refused.value
