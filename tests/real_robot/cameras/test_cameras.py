"""Cameras with a fake clock and recorded pictures: time base, newest picture, drops, and what the recorder keeps."""

import h5py
import numpy as np
import pytest

from flowpolicy.core.errors import ConfigError, DataError, MissingExtraError
from flowpolicy.data.thumbnails import area_mean
from flowpolicy.real_robot.bridge.ring_records import FRAMES, frame_type, told
from flowpolicy.real_robot.bridge.shared_ring import Ring
from flowpolicy.real_robot.cameras.camera_setup import CameraSetup, parse_camera, parse_cameras
from flowpolicy.real_robot.cameras.cameras import (
    DeviceClock,
    ReplayCamera,
    camera_levels,
    open_camera,
    recorded_levels,
    replay_from,
)
from flowpolicy.real_robot.drivers.driver_protocols import RobotError
from flowpolicy.real_robot.session.camera_process import CameraWriter, open_ring, ring_path, stated_camera
from flowpolicy.real_robot.session.launch import Setup
from flowpolicy.real_robot.session.recorder import Recorder

from ..session.test_recorder import META
from ..simulated import DT, Simulation

FRONT = CameraSetup("front", "replay", "none")


def pictures(count, size=(4, 6)):
    rgb = np.zeros((count, *size, 3), np.uint8)
    rgb[:] = np.arange(count)[:, None, None, None]
    return rgb


def test_device_time_becomes_the_bridges_whatever_the_transport_adds():
    rng = np.random.default_rng(0)
    clock, exposed = DeviceClock(least=0.012), np.arange(0.0, 100.0, 1 / 30)
    device = 5000.0 + exposed * (1 + 2e-5)  # another origin, and a quartz that is 20 ppm fast
    arrived = exposed + 0.012 + rng.exponential(0.01, len(exposed))
    found = np.array([clock.monotonic(d, a) for d, a in zip(device, arrived, strict=True)])
    error = found - exposed
    # Half a minute of drift is 0.6 ms; the jitter of 10 ms and more is gone.
    assert np.abs(error[200:]).max() < 1.5e-3
    assert (found <= arrived - 0.012 + 1e-12).all()
    # The camera was plugged in anew.
    assert clock.monotonic(3.0, 200.0) == pytest.approx(200.0 - 0.012)


def test_a_replay_shows_the_newest_picture_and_never_waits():
    t = [50.0]
    camera = ReplayCamera(pictures(4), np.array([7.0, 7.1, 7.2, 7.3]), latency_s=0.03, clock=lambda: t[0])
    assert camera.latest() is None
    camera.start()
    assert camera.latest() is None
    seen = []
    for now in (50.03, 50.12, 50.14, 50.34, 60.0):
        t[0] = now
        frame = camera.latest()
        seen.append((frame.seq, round(frame.t_mono, 3), int(frame.rgb[0, 0, 0])))
    assert seen == [(0, 50.0, 0), (0, 50.0, 0), (1, 50.1, 1), (3, 50.3, 3), (3, 50.3, 3)]
    with pytest.raises(DataError, match="uint8"):
        ReplayCamera(pictures(2).astype(float), np.arange(2.0))


def test_levels_count_gaps_and_latency():
    seq = np.array([0, 1, 2, 5, 6])
    exposed = 0.05 * seq
    levels = camera_levels(seq, exposed, exposed + np.array([0.01, 0.01, 0.01, 0.01, 0.11]))
    assert levels.frames == 5
    assert levels.dropped == 2
    assert levels.latency_p50 == pytest.approx(10.0)
    assert levels.latency_p99 > 100.0
    assert levels.period == pytest.approx(50.0)
    assert "2 dropped" in levels.line("front")
    assert camera_levels(np.zeros(0), np.zeros(0), np.zeros(0)).frames == 0


def test_a_picture_is_seen_when_the_camera_has_answered(tmp_path, monkeypatch):
    sim = Simulation(tmp_path / "shm", monkeypatch)

    class Slow(ReplayCamera):
        def latest(self):
            frame = super().latest()
            sim.t += 0.03  # rendering, or a transfer
            return frame

    camera = Slow(pictures(2), np.arange(2.0), clock=lambda: sim.t)
    camera.start()
    writer = CameraWriter(camera, FRONT, sim.session.folder, clock=lambda: sim.t)
    assert writer.step()
    assert writer._record["t_seen"] - writer._record["t_mono"] == pytest.approx(0.03)


