"""Tasks, checks, service levels, the proxy, and whole sessions of processes on the arm in NumPy."""

import dataclasses
import os
import signal
import socket
import struct
import subprocess
import sys
import time

import numpy as np
import pytest

from flowpolicy.agents.cloning.dm1 import DM1
from flowpolicy.core.errors import ConfigError, ContractError
from flowpolicy.core.spec import Contract
from flowpolicy.data.normalize import Normalizer
from flowpolicy.envs.arm_tasks import ArmTaskConfig
from flowpolicy.policy.actor import PolicyConfig
from flowpolicy.policy.policy import Policy
from flowpolicy.policy.samplers import Direct
from flowpolicy.real_robot.arm.arm_model import Gains
from flowpolicy.real_robot.arm.envelope_limits import policy_limits
from flowpolicy.real_robot.arm.models.franka import FR3
from flowpolicy.real_robot.bridge.ring_records import tick_type
from flowpolicy.real_robot.bridge.states import State
from flowpolicy.real_robot.drivers.client_errors import classify, within
from flowpolicy.real_robot.drivers.driver_protocols import RobotError
from flowpolicy.real_robot.session.check import check_contract, speed_warnings, unstated_warnings
from flowpolicy.real_robot.session.launch import Setup, _claim, start_session
from flowpolicy.real_robot.session.operate import Operator
from flowpolicy.real_robot.session.service_levels import service_levels
from flowpolicy.real_robot.tasks.tasks import Reach, Waypoint, WaypointPath, aside

from ...conftest import flowpolicy as here
from ..twin.fault_proxy import Faults, Session

LIMITS = policy_limits(FR3, table=0.0, tool=0.1034)


def test_a_plan_is_at_rest_in_its_waypoints_and_halfway_in_half_the_time():
    q = np.zeros(7)
    plan = WaypointPath(q, 0.08, [Waypoint(q + 1.0, 0.08, 2.0), Waypoint(q + 3.0, 0.0, 1.0)])
    rows, gripper = plan.rows(np.array([-1.0, 0.0, 1.0, 2.0, 2.5, 9.0]))
    np.testing.assert_allclose(rows[:, 0], [0, 0, 0.5, 1, 2, 3])
    np.testing.assert_allclose(gripper, [0.08, 0.08, 0.08, 0.0, 0.0, 0.0])
    near, _ = plan.rows(np.array([2.0 - 1e-3, 2.0 + 1e-3]))
    assert np.abs(near[:, 0] - 1.0).max() < 1e-6


def test_reaching_is_solved_within_two_centimetres_of_what_the_operator_plans():
    task, tick = Reach(LIMITS), np.zeros((), tick_type(FR3.joints))
    rng = np.random.default_rng(0)
    tick["q"] = tick["q_cmd"] = FR3.home
    for _ in range(5):
        tick["task"][:3] = task.draw(rng)
        plan = task.demonstrate(tick, rng)
        tick["q"] = plan.rows(np.array([plan.seconds]))[0][0]
        assert task.solved(tick)
        tick["task"][0] += 0.021
        assert not task.solved(tick)
        tick["q"] = FR3.home
    assert FR3.chain.forward(np.array(FR3.home), LIMITS.tool).position[2] > LIMITS.box_low[2]


def test_the_way_aside_stays_in_the_workspace():
    tick, rng, limits = np.zeros((), tick_type(FR3.joints)), np.random.default_rng(0), LIMITS
    tick["q_cmd"] = FR3.home
    for _ in range(50):
        plan = aside(tick, rng, limits)
        path = FR3.chain.forward(plan.rows(np.linspace(0, plan.seconds, 20))[0], limits.tool).position
        assert (path > limits.box_low).all()
        assert (path < limits.box_high).all()


def contract(**changes):
    made = Contract(ArmTaskConfig().spec(), history=1, chunk=8, execute=4, nfe=1)
    return dataclasses.replace(made, **changes)


def test_check_compares_and_says_what_is_wrong():
    robot = ArmTaskConfig().spec()
    assert any("20 Hz" in line for line in check_contract(contract(), robot))
    for change in ({"rate_hz": 10.0}, {"convention": "absolute"}, {"frame": "base"}):
        other = dataclasses.replace(robot, action=dataclasses.replace(robot.action, **change))
        with pytest.raises(ContractError, match=next(iter(change))):
            check_contract(contract(), other)
    with pytest.raises(ContractError, match="observation goal"):
        check_contract(contract(), ArmTaskConfig("lift").spec())
    with pytest.raises(ContractError, match="all 8 are executed"):
        check_contract(contract(execute=8), robot)
    with pytest.raises(ContractError, match="takes it for dead"):
        check_contract(contract(chunk=32, execute=16), robot)
    assert speed_warnings(np.full(7, 1.2), np.array(LIMITS.velocity))[0].startswith("joint 1 was trained on up to 1.20")
    assert len(speed_warnings(np.full(7, 1.2), np.array(LIMITS.velocity))) == 4


