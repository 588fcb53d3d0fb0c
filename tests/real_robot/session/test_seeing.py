"""A policy that sees: what it is shown, how old that is, and what the arm does when a camera cannot be trusted."""

import dataclasses

import numpy as np
import pytest

from flowpolicy.core.errors import ContractError
from flowpolicy.core.spec import Contract, ImageSpec
from flowpolicy.data.thumbnails import likeness, read_thumbnail, swapped_cameras, thumbnail, write_thumbnail
from flowpolicy.envs.arm_tasks import ArmTaskConfig
from flowpolicy.policy.session import Session
from flowpolicy.real_robot.arm.action_conventions import JointRows
from flowpolicy.real_robot.bridge.ring_records import unpack_chunk
from flowpolicy.real_robot.bridge.states import State
from flowpolicy.real_robot.cameras.camera_setup import parse_camera
from flowpolicy.real_robot.drivers.driver_protocols import CameraFacts, Frame
from flowpolicy.real_robot.session.camera_check import require_cameras, with_cameras
from flowpolicy.real_robot.session.camera_process import CameraWriter, stated_camera
from flowpolicy.real_robot.session.policy_process import PolicyLoop

from ..simulated import DT, LIMITS, Simulation

SIZE = (12, 16)


def seeing(*names, **image):
    """A contract of joint steps that sees by these cameras."""
    spec = ArmTaskConfig().spec()
    pictures = {f"{name}_image": ImageSpec((*SIZE, 3), camera=name, **image) for name in names}
    spec = dataclasses.replace(spec, observation={"robot0_joint_pos": spec.observation["robot0_joint_pos"], **pictures})
    return Contract(spec, history=1, chunk=8, execute=2, nfe=1)


class Eye:
    """A camera with twenty pictures a second and a sensor's noise, that can fail in every way."""

    def __init__(self, sim, latency=0.02):
        self.sim, self.latency_s, self.facts, self.rng = sim, latency, CameraFacts(), np.random.default_rng(0)
        self.begun, self.frozen, self.black, self.silent, self.size = sim.t, False, False, False, SIZE
        self.frame = self.picture = None

    def latest(self):
        seq = int((self.sim.t - self.begun - self.latency_s) / 0.05 + 1e-6)
        if seq < 0 or self.silent or (self.frame is not None and seq <= self.frame.seq):
            return self.frame
        if not self.frozen or self.picture is None:
            self.picture = self.rng.integers(40, 200, (*self.size, 3), dtype=np.uint8)
        shown = np.full((*self.size, 3), 2, np.uint8) if self.black else self.picture
        t = self.begun + 0.05 * seq
        self.frame = Frame(seq, t, t, shown)
        return self.frame

    def close(self):
        pass


class Looker:
    """Joint 1 goes on; the pictures that were shown are kept."""

    prefix, continues, evaluations = 0, False, 0

    def __init__(self, contract):
        self.contract, self.shown = contract, []

    def stream(self, seed):
        return None

    def chunk(self, obs, stream, committed=None, previous=None):
        self.shown.append({key: value[-1].copy() for key, value in obs.items() if value.dtype == np.uint8})
        rows = np.zeros((8, 8))
        rows[:, 0], rows[:, 7] = 0.004, 0.08
        return rows


class Stage:
    """A running arm, an eye for each name, and a policy that sees by all of them."""

    def __init__(self, sim, *names, noisy=True, latency=0.02):
        self.sim, self.eyes = sim, {name: Eye(sim, latency) for name in names}
        folder = sim.session.folder
        self.writers = [
            CameraWriter(eye, parse_camera(f"{name}=uvc:x"), folder, lambda: sim.t) for name, eye in self.eyes.items()
        ]
        sim.ready()
        sim.session.command("begin", 3)
        self.run(0.1)
        self.source = Looker(seeing(*names))
        self.loop = PolicyLoop(
            Session(self.source), sim.session, LIMITS.tool, "crossfade", lambda: sim.t, noisy=names if noisy else ()
        )
        sim.policy = lambda sim: self.loop.step(sim.t) - sim.t
        self.run(0.5)

    def run(self, seconds):
        for _ in range(round(seconds / DT)):
            for writer in self.writers:
                writer.step()
            self.sim.run(DT)

    def until_hold(self):
        """Seconds until the arm holds, and why; 2 s at most."""
        begun = self.sim.t
        while self.sim.state is State.RUNNING and self.sim.t < begun + 2.0:
            self.run(DT)
        return self.sim.t - begun, self.sim.events("state")[-1]


