"""The processes of a session: who starts them, what they are told, and how they end."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from flowpolicy.core.errors import ConfigError, FlowPolicyError, from_system
from flowpolicy.real_robot.arm.arm_model import ArmModel
from flowpolicy.real_robot.arm.envelope_limits import EnvelopeLimits, policy_limits
from flowpolicy.real_robot.arm.models import find_arm
from flowpolicy.real_robot.bridge.chunks import Mode
from flowpolicy.real_robot.bridge.ring_records import SessionRings, session_folder
from flowpolicy.real_robot.bridge.shared_ring import Records
from flowpolicy.real_robot.bridge.states import State
from flowpolicy.real_robot.cameras.camera_setup import parse_cameras
from flowpolicy.real_robot.drivers.driver_protocols import Clock, RobotError

_END_S, _RECORDER_S = 5.0, 30.0
"""A process that was told to end has this long; the recorder may have an episode to finish."""
_REFUSED, _ERROR = 2, "error: "
"""Exit code, and beginning of the last line, of a process that says by itself why it ended."""
Driver = Literal["fake", "scene", "franky"]


@dataclasses.dataclass(frozen=True)
class Setup:
    """Which robot, and how it is driven; what every process of a session is told."""

    session: str = "default"
    """Name of the session; one robot, one session."""
    driver: Driver = "fake"
    """'franky' drives an FR3 (or its twin) through libfranka; 'fake' is any arm in NumPy, without sockets; 'scene' is
    the twin's MuJoCo scene without its protocol, in simulated time, as fast as this machine can."""
    direct: bool = False
    """With 'scene': chunks go straight to the impedance loop, without follower, envelope and guard."""
    address: str = "127.0.0.1"
    """Address of the robot."""
    arm: str = "fr3"
    """Which arm, by the name of its model: 'fr3', 'fer' (Panda), 'ur5e'; its joints, limits and kinematics hold."""
    table: float = 0.0
    """Height of the table in the base frame, m."""
    tool: float | None = None
    """Distance from flange to tool point, m; that of the arm's own hand unless given: 0.1034 for the Franka hand."""
    mode: Mode = "crossfade"
    """What happens where a new chunk disagrees with the old one."""
    cameras: tuple[str, ...] = ()
    """Recorded with the rest, and seen by a policy that sees: NAME=realsense:SERIAL, NAME=uvc:DEVICE, NAME=video:FILM,
    NAME=twin:CAMERA or NAME=replay:EPISODE.hdf5, then options: ,size=640x480,crop=480x480,resize=84x84,exposure=156."""
    shadow: bool = False
    """The policy runs, the arm holds, the disagreement is recorded."""

    def __post_init__(self) -> None:
        session_folder(self.session)  # refuses what is no name
        for name, value, low, high in (("table", self.table, -1.0, 1.0), ("tool", self.tool_length, 0.0, 0.5)):
            if not low <= value <= high:
                raise ConfigError(f"--{name} {value:g}", expected=f"{low:g} to {high:g} m")
        if self.direct and self.driver != "scene":
            raise ConfigError(f"--direct with the driver '{self.driver}' would unguard it", expected="--driver scene")
        kinds = {one.kind for one in parse_cameras(self.cameras)}
        if self.driver == "scene" and kinds & {"realsense", "uvc"}:
            raise ConfigError(
                "real cameras run in real time, the driver 'scene' does not", expected="cameras of kind twin or replay"
            )
        if self.driver not in self.arm_model.drivers:
            raise ConfigError(
                f"the driver '{self.driver}' cannot drive the arm '{self.arm}' ({self.arm_model.robot})",
                expected=f"one of {', '.join(self.arm_model.drivers)}",
            )

    @property
    def arm_model(self) -> ArmModel:
        """The arm."""
        return find_arm(self.arm)

    @property
    def tool_length(self) -> float:
        """Distance from flange to tool point, m."""
        return self.arm_model.hand.length if self.tool is None else self.tool

    @property
    def limits(self) -> EnvelopeLimits:
        """What a policy may ask for."""
        return policy_limits(self.arm_model, table=self.table, tool=self.tool_length)


