"""What docs/teach.md says was measured: ``python -m tests.real_robot.teaching.measure_teaching RECORD.json``.

Everything in simulated time on the twin's scene, by a simulated person through fake devices.
"""

import dataclasses
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import h5py
import numpy as np

from flowpolicy.envs.arm_tasks import ArmTaskConfig
from flowpolicy.real_robot.arm.models.franka import FR3
from flowpolicy.real_robot.bridge.states import STREAMING, State
from flowpolicy.real_robot.session import accelerated
from flowpolicy.real_robot.session.launch import Setup
from flowpolicy.real_robot.session.play import recording_meta
from flowpolicy.real_robot.session.replay_episode import replay_episode
from flowpolicy.real_robot.session.teach import TaughtLesson, next_lesson, teach
from flowpolicy.real_robot.session.teaching_process import loop_options
from flowpolicy.real_robot.teaching import gamepad, spacemouse
from flowpolicy.real_robot.teaching.devices import DeviceConfig

from ..simulated import DT, peaks
from .fake_devices import FakeHid, FakePad
from .guided import GuidedSession, circle, guided_session
from .simulated_person import SimulatedPerson
from .taught_simulation import Taught
from .test_device_faults import FAULTS, rude

SETUP = Setup(driver="scene")


def in_the_hand_of_a_person(device, task, speed=0.15):
    """Patches a device so that a simulated person holds it."""
    original = accelerated.AcceleratedSession.start

    def start(self, module, options, name=""):
        if module == "teaching_process":
            fake = FakeHid() if device == "spacemouse" else FakePad(self.clock.now)
            person = SimulatedPerson(self.session, self.setup.limits, task, speed, np.random.default_rng(0))
            seen = [-1.0]

            def look():
                if self.clock.now() - seen[0] >= 0.0159:
                    seen[0] = self.clock.now()
                    fake.hand(*person.decide(seen[0]))

            fake.before_read = look
            spacemouse.open_hid = gamepad.open_gamepad = lambda: fake
        original(self, module, options, name)

    return mock.patch.object(accelerated.AcceleratedSession, "start", start)


def demonstrations(device, episodes, out, cameras=()):
    """So many more lifts in ``out``, shown through a device."""
    lesson = TaughtLesson(next_lesson(out, device, "lift", "", "", "", None, ""), DeviceConfig(teach=device))
    began = time.process_time()
    with in_the_hand_of_a_person(device, "lift"):
        played = teach(dataclasses.replace(SETUP, cameras=tuple(cameras)), lesson, out, episodes, 0, 5.0)
    with h5py.File(out / "demos.hdf5") as file:
        rows = [len(file["data"][name]["actions"]) for name in file["data"]]
    return {
        "episodes": episodes,
        "lifted": sum(one.success for one in played.outcomes),
        "rows": int(np.sum(rows)),
        "seconds_median": round(float(np.median([one.seconds for one in played.outcomes])), 2),
        "cpu_s": round(time.process_time() - began, 1),
    }


def released():
    """Seconds from the release of the button to HOLD, and to rest, at full speed along every axis."""
    hold, rest = [], []
    for axis in range(3):
        for sign in (-1, 1):
            with fresh() as (folder, patch):
                sim = Taught(folder, patch)
                twist = np.zeros(6)
                twist[axis] = sign
                sim.begin().hold(0.3, held=False).hold(0.6, twist=twist)
                at = len(sim.ticks)
                sim.hold(0.5, held=False, twist=twist)
                since = sim.ticks[at:]
                hold.append(next(i for i, tick in enumerate(since) if tick["state"] == State.HOLD) * DT)
                rest.append(next(i for i, tick in enumerate(since) if np.abs(tick["dq_cmd"]).max() < 1e-6) * DT)
    return {"speed": 0.15, "hold_s_max": round(max(hold), 3), "rest_s_max": round(max(rest), 3)}


class fresh:
    def __enter__(self):
        self.folder = tempfile.TemporaryDirectory()
        return Path(self.folder.__enter__()), self

    def setenv(self, name, value):
        os.environ[name] = value

    def __exit__(self, *error):
        self.folder.__exit__(*error)