@pytest.fixture
def sim(tmp_path, monkeypatch):
    return Simulation(tmp_path, monkeypatch)


def chunks(sim):
    records, _, _ = sim.session.chunks.read(0)
    return [unpack_chunk(record) for record in records if record["rows"]]


def test_it_sees_the_newest_pictures_and_the_oldest_says_how_old_that_is(sim):
    stage = Stage(sim, "front", "wrist")
    stage.eyes["wrist"].latency_s = 0.12
    stage.run(0.5)
    assert sim.state is State.RUNNING
    newest, shown = {name: eye.frame for name, eye in stage.eyes.items()}, stage.source.shown[-1]
    assert set(shown) == {"front_image", "wrist_image"}
    before = stage.loop._cameras
    for name, frame in newest.items():
        assert int(before[f"{name}_image"].record["seq"]) in (frame.seq, frame.seq - 1, frame.seq - 2)
    chunk = chunks(sim)[-1]
    made = chunk.t0 - stage.loop.dt  # the tick
    assert 0.12 <= made - chunk.t_obs <= 0.18
    # And rows are due from the tick on: pictures were as old when the demonstrations were recorded.
    assert chunk.t_obs < made <= sim.t
    assert sim.ticks[-1]["rejected"] == 0


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("frozen", "the camera 'front' has shown the very same picture for"),
        ("black", "the camera 'front' shows a black picture"),
        ("silent", "the camera 'front' has given no picture for"),
    ],
)
def test_a_camera_that_fails_holds_the_arm_within_a_second_and_is_named(sim, fault, words):
    stage = Stage(sim, "front", "wrist")
    setattr(stage.eyes["front"], fault, True)
    seconds, told = stage.until_hold()
    assert sim.state is State.HOLD
    assert seconds < 1.0
    assert words in told
    # What was wrong may be wrong still: the operator says when it goes on.
    setattr(stage.eyes["front"], fault, False)
    stage.run(0.6)
    assert sim.state is State.HOLD
    sim.command("rearm")
    stage.run(0.4)
    assert sim.state is State.RUNNING


def test_pictures_of_300_ms_ago_and_of_another_size_hold_too(sim):
    stage = Stage(sim, "front")
    stage.eyes["front"].latency_s = 0.3
    seconds, told = stage.until_hold()
    assert seconds < 1.0
    assert "the camera 'front'" in told and "ms" in told
    stage.eyes["front"].latency_s = 0.02
    stage.run(0.3)
    sim.command("rearm")
    stage.run(0.4)
    assert sim.state is State.RUNNING
    stage.eyes["front"].size = (24, 16)
    seconds, told = stage.until_hold()
    assert seconds < 1.0
    assert "takes pictures of 16 x 24 instead of 16 x 12" in told


def test_a_single_late_picture_costs_a_decision_and_no_hold(sim):
    stage = Stage(sim, "front")
    stage.eyes["front"].silent = True
    stage.run(0.3)
    stage.eyes["front"].silent = False
    stage.run(0.5)
    assert sim.state is State.RUNNING
    assert not any("HOLD" in text for text in sim.events("state"))


def test_a_drawn_scene_may_stand_still_with_the_arm(sim):
    stage = Stage(sim, "front", noisy=False)
    stage.eyes["front"].frozen = True
    stage.loop._convention = StandsStill()
    stage.run(1.5)
    assert sim.state is State.RUNNING
    stage.loop._convention = StandsStill(0.01)
    seconds, told = stage.until_hold()
    assert "very same picture" in told
    assert seconds < 1.0


