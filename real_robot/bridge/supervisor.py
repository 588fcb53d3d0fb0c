"""Connecting, homing, starting, stopping, faults and recovery: the slow half of the bridge."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable
from typing import Protocol

import numpy as np

from flowpolicy.core.errors import FlowPolicyError
from flowpolicy.real_robot.arm.arm_model import Gains
from flowpolicy.real_robot.arm.envelope import Envelope
from flowpolicy.real_robot.arm.envelope_limits import EnvelopeLimits, homing_limits
from flowpolicy.real_robot.arm.follower import Follower
from flowpolicy.real_robot.bridge.chunks import Mode
from flowpolicy.real_robot.bridge.hand_guide import hand_gains
from flowpolicy.real_robot.bridge.reference import ReferenceGenerator
from flowpolicy.real_robot.bridge.states import STREAMING, State, StateChange, StateMachine
from flowpolicy.real_robot.bridge.watchdogs import WatchdogLimits
from flowpolicy.real_robot.drivers.client_errors import first_line
from flowpolicy.real_robot.drivers.driver_protocols import (
    ArmDriver,
    ArmFaultError,
    ArmState,
    Array,
    RobotError,
)


@dataclasses.dataclass(frozen=True)
class BridgeConfig:
    """How a robot is driven."""

    limits: EnvelopeLimits
    """What a policy may ask for."""
    mode: Mode = "crossfade"
    """What happens where chunks disagree."""
    rate_hz: float = 250.0
    """Ticks per second."""
    shadow: bool = False
    """The policy runs, the arm holds, the disagreement is recorded."""
    direct: bool = False
    """Simulation only: chunks go to the arm without follower, envelope and guard."""
    watch: WatchdogLimits = WatchdogLimits()
    """Thresholds."""
    teacher: str = ""
    """Name of the device with which a person drives; empty where a policy or a script does. What a person pauses goes
    on when the person wants it to, however long that takes."""
    home_speed: float = 0.3
    """Share of the joints' speed limits."""
    home_deadline_s: float = 20.0
    """Homing that takes longer is a fault."""
    home_distance: float = 0.005
    """Homing ends this close to the home pose; largest joint, rad."""


def describe(error: BaseException) -> str:
    """Kind and first line of an exception that nobody expected."""
    return f"{type(error).__name__}: {first_line(error)}"


def attempt(work: Callable[[], None]) -> FlowPolicyError | None:
    """What ``work`` failed with; whatever a binding raises becomes a :class:`RobotError` with its words."""
    try:
        work()
    except FlowPolicyError as error:
        return error
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of Rust code is no Exception
        return RobotError(describe(error))
    return None


class BackgroundTask:
    """Something that may block, in a thread.

    Args:
        work: what to do; what it raises is kept.

    """

    def __init__(self, work: Callable[[], None]) -> None:
        self.error: FlowPolicyError | None = None
        self._work, self._thread = work, threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def done(self) -> bool:
        """Whether it has ended, with :attr:`error` or without."""
        return not self._thread.is_alive()

    def _run(self) -> None:
        self.error = attempt(self._work)


class Pending(Protocol):
    """Something under way."""

    error: FlowPolicyError | None

    @property
    def done(self) -> bool:
        """Whether it has ended, with ``error`` or without."""


Background = Callable[[Callable[[], None]], Pending]
"""Starts something that may block."""


