"""The bridge: 250 times a second from chunks to one guarded reference. Imports no torch [franka 4.1].

:meth:`Bridge.tick` does one period and never waits; what may block (connecting, homing, recovering, the gripper) runs
in threads. The 1 kHz loop is the driver's, in native code.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from flowpolicy.real_robot.envelope import Envelope
from flowpolicy.real_robot.fake import Clock
from flowpolicy.real_robot.gripper import Gripper
from flowpolicy.real_robot.health import Health
from flowpolicy.real_robot.limits import GRIPPER_WIDTH
from flowpolicy.real_robot.protocols import ArmDriver, ArmFaultError, ArmState
from flowpolicy.real_robot.records import TICK, Session, unpack_chunk
from flowpolicy.real_robot.reference import ReferenceGenerator, UnguardedReference
from flowpolicy.real_robot.states import STREAMING, State
from flowpolicy.real_robot.supervisor import Background, BridgeConfig, Supervisor, Task


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
        session: Session,
        clock: Clock | None = None,
        background: Background = Task,
    ) -> None:
        self.config, self.arm, self.gripper, self.session = config, arm, gripper, session
        self.clock = clock or Clock()
        envelope = Envelope(config.limits, 1.0 / config.rate_hz)
        kind = UnguardedReference if config.direct else ReferenceGenerator
        self.generator = kind(envelope, config.mode, config.watch, session.event, shadow=config.shadow)
        self.supervisor = Supervisor(config, arm, self.generator, session, background)
        self.health = Health(config.watch, session.event, config.rate_hz)
        self._chunks, self._commands = session.chunks.count, session.commands.count
        self._arm: ArmState | None = None
        self._chunk_end, self._rearmed, self._starving = 0.0, False, False
        self._tick = np.zeros((), TICK)
        self.supervisor.connect()

    @property
    def state(self) -> State:
        """Current state."""
        return self.supervisor.state

    def run(self, abandoned: Callable[[], bool] = lambda: False) -> None:
        """Tick until the operator says quit, or ``abandoned`` says that there is no operator any more."""
        period, due = 1.0 / self.config.rate_hz, self.clock.now()
        while not self.supervisor.finished:
            self.tick(due)
            if abandoned() and not self.supervisor.leaving:
                self.session.event("error", "the session's owner has died")
                self.supervisor.request("quit", self._arm, due)
            # Missed ticks are not made up for.
            due = max(due + period, self.clock.now() - period)
            if (wait := due - self.clock.now()) > 0.0:
                self.clock.sleep(wait)
        self.close()

    def tick(self, scheduled: float) -> None:
        """One period that was due at ``scheduled`` s."""
        now = self.clock.now()
        late = self.health.tick(now, now - scheduled)
        self._obey(now)
        self._read(now)
        self.supervisor.update(self._arm, now)
        self._take(now)
        if late and self.state is State.RUNNING:
            self._hold(late, now)
        try:
            self._move(now)
        except ArmFaultError as fault:
            self.supervisor.fault(fault, now)
        self._publish(now, now - scheduled)

    def close(self) -> None:
        """End the connections."""
        self.arm.close()
        if self.gripper is not None:
            self.gripper.close()

    def _obey(self, now: float) -> None:
        records, self._commands, _ = self.session.commands.read(self._commands)
        for record in records:
            name = bytes(record["name"]).decode()
            if name == "begin":
                self._tick["episode"], self._tick["task"] = record["number"], record["value"]
            elif name == "task":
                self._tick["task"] = record["value"]
            elif name == "open" and self.gripper is not None:
                self.gripper.command(GRIPPER_WIDTH)
            elif name == "end":
                outcome = "success" if record["number"] else "failure"
                self.session.event("episode", f"{int(self._tick['episode'])} {outcome}")
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
        chunks = records[records["rows"] > 0]
        if not len(chunks):
            return
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
        held = now - self.supervisor.machine.since
        return self._rearmed or (self._starving and held < self.config.watch.rearm)

    def _hold(self, reason: str, now: float) -> None:
        # Only a policy that was late may go on by itself; whatever else went wrong would go wrong again.
        self._starving = reason.startswith(("no chunk", "the policy process"))
        self.generator.forget()
        self._rearmed = False
        self.supervisor.machine.go(State.HOLD, reason, now)

    def _move(self, now: float) -> None:
        """Advance the commanded trajectory by one tick and hand it to the arm."""
        state, follower = self.state, self.supervisor.follower
        if state not in STREAMING or self._arm is None:
            return
        if state is State.RUNNING:
            reason = self.generator.follow(self._arm.q, now, self.health.speed) or self.health.hold_reason(now)
            if self.gripper is not None and not self.config.shadow and np.isfinite(self.generator.opening):
                self.gripper.command(self.generator.opening)
            if reason:
                self._hold(reason, now)
        elif state is State.HOMING:
            self.supervisor.lead_home(self._arm, now)
            if self.state is not State.HOMING:
                return
        else:
            follower.brake()
        if state is State.HOLD and now - self._chunk_end > self.config.watch.starved_stop and not self._rearmed:
            self.supervisor.stop(f"no chunk for {self.config.watch.starved_stop:g} s", now)
        self.arm.set_reference(follower.motion.q, follower.motion.v)
        if state is State.STOPPING and follower.resting:
            self.arm.stop()
            self.supervisor.machine.go(State.IDLE, "at rest", now)

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
