"""The bridge: 250 times a second from chunks to one guarded reference. Imports no torch.

Why it is a process of its own: docs/methods/franka-control.md#processes.

:meth:`Bridge.tick` does one period and never waits; what may block (connecting, homing, recovering, the gripper) runs
in threads. The 1 kHz loop is the driver's, in native code.

No exception ends a tick. What the robot reports (:class:`ArmFaultError`) is a fault at once, for its motion has ended;
after anything else the arm is still under control: it is braked along the commanded trajectory, and at rest the fault
is entered with the exception's words.
"""

from __future__ import annotations

import sys
import time
import traceback
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

from flowpolicy.real_robot.arm.envelope import Envelope
from flowpolicy.real_robot.bridge.gripper_worker import Gripper
from flowpolicy.real_robot.bridge.hand_guide import HandGuide
from flowpolicy.real_robot.bridge.health import Health
from flowpolicy.real_robot.bridge.reference import ReferenceGenerator, UnguardedReference
from flowpolicy.real_robot.bridge.ring_records import OUTCOMES, SessionRings, tick_type, told, unpack_chunk
from flowpolicy.real_robot.bridge.shared_ring import Records
from flowpolicy.real_robot.bridge.states import STREAMING, State
from flowpolicy.real_robot.bridge.supervisor import Background, BackgroundTask, BridgeConfig, Supervisor, describe
from flowpolicy.real_robot.drivers.driver_protocols import ArmDriver, ArmFaultError, ArmState, Clock

_LED_AWAY = 0.05
"""A hand that is so far ahead of what is recorded as commanded is told, rad."""