def rudeness(messages):
    """Random messages, a third from each kind of device: worst commanded peaks, and ticks in which the arm ran."""
    worst, running, sent, kinds = np.zeros(3), 0, 0, ("spacemouse", "gamepad", "leader")
    for place, kind in enumerate(kinds):
        rng = np.random.default_rng(1)
        with fresh() as (folder, patch):
            sim = Taught(folder, patch, kind).begin()
            while sent < messages * (place + 1) / len(kinds):
                rude(sim, rng, every=5, bad=0.02)
                sent += 20
                if sim.state in (State.IDLE, State.STOPPING):
                    sim.run(0.5).command("start")
                    sim.session.command("begin", 1, [0.0] * 3)
                    sim.run(2 * DT)
                if len(sim.ticks) > 5000 or sent >= messages * (place + 1) / len(kinds):
                    worst = np.maximum(worst, commanded_peaks(sim.ticks))
                    running += sum(int(tick["state"]) == State.RUNNING for tick in sim.ticks)
                    sim.ticks = sim.ticks[-4:]
    limits = (max(FR3.velocity), max(FR3.acceleration), max(FR3.jerk))
    beyond = [bool(peak > 1.001 * limit + 1e-6) for peak, limit in zip(worst, limits, strict=True)]
    return {
        "messages": sent,
        "running_ticks": running,
        "peaks": [round(float(one), 3) for one in worst],
        "violations": sum(beyond),
    }


def commanded_peaks(ticks):
    """Largest speed, acceleration and jerk while the impedance loop was on."""
    streaming = np.array([State(int(tick["state"])) in STREAMING for tick in ticks])
    path = np.array([tick["q_cmd"] for tick in ticks])
    edges = np.nonzero(np.diff(streaming))[0] + 1
    parts = [part for part, on in zip(np.split(path, edges), np.split(streaming, edges), strict=True) if on[0]]
    found = [peaks(part) for part in parts if len(part) > 4]
    return np.max(found, axis=0) if found else np.zeros(3)


def guiding(out):
    """A hand drags the tool twice round a circle and lets go; then it turns the hand against its wall."""
    config = ArmTaskConfig("taught", tool=SETUP.tool_length)
    with guided_session() as running:
        meta = recording_meta(config, config.env_args(), {}, SETUP)
        meta |= {"labels": {"task": "circle", "device": "guide"}, "actions": "commanded", "device": True}
        running.start("recorder_process", {"folder": str(out), "meta": meta})
        running.start("teaching_process", loop_options(DeviceConfig(teach="guide")), name="guide")
        hand = GuidedSession(running)
        start = hand.pose().position.copy()
        hand.wait(12.0, circle(start))
        hand.wait(0.3, lambda t: start)
        left = hand.pose().position.copy()
        hand.wait(10.0)
        drift = float(np.linalg.norm(hand.pose().position - left))
        running.session.command("end", 1)
        running.clock.sleep(0.1)
        running.session.command("begin", 2, [0.0] * 3)
        hand.wait(0.5)
        # Against the wall of the last joint, with more and more of a turn.
        pushed = []
        for torque in (1.5, 3.0, 4.5):
            for _ in range(1000):
                hand.scene.data.xfrc_applied[hand.hand, 3:] = torque * hand.pose().rotation[:, 2]
                running.session.type(b"", False)
                running.clock.sleep(0.004)
            pushed.append(float(SETUP.limits.q_high[6] - hand.scene.data.qpos[6]))
        hand.pull(None)
        hand.scene.data.xfrc_applied[hand.hand] = 0.0
        running.session.command("stop")
        running.wait(State.IDLE, State.FAULT, seconds=5.0)
    replayed = replay_episode(SETUP, out / "episode_0001.hdf5", "demo_0")
    return {
        "path_mm": 1e3 * 0.08,
        "replay_tool_mm": round(1e3 * replayed.tool, 2),
        "replay_joint_mrad": round(1e3 * replayed.distance, 2),
        "drift_mm_10s": round(1e3 * drift, 3),
        "wall_torque_nm": [1.5, 3.0, 4.5],
        "left_before_soft_limit_rad": [round(one, 4) for one in pushed],
    }


def main(path, *sections, episodes=40, messages=100_000):
    """Measure all sections, or some, and put them into the record."""
    record = json.loads(Path(path).read_text()) if Path(path).exists() else {}
    record |= {"command": "python -m tests.real_robot.teaching.measure_teaching RECORD.json [SECTION ...]"}
    record |= {"beside_other_work": True, "faults_tested": len(FAULTS)}
    with tempfile.TemporaryDirectory() as home:
        works = {
            "guide": lambda: guiding(Path(home) / "guide"),
            "released": released,
            "spacemouse": lambda: demonstrations("spacemouse", episodes, Path(home) / "mouse"),
            "gamepad": lambda: demonstrations("gamepad", episodes, Path(home) / "pad"),
            "random_messages": lambda: rudeness(messages),
        }
        for name in sections or works:
            os.environ["FLOWPOLICY_SHM"] = f"{home}/shm"
            record[name] = works[name]()
            Path(path).write_text(json.dumps(record, indent=2) + "\n")
            sys.stdout.write(f"{name}: {record[name]}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
