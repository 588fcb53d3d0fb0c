"""Whole sessions in simulated time: on the scene of the twin, and on the NumPy arm with faults between episodes."""

import contextlib
import os
import tty

import h5py
import numpy as np
import pytest

from flowpolicy.core.errors import ConfigError
from flowpolicy.real_robot.arm.envelope_limits import policy_limits
from flowpolicy.real_robot.arm.models.franka import FR3
from flowpolicy.real_robot.bridge.ring_records import SessionRings, tick_type
from flowpolicy.real_robot.bridge.states import State
from flowpolicy.real_robot.drivers.driver_protocols import Clock, RobotError
from flowpolicy.real_robot.drivers.fake import FakeArm
from flowpolicy.real_robot.session import play as playing
from flowpolicy.real_robot.session.accelerated import accelerated_session
from flowpolicy.real_robot.session.launch import Setup
from flowpolicy.real_robot.session.operate import wait_for_recovery
from flowpolicy.real_robot.session.operator_keys import Keys
from flowpolicy.real_robot.session.session_console import ConsoleView
from flowpolicy.real_robot.tasks.lift_servo import LiftServo, ServoConfig

from ..simulated import StillGripper

LIMITS = policy_limits(FR3, table=0.0, tool=0.1034)


def numpy_body(clock):
    return FakeArm(FR3, clock), StillGripper(FR3)


@pytest.fixture
def shm(tmp_path, monkeypatch):
    monkeypatch.setenv("FLOWPOLICY_SHM", str(tmp_path / "shm"))
    return tmp_path


def tick_at(q, cube, width=0.08):
    tick = np.zeros((), tick_type(FR3.joints))
    tick["q"] = tick["q_cmd"] = q
    tick["width"], tick["task"][:3] = width, cube
    return tick


def test_the_operator_goes_down_the_funnel_closes_and_lifts():
    cube = np.array([0.5, 0.1, 0.02])
    servo = LiftServo(np.array(FR3.home), LIMITS, np.random.default_rng(0), ServoConfig(push=0.0))
    times, width, tools, openings, announced = 0.05 * np.arange(1, 13), 0.08, [], [], None
    at = np.array(FR3.home)
    for step in range(100):
        q, opening = servo.rows(times + 0.1 * step, tick_at(at, cube, width))
        at = q[0]
        # What is announced is what happens, as long as nothing changes.
        if step and width == 0.08 and openings[-1] == 0.08:
            np.testing.assert_allclose(q[0], announced, atol=1e-9)
        announced = q[2]
        tools.append(FR3.chain.forward(q[0], LIMITS.tool).position)
        openings.append(opening[0])
        if openings[-5:] == [0.0] * 5:
            width = 0.04
        if servo.over(0.1 * step):
            break
    tools = np.array(tools)
    beside = np.linalg.norm(tools[:, :2] - cube[:2], axis=1)
    closing = openings.index(0.0)
    assert np.linalg.norm(tools[closing] - cube) < 0.006
    assert (tools[beside > 0.04, 2] > 0.06).all()
    assert tools[-1, 2] > 0.16
    assert 20 < step < 90
    speeds = np.linalg.norm(np.diff(tools, axis=0), axis=1) / 0.1
    assert speeds.max() < 0.23


def test_disturbances_move_the_arm_but_not_what_is_taught():
    cube = np.array([0.5, 0.1, 0.02])
    pushed = LiftServo(np.array(FR3.home), LIMITS, np.random.default_rng(0), ServoConfig(push=0.2))
    times, jumps, announced, at = 0.05 * np.arange(1, 13), [], None, np.array(FR3.home)
    for step in range(30):
        q, _ = pushed.rows(times + 0.1 * step, tick_at(at, cube))
        at = q[0]
        if step:
            jumps.append(np.linalg.norm(FR3.chain.forward(q[0], LIMITS.tool).position - announced))
            tool = FR3.chain.forward(q, LIMITS.tool).position
            assert np.linalg.norm(tool[-1] - cube) < np.linalg.norm(tool[0] - cube)
        announced = FR3.chain.forward(q[2], LIMITS.tool).position
    assert max(jumps) > 0.005
    assert np.median(jumps) < 1e-6


