"""From chunks to the next commanded state: intake, playback, clipping, leash, following."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from flowpolicy.real_robot.arm.braking import Motion
from flowpolicy.real_robot.arm.envelope import Envelope
from flowpolicy.real_robot.arm.follower import LOOKAHEAD, Follower
from flowpolicy.real_robot.bridge.chunks import MARGIN, Mode, Scheduler, hermite
from flowpolicy.real_robot.bridge.watchdogs import Recent, Since, WatchdogLimits
from flowpolicy.real_robot.drivers.driver_protocols import ActionChunk, Array


class ReferenceGenerator:
    """One arm's reference, tick by tick.

    Args:
        envelope: limits and period.
        mode: what happens where chunks disagree.
        watch: thresholds.
        note: keeps (kind, text) of what was rejected or clipped.
        shadow: compute everything, but stand still.

    """

    def __init__(
        self, envelope: Envelope, mode: Mode, watch: WatchdogLimits, note: Callable[[str, str], None], *, shadow: bool
    ) -> None:
        self.envelope, self.watch, self.shadow, self._note = envelope, watch, shadow, note
        self.scheduler, self.follower = Scheduler(mode, envelope.dt), Follower(envelope)
        self.counts = dict.fromkeys(("starved", "clipped", "refused", "rejected", "chunks"), 0)
        self.reference, self.opening, self.disagreement = self.follower.motion.q, float("nan"), 0.0
        self.speed = 1.0
        """Speed of playback in the last tick; 1 is as the chunks say."""
        self.guided = False
        """Whether a hand leads the arm: then it goes first, and the reference comes after."""
        self._starved, self._taut, self._clips = Since(), Since(), Recent()
        self._inside = True
        self._rejections, self._lag, self._seq = 0, 0.0, 0

    def seed(self, q: Array) -> None:
        """Begin at rest at ``q`` (n,) rad, with no chunk."""
        self.follower.seed(q)
        self.reference = np.array(q)
        self.forget()

    def forget(self) -> None:
        """Drop every chunk; the trajectory under way is kept, for braking."""
        self.scheduler.clear()
        self._clips.clear()
        self._starved, self._taut = Since(), Since()
        self._rejections, self._lag = 0, 0.0

    def offer(self, chunk: ActionChunk, now: float) -> str:
        """Take a chunk, or say why not. Three refusals in a row are the caller's business (:attr:`refusing`)."""
        reason = self._fault(chunk, now) or self.scheduler.push(chunk, now)
        if reason:
            self._rejections += 1
            self.counts["rejected"] += 1
            self._note("rejected", f"chunk {chunk.seq}: {reason}")
            return reason
        age = now - chunk.t_obs
        if age > self.watch.observation_warn:
            self._note("warning", f"chunk {chunk.seq} is based on an observation {1e3 * age:.0f} ms old")
        self._rejections, self._lag, self._seq = 0, 0.0, chunk.seq
        self.counts["chunks"] += 1
        return ""

    @property
    def refusing(self) -> bool:
        """Whether so many chunks in a row were rejected that the arm should hold."""
        return self._rejections >= self.watch.rejections

    def _fault(self, chunk: ActionChunk, now: float) -> str:
        reason = self.envelope.chunk_fault(chunk.q, chunk.gripper)
        if reason:
            return reason
        if chunk.seq <= self._seq:
            return f"it is not newer than chunk {self._seq}"
        age = now - chunk.t_obs
        if not 0.0 <= age <= self.watch.observation_age:
            return f"its observation is {1e3 * age:.0f} ms old"
        jump = np.abs(hermite(chunk, max(now + MARGIN, chunk.t0))[0] - self.follower.motion.q).max()
        if jump > self.envelope.limits.chunk_jump and not self.shadow:
            return f"jump of {jump:.3f} rad from the reference"
        return ""

    def follow(self, measured: Array, now: float, speed: float) -> str:
        """Advance one tick along the chunks; returns why the arm should hold, empty if it should not.

        Args:
            measured: (n,) rad.
            now: s.
            speed: factor on playback and limits, in (0, 1].

        """
        wanted = self.scheduler.sample(now - self._lag)
        if wanted is None or wanted.starved:
            self.counts["starved"] += 1
            self.follower.brake()
            seconds = self._starved.update(True, now)
            return f"no chunk for {1e3 * seconds:.0f} ms" if seconds >= self.watch.starved_hold else ""
        self._starved.update(False, now)
        self.opening = wanted.gripper
        self.reference = wanted.q
        self.disagreement = float(np.abs(wanted.q - measured).max())
        ahead = self.scheduler.sample(now - self._lag + self.speed * LOOKAHEAD) or wanted
        q, dq, clipped = self.envelope.clip_reference(ahead.q, ahead.dq)
        # The reference is slowed in time, so that its path stays what the policy planned.
        self.speed = speed * self.envelope.speed_factor(q, dq)
        self._lag += (1.0 - self.speed) * self.envelope.dt
        reason = self._clip(clipped, now)
        if self.shadow:
            return reason
        if not self.guided and self._leashed(measured, now):
            self.follower.brake()
            held = self._taut.update(True, now)
            return f"the arm has not followed for {held:.2f} s" if held >= self.watch.leash else reason
        self._taut.update(False, now)
        self.counts["refused"] += self.follower.step(q, self.speed * dq, speed)
        return reason

    def _clip(self, clipped: bool, now: float) -> str:
        """Count each time that the reference leaves the limits, not each tick that it is outside."""
        left, self._inside = clipped and self._inside, not clipped
        self.counts["clipped"] += clipped
        if not left:
            return ""
        self._note("clipped", "the reference left the workspace or the joint range")
        times = self._clips.add(now)
        return f"the workspace was left {times} times within a second" if times >= self.watch.clips else ""

    def _leashed(self, measured: Array, now: float) -> bool:
        """Whether the commanded position is as far ahead of the arm as it may be."""
        limits, commanded = self.envelope.limits, self.follower.motion.q
        lag = np.abs(commanded - measured)
        if lag.max() > limits.leash:
            return True
        if (
            limits.arm.chain.reach(limits.tool) * lag.sum() <= limits.leash_tool
        ):  # almost always, and kinematics cost a tenth of a tick
            return False
        ahead = self.envelope.pose(commanded).position - self.envelope.pose(measured).position
        return math.hypot(*ahead) > limits.leash_tool


class UnguardedReference(ReferenceGenerator):
    """Chunks as they are, interpolated: what the guarded reference is compared with, in simulation only."""

    def follow(self, measured: Array, now: float, speed: float) -> str:
        """Put the commanded state where the chunks say."""
        wanted = self.scheduler.sample(now)
        if wanted is None or wanted.starved:
            self.counts["starved"] += 1
            self.follower.seed(self.follower.motion.q)
            seconds = self._starved.update(True, now)
            return f"no chunk for {1e3 * seconds:.0f} ms" if seconds >= self.watch.starved_hold else ""
        self._starved.update(False, now)
        self.opening, self.reference = wanted.gripper, wanted.q
        self.disagreement = float(np.abs(wanted.q - measured).max())
        self.follower.motion = Motion(np.array(wanted.q), np.array(wanted.dq), np.zeros_like(wanted.dq))
        return ""
