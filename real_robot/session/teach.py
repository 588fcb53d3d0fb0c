"""A person teaches: episodes on a running session, driven by a device and ended by a key, a detector or time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from flowpolicy.core.errors import ConfigError
from flowpolicy.core.seed import numpy_generator
from flowpolicy.envs.arm_tasks import ArmTaskConfig
from flowpolicy.real_robot.bridge.ring_records import FRAMES, OUTCOMES, frame_type
from flowpolicy.real_robot.bridge.shared_ring import Records, Ring
from flowpolicy.real_robot.bridge.states import State
from flowpolicy.real_robot.drivers.driver_protocols import ArmStoppedError
from flowpolicy.real_robot.session.episodes import INDEX, next_number, read_env_args, require_same_robot
from flowpolicy.real_robot.session.launch import RunningSession, Setup, start_session
from flowpolicy.real_robot.session.observations import observe
from flowpolicy.real_robot.session.operate import EpisodeOutcome, prepare_episode, wait_for_recovery
from flowpolicy.real_robot.session.operator_keys import Keys, reading_keys
from flowpolicy.real_robot.session.play import (
    Played,
    recording_meta,
    require_something_to_do,
    session_lines,
    session_task,
    session_view,
    start_cameras,
    wait_for_recorder,
)
from flowpolicy.real_robot.session.teaching_process import loop_options
from flowpolicy.real_robot.tasks.task_sheet import (
    BUILT_IN,
    Detector,
    TaskSheet,
    TaughtTask,
    find_detector,
    keep_sheet,
    sheet_in,
    start_pose,
)
from flowpolicy.real_robot.tasks.tasks import Task, scattered
from flowpolicy.real_robot.teaching.devices import Device, DeviceConfig
from flowpolicy.real_robot.teaching.keyboard import HELP

_HELD_S = 0.2  # s that the success criterion must hold
_LOOK_S = 0.02
_LABELS = {b"y": 1, b"n": 0, b"d": -1}
TEACHING_HELP = "y success  n failure  d discard  space pause  r recover  q rest and end"


@dataclasses.dataclass(frozen=True)
class TaughtLesson:
    """What is taught, by whom and with what."""

    sheet: TaskSheet
    device: DeviceConfig
    operator: str = ""
    """Who teaches; stored with the episodes if given."""
    action: str = "joint-delta"
    """How the actions of the recordings are written."""

    def labels(self) -> dict[str, str]:
        """What is stored with every episode."""
        return {
            "task": self.sheet.name,
            "lang": self.sheet.instruction,
            "device": self.device.teach,
            **({"operator": self.operator} if self.operator else {}),
        }


def next_lesson(
    out: Path,
    teach: Device,
    task: str,
    instruction: str,
    reset: str,
    start: str,
    horizon: float | None,
    success: str,
    scatter: float | None = None,
) -> TaskSheet:
    """The sheet of a session: what was asked for, over what the folder says, over the built-in task.

    Raises:
        ConfigError: the folder is of another task, or what was asked for means nothing for it.

    """
    given = {"instruction": instruction, "reset": reset, "start": start, "success": success}
    if teach == "scripted":
        if task not in BUILT_IN:
            raise ConfigError(
                f"nobody has written down how to do '{task}'",
                expected=" or ".join(BUILT_IN),
                fix="teach it yourself: --teach spacemouse, gamepad, keyboard, guide or leader",
            )
        numbers = {"horizon": horizon, "scatter": scatter}
        if said := [flag for flag, value in given.items() if value] + [f for f, n in numbers.items() if n is not None]:
            raise ConfigError(f"--{said[0]} without a person", fix="leave it out, or teach yourself with --teach")
    changed: dict[str, Any] = {key: value for key, value in given.items() if value}
    if horizon is not None:
        changed["horizon_s"] = horizon
    if scatter is not None:
        changed["scatter"] = scatter
    base = BUILT_IN.get(task, TaskSheet(task))
    if task in BUILT_IN and "success" in changed:
        raise ConfigError(f"--success with the task '{task}', which judges itself", fix="leave it out")
    return sheet_in(out, base, changed) if teach != "scripted" else base


class Teaching:
    """The person's side of a running session.

    Args:
        running: the session.
        lesson: what is taught.
        task: sets episodes up and says when they are done.
        keys: what the person types.
        watch: shown every tick that is looked at.
        tell: told what the person should know.

    """

    def __init__(
        self,
        running: RunningSession,
        lesson: TaughtLesson,
        task: Task,
        keys: Keys,
        watch: Callable[[Records], None],
        tell: Callable[[str], None],
    ) -> None:
        self.running, self.lesson, self.task, self.keys = running, lesson, task, keys
        self._watch, self._tell = watch, tell
        self.leads = lesson.device.teach == "guide"
        self.paused = self.leads
        self.over = False
        """Whether the person wants no more."""
        self._told = ""

    def look(self) -> tuple[Records | None, bytes]:
        """One look at arm and keys: the newest tick, and what was typed. Time passes."""
        running = self.running
        running.clock.sleep(_LOOK_S)
        if died := running.keep_alive(self.lesson.device.teach):
            self._tell(died)
        tick = running.session.ticks.latest()
        key = self.keys.typed(tick)
        if key == b" ":
            self.paused = not self.paused
        self.over |= key == b"q"
        running.session.type(key, self.paused)
        device = running.session.device.latest()
        told = "" if device is None else bytes(device["told"]).decode(errors="replace")
        if told != self._told and told:
            self._tell(told)
        self._told = told
        return tick, key

    def wait_for_person(self) -> None:
        """Show what is to be reset, and wait until it is."""
        sheet = self.lesson.sheet
        if not self.keys.attended or sheet.name in BUILT_IN:
            return
        self._tell(f"{sheet.reset or 'set the task up'}; then press Enter")
        while not self.over and self.look()[1] not in (b"\n", b"\r"):
            pass

    def episode(self, number: int, rng: np.random.Generator) -> EpisodeOutcome:
        """One episode, from the start pose to rest.

        Raises:
            RobotError: the arm cannot be homed or started.
            ArmStoppedError: because the bridge is in FAULT or LOCKED.

        """
        running, session = self.running, self.running.session
        sheet, setup = self.lesson.sheet, running.setup
        session.command("aim", 0, scattered(start_pose(setup.arm, sheet.start), sheet.scatter, rng, setup.limits))
        self.paused = self.leads
        about = prepare_episode(running, self.task, rng, "guide" if self.leads else "start")
        session.command("begin", number, about)
        self._tell(f"episode {number}: {self.lesson.sheet.instruction or self.lesson.sheet.name}")
        if self.leads:
            self._tell("space: the arm lets itself be led; space again: it holds")
        outcome, label = self._drive(number)
        session.command("end", label)
        session.command("stop")
        running.wait(State.IDLE, State.FAULT, State.LOCKED, seconds=10.0)
        return outcome

    def _drive(self, number: int) -> tuple[EpisodeOutcome, int]:
        """Until a key, the detector, time or the bridge ends it: the outcome, and the label as a number."""
        clock, horizon = self.running.clock, self.lesson.sheet.horizon_s
        last, moving, solved_since, asked = clock.now(), 0.0, float("inf"), False

        def ended(label: int, reason: str) -> tuple[EpisodeOutcome, int]:
            return EpisodeOutcome(number, label == 1, moving, reason), label

        while True:
            tick, key = self.look()
            now = clock.now()
            passed, last = now - last, now
            if tick is None or int(tick["episode"]) != number:
                continue
            self._watch(tick)
            state = State(int(tick["state"]))
            if key in _LABELS:
                return ended(_LABELS[key], OUTCOMES[_LABELS[key]])
            if self.over:
                return ended(-2, "ended by the person")
            if state in (State.FAULT, State.LOCKED, State.IDLE, State.STOPPING):
                return ended(-2, f"the bridge went {state.name}{self.running.last_events(1)}")
            if state is not State.RUNNING:
                continue
            moving += passed
            if (seen := self.task.look()) is not None:
                self.running.session.command("task", 0, seen)
            solved_since = min(solved_since, now) if self.task.solved(tick) else float("inf")
            if now - solved_since >= _HELD_S:
                return ended(1, "success")
            if moving > horizon and not asked:
                asked = self.paused = True
                if not self.keys.attended:
                    return ended(0 if self._judged else -2, "time is up")
                self._tell("time is up: y success, n failure, d discard")

    @property
    def _judged(self) -> bool:
        """Whether something else than the person says when the task is done."""
        return bool(self.lesson.sheet.success) or self.lesson.sheet.name in BUILT_IN


def teach(
    setup: Setup,
    lesson: TaughtLesson,
    out: Path,
    episodes: int,
    seed: int,
    patience: float,
    tell: Callable[[str], None] = lambda line: None,
) -> Played:
    """Record episodes that a person drives, after those that are in the folder already.

    Args:
        setup: the robot.
        lesson: what is taught.
        out: folder of the recordings.
        episodes: how many more; discarded ones do not count.
        seed: of what built-in tasks draw.
        patience: seconds to wait for the bridge to recover.
        tell: told what the person should know.

    """
    sheet, device = lesson.sheet, lesson.device
    kind = sheet.name if sheet.name in BUILT_IN else "taught"
    require_something_to_do(kind, setup)
    start_pose(setup.arm, sheet.start)
    device.require_files(setup.arm)
    detector = find_detector(sheet.success) if sheet.success else None
    config = ArmTaskConfig(kind, arm=setup.arm, tool=setup.tool_length, action=lesson.action)  # type: ignore[arg-type]
    env_args = config.env_args() | ({} if kind == sheet.name else {"task": sheet.name})
    outcomes: list[EpisodeOutcome] = []
    with start_session(setup, device.teach) as running, reading_keys(running.session, TEACHING_HELP) as keys:
        keep_sheet(out, sheet)
        task: Task = session_task(kind, running) if kind == sheet.name else TaughtTask(sheet.name)
        seen = start_cameras(running)
        meta = recording_meta(config, env_args, seen, setup)
        if (out / INDEX).exists():  # refused before anything moves
            require_same_robot(out / INDEX, read_env_args(out / INDEX), meta["env_args"], "this session's")
        if detector is not None:
            task = TaughtTask(sheet.name, _asking(detector, running, meta["cameras"]))
        meta |= {"labels": lesson.labels(), "actions": "commanded", "device": True}
        running.start("recorder_process", {"folder": str(out.absolute()), "meta": meta})
        wait_for_recorder(running)
        running.start("teaching_process", loop_options(device), name=device.teach)
        view = session_view(running, seen)
        teaching = Teaching(running, lesson, task, keys, view.watch, tell)
        if device.teach == "keyboard":
            tell(HELP)
        kept = number = 0
        while kept < episodes and not teaching.over:
            number = max(next_number(out), number + 1)  # the recorder may not have written the last one yet
            wait_for_recovery(running, patience, view.watch)
            teaching.wait_for_person()
            if teaching.over:
                break
            try:
                outcome = teaching.episode(number, numpy_generator(seed, "robot", sheet.name, number))
            except ArmStoppedError as stopped:
                outcome = EpisodeOutcome(number, False, 0.0, stopped.what)
            outcomes.append(outcome)
            kept += outcome.reason != "discarded"
            tell(f"episode {number}: {outcome.reason} after {outcome.seconds:.1f} s ({kept}/{episodes})")
        ticks = view.ticks
    return Played(outcomes, session_lines(setup, out, outcomes, ticks))


def _asking(detector: Detector, running: RunningSession, cameras: dict[str, Any]) -> Callable[[Records], bool]:
    """Turns a tick into what a detector sees; ``cameras`` are height and width by name."""
    rings = {
        name: Ring(running.session.folder / f"camera_{name}", frame_type(*s), FRAMES) for name, s in cameras.items()
    }
    arm, tool = running.setup.arm_model, running.setup.tool_length
    keys = ("robot0_joint_pos", "robot0_joint_vel", "robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos")

    def solved(tick: Records) -> bool:
        seen: dict[str, Any] = {key: observe(tick, key, arm, tool) for key in keys}
        newest = {name: ring.latest() for name, ring in rings.items()}
        seen |= {f"{name}_image": frame["rgb"] for name, frame in newest.items() if frame is not None}
        try:
            return bool(detector(seen))
        except Exception as error:
            raise ConfigError(
                f"the detector failed: {type(error).__name__}: {error}", fix="mend the function that --success names"
            ) from error

    return solved