@pytest.mark.sim
def test_the_scene_obeys_the_impedance_law_and_its_gripper_the_workers_manners():
    pytest.importorskip("mujoco")
    from flowpolicy.real_robot.twin.scene import Scene, SceneArm, SceneGripper

    t = [0.0]
    scene = Scene(Clock(lambda: t[0], lambda s: None))
    arm, gripper = SceneArm(scene), SceneGripper(scene)
    arm.start_stream(FR3.gains)
    goal = np.array(FR3.home) + 0.1
    for _ in range(500):
        t[0] += 0.004
        arm.set_reference(goal, np.zeros(7))
        state = arm.state()
    # Coulomb friction over stiffness is what remains.
    friction = np.array([1.137] * 4 + [0.763, 0.44, 0.248]) / np.array(FR3.gains.stiffness)
    assert (np.abs(state.q - goal) <= 1.1 * friction).all()
    assert np.abs(state.dq).max() < 1e-2
    np.testing.assert_allclose(
        scene.data.body("fr3_link7").xpos + 0.107 * scene.data.body("fr3_link7").xmat.reshape(3, 3)[:, 2],
        FR3.chain.forward(state.q).position,
        atol=1e-4,
    )
    gripper.command(0.0)
    widths = []
    for _ in range(100):
        t[0] += 0.004
        arm.state()
        gripper.supervise(t[0])
        widths.append(gripper.state.width)
    # As long as the call lasts nothing new is read; then the fingers have met.
    assert widths[10] == 0.08
    assert widths[-1] < 0.002
    assert len({round(width, 3) for width in widths}) == 2


@pytest.mark.sim
@pytest.mark.slow
def test_a_demonstration_is_recorded_and_lifts_the_cube(shm):
    pytest.importorskip("mujoco")
    outcomes = playing.play(Setup(driver="scene"), "lift", shm / "out", 1, 0, None, 5.0).outcomes
    assert [outcome.reason for outcome in outcomes] == ["success"]
    with h5py.File(shm / "out" / "demos.hdf5") as file:
        demo = file["data/demo_0"]
        cube = demo["obs/object"][()]
        assert cube.shape[1] == 6
        assert cube[-1, 2] > cube[0, 2] + 0.08
        np.testing.assert_allclose(cube[:, 3:], cube[:, :3] - demo["obs/robot0_eef_pos"][()], atol=1e-6)
        assert demo["obs/robot0_gripper_qpos"][-1, 0] == pytest.approx(0.02, abs=0.003)  # squeezed a little
        # The steps that are taught lead along the way that was gone.
        way = demo["robot/q_cmd"][()]
        assert np.abs(demo["actions"][:-1, :7].sum(0) - (way[-1] - way[0])).max() < 0.05
    with pytest.raises(ConfigError, match="unguard"):
        Setup(driver="franky", direct=True)


@pytest.mark.quick("robot")
def test_a_fault_costs_its_episode_and_not_the_session(shm, monkeypatch, capsys):
    sessions, done, original = [], [], ConsoleView.watch

    @contextlib.contextmanager
    def started(setup):
        with accelerated_session(setup, numpy_body) as running:
            sessions.append(running)
            yield running

    def watch(self, tick):
        original(self, tick)
        state = State(int(tick["state"]))
        if not done and state is State.RUNNING and tick["episode"] == 1:
            done.append(sessions[0].arm.inject("cartesian_reflex"))
        elif len(done) == 1 and state is State.FAULT:
            done.append(sessions[0].session.command("recover"))

    monkeypatch.setattr(playing, "start_session", started)
    monkeypatch.setattr(ConsoleView, "watch", watch)
    outcomes = playing.play(Setup(), "reach", shm / "out", 2, 0, None, 5.0).outcomes
    assert "the bridge went FAULT" in outcomes[0].reason
    assert outcomes[1].success
    assert "flowpolicy robot recover" in capsys.readouterr().err


def test_a_session_ends_where_nobody_recovers_it(shm):
    with accelerated_session(Setup(), numpy_body) as running:
        running.arm.inject("cartesian_reflex")
        running.session.command("start")
        running.clock.sleep(0.05)
        with pytest.raises(RobotError, match="not recovered within 2 s"):
            wait_for_recovery(running, 2.0, lambda tick: None)


def test_keys_are_commands(shm):
    ours, theirs = os.openpty()
    session = SessionRings("keys", create=FR3)
    keys, tick = Keys(session, theirs), np.zeros((), tick_type(FR3.joints))
    assert keys.poll(tick) == ""
    tty.setcbreak(theirs)
    said = []
    for state, key in ((State.FAULT, b"r"), (State.LOCKED, b"R"), (State.HOLD, b"r"), (State.RUNNING, b"q")):
        tick["state"] = state
        os.write(ours, key)
        said.append(keys.poll(tick))
    os.write(ours, b"x")
    assert keys.poll(tick) == ""
    assert said == ["recover", "recover", "rearm", "quit"]
    records, _, _ = session.commands.read(0)
    assert [bytes(record["name"]).decode() for record in records] == said
    assert Keys(session, None).poll(tick) == ""
    os.close(ours)
    os.close(theirs)