class Bridge:
    """One arm, one gripper, one session.

    Args:
        config: how it is driven.
        arm: not connected yet.
        gripper: None for an arm without one.
        session: rings to the other processes.
        clock: time source.
        background: runs what may block.

    """

    def __init__(
        self,
        config: BridgeConfig,
        arm: ArmDriver,
        gripper: Gripper | None,
        session: SessionRings,
        clock: Clock | None = None,
        background: Background = BackgroundTask,
    ) -> None:
        self.config, self.arm, self.gripper, self.session = config, arm, gripper, session
        self.clock = clock or Clock()
        envelope = Envelope(config.limits, 1.0 / config.rate_hz)
        kind = UnguardedReference if config.direct else ReferenceGenerator
        self.generator = kind(envelope, config.mode, config.watch, self.tell, shadow=config.shadow)
        self.supervisor = Supervisor(config, arm, self.generator, self.tell, background)
        self.guide = HandGuide(config.limits, 1.0 / config.rate_hz)
        self.health = Health(config.watch, self.tell, config.rate_hz, config.teacher or "policy")
        self._untold: deque[tuple[str, str]] = deque()
        self._chunks, self._commands = session.chunks.count, session.commands.count
        self._arm: ArmState | None = None
        self._chunk_end, self._rearmed, self._starving = 0.0, False, False
        self._tick = np.zeros((), tick_type(session.arm.joints))
        self._now = self.clock.now()
        self.supervisor.connect()

    @property
    def state(self) -> State:
        """Current state."""
        return self.supervisor.state

    def run(self, ended: Callable[[], str] = lambda: "") -> None:
        """Tick until the operator says quit, or ``ended`` says why nobody will; the arm is brought to rest first."""
        period, due = 1.0 / self.config.rate_hz, self._time()
        while not self.supervisor.finished:
            self.tick(due)
            if not self.supervisor.leaving and (reason := ended()):
                self.tell("error", reason)
                self._safely(self.supervisor.request, "quit", self._arm, due)
            # Missed ticks are not made up for.
            due = max(due + period, self._time() - period)
            if (wait := due - self._time()) > 0.0:
                self._safely(self.clock.sleep, wait)
        self.close()

    def tick(self, scheduled: float) -> None:
        """One period that was due at ``scheduled`` s."""
        now = self._time()
        self._safely(self._watch, now, now - scheduled)
        self._safely(self._obey, now)
        self._safely(self._read, now)
        self._safely(self.supervisor.update, self._arm, now)
        self._safely(self._take, now)
        self._safely(self._move, now)
        self._safely(self._flush)  # before the tick that shows its outcome
        self._safely(self._publish, now, now - scheduled)

    def tell(self, kind: str, text: str) -> None:
        """Keep a line; written with the tick, and again with the next one if that fails."""
        self._untold.append((kind, text))

    def close(self) -> None:
        """End the connections."""
        self._safely(self.arm.close)
        if self.gripper is not None:
            self._safely(self.gripper.close)
        self._safely(self._flush)

    def _safely(self, work: Callable[..., None], *arguments: Any) -> None:
        """Do one part of a tick; an exception becomes a fault, and the parts after it are still done."""
        try:
            work(*arguments)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # whatever a binding raises: a panic of Rust code is no Exception
            self._failed(error)

    def _failed(self, error: BaseException) -> None:
        if isinstance(error, ArmFaultError):
            self.supervisor.fault(error, self._now)
            return
        traceback.print_exception(error, file=sys.stderr)  # the log of this process
        self.supervisor.failed(error, self._now)

    def _time(self) -> float:
        """The clock; without it, a period after it was last read."""
        last = self._now
        self._now = last + 1.0 / self.config.rate_hz

        def read() -> None:
            self._now = self.clock.now()

        self._safely(read)
        return self._now

    def _flush(self) -> None:
        while self._untold:
            self.session.event(*self._untold[0])
            self._untold.popleft()

    def _watch(self, now: float, lateness: float) -> None:
        late = self.health.tick(now, lateness)
        if late and self.state is State.RUNNING:
            self._hold(late, now)

    def _obey(self, now: float) -> None:
        records, self._commands, _ = self.session.commands.read(self._commands)
        for record in records:
            self._safely(self._obey_one, record, now)

    def _obey_one(self, record: Records, now: float) -> None:
        name = bytes(record["name"]).decode()
        if name == "begin":
            self._tick["episode"], self._tick["task"] = record["number"], record["value"]
        elif name == "task":
            self._tick["task"] = record["value"]
        elif name == "aim":
            self.supervisor.aim(record["value"][: self.session.arm.joints])
        elif name == "open":
            if self.gripper is not None:
                self.gripper.command(self.session.arm.hand.width)
        elif name == "end":
            outcome = OUTCOMES.get(int(record["number"]), "failure")
            self.tell("episode", f"{int(self._tick['episode'])} {outcome}")
            self._tick["episode"] = 0
        elif name == "rearm" and self.state is State.HOLD:
            self._rearmed = True
        else:
            self.supervisor.request(name, self._arm, now)

    def _read(self, now: float) -> None:
        """Read the arm, unless a task in the background has it."""
        state = self.state
        faulty = state in (State.FAULT, State.LOCKED)
        if faulty or state in (State.DISCONNECTED, State.RECOVERING):
            self.health.forget()
        if state in (State.DISCONNECTED, State.RECOVERING):
            return
        try:
            self._arm = self.arm.state()
            if faulty:
                return
            self.health.arm(self._arm, now)
            fault = self.arm.fault()
            if fault is None and state in STREAMING and not self.arm.in_control():
                fault = ArmFaultError("other", "the impedance loop ended by itself")
        except ArmFaultError as error:
            fault = error
        if fault is not None and not faulty:
            self.supervisor.fault(fault, now)

    def _take(self, now: float) -> None:
        """Take the newest chunk; older unread ones are out of date."""
        records, self._chunks, _ = self.session.chunks.read(self._chunks)
        if not len(records):
            return
        self.health.heard = now
        self._tick["missed"] += int(records["missed"].sum())
        doubt = told(records[-1])
        chunks = records[records["rows"] > 0]
        if doubt and not records[-1]["rows"]:  # whoever decides does not trust what it sees
            if self.state is State.RUNNING:
                self._hold(doubt, now)
            elif not self.config.teacher:  # whose device the console shows
                self.health.warn(now, doubt)
            return
        if not len(chunks):
            return
        if doubt:
            self.health.warn(now, doubt)
        state, chunk = self.state, unpack_chunk(chunks[-1])
        if state is State.HOLD and not self._may_resume(now):
            self._chunk_end = chunk.end  # the policy is back, and waits for the operator
            return
        if state in (State.READY, State.RUNNING, State.HOLD) and not self.generator.offer(chunk, now):
            self._chunk_end = chunk.end
            self._tick["chunk"], self._tick["t_obs"] = chunk.seq, chunk.t_obs
            self._rearmed = False
            self.supervisor.machine.go(State.RUNNING, f"chunk {chunk.seq}", now)
        elif state is State.RUNNING and self.generator.refusing:
            self._hold(f"{self.config.watch.rejections} chunks in a row were rejected", now)

    def _may_resume(self, now: float) -> bool:
        if self.config.teacher:  # a person has pressed the deadman's button anew
            return True
        held = now - self.supervisor.machine.since
        return self._rearmed or (self._starving and held < self.config.watch.rearm)

    def _hold(self, reason: str, now: float) -> None:
        # Only a policy that was late may go on by itself; whatever else went wrong would go wrong again.
        self._starving = reason.startswith(("no chunk", f"the {self.health.source} process"))
        self.generator.forget()
        self._rearmed = False
        self.supervisor.machine.go(State.HOLD, reason, now)

    def _move(self, now: float) -> None:
        """Advance the commanded trajectory by one tick and hand it to the arm."""
        if self.state not in STREAMING or self._arm is None:
            return
        stopping, follower = self.state is State.STOPPING, self.supervisor.follower
        before = follower.motion
        try:
            self._advance(self._arm, now)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            self._failed(error)
            # Exactly one step, whatever was done of it: the first of the stop.
            follower.motion = before
            follower.brake()
        if self.state not in STREAMING:
            return
        q, v = follower.motion.q, follower.motion.v
        if self.supervisor.guiding:  # what is commanded to the follower is recorded; the arm follows the hand
            q, v = self.guide.reference(self._arm.q, self._arm.dq, free=self.state is State.RUNNING)
        try:
            self.arm.set_reference(q, v)
        except BaseException as error:
            named = isinstance(error, ArmFaultError) and error.kind != "other"
            if named or isinstance(error, (KeyboardInterrupt, SystemExit)) or not self.supervisor.braking:
                raise
            what = f"not even a stop reaches the arm: {describe(error)}"
            self.supervisor.give_up(ArmFaultError("other", what), now)
            return
        if stopping and follower.resting:
            self.supervisor.rest(now)

    def _advance(self, arm: ArmState, now: float) -> None:
        """Advance the commanded trajectory by one tick."""
        state, follower = self.state, self.supervisor.follower
        if state is State.RUNNING:
            reason = self.generator.follow(arm.q, now, self.health.speed) or self.health.hold_reason(now)
            if self.supervisor.guiding and np.abs(arm.q - follower.motion.q).max() > _LED_AWAY:
                self.health.warn(
                    now, "the arm is led faster than it may move by itself: the recorded actions lag behind"
                )
            if self.gripper is not None and not self.config.shadow and np.isfinite(self.generator.opening):
                self.gripper.command(self.generator.opening)
            if reason:
                self._hold(reason, now)
        elif state is State.HOMING:
            self.supervisor.lead_home(arm, now)
        else:
            follower.brake()
        wanted = max(self._chunk_end, self.health.heard) if self.config.teacher else self._chunk_end
        if state is State.HOLD and now - wanted > self.config.watch.starved_stop and not self._rearmed:
            self.supervisor.stop(f"no chunk for {self.config.watch.starved_stop:g} s", now)

    def _publish(self, now: float, lateness: float) -> None:
        record, generator = self._tick, self.generator
        record["t_mono"], record["t_wall"] = now, time.time()
        if self._arm is not None:
            for name in ("t_robot", "q", "dq", "tau", "tau_ext", "success_rate"):
                record[name] = getattr(self._arm, name)
        record["q_ref"], record["disagreement"] = generator.reference, generator.disagreement
        if self.state in STREAMING:
            record["q_cmd"], record["dq_cmd"] = self.supervisor.follower.motion[:2]
        else:
            record["q_cmd"], record["dq_cmd"] = record["q"], 0.0
        if self.gripper is not None:
            busy = self.gripper.supervise(now)
            if busy > self.config.watch.gripper_warn:
                self.health.warn(now, f"gripper busy for {busy:.1f} s")
            record["width"], record["grasped"] = self.gripper.state.width, self.gripper.state.grasped
        record["width_ref"] = generator.opening
        record["state"], record["rows_left"] = self.state, generator.scheduler.rows_left(now)
        record["speed"] = generator.speed
        record["late"] = self.health.late_ticks
        for name, count in generator.counts.items():
            record[name] = count
        record["lateness"], record["compute"] = lateness, self.clock.now() - now
        self.session.ticks.write(record)