def test_service_levels_of_a_known_run():
    ticks = np.zeros(500, tick_type(FR3.joints))
    ticks["t_mono"] = 0.004 * np.arange(500)
    ticks["state"] = State.RUNNING
    ticks["q_cmd"][:, 0] = 0.5 * ticks["t_mono"] ** 2
    ticks["q"] = ticks["q_cmd"] + 0.01
    ticks["lateness"], ticks["compute"], ticks["success_rate"] = 0.001, 0.002, 1.0
    ticks["starved"] = np.arange(500) // 100
    levels = service_levels(ticks, 250.0)
    assert levels.ticks == 500
    assert levels.lateness_p99 == pytest.approx(1.0)
    assert levels.compute_p99 == pytest.approx(2.0)
    assert levels.stale_percent == pytest.approx(0.8)
    assert levels.acceleration == pytest.approx(1.0, rel=1e-6)
    assert levels.velocity == pytest.approx(499 * 0.004 - 0.002, rel=1e-3)
    assert levels.tracking == pytest.approx(0.01)
    assert service_levels(ticks[:2], 250.0) is None


def test_libfrankas_words_are_classified_and_hanging_calls_end():
    reflex = 'Move command aborted: motion aborted by reflex! ["{}"]'
    assert classify(reflex.format("cartesian_reflex")) == "collision"
    assert classify(reflex.format("communication_constraints_violation")) == "communication"
    assert classify(reflex.format("joint_motion_generator_acceleration_discontinuity")) == "limit"
    assert classify("motion preempted due to activated safety function") == "user_stop"
    assert classify("NetworkException libfranka: UDP receive: Timeout") == "network"
    with pytest.raises(RobotError, match=r"no answer within 0\.05 s"):
        within(0.05, lambda: time.sleep(5.0), "connecting")
    with pytest.raises(RobotError, match="FCI version 10"):
        within(1.0, lambda: (_ for _ in ()).throw(RuntimeError("incorrect object size")), "connecting")
    with pytest.raises(ConfigError, match="stiffness"):
        Gains((5000.0,) * 7, (10.0,) * 7)


def test_the_proxy_rewrites_the_port_and_drops_exactly_what_it_is_told():
    robot = socket.create_server(("127.0.0.1", 0))
    robot_udp, client_udp = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in (0, 1))
    for one in (robot_udp, client_udp):
        one.bind(("127.0.0.1", 0))
        one.settimeout(5.0)
    front = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(front.getsockname())
    faults = Faults()
    import threading

    session = Session(front.accept()[0], faults, robot.getsockname())
    threading.Thread(target=session.run, daemon=True).start()
    upstream = robot.accept()[0]
    client.sendall(b"h" * 12 + struct.pack("<HH", 10, client_udp.getsockname()[1]) + b"rest")
    connect = upstream.recv(100)
    version, port = struct.unpack_from("<HH", connect, 12)
    assert (version, connect[16:]) == (10, b"rest")
    assert port != client_udp.getsockname()[1]
    robot_udp.sendto(b"state", ("127.0.0.1", port))
    data, proxy = client_udp.recvfrom(100)
    assert data == b"state"
    faults.set({"drop_commands": 3})
    for number in range(5):
        client_udp.sendto(bytes([number]), proxy)
    assert [robot_udp.recv(100) for _ in range(2)] == [b"\x03", b"\x04"]
    assert faults.counts["dropped_command"] == 3
    # One state, and the time to the first of five commands, lost on the way or not.
    assert faults.report()["answers"] == 1 and faults.report()["answer_p99_ms"] > 0
    with pytest.raises(KeyError):
        faults.set({"lose": 1})
    upstream.close()
    client.close()


@pytest.fixture
def flowpolicy(tmp_path, monkeypatch):
    monkeypatch.setenv("FLOWPOLICY_SHM", str(tmp_path / "shm"))
    command = [sys.executable, "-m", "flowpolicy", "robot"]

    def run(*words, wait=True):
        words = [*command, *map(str, words)]
        if wait:
            return subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
        return subprocess.Popen(words, cwd=tmp_path, stderr=subprocess.PIPE, text=True)

    return run


