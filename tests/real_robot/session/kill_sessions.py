"""``kill -9`` at random moments: ``python -m tests.real_robot.session.kill_sessions RECORD.json [SESSIONS]``.

Sessions of processes in real time on the arm in NumPy, with two cameras. In turn the recorder, a camera, the policy or
the teaching device is killed. Whatever was recorded until then must be there afterwards, with its pictures, and the
arm at rest where nothing decides any more. The record is written after every session, and a second call goes on behind
the last one.
"""

import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np

from flowpolicy.bench.bridge_lateness import policy_of, record_noise
from flowpolicy.core.seed import numpy_generator
from flowpolicy.envs.arm_tasks import ArmTaskConfig
from flowpolicy.real_robot.arm.models.franka import FR3
from flowpolicy.real_robot.bridge.states import State
from flowpolicy.real_robot.drivers.driver_protocols import RobotError
from flowpolicy.real_robot.session.episodes import INDEX
from flowpolicy.real_robot.session.launch import Setup, start_session
from flowpolicy.real_robot.session.operate import Operator
from flowpolicy.real_robot.session.play import recording_meta, start_cameras, wait_for_policy, wait_for_recorder
from flowpolicy.real_robot.session.recorder import salvage
from flowpolicy.real_robot.session.teaching_process import loop_options
from flowpolicy.real_robot.tasks.tasks import Waypoint, WaypointPath
from flowpolicy.real_robot.teaching.devices import DeviceConfig

VICTIMS = ("recorder_process", "camera_front", "keyboard", "policy_process")
_EPISODE, _LATEST = 1.2, 4.0  # s of an episode, and until the kill
_SIZE = 48


