"""What is kept of teaching: rows without pauses, labels, the task's sheet, a leader's stream, a hand's walls."""

import dataclasses
import json

import h5py
import msgpack
import numpy as np
import pytest

from flowpolicy.cli import main
from flowpolicy.core.errors import ConfigError, DataError
from flowpolicy.data.dataset import load_dataset
from flowpolicy.envs.arm_tasks import ArmTaskConfig
from flowpolicy.real_robot.arm.models.franka import FR3
from flowpolicy.real_robot.bridge.hand_guide import WALL, HandGuide
from flowpolicy.real_robot.session.demos import drop_demos, list_demos, relabel_demos
from flowpolicy.real_robot.session.episodes import next_number
from flowpolicy.real_robot.session.lerobot_copy import COPY, require_copying, write_lerobot_copy
from flowpolicy.real_robot.session.recorder import Recorder
from flowpolicy.real_robot.tasks.task_sheet import BUILT_IN, TaskSheet, keep_sheet, save_pose, sheet_in, start_pose
from flowpolicy.real_robot.tasks.tasks import scattered
from flowpolicy.real_robot.teaching.leader import LeaderArm, LeaderCalibration, LeaderServer, read_packet

from ..simulated import DT, HOME, LIMITS
from .taught_simulation import Taught

META = {
    "env_args": ArmTaskConfig("taught", tool=LIMITS.tool).env_args(),
    "keys": ["robot0_joint_pos", "robot0_eef_pos"],
    "tool": LIMITS.tool,
    "rate_hz": 20.0,
    "labels": {"task": "cup", "lang": "lift the cup", "device": "spacemouse", "operator": "ann"},
    "actions": "commanded",
    "device": True,
}


def taught(sim, recorder, number, label, parts=2):
    sim.session.command("begin", number, [0.0] * 3)
    for _ in range(parts):
        for held, seconds in ((False, 0.4), (True, 0.6), (False, 0.8)):
            sim.hold(seconds, held=held)
            recorder.drain()
    sim.session.command("end", label)
    sim.run(4 * DT)
    recorder.drain()


def test_pauses_leave_no_rows_and_labels_are_kept_dropped_and_changed(tmp_path, monkeypatch):
    out = tmp_path / "out"
    sim = Taught(tmp_path / "shm", monkeypatch)
    recorder = Recorder(sim.session, out, META)
    sim.run(2 * DT).command("start")
    for number, label in ((1, 1), (2, 0), (3, -1), (4, -2)):
        taught(sim, recorder, number, label)
    assert recorder.failed == ""
    assert [path.name for path in (out / "dropped").iterdir()] == ["episode_0003.hdf5"]
    assert next_number(out) == 5
    assert [(one.number, one.labels["label"]) for one in list_demos(out)] == [
        (1, "success"),
        (2, "failure"),
        (4, "unlabelled"),
    ]
    with h5py.File(out / "episode_0001.hdf5") as file:
        demo = file["data/demo_0"]
        steps, way = demo["actions"][:, :7], demo["robot/q_cmd"][()]
        assert json.loads(demo.attrs["ep_meta"])["operator"] == "ann"
        # Twice 0.6 s of motion and the way to rest; nothing of the seconds between.
        assert 22 <= len(steps) <= 34
        assert np.abs(steps[:-1].sum(0) - (way[-1] - way[0])).max() < 2e-3
        assert np.abs(np.diff(way, axis=0)).max() < 0.03
    relabel_demos(out, [4], "success")
    drop_demos(out, [2])
    assert [(one.number, one.labels["label"]) for one in list_demos(out)] == [(1, "success"), (4, "success")]
    with h5py.File(out / "demos.hdf5") as file:
        assert [name.decode() for name in file["mask/successful"]] == ["demo_0", "demo_1"]
        assert file["data/demo_1/rewards"][-1] == 1.0
    for wrong in (lambda: drop_demos(out, [9]), lambda: drop_demos(out, []), lambda: relabel_demos(out, [1], "good")):
        with pytest.raises(ConfigError):
            wrong()


def robot(*words):
    """Exit code of a command."""
    with pytest.raises(SystemExit) as ended:
        main(["robot", *map(str, words)])
    return ended.value.code


def test_a_lerobot_folder_holds_every_episode_and_follows_the_recordings(tmp_path, monkeypatch):
    pytest.importorskip("av", reason="writing LeRobot folders")
    pytest.importorskip("pyarrow", reason="writing LeRobot folders")
    out = tmp_path / "out"
    sim = Taught(tmp_path / "shm", monkeypatch)
    recorder = Recorder(sim.session, out, META)
    sim.run(2 * DT).command("start")
    for number, label in ((1, 1), (2, 0)):
        taught(sim, recorder, number, label, parts=1)
    sim.session.command("begin", 3, [0.0] * 3)
    sim.hold(0.6, held=True)
    recorder.drain()  # and is killed
    assert "2 demonstrations" in write_lerobot_copy(out, "test")
    assert robot("salvage", out) == 0
    assert robot("demos", "relabel", out, 3, "--label", "success") == 0
    for key, count in (("", 3), ("successful", 2), ("failed", 1)):
        rows = load_dataset(str(out / "demos.hdf5"), filter_key=key).steps
        copied = load_dataset(str(out / COPY), filter_key=key)
        assert len(copied.lengths) == count and (copied.steps["action"] == rows["action"]).all()
        assert all((copied.steps["obs"][name] == rows["obs"][name]).all() for name in rows["obs"])
        assert copied.instructions == ("lift the cup",)
    made = (out / COPY / "meta/info.json").stat().st_ino
    write_lerobot_copy(out, "test")  # nothing is new
    assert (out / COPY / "meta/info.json").stat().st_ino == made
    (out / COPY / "meta/flowpolicy.json").unlink()
    with pytest.raises(DataError, match="was not written from these recordings"):
        require_copying(out)
    assert robot("salvage", out) == 1


