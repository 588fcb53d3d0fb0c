"""Episodes on a running session: home, start, play, stop; and the scripted operator that demonstrates."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable

import numpy as np

from flowpolicy.real_robot.bridge.ring_records import pack_chunk
from flowpolicy.real_robot.bridge.shared_ring import Records
from flowpolicy.real_robot.bridge.states import State
from flowpolicy.real_robot.drivers.driver_protocols import ActionChunk, ArmStoppedError, Array, RobotError
from flowpolicy.real_robot.session.launch import RunningSession
from flowpolicy.real_robot.tasks.tasks import Demonstration, Task

_HELD = 0.2  # s that the success criterion must hold
PERIOD, ROWS, EVERY = 0.05, 12, 0.1
"""Of the operator's chunks: s between rows, rows, s between chunks."""


@dataclasses.dataclass(frozen=True)
class EpisodeOutcome:
    """One episode on the robot."""

    number: int
    success: bool
    seconds: float
    """Until success, or until it was given up."""
    reason: str
    """Why it ended."""


class Operator:
    """Sends the rows of a plan, as a policy would.

    Args:
        running: the session.

    """

    def __init__(self, running: RunningSession) -> None:
        self._running, self._seq = running, 0
        self._plan: tuple[Demonstration, float] | None = None
        self._next = 0.0

    def begin(self, plan: Demonstration) -> None:
        """Play ``plan`` from now on."""
        self._plan, self._next = (plan, self._running.clock.now()), 0.0

    def end(self) -> None:
        """Send no more rows, only signs of life."""
        self._plan = None

    def finished(self, now: float) -> bool:
        """Whether the plan has come to its end."""
        return self._plan is None or self._plan[0].over(now - self._plan[1])

    def step(self, now: float) -> None:
        """Send a chunk if one is due."""
        if now < self._next:
            return
        self._next = now + EVERY
        tick = self._running.session.ticks.latest()
        if self._plan is None or tick is None:
            self._running.session.alive()
            return
        plan, start = self._plan
        due = now + PERIOD * (1 + np.arange(ROWS))
        q, gripper = plan.rows(due - start, tick)
        self._seq += 1
        self._running.session.chunks.write(
            pack_chunk(ActionChunk(self._seq, now, float(due[0]), PERIOD, q, gripper), t_infer=now)
        )


def play_episode(
    running: RunningSession,
    task: Task,
    number: int,
    rng: np.random.Generator,
    *,
    horizon_s: float,
    demonstrate: Callable[[Records], Demonstration] | None,
    operator: Operator,
    watch: Callable[[Records], None],
) -> EpisodeOutcome:
    """One episode from home to rest.

    Args:
        running: the session; IDLE.
        task: says when it has succeeded.
        number: of the episode, from 1.
        rng: draws what it is about.
        horizon_s: seconds after which it is given up.
        demonstrate: makes the operator's plan; None where the policy process plays.
        operator: sends it.
        watch: shown every tick that is looked at.

    Raises:
        RobotError: the arm cannot be homed or started.
        ArmStoppedError: because the bridge is in FAULT or LOCKED.

    """
    session = running.session
    about = prepare_episode(running, task, rng)
    if demonstrate is not None:
        _go_aside(running, task, rng, operator)
    session.command("begin", number, about)
    outcome = _play(running, task, number, horizon_s, demonstrate, operator, watch)
    operator.end()
    session.command("end", int(outcome.success))
    session.command("stop")
    running.wait(State.IDLE, State.FAULT, State.LOCKED, seconds=10.0)
    return outcome


