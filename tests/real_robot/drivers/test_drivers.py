"""One suite for every driver: simulated ones in simulated time, clients of the robot's protocol against the twin.

And what a client says to robots that are no good: one of another version, one that never answers.
"""

import contextlib
import functools
import socket
import struct
import threading
import time

import numpy as np
import pytest

from flowpolicy.real_robot.arm.models.franka import FR3
from flowpolicy.real_robot.drivers.driver_protocols import ArmFaultError, Clock, RobotError
from flowpolicy.real_robot.drivers.fake import FakeArm
from flowpolicy.real_robot.twin.twin import start_twin

from ..client_drivers import CLIENTS, TWIN_VENV, client_of


class Stepped:
    """A clock that only sleeping moves."""

    def __init__(self):
        self.t = 10.0

    def now(self):
        return self.t

    def sleep(self, seconds):
        self.t += seconds


def scene_arm(clock):
    pytest.importorskip("mujoco")
    from flowpolicy.real_robot.twin.scene import Scene, SceneArm

    return SceneArm(Scene(clock))


SIMULATED = {"fake": functools.partial(FakeArm, FR3), "scene": scene_arm}
ON_THE_TWIN = [
    pytest.param(name, marks=[pytest.mark.sim, pytest.mark.slow, pytest.mark.xdist_group("twin")]) for name in CLIENTS
]


@pytest.fixture(params=[*SIMULATED, *ON_THE_TWIN])
def arm(request, tmp_path):
    """A connected arm and its clock."""
    with contextlib.ExitStack() as stack:
        if request.param in SIMULATED:
            stepped = Stepped()
            clock = Clock(stepped.now, stepped.sleep)
            made = SIMULATED[request.param](clock)
        else:
            cls, clock = client_of(request.param), Clock()
            if not TWIN_VENV.exists():
                pytest.skip("needs `make twin`")
            stack.enter_context(start_twin(TWIN_VENV, tmp_path / "twin.log"))
            made = cls("127.0.0.1")
        made.connect(10.0)
        stack.callback(made.close)
        yield made, clock


def follow(arm, clock, path, ticks):
    """Send ``path(t)``; largest distance between reference and measured position in the second half."""
    begun, worst = clock.now(), 0.0
    for tick in range(ticks):
        q, dq = path(clock.now() - begun)
        try:
            arm.set_reference(q, dq)
            state = arm.state()
        except ArmFaultError as fault:
            if fault.kind in ("limit", "communication"):
                pytest.skip(f"inconclusive: the machine is overloaded ({fault})")
            raise
        if state.success_rate < 0.9:
            pytest.skip("inconclusive: the machine is overloaded (commands lost)")
        if tick > ticks // 2:
            worst = max(worst, float(np.abs(state.q - q).max()))
        clock.sleep(0.004)
    return worst


def test_a_driver_streams_follows_stops_and_closes(arm):
    arm, clock = arm
    assert arm.caps.arm is FR3
    assert not arm.in_control()
    with pytest.raises(ArmFaultError):
        arm.set_reference(np.array(FR3.home), np.zeros(7))
    begin = arm.state()
    assert begin.q.shape == begin.dq.shape == begin.tau.shape == begin.tau_ext.shape == (7,)
    assert np.abs(begin.dq).max() < 0.01
    arm.start_stream(FR3.gains)
    assert arm.in_control()
    assert arm.fault() is None

    def swing(t):
        way = 0.04 * np.array([1.0, 0, 0, 1.0, 0, 0, 0])
        return begin.q + way * (1 - np.cos(t)), way * np.sin(t)

    assert follow(arm, clock, swing, 400) < 0.03
    later = arm.state()
    assert later.t_robot > begin.t_robot
    assert later.t_mono > begin.t_mono
    assert 0.01 < np.abs(later.q - begin.q).max() < 0.1
    arm.stop()
    assert not arm.in_control()
    clock.sleep(0.3)
    held = arm.state().q
    clock.sleep(0.3)
    assert np.abs(arm.state().q - held).max() < 1e-3
    # Again, with other gains, from where it stands.
    arm.start_stream(FR3.homing_gains)
    assert np.abs(arm.state().q - held).max() < 5e-3
    arm.stop()
    arm.close()
    arm.close()


def robot_that(answer, address):
    """A server on the robot's port that gives each client ``answer(request)``."""
    server = socket.create_server((address, 1337))
    kept = []

    def serve():
        with contextlib.suppress(OSError):
            while True:
                client, _ = server.accept()
                kept.append(client)
                client.sendall(answer(client.recv(64)))

    threading.Thread(target=serve, daemon=True).start()
    return server


def version_nine(request):
    """'Incompatible library version, and I speak 9', to a Connect request with that number."""
    (number,) = struct.unpack_from("<I", request, 4)
    return struct.pack("<IIIHH", 0, number, 16, 1, 9)


@pytest.fixture(params=CLIENTS)
def client(request):
    """Class of a driver, and a loopback address of its own."""
    return client_of(request.param), f"127.0.0.{10 + list(CLIENTS).index(request.param)}"


def test_a_robot_of_another_version_is_named(client):
    cls, address = client
    with robot_that(version_nine, address), pytest.raises(RobotError, match="ersion") as caught:
        cls(address).connect(5.0)
    assert "9" in str(caught.value)
    assert "FCI version 10" in str(caught.value)


def test_a_robot_that_never_answers_ends_in_time(client):
    cls, address = client[0], client[1].replace(".0.", ".1.")
    begun = time.monotonic()
    with robot_that(lambda request: b"", address), pytest.raises(RobotError):
        cls(address).connect(1.0)
    assert time.monotonic() - begun < 30.0  # and not for ever; how soon is the machine's business
