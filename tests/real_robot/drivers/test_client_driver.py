"""The driver of the robot's client on a stand-in of the client itself: no robot, no socket, and every call is seen."""

import sys
import types

import numpy as np
import pytest

from flowpolicy.real_robot.arm.models.franka import FR3
from flowpolicy.real_robot.drivers import franky_driver
from flowpolicy.real_robot.drivers.driver_protocols import ArmFaultError, RobotError


class Robot:
    """As franky's, holding still; ``reason`` is what its loop has ended with."""

    made = 0

    def __init__(self, address, realtime_config):
        Robot.made += 1
        self.is_in_control, self.reason, self.recovers, self.calls = False, "", True, []

    @property
    def state(self):
        still = [0.0] * 7
        return types.SimpleNamespace(
            time=types.SimpleNamespace(to_sec=lambda: 1.5),
            q=list(FR3.home),
            dq=still,
            tau_J=still,
            tau_ext_hat_filtered=still,
            control_command_success_rate=0.5,
        )

    def set_collision_behavior(self, *thresholds):
        assert [len(values) for values in thresholds] == [7, 7, 6, 6]

    def recover_from_errors(self):
        self.calls.append("recover")
        return self.recovers

    def poll_motion(self):
        if self.reason:
            raise RuntimeError(self.reason)

    def end(self, reason):
        self.is_in_control, self.reason = False, reason

    def stop(self):
        self.calls.append("stop")


class Tracker:
    """As franky's impedance tracker."""

    def __init__(self, robot, stiffness, damping, max_delta_tau):
        assert len(stiffness) == len(damping) == 7
        self.robot, self.targets = robot, []
        robot.is_in_control, robot.reason = True, ""

    def set_target(self, q, dq):
        self.targets.append((q, dq))

    def stop(self):
        self.robot.is_in_control = False
        self.robot.calls.append("loop stop")


@pytest.fixture
def arm(monkeypatch):
    client = types.SimpleNamespace(
        Robot=Robot,
        JointImpedanceTracker=Tracker,
        RealtimeConfig=types.SimpleNamespace(Enforce="enforce", Ignore="ignore"),
    )
    monkeypatch.setitem(sys.modules, "franky", client)
    monkeypatch.setattr(franky_driver, "installed", lambda package: "2.0.0")
    monkeypatch.setattr(Robot, "made", 0)
    made = franky_driver.FrankyArm("127.0.0.1")
    made.connect(1.0)
    return made


def test_it_streams_reads_stops_and_closes(arm):
    with pytest.raises(ArmFaultError, match="impedance loop is off"):
        arm.set_reference(np.array(FR3.home), np.zeros(7))
    assert arm.state().success_rate == 1.0  # at rest the client's own number says nothing
    arm.start_stream(FR3.gains)
    loop, robot = arm._loop, arm._robot
    arm.set_reference(np.array(FR3.home), np.ones(7))
    (((q, dq),),) = (loop.targets,)
    np.testing.assert_array_equal(q, FR3.home)
    np.testing.assert_array_equal(dq, np.ones(7))
    state = arm.state()
    assert (state.t_robot, state.success_rate, state.q.shape) == (1.5, 0.5, (7,))
    assert arm.in_control()
    assert arm.fault() is None
    arm.stop()
    assert not arm.in_control()
    arm.close()
    arm.close()
    assert robot.calls[:2] == ["recover", "loop stop"]
    with pytest.raises(ArmFaultError, match="not connected"):
        arm.state()


@pytest.mark.parametrize(
    ("reason", "kind", "connections"),
    [
        ("motion aborted by reflex: communication_constraints_violation", "communication", 1),
        ("motion aborted by reflex: cartesian_reflex", "collision", 1),
        ("UDP receive: timeout", "network", 2),
        ("", "other", 1),
    ],
)
def test_a_loop_that_has_ended_tells_its_reason_and_the_arm_recovers(arm, reason, kind, connections):
    arm.start_stream(FR3.gains)
    arm._robot.end(reason)
    assert not arm.in_control()
    assert arm.fault().kind == kind
    arm.stop()
    with pytest.raises(ArmFaultError) as refused:
        arm.set_reference(np.zeros(7), np.zeros(7))
    assert refused.value is arm.fault()
    arm.recover()
    assert arm.fault() is None
    assert Robot.made == connections  # a dead connection is built anew
    arm.start_stream(FR3.gains)
    assert arm.in_control()


def test_a_robot_that_does_not_recover_says_so(arm):
    arm._robot.recovers = False
    with pytest.raises(RobotError, match="did not recover"):
        arm.recover()