class StandsStill:
    """Every row of a chunk is what is commanded now, and so much further for joint 1."""

    def __init__(self, step=0.0):
        self.step = step

    def joints(self, rows, q, dq, dt):
        steps = np.zeros((len(rows), 7))
        steps[:, 0] = self.step
        return JointRows(q + steps.cumsum(0), rows[:, -1], "")


def test_a_camera_that_is_missing_of_another_size_or_colour_is_refused(sim):
    eye = Eye(sim)
    writer = CameraWriter(eye, parse_camera("front=uvc:x"), sim.session.folder, lambda: sim.t)
    sim.t += 0.1
    writer.step()
    with pytest.raises(ContractError, match="camera 'wrist', and none of this name runs"):
        PolicyLoop(Session(Looker(seeing("front", "wrist"))), sim.session, LIMITS.tool, "crossfade")
    larger = dataclasses.replace(seeing("front").spec.images["front_image"], shape=(24, 32, 3))
    other = seeing("front")
    other = dataclasses.replace(other, spec=dataclasses.replace(other.spec, observation={"front_image": larger}))
    with pytest.raises(ContractError, match=r"sees pictures \(24, 32, 3\)"):
        PolicyLoop(Session(Looker(other)), sim.session, LIMITS.tool, "crossfade")
    seen = {"front": stated_camera(sim.session.folder, "front")}
    require_cameras(seeing("front"), seen)
    for changes, line in (
        ({"shape": (24, 32, 3)}, "front_image.shape"),
        ({"colour": "bgr"}, "front_image.colour"),
        ({"crop": (0, 0, 9, 9)}, "front_image.crop"),
    ):
        stated = {"front": dataclasses.replace(seen["front"], **{"crop": (1, 1, 9, 9), **changes})}
        trained = seeing("front", **({"crop": (1, 1, 9, 9)} if "crop" in changes else {}))
        with pytest.raises(ContractError, match=line):
            require_cameras(trained, stated)
    with pytest.raises(ContractError, match="missing: wrist"):
        with_cameras(ArmTaskConfig().spec(), seeing("front", "wrist"), ["front"])
    with pytest.raises(ContractError, match="wrist_image: present against absent"):
        require_cameras(seeing("front", "wrist"), seen)


def test_cameras_that_were_swapped_show_in_their_thumbnails():
    rng = np.random.default_rng(0)
    front, wrist = (np.kron(rng.integers(0, 255, (4, 4, 3)), np.ones((21, 21, 1))).astype(np.uint8) for _ in range(2))
    noisy = {
        name: np.clip(rgb.astype(int) * 0.8 + 20 + rng.normal(0, 8, rgb.shape), 0, 255).astype(np.uint8)
        for name, rgb in (("front", front), ("wrist", wrist))
    }
    kept = {
        name: ImageSpec((84, 84, 3), camera=name, thumbnail=write_thumbnail(thumbnail(rgb)))
        for name, rgb in (("front", front), ("wrist", wrist))
    }
    assert likeness(read_thumbnail(kept["front"].thumbnail), thumbnail(noisy["front"])) > 0.95
    assert swapped_cameras(kept, noisy) == []
    lines = swapped_cameras(kept, {"front": noisy["wrist"], "wrist": noisy["front"]})
    assert len(lines) == 2
    assert "'front' shows what 'wrist' showed in training" in lines[0]
    other = rng.integers(0, 255, (84, 84, 3), dtype=np.uint8)
    assert "something else than in training" in swapped_cameras(kept, {"front": other, "wrist": noisy["wrist"]})[0]
    # Recordings of before say nothing of it, and a text that is none is like nothing.
    assert swapped_cameras({"front": ImageSpec((84, 84, 3))}, noisy) == []
    assert likeness(read_thumbnail("no thumbnail"), thumbnail(front)) == 0.0