class RunningSession:
    """A started session, seen by the process that owns it.

    Args:
        setup: the robot.
        session: its rings.

    """

    def __init__(self, setup: Setup, session: SessionRings) -> None:
        self.setup, self.session, self.clock = setup, session, Clock()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._starts: dict[str, tuple[str, dict[str, Any]]] = {}

    def start(self, module: str, options: dict[str, Any], name: str = "") -> None:
        """Start ``<module>`` of this package with JSON options; its output goes to a log beside the rings.

        ``name`` tells several processes of one module apart.
        """
        told = json.dumps({"setup": dataclasses.asdict(self.setup), **options})
        name = name or module
        self._starts[name] = (module, options)
        log = self.session.folder / f"{name}.log"
        with log.open("wb") as stream:
            self._processes[name] = subprocess.Popen(
                [sys.executable, "-m", f"flowpolicy.real_robot.session.{module}", told],
                stderr=stream,
                stdout=stream,
                start_new_session=True,
            )

    def keep_alive(self, name: str) -> str:
        """Start a process of :meth:`start` again if it has died, and say so; empty if it lives.

        What decides may be lost without harm: the arm holds. Whatever else has died raises :class:`RobotError`, and so
        does a process that says why it cannot go on.
        """
        process = self._processes.get(name)
        told = ""
        if process is not None and process.poll() not in (None, _REFUSED):
            told = f"{name}: its process has ended with code {process.returncode}; it is started again"
            del self._processes[name]
            self.start(*self._starts[name], name)
        self.require_alive()
        return told

    def require_alive(self) -> None:
        """Raise :class:`RobotError` with the log of a process that has died."""
        for module, process in self._processes.items():
            if process.poll() is not None:
                log = (self.session.folder / f"{module}.log").read_text(encoding="utf-8", errors="replace")
                if process.returncode == _REFUSED and (told := log.rpartition(_ERROR)[2].strip()):
                    raise RobotError(told)
                raise RobotError(
                    f"{module} has ended with code {process.returncode}\n{log[-2000:]}{self.last_events()}"
                )

    def wait(self, *states: State, seconds: float) -> State:
        """Wait until the bridge is in one of ``states``; raises :class:`RobotError` after ``seconds``."""
        deadline = self.clock.now() + seconds
        while True:
            self.require_alive()
            tick = self.session.ticks.latest()
            if tick is not None and State(int(tick["state"])) in states:
                return State(int(tick["state"]))
            if self.clock.now() > deadline:
                now = "not started" if tick is None else State(int(tick["state"])).name
                wanted = " or ".join(state.name for state in states)
                raise RobotError(f"after {seconds:g} s the bridge is {now}{self.last_events()}", expected=wanted)
            self.clock.sleep(0.01)

    def ask(self, command: str, *states: State, seconds: float) -> State:
        """Say ``command`` to the bridge and wait until it enters one of ``states``.

        Raises:
            RobotError: the bridge refuses, or ``seconds`` have passed.

        """
        cursor, deadline = self.session.events.count, self.clock.now() + seconds
        self.session.command(command)
        while self.clock.now() < deadline:
            self.require_alive()
            records, cursor, _ = self.session.events.read(cursor)
            for record in records:
                kind, text = bytes(record["kind"]).decode(), bytes(record["text"]).decode()
                if kind == "refused":
                    raise RobotError(text)
                entered = text.partition(" -> ")[2].partition(":")[0]
                if kind == "state" and entered in State.__members__ and State[entered] in states:
                    return State[entered]
            self.clock.sleep(0.01)
        raise RobotError(f"'{command}' was not done after {seconds:g} s{self.last_events()}")

    def first_reading(self) -> Records:
        """A tick in which the arm was read. Raises :class:`RobotError` when there is none within 5 s."""
        deadline = self.clock.now() + 5.0
        while (tick := self.session.ticks.latest()) is None or not tick["t_robot"]:  # not read yet
            self.require_alive()
            if self.clock.now() > deadline:
                raise RobotError(f"the robot's state was not read{self.last_events()}")
            self.clock.sleep(0.01)
        return tick

    def told(self, kind: str) -> list[str]:
        """Texts of the events of one kind so far, as far as the ring holds them."""
        return [text for name, text in self._events(0) if name == kind]

    def last_events(self, count: int = 5) -> str:
        """The newest events that are no mere warnings, as lines."""
        kept = self._events(max(0, self.session.events.count - 100))
        return "".join(f"\n    {kind}: {text}" for kind, text in [e for e in kept if e[0] != "warning"][-count:])

    def _events(self, cursor: int) -> list[tuple[str, str]]:
        """Kinds and texts from number ``cursor`` on."""
        records, _, _ = self.session.events.read(cursor)
        return [(bytes(r["kind"]).decode(), bytes(r["text"]).decode()) for r in records]

    def close(self) -> None:
        """Bring the arm to rest and end every process: bridge, then policy, then recorder."""
        bridge = self._processes.get("bridge_process")
        if bridge is not None and bridge.poll() is None:
            self.session.command("quit")
            with contextlib.suppress(subprocess.TimeoutExpired):
                bridge.wait(10.0)
        for name, process in self._processes.items():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(_RECORDER_S if name == "recorder_process" else _END_S)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        shutil.rmtree(self.session.folder, ignore_errors=True)