def test_a_sheet_is_remembered_and_a_pose_is_of_its_arm(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    first = sheet_in(tmp_path, TaskSheet("cup"), {"instruction": "lift it", "horizon_s": 20.0})
    keep_sheet(tmp_path, first)
    assert sheet_in(tmp_path, TaskSheet("cup"), {"reset": "put it back"}).instruction == "lift it"
    with pytest.raises(ConfigError, match="holds episodes of the task 'cup'"):
        sheet_in(tmp_path, TaskSheet("bowl"), {})
    save_pose("fr3", "ready", HOME + 0.1)
    np.testing.assert_allclose(start_pose("fr3", "ready"), HOME + 0.1, atol=1e-6)
    np.testing.assert_array_equal(start_pose("fr3", ""), HOME)
    with pytest.raises(ConfigError, match="robot pose save nowhere"):
        start_pose("fr3", "nowhere")
    for wrong in ("", "../x", "a b"):
        with pytest.raises(ConfigError):
            TaskSheet(wrong)


def test_scattered_starts_lie_around_the_pose_and_within_the_workspace():
    rng, limits = np.random.default_rng(0), dataclasses.replace(LIMITS, box_low=(0.25, -0.05, 0.4))
    drawn = np.stack([scattered(HOME, 0.1, rng, limits) for _ in range(100)])
    assert np.abs(drawn - HOME).max() <= 0.1
    assert np.abs(drawn - HOME).mean() > 0.04
    tools = FR3.chain.forward(drawn, limits.tool).position
    assert (tools > limits.box_low).all()
    np.testing.assert_array_equal(scattered(HOME, 0.0, rng, limits), HOME)
    # Outside of the workspace there is nothing to draw: the pose itself, which the person has chosen.
    nowhere = dataclasses.replace(LIMITS, box_low=(0.9, 0.0, 0.9), box_high=(0.95, 0.1, 0.95))
    np.testing.assert_array_equal(scattered(HOME, 0.1, rng, nowhere), HOME)
    assert (BUILT_IN["lift"].scatter, TaskSheet("cup").scatter) == (0.15, 0.0)
    with pytest.raises(ConfigError, match="--scatter"):
        TaskSheet("cup", scatter=0.5)


def test_a_leader_is_let_in_by_its_token_and_calibrated_by_two_poses():
    connect = pytest.importorskip("websockets.sync.client").connect
    signs, offsets = np.array([1, -1, 1, -1, 1, 1, -1]), np.linspace(-0.3, 0.3, 7)
    first, second = (signs * (q - offsets) for q in (HOME, HOME + 0.3))
    calibration = LeaderCalibration.between(first, second, FR3)
    np.testing.assert_allclose(calibration.apply(signs * (HOME + 0.05 - offsets)), HOME + 0.05)
    second[2] = first[2]
    with pytest.raises(ConfigError, match=r"joint 3 by \+0.00 rad"):
        LeaderCalibration.between(first, second, FR3)
    server = LeaderServer("127.0.0.1", 0, "sesame", lambda: 7.0)
    try:
        url = f"ws://127.0.0.1:{server.port}"
        with pytest.raises(Exception, match="401"):
            connect(url, additional_headers={"Authorization": "Bearer other"})
        device = LeaderArm(lambda: server, calibration, 0.08)
        device.open(7.0)
        with connect(url, additional_headers={"Authorization": "Bearer sesame"}) as socket:
            for seq in range(3):
                said = {"v": 1, "seq": seq, "t": 5.0 + seq, "q": first.tolist(), "held": True, "grip": 0.5}
                socket.send(msgpack.packb(said))
            socket.send("text")
            socket.ping().wait(5.0)
            packets = []
            while len(packets) < 3:
                found, strange = server.take()
                packets += found
        assert [packet.seq for packet in packets] == [0, 1, 2]
    finally:
        server.close()
    with pytest.raises(ConfigError, match="could be anybody"):
        LeaderServer("0.0.0.0", 0, "")
    for wrong in (b"", b"\xc1", msgpack.packb({"v": 2}), msgpack.packb({"v": 1, "q": ["a"]}), "text", bytes(5000)):
        with pytest.raises(ConfigError):
            read_packet(wrong, 0.0)
    assert strange in ("", "it sent a message of 4 letters")


def test_a_led_arm_has_no_spring_inside_its_walls_and_one_outside():
    guide, still = HandGuide(LIMITS, DT), np.zeros(7)
    moving = np.full(7, 0.05)
    for away in (0.0, 0.1, -0.2):
        q = HOME + away * np.eye(7)[0]
        np.testing.assert_array_equal(guide.reference(q, moving, free=True)[0], q)
    beyond = HOME.copy()
    beyond[6] = LIMITS.q_high[6] - 0.02
    reference, damped = guide.reference(beyond, moving, free=True)
    assert reference[6] == pytest.approx(LIMITS.q_high[6] - WALL)
    assert (damped < 0).all()
    # Standing still it is held, and let go when it is pulled.
    for _ in range(60):
        guide.reference(HOME, still, free=True)
    assert guide.holds
    np.testing.assert_array_equal(guide.reference(HOME + 0.003, still, free=True)[0], HOME)
    assert guide.reference(HOME + 0.006, moving, free=True)[0][0] != HOME[0]
    assert not guide.holds
    guide.reference(HOME, moving, free=False)
    np.testing.assert_array_equal(guide.reference(HOME + 0.1, moving, free=False)[0], HOME)