def prepare_episode(running: RunningSession, task: Task, rng: np.random.Generator, begin: str = "start") -> Array:
    """Open the gripper, go home, set the task up, switch the impedance loop on; returns what the episode is about.

    Args:
        running: the session; IDLE.
        task: what is set up.
        rng: draws what it is about.
        begin: 'start', or 'guide' where a hand is to lead the arm.

    Raises:
        RobotError: the arm cannot be homed or started.
        ArmStoppedError: because the bridge is in FAULT or LOCKED.

    """
    running.session.command("open")
    _require(running, running.ask("home", State.IDLE, State.FAULT, State.LOCKED, seconds=25.0))
    _wait_for_open_gripper(running)
    about = task.draw(rng)
    _require(running, running.ask(begin, State.READY, State.FAULT, State.LOCKED, seconds=5.0))
    return about


def _play(
    running: RunningSession,
    task: Task,
    number: int,
    horizon_s: float,
    demonstrate: Callable[[Records], Demonstration] | None,
    operator: Operator,
    watch: Callable[[Records], None],
) -> EpisodeOutcome:
    clock = running.clock
    start, solved_since, playing = clock.now(), float("inf"), False
    while True:
        now = clock.now()
        running.require_alive()
        tick = running.session.ticks.latest()
        if tick is None or int(tick["episode"]) != number:
            clock.sleep(0.005)
            continue
        watch(tick)
        if (seen := task.look()) is not None:
            running.session.command("task", 0, seen)
        state = State(int(tick["state"]))
        if demonstrate is not None:
            if not playing:
                operator.begin(demonstrate(tick))
                playing = True
            operator.step(now)
        solved_since = min(solved_since, now) if task.solved(tick) else float("inf")
        # A demonstration is recorded to its end: a policy must have seen the rest at the goal to rest there.
        if now - solved_since >= _HELD and (demonstrate is None or operator.finished(now)):
            return EpisodeOutcome(number, True, solved_since - start, "success")
        if state in (State.FAULT, State.LOCKED, State.IDLE, State.STOPPING):
            return EpisodeOutcome(number, False, now - start, f"the bridge went {state.name}{running.last_events(1)}")
        if now - start > horizon_s:
            return EpisodeOutcome(number, False, now - start, "time is up")
        clock.sleep(0.02)


def _go_aside(running: RunningSession, task: Task, rng: np.random.Generator, operator: Operator) -> None:
    tick = running.session.ticks.latest()
    plan = task.aside(tick, rng) if tick is not None else None
    if plan is None:
        return
    operator.begin(plan)
    while not operator.finished(now := running.clock.now()):
        running.require_alive()
        operator.step(now)
        running.clock.sleep(0.02)


def _wait_for_open_gripper(running: RunningSession) -> None:
    deadline = running.clock.now() + 10.0
    while (tick := running.session.ticks.latest()) is not None and tick["width"] < 0.9 * running.session.arm.hand.width:
        running.require_alive()
        if running.clock.now() > deadline:
            raise RobotError(f"the gripper is open by {1e3 * float(tick['width']):.0f} mm only", expected="wide open")
        running.clock.sleep(0.02)


def wait_for_recovery(running: RunningSession, seconds: float, watch: Callable[[Records], None]) -> None:
    """After a fault: wait until the bridge is IDLE again, by itself or because the operator said ``recover``.

    Raises:
        RobotError: it is not within ``seconds``.

    """
    deadline, told = running.clock.now() + seconds, False
    while (tick := running.session.ticks.latest()) is not None:
        state = State(int(tick["state"]))
        if state not in (State.FAULT, State.LOCKED, State.RECOVERING):
            return
        running.require_alive()
        watch(tick)
        if not told and state is not State.RECOVERING:
            told = True
            sys.stderr.write(f"{state.name}: remove the cause, then `flowpolicy robot recover`, or the key r\n")
        if running.clock.now() > deadline:
            raise RobotError(
                f"the bridge is {state.name} and was not recovered within {seconds:g} s{running.last_events()}",
                fix="see docs/franka.md for what the error means, then run again",
            )
        running.clock.sleep(0.02)


def _require(running: RunningSession, state: State) -> None:
    if state in (State.FAULT, State.LOCKED):
        raise ArmStoppedError(
            f"the bridge went {state.name}{running.last_events(1)}", fix="remove the cause: flowpolicy robot recover"
        )