class Supervisor:
    """State machine and arm.

    Args:
        config: how the robot is driven.
        arm: not connected yet.
        generator: told where to begin.
        tell: keeps (kind, text) of what happens.
        background: runs what may block.

    """

    def __init__(
        self,
        config: BridgeConfig,
        arm: ArmDriver,
        generator: ReferenceGenerator,
        tell: Callable[[str, str], None],
        background: Background,
    ) -> None:
        self.config, self.arm, self.generator, self._tell = config, arm, generator, tell
        self.machine = StateMachine(self._log)
        self._model = config.limits.arm
        self._home = np.array(self._model.home)
        self._homing = Follower(Envelope(homing_limits(config.limits, config.home_speed), 1.0 / config.rate_hz))
        self.follower = generator.follower
        """Whose trajectory is commanded: the policy's, or the one that leads home."""
        self._background = background
        self._task: Pending | None = None
        self._early = ""  # a wish that came before the first reading of the arm
        self._broken: ArmFaultError | None = None  # why the arm is being braked, once it rests a fault
        self._complained = -1.0
        self.leaving = False
        """Whether the session ends as soon as the arm is at rest."""
        self.guiding = False
        """Whether a hand may lead the arm while it runs."""

    @property
    def state(self) -> State:
        """Current state."""
        return self.machine.state

    @property
    def busy(self) -> bool:
        """Whether a task is under way that the arm belongs to."""
        return self._task is not None

    @property
    def finished(self) -> bool:
        """Whether the bridge may end."""
        return self.leaving and self.state not in STREAMING

    def connect(self) -> None:
        """Open the connection in the background."""
        self._task = self._background(lambda: self.arm.connect(5.0))

    def request(self, name: str, arm: ArmState | None, now: float) -> None:
        """A wish of the operator; what the state does not allow is refused with a reason."""
        state = self.state
        self._early = ""
        if name == "quit":
            self.leaving = True
        if name in ("home", "start", "guide") and state is State.IDLE and arm is None:
            self._early = name  # just connected: it waits for the first reading of the arm
        elif name in ("stop", "quit"):
            self.stop("operator", now)
        elif self._task is not None:
            self._refuse(name, f"{state.name} is not finished")
        elif name == "home" and state is State.IDLE and arm is not None:
            if self._stream(name, arm, self._homing, self._model.homing_gains):
                self.guiding = False
                self.machine.go(State.HOMING, "operator", now)
        elif name in ("start", "guide") and state is State.IDLE and arm is not None:
            gains = hand_gains(self._model) if name == "guide" else self._model.gains
            if self._stream(name, arm, self.generator.follower, gains):
                self.generator.seed(arm.q)
                self.guiding = self.generator.guided = name == "guide"
                self.machine.go(State.READY, "operator", now)
        elif name == "recover" and state in (State.FAULT, State.LOCKED):
            self._recover("operator", now)
        else:
            self._refuse(name, f"the bridge is {state.name}")

    def aim(self, q: Array) -> None:
        """Where ``home`` leads from now on, (n,) rad; refused where the arm cannot be."""
        low, high = np.array(self._model.limits.q_min), np.array(self._model.limits.q_max)
        margin = self._homing.envelope.limits.margin
        if np.isfinite(q).all() and (q >= low + margin).all() and (q <= high - margin).all():
            self._home = np.array(q)
        else:
            self._refuse("aim", f"the pose {np.round(q, 3).tolist()} rad is not one of this arm's")

    def stop(self, reason: str, now: float) -> None:
        """Brake, then leave the arm to the robot's own hold."""
        if self.state in (State.HOMING, State.READY, State.RUNNING, State.HOLD):
            self.generator.forget()
            self.machine.go(State.STOPPING, reason, now)

    def fault(self, fault: ArmFaultError, now: float) -> None:
        """The robot stopped by itself, or is not heard: nothing that was planned is resumed.

        What a driver cannot name may have left the arm under control: then it is braked first.
        """
        if fault.kind == "other" and self.state in STREAMING and self._in_control():
            if self._broken is None:
                self._brake(fault, now)
            return
        self.give_up(fault, now)

    def give_up(self, fault: ArmFaultError, now: float) -> None:
        """Leave the arm to itself: a fault now."""
        self.generator.forget()
        self._broken = None
        if self.state in STREAMING:
            self._end_stream()
        if self.state is not State.DISCONNECTED:
            self.machine.fault(fault.kind, fault.what, now)

    def failed(self, error: BaseException, now: float) -> None:
        """Something raised that never should: the arm, still under control, is braked; at rest it is a fault."""
        what = describe(error)
        self.leaving |= self.state is State.DISCONNECTED
        if self.state is State.IDLE:
            self.fault(ArmFaultError("other", what), now)
        elif self.state in STREAMING and self._broken is None:
            self._brake(ArmFaultError("other", what), now)
        elif now - self._complained >= 1.0:  # what fails in every tick is told once a second
            self._complained = now
            self._tell("error", what)

    def _brake(self, broken: ArmFaultError, now: float) -> None:
        self._broken = broken
        self.stop(broken.what, now)

    def _in_control(self) -> bool:
        with contextlib.suppress(Exception):
            return self.arm.in_control()
        return False

    @property
    def braking(self) -> bool:
        """Whether the arm is being braked because something failed."""
        return self._broken is not None

    def rest(self, now: float) -> None:
        """The arm has come to rest: leave it to the robot's own hold."""
        if self._broken is not None:
            self.give_up(self._broken, now)
            return
        self.arm.stop()
        self.machine.go(State.IDLE, "at rest", now)

    def update(self, arm: ArmState | None, now: float) -> None:
        """Finish what runs in the background; recover alone where that is allowed."""
        self._finish(now)
        if self._early and arm is not None:
            self.request(self._early, arm, now)
        resting = arm is None or float(np.abs(arm.dq).max()) < 0.01
        if self._task is None and self.machine.may_recover_alone(now, resting):
            self._recover("alone, after a communication fault at rest", now)

    def lead_home(self, arm: ArmState, now: float) -> None:
        """One tick on the way home, and the end of it."""
        # An arm that something holds is not pulled at: the reference waits, and in the end it is a fault.
        if np.abs(self._homing.motion.q - arm.q).max() > self.config.limits.leash:
            self._homing.brake()
        else:
            self._homing.step(self._home, np.zeros_like(self._home))
        away = float(np.abs(arm.q - self._home).max())
        if self._homing.resting and away < self.config.home_distance:
            self.arm.stop()
            self.machine.go(State.IDLE, "at home", now)
        elif now - self.machine.since > self.config.home_deadline_s:
            seconds = self.config.home_deadline_s
            self.fault(ArmFaultError("other", f"{away:.3f} rad from home after {seconds:g} s"), now)

    def _stream(self, name: str, arm: ArmState, follower: Follower, gains: Gains) -> bool:
        """Switch the impedance loop on where the arm stands; False, with the reason kept, where that is refused."""
        if not follower.fits(arm.q):
            self._refuse(name, "the arm stands outside the workspace or the joint range; home it, or move it by hand")
            return False
        try:
            self.arm.start_stream(gains)
            drift = float(np.abs(self.arm.state().q - arm.q).max())
        except BaseException:
            self._end_stream()  # it may have begun
            raise
        if not drift <= self.config.limits.start_distance:
            self.arm.stop()
            self._refuse(name, f"the arm moved by {drift:.3f} rad when the impedance loop began")
            return False
        follower.seed(arm.q)
        self.follower = follower
        return True

    def _end_stream(self) -> None:
        """End the impedance loop on the way into a fault, which an error of its own must not hide."""
        if (error := attempt(self.arm.stop)) is not None:
            self._tell("error", f"the impedance loop could not be ended: {error.what}")

    def _recover(self, reason: str, now: float) -> None:
        self.machine.recovering(reason, now)
        self._task = self._background(self.arm.recover)

    def _finish(self, now: float) -> None:
        if self._task is None:
            return
        task, state = self._task, self.state
        if not task.done:
            return
        self._task = None
        if task.error is None:
            if state in (State.DISCONNECTED, State.RECOVERING):
                self.machine.go(State.IDLE, "recovered" if state is State.RECOVERING else "connected", now)
        elif state is State.RECOVERING:
            self.machine.go(State.LOCKED, f"recovery failed: {task.error.what}", now)
        elif state is State.DISCONNECTED:
            self._tell("error", task.error.what)
            self.leaving = True

    def _refuse(self, name: str, why: str) -> None:
        self._tell("refused", f"{name}: {why}")

    def _log(self, transition: StateChange) -> None:
        self._tell("state", f"{transition.before.name} -> {transition.after.name}: {transition.reason}")