def test_mistakes_exit_with_2_and_a_hint(tmp_path, monkeypatch):
    monkeypatch.setenv("FLOWPOLICY_SHM", str(tmp_path / "shm"))
    for words, hint in (
        (["chek"], "did you mean 'check'"),
        (["check", "absent"], "flowpolicy train"),
        (["record", "--out", "x", "--task", "lift"], "flowpolicy robot twin"),
        (["stop"], "a running robot session"),
        (["twin", "--venv", "absent"], "make twin"),
        (["home", "--driver", "franky", "--arm", "fer"], "one of fake"),
        (["home", "--arm", "ur5"], "did you mean"),
        (["home", "--tool", "nan"], "0 to 0.5 m"),
        (["home", "--session", "../elsewhere"], "letters, digits"),
        (["run", "run", "--patience", "nan"], "at least 0"),
        (["run", "ws://127.0.0.1:1", "--engine", "onnx"], "has chosen its engine"),
        (["record", "--out", "y", "--cameras", "front=replay:absent.hdf5"], "error: absent.hdf5 is not a file"),
    ):
        done = here("robot", *words, cwd=tmp_path)
        assert done.returncode == 2, done.stderr
        assert hint in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("arm", "other"), [(FR3, "fer")], ids=lambda arm: getattr(arm, "name", arm))