def test_pictures_are_recorded_with_the_newest_one_for_every_row(tmp_path, monkeypatch):
    sim = Simulation(tmp_path / "shm", monkeypatch)
    camera = ReplayCamera(pictures(100), 0.06 * np.arange(100), latency_s=0.02, clock=lambda: sim.t)
    camera.start()
    writer = CameraWriter(camera, FRONT, sim.session.folder, clock=lambda: sim.t)
    sim.t += 0.02
    assert writer.step()
    assert not writer.step()
    assert stated_camera(sim.session.folder, "front").shape == (4, 6, 3)
    recorder = Recorder(sim.session, tmp_path / "out", META | {"cameras": {"front": [4, 6]}})
    sim.running()
    sim.session.command("begin", 1, [0.5, 0.1, 0.3])
    for tick in range(375):
        sim.run(DT)
        if tick != 100:  # the process was away for a moment
            writer.step()
        else:
            sim.run(40 * DT)
        if tick % 20 == 0:
            recorder.drain()
    sim.session.command("end", 1)
    sim.run(2 * DT)
    recorder.drain()
    path = tmp_path / "out" / "episode_0001.hdf5"
    with h5py.File(path) as file:
        demo = file["data/demo_0"]
        rows, shown = demo["robot/t_mono"][()], demo["obs/front_image"][()]
        seq, seen = demo["cameras/front/seq"][()], demo["cameras/front/t_seen"][()]
        exposed = demo["cameras/front/t_mono"][()]
        assert shown.shape == (len(rows), 4, 6, 3)
        for t, picture in zip(rows[2:], shown[2:], strict=True):
            newest = seq[seen <= t][-1]
            assert picture[0, 0, 0] == newest
        np.testing.assert_allclose(seen - exposed, 0.02, atol=0.17)
        assert len(demo["cameras/front/row"]) == len(rows)
    levels = camera_levels(seq, exposed, seen)
    assert levels.dropped == 2
    assert recorded_levels([path]) == {"front": levels}
    twice = recorded_levels([path, path])["front"]
    assert (twice.frames, twice.dropped) == (2 * levels.frames, 4)
    # What was recorded can be shown again.
    t = [0.0]
    again = replay_from(path, "front", lambda: t[0])
    again.start()
    t[0] = 0.5
    assert int(again.latest().rgb[0, 0, 0]) == shown[10, 0, 0, 0]
    open_camera(parse_camera(f"copy=replay:{path}#front")).close()


def test_a_recorder_that_is_late_drops_pictures_and_nothing_else(tmp_path, monkeypatch):
    sim = Simulation(tmp_path / "shm", monkeypatch)
    dtype = frame_type(2, 2)
    ring = Ring(ring_path(sim.session.folder, "front"), dtype, FRAMES, create=True)
    recorder = Recorder(sim.session, tmp_path / "out", META | {"cameras": {"front": [2, 2]}})
    sim.running()
    sim.session.command("begin", 1, [0.5, 0.1, 0.3])
    sim.run(0.1)
    recorder.drain()
    for seq in range(3 * FRAMES):
        record = np.zeros((), dtype)
        record["seq"], record["t_mono"], record["t_seen"] = seq, sim.t, sim.t
        ring.write(record)
    sim.run(0.5)
    recorder.drain()
    sim.session.command("end", 1)
    sim.run(2 * DT)
    recorder.drain()
    assert recorder.lost == 0
    with h5py.File(tmp_path / "out" / "episode_0001.hdf5") as file:
        seq = file["data/demo_0/cameras/front/seq"][()]
    assert seq.tolist() == list(range(2 * FRAMES + 1, 3 * FRAMES))


def test_words_for_cameras_and_what_is_missing():
    wrist = parse_camera("wrist=realsense:0123")
    assert (wrist.name, wrist.kind, wrist.argument, wrist.key) == ("wrist", "realsense", "0123", "wrist_image")
    path = "/dev/v4l/by-id/usb-046d_HD_Pro,_x=1-index0"
    front = parse_camera(f"front=uvc:{path},size=640x480,crop=480x400+10+20,resize=84x70,exposure=156,colour=bgr")
    assert (front.argument, front.size, front.crop) == (path, (640, 480), (10, 20, 480, 400))
    assert (front.resize, front.exposure, front.colour) == ((84, 70), 156.0, "bgr")
    hostile = (
        "front",
        "front=webcam:0",
        "=twin:front",
        "a b=twin:front",
        "front=twin:",
        "ä=twin:front",
        "../x=twin:front",
    )
    options = ("size=84", "size=0x4", "size=99999x4", "crop=1x1+2", "resize=-1x2", "colour=grey", "rate=nan", "rate=0")
    more = ("exposure=5", "intrinsics=1/2/3", "intrinsics=0/1/2/3", "size=1x1,size=2x2")
    for wrong in (*hostile, *(f"front=twin:front,{option}" for option in (*options, *more))):
        with pytest.raises(ConfigError, match="--cameras"):
            parse_camera(wrong)
    with pytest.raises(ConfigError, match="two are named front"):
        parse_cameras(("front=twin:front", "front=twin:wrist"))
    with pytest.raises(MissingExtraError, match="realsense"):
        open_camera(parse_camera("wrist=realsense:any"))
    with pytest.raises(ConfigError, match="real time"):
        Setup(driver="scene", cameras=("front=realsense:any",))


