"""What the driver of the robot's client makes of a loop that has ended, without a client and without a socket."""

import numpy as np
import pytest

from flowpolicy.real_robot.drivers import franky_driver
from flowpolicy.real_robot.drivers.driver_protocols import ArmFaultError


class EndedRobot:
    """As franky's: its loop has ended, and asking for the motion raises what it ended with."""

    is_in_control = False

    def __init__(self, reason):
        self.reason = reason

    def poll_motion(self):
        raise RuntimeError(self.reason)


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("motion aborted by reflex: communication_constraints_violation", "communication"),
        ("motion aborted by reflex: cartesian_reflex", "collision"),
        ("UDP receive: timeout", "network"),
    ],
)
def test_a_loop_that_has_ended_tells_its_reason_and_takes_no_reference(reason, kind, monkeypatch):
    monkeypatch.setattr(franky_driver, "installed", lambda package: "2.0.0")
    arm = franky_driver.FrankyArm("127.0.0.1")
    arm._robot, arm._loop = EndedRobot(reason), object()
    assert not arm.in_control()
    assert arm.fault().kind == kind
    arm._loop = None
    with pytest.raises(ArmFaultError) as refused:
        arm.set_reference(np.zeros(7), np.zeros(7))
    assert refused.value is arm.fault()
