"""A whole session in one process and in simulated time, on the twin's MuJoCo scene: what takes a minute takes seconds.

Bridge, policy and recorder are the ones of a real session; only the processes, the robot's protocol and real time are
missing. Nothing is ever late here: a policy decides in no time.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from flowpolicy.core.errors import FlowPolicyError
from flowpolicy.real_robot.bridge.bridge import Bridge
from flowpolicy.real_robot.bridge.gripper_worker import Gripper
from flowpolicy.real_robot.bridge.ring_records import SessionRings
from flowpolicy.real_robot.bridge.states import State
from flowpolicy.real_robot.bridge.supervisor import BridgeConfig, attempt
from flowpolicy.real_robot.cameras.camera_setup import CameraSetup, parse_camera
from flowpolicy.real_robot.drivers.driver_protocols import ArmDriver, Camera, Clock, RobotError
from flowpolicy.real_robot.session.camera_process import CameraWriter
from flowpolicy.real_robot.session.launch import RunningSession, Setup
from flowpolicy.real_robot.session.recorder import Recorder
from flowpolicy.real_robot.session.teaching_process import make_loop
from flowpolicy.real_robot.teaching.teach_loop import TeachLoop
from flowpolicy.real_robot.twin.scene import Scene, SceneArm, SceneGripper

_DRAIN = 0.1  # s between two looks of the recorder


class Done:
    """A background task that was done on the spot.

    Args:
        work: what to do; what it raises is kept.

    """

    done = True

    def __init__(self, work: Callable[[], None]) -> None:
        self.error: FlowPolicyError | None = attempt(work)


def scene_body(clock: Clock) -> tuple[ArmDriver, Gripper]:
    """Arm and gripper of a new scene."""
    scene = Scene(clock)
    return SceneArm(scene), SceneGripper(scene)


class AcceleratedSession(RunningSession):
    """Like a running session; time passes while its owner sleeps.

    Args:
        setup: the robot.
        body: makes arm and gripper for a clock; the scene's unless given.
        teacher: the device with which a person drives, if one does.

    """

    def __init__(
        self, setup: Setup, body: Callable[[Clock], tuple[ArmDriver, Gripper]] | None = None, teacher: str = ""
    ) -> None:
        self._t = 1000.0
        session = SessionRings(f"{setup.session}-{os.getpid()}", create=setup.arm_model, now=lambda: self._t)
        super().__init__(setup, session)
        self.clock = Clock(lambda: self._t, self._pass)
        config = BridgeConfig(setup.limits, setup.mode, shadow=setup.shadow, direct=setup.direct, teacher=teacher)
        self.arm, self.gripper = (body or scene_body)(self.clock)
        self.bridge = Bridge(config, self.arm, self.gripper, session, self.clock, Done)
        self._period, self._drained = 1.0 / config.rate_hz, 0.0
        self._recorder: Recorder | None = None
        self._policy: Callable[[float], float] | None = None
        self._cameras: list[CameraWriter] = []
        self.teaching: TeachLoop | None = None
        """What looks at the device of a person, if one teaches."""
        self._due = 0.0

    def start(self, module: str, options: dict[str, Any], name: str = "") -> None:
        """Make a camera, the recorder or the policy part of this process."""
        if module == "camera_process":
            self._cameras.append(self._camera(parse_camera(options["camera"])))
            return
        if module == "recorder_process":
            self._recorder = Recorder(self.session, Path(options["folder"]), options["meta"])
            self._recorder.drain()
            return
        if module == "teaching_process":
            self.teaching = make_loop(self.setup, self.session, options)
            self._policy = self.teaching.step
            self._pass(0.1)
            return
        from flowpolicy.real_robot.session.policy_process import make_loops

        self._policy = make_loops(options, self.session, self.setup, self.clock.now).step
        self._pass(0.1)

    def keep_alive(self, name: str) -> str:
        """Nothing can end alone."""
        return ""

    def _camera(self, setup: CameraSetup) -> CameraWriter:
        """A camera on this session's clock; the twin's looks at the scene itself."""
        from flowpolicy.real_robot.cameras.cameras import TWIN_RATE, TWIN_SIZE, open_camera

        scene = getattr(self.arm, "scene", None)
        if setup.kind == "twin" and scene is not None:
            from flowpolicy.real_robot.cameras.twin_camera import TwinCamera

            camera: Camera = TwinCamera(
                setup.argument,
                lambda: scene.data.qpos,
                setup.size or TWIN_SIZE,
                setup.rate or TWIN_RATE,
                self.clock.now,
            )
        else:
            camera = open_camera(setup, self.clock.now)
        camera.start()
        return CameraWriter(camera, setup, self.session.folder, self.clock.now)

    def require_alive(self) -> None:
        """It is, as long as this process is."""

    def close(self) -> None:
        """Bring the arm to rest and finish what is recorded."""
        self.session.command("quit")
        while not self.bridge.supervisor.finished:
            self._pass(0.02)
        self.bridge.close()
        for camera in self._cameras:
            camera.close()
        if self._recorder is not None:
            self._recorder.close()
        shutil.rmtree(self.session.folder, ignore_errors=True)

    def _pass(self, seconds: float) -> None:
        for _ in range(max(1, round(seconds / self._period))):
            self._t += self._period
            self.bridge.tick(self._t)
            for camera in self._cameras:
                camera.step()
            if self._policy is not None and self._t >= self._due - 1e-9:
                self._decide(self._policy)
            if self._recorder is not None and self._t - self._drained >= _DRAIN:
                self._drained = self._t
                self._recorder.drain()

    def _decide(self, policy: Callable[[float], float]) -> None:
        def step() -> None:
            # The times that it asks for are kept, whatever the length of a tick.
            self._due = max(self._due, self._t - self._period) + policy(self._t) - self._t

        if (error := attempt(step)) is not None:
            self._policy = None  # as its process would have ended
            raise RobotError(f"the policy has ended: {error}") from error


@contextlib.contextmanager
def accelerated_session(
    setup: Setup, body: Callable[[Clock], tuple[ArmDriver, Gripper]] | None = None, teacher: str = ""
) -> Iterator[AcceleratedSession]:
    """A session in simulated time; all of it ends with the block."""
    running = AcceleratedSession(setup, body, teacher)
    try:
        running.wait(State.IDLE, seconds=5.0)
        yield running
    finally:
        running.close()