def test_what_is_seen_is_cropped_turned_round_and_averaged():
    rng = np.random.default_rng(0)
    taken = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
    seen = parse_camera("a=uvc:x,crop=32x16+8+4,resize=8x4,colour=bgr").shaped(taken)
    blocks = taken[4:20, 8:40, ::-1].reshape(4, 4, 8, 4, 3).astype(float).mean((1, 3))
    np.testing.assert_allclose(seen, blocks, atol=0.5 + 1e-4)
    middle = parse_camera("a=uvc:x,crop=32x16")
    np.testing.assert_array_equal(middle.shaped(taken), taken[16:32, 16:48])
    # The mean of all pixels is kept where the sizes are no multiples, and an edge shares its pixel.
    assert area_mean(taken, 17, 5).mean() == pytest.approx(taken.mean(), abs=0.5)
    np.testing.assert_array_equal(
        area_mean(np.array([[[0] * 3, [90] * 3, [0] * 3]], np.uint8), 2, 1)[0, :, 0], [30, 30]
    )
    with pytest.raises(DataError, match="is not inside"):
        middle.shaped(taken[:10])
    # A point keeps its place: fx x / z + cx, before and after.
    known = parse_camera("a=uvc:x,crop=32x16+8+4,resize=8x4,intrinsics=60/61/31.5/23.5")
    fx, fy, cx, cy = known.seen_intrinsics(64, 48)
    x, y = 0.1, -0.05
    pixel = np.array([60 * x + 31.5 - 8, 61 * y + 23.5 - 4])
    np.testing.assert_allclose([fx * x + cx, fy * y + cy], (pixel + 0.5) / 4 - 0.5, atol=1e-3)
    spec = known.spec((48, 64), (4, 8))
    assert (spec.shape, spec.crop, spec.intrinsics) == ((4, 8, 3), (8, 4, 32, 16), (fx, fy, cx, cy))


def test_a_picture_of_another_size_is_told_and_not_written(tmp_path, monkeypatch):
    sim = Simulation(tmp_path / "shm", monkeypatch)
    camera = ReplayCamera(pictures(3), np.arange(3.0), clock=lambda: sim.t)
    camera.start()
    writer = CameraWriter(camera, FRONT, sim.session.folder, clock=lambda: sim.t)
    assert writer.step()
    camera._rgb = pictures(3, (8, 6))
    sim.t += 1.0
    assert writer.step()
    record = open_ring(sim.session.folder, "front", stated_camera(sim.session.folder, "front")).latest()
    assert told(record) == "takes pictures of 6 x 8 instead of 6 x 4"
    assert (int(record["seq"]), int(record["rgb"].max())) == (1, 0)


@pytest.mark.sim
def test_the_twins_camera_sees_the_cube_or_says_what_is_missing():
    from flowpolicy.real_robot.cameras.twin_camera import TwinCamera

    positions = np.zeros(16)
    positions[:7] = [0, -0.785, 0, -2.356, 0, 1.571, 0.785]
    positions[9:] = [0.5, 0.0, 0.02, 1, 0, 0, 0]
    t = [0.0]
    with pytest.raises(ConfigError, match="no camera 'side'"):
        TwinCamera("side", lambda: positions)
    try:
        camera = TwinCamera("front", lambda: positions, clock=lambda: t[0])
    except RobotError as error:
        if "MUJOCO_GL" in str(error):  # anything else fails the test
            pytest.skip("no OpenGL here")
        raise
    first = camera.latest()
    assert camera.latest() is first
    positions[9:12] = [0.5, 0.3, 0.02]
    t[0] = 0.05
    second = camera.latest()
    assert (first.seq, second.seq) == (0, 1)
    red = [(frame.rgb[..., 0].astype(int) - frame.rgb[..., 1] > 60).nonzero()[1].mean() for frame in (first, second)]
    assert abs(red[0] - red[1]) > 10
    camera.close()