@contextlib.contextmanager
def start_session(setup: Setup, teacher: str = "") -> Iterator[RunningSession]:
    """Start the bridge of a new session, and end all of it with the block.

    Args:
        setup: the robot.
        teacher: the device with which a person drives, if one does.

    Raises:
        RobotError: a session of this name is running, or the robot cannot be reached.

    """
    if setup.driver == "scene":
        from flowpolicy.real_robot.session.accelerated import accelerated_session

        with accelerated_session(setup, teacher=teacher) as accelerated:
            yield accelerated
        return
    _claim(setup.session)
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        running = RunningSession(setup, SessionRings(setup.session, create=setup.arm_model))
    except BaseException:
        shutil.rmtree(session_folder(setup.session), ignore_errors=True)
        raise
    try:
        running.start("bridge_process", {"teacher": teacher})
        running.wait(State.IDLE, State.FAULT, State.LOCKED, seconds=30.0)
        yield running
    finally:
        # The arm is on its way to rest: a second Ctrl-C would leave processes and rings behind.
        interrupts = signal.signal(signal.SIGINT, signal.SIG_IGN)
        running.close()
        signal.signal(signal.SIGINT, interrupts)
        signal.signal(signal.SIGTERM, before)


def _claim(name: str) -> None:
    """Make the folder of a session this process's; of two that try at once one is refused.

    Raises:
        RobotError: a session of this name is running.

    """
    folder = session_folder(name)
    mine = folder.with_name(f"{folder.name}.{os.getpid()}")
    mine.mkdir(parents=True, exist_ok=True)
    (mine / "owner").write_text(str(os.getpid()), encoding="utf-8")
    try:
        while True:
            with contextlib.suppress(OSError):  # a folder that is not empty stays
                mine.rename(folder)
                return
            owner = folder / "owner"
            pid = owner.read_text(encoding="utf-8") if owner.exists() else ""
            if pid and Path(f"/proc/{pid}").exists():
                raise RobotError(
                    f"the session '{name}' is running in process {pid}",
                    fix="end it with `flowpolicy robot stop`, or name another one with --session",
                )
            shutil.rmtree(folder)  # of a process that was killed
    finally:
        shutil.rmtree(mine, ignore_errors=True)


def run_process(main: Callable[[], None]) -> None:
    """Run the ``main`` of a session's process; what a user can mend ends it with a sentence for its owner to show."""
    try:
        main()
    except Exception as error:
        told = error if isinstance(error, FlowPolicyError) else from_system(error)
        if told is None:
            raise
        sys.stderr.write(f"{_ERROR}{told}\n")
        sys.exit(_REFUSED)


def orphaned() -> bool:
    """Whether the process that started this one has died: then the arm is brought to rest and everything ends."""
    return os.getppid() != _PARENT


_PARENT = os.getppid()


def read_options() -> tuple[Setup, dict[str, Any]]:
    """What :meth:`RunningSession.start` told this process."""
    options = json.loads(sys.argv[1])
    setup = options.pop("setup")
    return Setup(**{**setup, "cameras": tuple(setup["cameras"])}), options
