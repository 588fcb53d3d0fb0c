"""What may reach the arm: chunks are checked, references clipped, and every commanded step is guarded.

Three layers. A *chunk* that is not finite, jumps or leaves the joint range is rejected whole. A *reference* is clipped
to the joint range and the workspace, and slowed where the tool would be too fast. The *guard* looks at the one state
that is about to be commanded: unless the arm could still stop inside every limit from there, the arm takes the next
step of its stop instead. By induction no sequence of chunks, however bad, leaves the limits
(docs/methods/franka-control.md#envelope).
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from flowpolicy.real_robot.arm.braking import Motion, Stop, along, coasting, extent, stop
from flowpolicy.real_robot.arm.envelope_limits import EnvelopeLimits
from flowpolicy.real_robot.arm.kinematics import Pose, tool_speed
from flowpolicy.real_robot.arm.reachable import reachable

Array = NDArray[np.float64]

SAMPLES = np.linspace(0.0, 1.0, 8)
"""Where on a stop the tool is looked at; 0 is the state itself."""
_BOX_SLACK = 0.001  # m: how far the tool's path may bulge between two samples of a stop of at most 0.1 m
_SPEED_SLACK = 0.80  # the same for its speed, as a factor
_END_SLACK = 0.06  # rad/s: the same for a joint's speed near the ends of its range
_NO_OPENING = 1.0  # m: a little beyond the hand's range is harmless, this is another unit
_ROUNDING = 1e-9
_STEP_ROUNDING = 1e-12  # rad: of one step; third differences divide it by the cube of the period


class Envelope:
    """The limits of one arm at one tick rate.

    Args:
        limits: every limit, stated.
        dt: period of the commanded states, s.

    """

    def __init__(self, limits: EnvelopeLimits, dt: float) -> None:
        self.limits, self.dt = limits, dt
        self.velocity, self.acceleration = np.array(limits.velocity), np.array(limits.acceleration)
        self.jerk = np.array(limits.jerk)
        self.low, self.high = limits.q_low, limits.q_high
        self.box_low, self.box_high = np.array(limits.box_low), np.array(limits.box_high)
        self._poses = functools.lru_cache(8)(lambda q: limits.arm.chain.forward(np.frombuffer(q), limits.tool))

    def pose(self, q: Array) -> Pose:
        """Pose of the tool at ``q`` (n,) rad; a tick asks several times for the same."""
        return self._poses(np.asarray(q, dtype=np.float64).tobytes())

    def chunk_fault(self, q: Array, gripper: Array) -> str:
        """Why the rows (h, n) rad and openings (h,) m may not be executed; empty if they may."""
        if q.ndim != 2 or q.shape[1:] != self.low.shape or gripper.shape != q.shape[:1] or len(q) == 0:
            return f"shapes {q.shape} and {gripper.shape}"
        if not (np.isfinite(q).all() and np.isfinite(gripper).all()):
            return "not finite"
        beyond = np.maximum(self.low - q, q - self.high).max()
        if beyond > self.limits.chunk_beyond:
            return f"{beyond:.3f} rad outside the joint range"
        jump = np.abs(np.diff(q, axis=0)).max(initial=0.0)
        if jump > self.limits.chunk_jump:
            return f"jump of {jump:.3f} rad between rows"
        if np.abs(gripper).max() > _NO_OPENING:
            return f"opening of {gripper.max():g} m"
        return ""

    def clip_reference(self, q: Array, dq: Array) -> tuple[Array, Array, bool]:
        """The nearest reference inside joint range and workspace, and whether anything was clipped.

        A reference outside the box is drawn back along the gradient of the tool's position; the velocity of what was
        clipped is zero.

        Args:
            q: (n,) rad, finite.
            dq: (n,) rad/s.

        """
        inside = np.clip(q, self.low, self.high)
        clipped = bool((np.abs(inside - q) > _ROUNDING).any())
        for _ in range(3):
            pose = self.pose(inside)
            # Beyond the guard's slack, so that what is clipped can also be reached.
            error = np.clip(pose.position, self.box_low + 2 * _BOX_SLACK, self.box_high - 2 * _BOX_SLACK)
            error = error - pose.position
            if not error.any():
                break
            clipped = True
            jacobian = pose.levers.T
            inside = inside + jacobian.T @ np.linalg.solve(jacobian @ jacobian.T + 1e-4 * np.eye(3), error)
            inside = np.clip(inside, self.low, self.high)
        if clipped:
            return inside, np.zeros_like(inside), True
        return inside, np.clip(dq, -0.95 * self.velocity, 0.95 * self.velocity), False

    def speed_factor(self, q: Array, dq: Array) -> float:
        """Factor in (0, 1] by which joint velocities ``dq`` (n,) at ``q`` (n,) keep the tool within its speed."""
        limits = self.limits
        pose = self.pose(q)
        near = pose.position[2] < self.box_low[2] + limits.near_table
        allowed = limits.translation_near_table if near else limits.translation
        linear, angular = tool_speed(pose, dq)
        share = max(float(linear) / allowed, float(angular) / limits.rotation)
        return 1.0 if share <= 0.75 else 0.75 / share

    def guard(self, now: Motion, proposed: Motion) -> tuple[Motion, NDArray[np.bool_]]:
        """The state to command next, and where (...,) it is the stop instead of what was proposed.

        Args:
            now: state commanded last, (..., n); from it a stop within the limits exists.
            proposed: state one period later; anything, not-a-number included.

        """
        refused = ~(self._follows(now, proposed) & self.admissible(proposed))
        if not refused.any():
            return proposed, refused
        braked = along(stop(now, self.acceleration, self.jerk), self.dt)
        pick = refused[..., None]
        chosen = Motion(*(np.where(pick, b, p) for b, p in zip(braked, proposed, strict=True)))
        return chosen, refused

    def admissible(self, motion: Motion) -> NDArray[np.bool_]:
        """Whether (...,) the motion and its shortest stop stay within every limit."""
        with np.errstate(invalid="ignore"):
            stopping = stop(motion, self.acceleration, self.jerk)
            # Joints come to rest one after the other: each is looked at over its own stop.
            shares = SAMPLES.reshape(-1, *([1] * motion.q.ndim))
            own = along(stopping, shares * stopping.duration)
            lowest, highest = extent(stopping, own.q[-1])
            joints = (lowest >= self.low - _ROUNDING) & (highest <= self.high + _ROUNDING)
            joints &= np.abs(motion.v) <= self.velocity
            joints &= np.abs(coasting(motion, self.jerk)) <= self.velocity
            joints &= np.abs(motion.a) <= self.acceleration
            fine = np.array(joints.all(-1))
        if not fine.any():
            return fine
        # The tool only where the joints are right: it costs most, and not-a-number has ended above.
        rows = Stop(Motion(*(x[fine] for x in motion)), *(x[fine] for x in stopping[1:]))
        fine[fine] = self._joints_slow_down(own.q[:, fine], own.v[:, fine]) & self._tool_stays(rows)
        return fine

    def _joints_slow_down(self, q: Array, v: Array) -> NDArray[np.bool_]:
        """Whether (m,) arms slow down towards the ends of their range in the samples (s, m, n) of a stop."""
        below, above = self.limits.arm.limits.speed_towards_ends(q)
        return np.asarray(((-v <= below - _END_SLACK) & (v <= above - _END_SLACK)).all((0, -1)))

    def _tool_stays(self, stopping: Stop) -> NDArray[np.bool_]:
        """Whether (m,) the tool stays in the box and within its speed until the last joint rests."""
        path = along(stopping, SAMPLES[:, None, None] * stopping.duration.max(-1)[:, None])
        pose = self.limits.arm.chain.forward(path.q, self.limits.tool)
        fine = (pose.position >= self.box_low + _BOX_SLACK).all(-1)
        fine &= (pose.position <= self.box_high - _BOX_SLACK).all(-1)
        linear, angular = tool_speed(pose, path.v)
        fine &= (linear <= _SPEED_SLACK * self.limits.translation) & (angular <= _SPEED_SLACK * self.limits.rotation)
        return np.asarray(fine.all(0))

    def _follows(self, now: Motion, proposed: Motion) -> NDArray[np.bool_]:
        """Whether (...,) one period of jerk within the limit leads to ``proposed``, no faster on the way than allowed.

        Between two states within the limits jerk could still swing beyond them and back. What the arm is sent are the
        states alone, so that the means over the period are held: then no difference of commanded positions exceeds
        velocity, acceleration or jerk. A stop's states satisfy this by themselves.
        """
        dt, fastest = self.dt, self.dt * self.velocity + _STEP_ROUNDING
        bend = 0.5 * dt**2 * self.acceleration + _STEP_ROUNDING
        follows = reachable(now, proposed, self.jerk, dt)
        with np.errstate(invalid="ignore"):
            step = proposed.q - now.q
            follows &= np.abs(step) <= fastest
            follows &= (np.abs(step - dt * now.v) <= bend) & (np.abs(step - dt * proposed.v) <= bend)
        return np.asarray(follows.all(-1))