def test_record_train_check_run_replay_on_the_fake_arm(flowpolicy, tmp_path, arm, other):
    this = ("--arm", arm.name.lower())
    done = flowpolicy("record", *this, "--out", "demos", "--episodes", 2)
    assert done.returncode == 0, done.stderr
    assert "success 2/2" in done.stdout
    train = ["train", f"dm1-{arm.family}-reach", "--data.path", "demos/demos.hdf5", "--steps", "5", "--no-compile"]
    trained = here(*train, "--out", "run", "--no-tensorboard", cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    # The observations mean the tool that they were recorded with, the joints the arm.
    tool = f"tool point {arm.hand.length:g} m"
    for words, line in (((*this, "--tool", 0.25), f"tool: '{tool}"), (("--arm", other), f"robot: '{arm.robot}'")):
        refused = here("robot", "check", "run", "--no-connect", *words, cwd=tmp_path)
        assert refused.returncode == 2
        assert line in refused.stderr
    mixed = here("robot", "record", *this, "--out", "demos", "--episodes", 1, "--tool", 0.25, cwd=tmp_path)
    assert mixed.returncode == 2
    assert f"{tool} beyond the flange against tool point 0.25 m" in mixed.stderr
    assert here("robot", "replay", "demos/demos.hdf5", *this, "--tool", 0.25, cwd=tmp_path).returncode == 2
    assert here("robot", "replay", "demos/demos.hdf5", "--arm", other, cwd=tmp_path).returncode == 2
    checked = flowpolicy("check", "run", *this)
    assert checked.returncode == 0, checked.stderr
    assert "20 Hz" in checked.stdout and "PREEMPT_RT" in checked.stdout
    assert "within what the data hold" in checked.stdout
    assert f"{arm.name} by 'fake', joints {np.round(arm.home, 3).tolist()}" in checked.stdout
    # Untrained, it does not get there; what counts is that it was driven and recorded.
    played = flowpolicy("run", "run", *this, "--episodes", 1, "--shadow", "--out", "shadow")
    assert "success 0/1" in played.stdout, played.stderr
    assert list((tmp_path / "shadow").glob("*episode_0001*"))
    replayed = flowpolicy("replay", "demos/demos.hdf5", *this)
    assert replayed.returncode == 0, replayed.stderr
    assert "largest distance" in replayed.stdout


@pytest.mark.slow
def test_a_policy_process_that_is_stopped_or_killed(tmp_path, monkeypatch):
    monkeypatch.setenv("FLOWPOLICY_SHM", str(tmp_path / "shm"))
    shapes = {key: spec.shape[0] for key, spec in ArmTaskConfig().spec().observation.items()}
    # A new network of a policy without noise says: no step. What counts is whether it says it.
    config = PolicyConfig(DM1().net, DM1().encoder, Direct())
    Policy(config, contract(execute=2), Normalizer(shapes, 8)).save(tmp_path / "run")
    with start_session(Setup()) as running:
        running.start("policy_process", {"run": str(tmp_path / "run"), "seed": 0})
        deadline = time.monotonic() + 120.0
        while not running.session.chunks.count:
            running.require_alive()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        running.ask("start", State.READY, seconds=30.0)
        running.session.command("begin", 1)
        running.wait(State.RUNNING, seconds=30.0)
        policy = running._processes["policy_process"]
        policy.send_signal(signal.SIGSTOP)
        assert running.wait(State.HOLD, State.IDLE, seconds=30.0) is State.HOLD
        assert "no chunk" in running.last_events(1) or "silent" in running.last_events(1)
        policy.send_signal(signal.SIGCONT)
        running.session.command("rearm")  # needless if it was short, and then it says so
        running.wait(State.RUNNING, State.STOPPING, State.IDLE, seconds=30.0)
        if running.wait(*State, seconds=5.0) is not State.RUNNING:
            pytest.skip("inconclusive: the machine is overloaded (stopped for longer than 2 s)")
        policy.kill()
        policy.wait()
        del running._processes["policy_process"]  # its owner would complain, and rightly
        assert running.wait(State.IDLE, seconds=30.0) is State.IDLE
        ticks, _, _ = running.session.ticks.read(0)
        assert {State.HOLD, State.STOPPING} <= {State(int(state)) for state in ticks["state"]}
        assert np.abs(running.session.ticks.latest()["dq"]).max() < 0.01
        assert (tmp_path / "shm" / "flowpolicy-robot-default" / "ticks").exists()


@pytest.mark.slow
def test_a_session_whose_owner_is_killed_brings_the_arm_to_rest_and_keeps_what_it_had(flowpolicy, tmp_path):
    owner = flowpolicy("record", "--out", "demos", "--episodes", 9, wait=False)
    for line in owner.stderr:
        if "READY -> RUNNING" in line:
            break
    time.sleep(1.0)
    children = subprocess.run(["pgrep", "-P", str(owner.pid)], capture_output=True, text=True).stdout.split()
    assert len(children) == 2
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    deadline = time.monotonic() + 30.0
    while any(os.path.exists(f"/proc/{pid}") for pid in children):  # noqa: PTH110
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert (tmp_path / "demos" / "episode_0001.hdf5").exists()


@pytest.mark.slow
@pytest.mark.parametrize("told", [signal.SIGTERM, signal.SIGINT])
def test_a_bridge_that_is_told_to_end_in_motion_brakes_first(tmp_path, monkeypatch, told):
    monkeypatch.setenv("FLOWPOLICY_SHM", str(tmp_path / "shm"))
    with start_session(Setup()) as running:
        running.ask("start", State.READY, seconds=30.0)
        operator, home = Operator(running), np.array(FR3.home)
        operator.begin(WaypointPath(home, 0.08, [Waypoint(home + 0.4, 0.08, 3.0)]))
        while np.abs(running.session.ticks.latest()["dq_cmd"]).max() < 0.15:
            operator.step(running.clock.now())
            time.sleep(0.02)
        bridge = running._processes["bridge_process"]
        bridge.send_signal(told)
        assert bridge.wait(30.0) == 0
        assert running.told("error") == ["the bridge was told to end by a signal"]
        ticks, _, _ = running.session.ticks.read(0)
        way = ticks[np.isin(ticks["state"], (State.RUNNING, State.STOPPING))]
        assert np.abs(way["dq_cmd"][-1]).max() < 1e-3  # a tick before rest
        accelerations = np.diff(way["dq_cmd"], axis=0) * 250.0  # of commanded speeds, whatever the lateness of ticks
        assert np.abs(accelerations).max() <= LIMITS.acceleration[0] + 1e-6


def test_a_contract_holds_for_one_arm_and_one_tool_and_an_old_one_says_that_it_does_not_say():
    recorded = ArmTaskConfig(arm="fr3", tool=0.25).spec()
    trained = Contract(recorded, history=1, chunk=8, execute=4, nfe=1)
    assert any("Franka FR3, tool point 0.25 m" in line for line in check_contract(trained, recorded))
    for other in (ArmTaskConfig(arm="fr3", tool=0.1034), ArmTaskConfig(arm="fer", tool=0.25)):
        with pytest.raises(ContractError, match=r"(tool|robot): .* against"):
            check_contract(trained, other.spec())
    assert not unstated_warnings(trained, recorded)
    check_contract(contract(), recorded)
    assert "does not state the tool, here: tool point 0.25 m" in unstated_warnings(contract(), recorded)[1]


def test_of_two_sessions_that_start_at_once_one_is_refused_and_a_killed_one_is_replaced(tmp_path, monkeypatch):
    monkeypatch.setenv("FLOWPOLICY_SHM", str(tmp_path))
    code = "from flowpolicy.real_robot.session.launch import _claim; _claim('one'); input()"
    started = [
        subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    owner = tmp_path / "flowpolicy-robot-one" / "owner"
    while not any(process.poll() is not None for process in started):
        time.sleep(0.02)
    refused, kept = sorted(started, key=lambda process: process.poll() is None)
    assert f"is running in process {kept.pid}" in refused.communicate()[1]
    assert owner.read_text() == str(kept.pid)
    kept.kill()
    kept.communicate()
    _claim("one")
    assert owner.read_text() == str(os.getpid())
    assert [path.name for path in tmp_path.iterdir()] == ["flowpolicy-robot-one"]