class KilledSession:
    """One session, one of whose processes is killed.

    Args:
        number: of the session; draws the moment.
        home: where it records.

    """

    def __init__(self, number, home):
        self.number, self.out = number, home / "out"
        self.victim = VICTIMS[number % len(VICTIMS)]
        self.rng = numpy_generator(number, "kill", "sessions")
        pictures = record_noise(home / "pictures.hdf5", 240.0, _SIZE)
        cameras = tuple(f"{name}=replay:{pictures}" for name in ("front", "wrist"))
        self.setup = Setup(session=f"kill-{os.getpid()}", cameras=cameras)
        self.config = ArmTaskConfig("reach", tool=self.setup.tool_length)
        self.begun, self.finished, self.killed_at, self.ran = 0, 0, None, {}

    def play(self):
        """Record episodes until the kill, and see what comes of it."""
        device = self.victim if self.victim == "keyboard" else ""
        with start_session(self.setup, device) as running:
            self.running, self.operator = running, Operator(running)
            seen = start_cameras(running)
            meta = recording_meta(self.config, self.config.env_args(), seen, self.setup)
            if device:
                meta |= {
                    "labels": {"task": "reach", "lang": "", "device": device},
                    "actions": "commanded",
                    "device": True,
                }
            running.start("recorder_process", {"folder": str(self.out), "meta": meta})
            wait_for_recorder(running)
            if device:
                running.start("teaching_process", loop_options(DeviceConfig(teach=device)), name=device)
                while not running.session.device.count:
                    running.require_alive()
                    time.sleep(0.05)
            if self.victim == "policy_process":
                run = policy_of(self.out.parent / "run", self.config, seen)
                running.start("policy_process", {"run": run, "seed": 0, "engine": "eager"})
                wait_for_policy(running, 600.0)
            told = self._until_killed(float(self.rng.uniform(0.3, _LATEST)))
        return told

    def _until_killed(self, after):
        running, session = self.running, self.running.session
        running.ask("start", State.READY, seconds=30.0)
        began, ends, told = time.monotonic(), 0.0, ""
        while not told:
            now = time.monotonic()
            tick = session.ticks.latest()
            state = State(int(tick["state"]))
            if self.killed_at is None and now - began > after:
                self.finished = int(session.recorder.latest()["episodes"])
                self.killed_at = round(now - began, 3)
                running._processes[self.victim].send_signal(signal.SIGKILL)
                running._processes[self.victim].wait()
                self.owner_says = self._owner()
            if self.killed_at is not None and now - began > self.killed_at + 0.8:
                told = state.name
                # Without a word of what decides the arm holds; it must not go on by itself.
                decides = self.victim in ("keyboard", "policy_process") and not self.owner_says.endswith("again")
                assert not decides or np.abs(tick["dq_cmd"]).max() < 1e-3, tick["dq_cmd"]
                break
            if now > ends and state in (State.READY, State.RUNNING, State.HOLD) and self.killed_at is None:
                if self.begun:
                    session.command("end", 1)
                self.begun += 1
                ends = now + _EPISODE
                session.command("begin", self.begun, [0.4, 0.0, 0.4])
                away = np.array(FR3.home) + 0.1 * (-1) ** self.begun
                self.operator.begin(WaypointPath(tick["q_cmd"], 0.08, [Waypoint(away, 0.08, _EPISODE)]))
            if int(tick["episode"]) and state is State.RUNNING:
                self.ran[int(tick["episode"])] = self.ran.get(int(tick["episode"]), 0) + 1
            if self.victim == "keyboard":  # a key that is held from the beginning moves nothing
                key = b"j" if self.begun % 2 else b"l"
                session.type(key if ends - now < _EPISODE - 0.3 else b"", False)
            elif self.victim != "policy_process":
                self.operator.step(now)
            time.sleep(0.02)
        return told

    def _owner(self):
        """What the process that owns the session does about it, as `record` and `run` do."""
        try:
            if self.victim == "keyboard":
                return self.running.keep_alive(self.victim)
            self.running.require_alive()
            return ""
        except RobotError as error:
            return error.what.splitlines()[0]

    def look(self):
        """What is there afterwards; asserts that nothing is lost."""
        files = {int(path.stem[-4:]) for path in self.out.glob("episode_*.hdf5")}
        assert files >= set(range(1, self.finished + 1)), f"{self.finished} were finished, and there are {files}"
        left = len(list(self.out.glob(".episode_*")))
        made = salvage(self.out, lambda text: sys.stdout.write(f"{text}\n"))
        assert not list(self.out.glob(".episode_*"))
        rows = []
        for path in sorted(self.out.glob("episode_*.hdf5")):
            with h5py.File(path) as file:
                for demo in file["data"].values():
                    assert demo["obs/front_image"].shape == (len(demo["actions"]), _SIZE, _SIZE, 3)
                    assert np.ptp(demo["obs/wrist_image"][0]) > 50
                    rows.append(len(demo["actions"]))
        # Every episode that ran for some periods and came to its end; the last may be too short to hold a row.
        kept = files | {int(path.stem[-4:]) for path in made}
        whole = {number for number, looks in self.ran.items() if looks > 10 and number < self.begun}
        assert kept >= whole, f"{whole} ran, and {kept} are there"
        if rows:
            with h5py.File(self.out / INDEX) as file:
                assert len(file["data"]) == len(rows)
        return {"begun": self.begun, "finished": self.finished, "left": left, "salvaged": len(made), "rows": sum(rows)}


def main(path, sessions="50"):
    """Go on with the record until it holds so many sessions."""
    path = Path(path)
    record = json.loads(path.read_text()) if path.exists() else {"sessions": []}
    record["command"] = "python -m tests.real_robot.session.kill_sessions RECORD.json [SESSIONS]"
    for number in range(len(record["sessions"]), int(sessions)):
        with tempfile.TemporaryDirectory() as home:
            os.environ["FLOWPOLICY_SHM"] = f"{home}/shm"
            one = KilledSession(number, Path(home))
            state = one.play()
            found = {"killed": one.victim, "after_s": one.killed_at, "arm": state, "owner": one.owner_says}
            found |= one.look()
        record["sessions"].append(found)
        kept = record["sessions"]
        record["episodes_finished"] = sum(session["finished"] for session in kept)
        record["episodes_lost"] = 0  # or an assertion would have stopped it
        path.write_text(json.dumps(record, indent=1) + "\n")
        sys.stdout.write(f"{number + 1}: {found}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
