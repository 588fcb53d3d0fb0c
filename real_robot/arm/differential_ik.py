"""From motions of the tool to motions of the joints: damped differential inverse kinematics. NumPy only.

At every step the joint velocities are sought that move the tool as wanted, smallest in a weighted sense:

- *damping* (Nakamura and Hanafusa 1986; adapted to the smallest singular value as by Chiaverini 1997): near a
  singularity the wanted motion is not forced, it is slowed where the arm cannot follow;
- *limit avoidance* (Chan and Dubey 1995): a joint that moves towards an end of its range weighs more the nearer it is;
  one that has arrived is locked, and the others do what they can without it;
- *null-space posture*: what the tool does not need is used to return to a posture, which also decides the elbow.

What remains faster than the joints may move is scaled down as a whole, so that the tool's path stays straight.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from flowpolicy.core.errors import ConfigError
from flowpolicy.real_robot.arm.envelope_limits import EnvelopeLimits
from flowpolicy.real_robot.arm.kinematics import Pose, rotation_vector

Array = NDArray[np.float64]

_SLOW = 0.02  # m/s or rad/s: below, the null space is left alone little by little


@dataclasses.dataclass(frozen=True)
class IkConfig:
    """How joints are moved for the tool."""

    damping: float = 0.08
    """Largest damping factor, at a singularity; m and rad count alike."""
    near: float = 0.06
    """Smallest singular value of the Jacobian below which it is damped; 0.1 to 0.2 where an arm works well."""
    posture: float = 0.5
    """Gain towards the posture in the null space, 1/s."""
    avoid: float = 0.35
    """Distance from the ends of a joint's range within which moving towards them weighs more, rad."""
    aside: float = 0.25
    """Motion of the tool beside the wanted one, as a share of what is achieved of it; beyond, all of it is slowed."""
    speed: float = 0.9
    """Share of the envelope's joint velocities that may be used."""

    def __post_init__(self) -> None:
        values = dataclasses.astuple(self)
        if not all(math.isfinite(value) and value >= 0.0 for value in values) or not 0.0 < self.speed <= 1.0:
            raise ConfigError(f"{self}", expected="finite numbers of at least 0, and a speed of at most 1")


class IkStep(NamedTuple):
    """What the joints do for one motion of the tool."""

    dq: Array
    """(n,) rad/s, within the joints' velocities, and within their range one period later."""
    share: float
    """Share of the wanted motion of the tool that this is, 0 to 1; below 1 it is slowed down."""
    told: str
    """Why it is slowed down; empty if it is not."""


class DifferentialIk:
    """The inverse kinematics of one arm with its tool.

    Args:
        limits: of the arm, its joints' range and speeds.
        config: how joints are moved.
        posture: (n,) rad that the null space is drawn to; the arm's home unless given.

    """

    def __init__(self, limits: EnvelopeLimits, config: IkConfig | None = None, posture: Array | None = None) -> None:
        self.limits, self.config = limits, config or IkConfig()
        self.posture = np.array(limits.arm.home if posture is None else posture, dtype=np.float64)
        self._low, self._high = limits.q_low, limits.q_high
        self._top, self._turning = self.config.speed * np.array(limits.velocity), limits.rotation

    def pose(self, q: Array) -> Pose:
        """Pose of the tool point at ``q`` (n,) rad."""
        return self.limits.arm.chain.forward(q, self.limits.tool)

    def step(self, q: Array, twist: Array, dt: float) -> IkStep:
        """Joint velocities that move the tool by a twist for one period.

        Args:
            q: (n,) rad.
            twist: (6,) velocity of the tool point, m/s, then angular velocity, rad/s; both in the base frame.
                :func:`in_base` turns one of the tool's own frame.
            dt: the period, s.

        Raises:
            ConfigError: the twist is not finite.

        """
        if twist.shape != (6,) or not np.isfinite(twist).all():
            raise ConfigError(f"a twist of {twist}", expected="6 finite numbers: m/s and rad/s in the base frame")
        return self._step(q, self.pose(q), twist, dt)

    def towards(self, q: Array, position: Array, rotation: Array, dt: float, rounds: int = 3) -> tuple[Array, str]:
        """Joint positions (n,) one period nearer to a pose of the tool, and why they are slower than wanted, if so.

        Args:
            q: (n,) rad.
            position: (3,) of the tool point in the base frame, m.
            rotation: (3, 3) flange axes as columns, in the base frame.
            dt: the period, s.
            rounds: corrections at most: the Jacobian changes on the way.

        """
        start, told = q, ""
        for place in range(rounds):
            pose = self.pose(q)
            away, turn = position - pose.position, rotation_vector(pose.rotation, rotation)
            if place and float(max(np.abs(away).max(), np.abs(turn).max())) < 1e-6:
                break
            # No faster than the tool may be: a goal out of reach must not drive the joints to and fro.
            twist = np.concatenate([_at_most(away / dt, self.limits.translation), _at_most(turn / dt, self._turning)])
            found = self._step(q, pose, twist, dt, posture=place == 0)
            step = q + dt * found.dq - start
            # All rounds together have one period.
            step /= max(1.0, float((np.abs(step) / (dt * self._top)).max()))
            q, told = start + step, found.told or told
        return q, told

    def solve(self, position: Array, rotation: Array, q0: Array, *, tries: int = 24) -> Array | None:
        """(n,) rad within the soft limits that put the tool at a pose, to 0.01 mm and 0.01 mrad; None if none is found.

        Levenberg and Marquardt from ``q0``, which decides the elbow, then from other postures.
        """
        rng = np.random.default_rng(0)
        for attempt in range(tries):
            q = np.clip(q0 if attempt == 0 else rng.uniform(self._low, self._high), self._low, self._high)
            if (found := self._descend(q, position, rotation)) is not None:
                return found
        return None

    def _descend(self, q: Array, position: Array, rotation: Array) -> Array | None:
        damping, before = 1e-3, math.inf
        for _ in range(120):
            pose = self.pose(q)
            error = np.concatenate([position - pose.position, rotation_vector(pose.rotation, rotation)])
            if np.linalg.norm(error[:3]) < 1e-5 and np.linalg.norm(error[3:]) < 1e-5:
                return q
            size = float(error @ error)
            damping = max(0.3 * damping, 1e-12) if size < before else min(10.0 * damping, 1.0)
            before = size
            jacobian = np.concatenate([pose.levers, pose.axes], -1).T
            # A joint at an end of its range that would go beyond stands still, and the others are asked again.
            free = np.ones(len(q), dtype=bool)
            for _ in range(3):
                part = jacobian[:, free]
                step = np.zeros(len(q))
                step[free] = part.T @ np.linalg.solve(part @ part.T + damping * np.eye(6), error)
                step *= min(1.0, 0.4 / max(float(np.abs(step).max()), 1e-9))
                beyond = free & (((q <= self._low) & (step < 0.0)) | ((q >= self._high) & (step > 0.0)))
                if not beyond.any():
                    break
                free &= ~beyond
            q = np.clip(q + step, self._low, self._high)
        return None

    def _step(self, q: Array, pose: Pose, twist: Array, dt: float, posture: bool = True) -> IkStep:
        jacobian = np.concatenate([pose.levers, pose.axes], -1).T
        wanted_size = float(np.linalg.norm(twist))
        # A tool that is not to move rests with all of its joints.
        drift = self.config.posture * min(1.0, wanted_size / _SLOW) * (self.posture - q) * posture
        locked = np.zeros(len(q), dtype=bool)
        smallest = math.inf
        for _ in range(3):
            weights = np.where(locked, 0.0, self._weights(q, twist, jacobian))
            u, s, vt = np.linalg.svd(jacobian * weights, full_matrices=False)
            smallest = float(s[-1])
            shortfall = max(0.0, 1.0 - smallest / self.config.near) if self.config.near else 0.0
            damped = s / (s * s + (self.config.damping * shortfall) ** 2 + 1e-12)
            # The projector is of the undamped range: the posture must not move the tool where it is damped.
            dq = weights * (vt.T @ (damped * (u.T @ twist)))
            free = weights * drift
            kept = s > 1e-6
            dq += weights * (free - vt[kept].T @ (vt[kept] @ free))
            dq /= max(1.0, float((np.abs(dq) / self._top).max()))
            ahead = q + dt * dq
            beyond = ~locked & ((ahead < self._low) & (dq < 0.0) | (ahead > self._high) & (dq > 0.0))
            if not beyond.any():
                break
            locked |= beyond
        dq = np.where(beyond, np.clip((np.clip(ahead, self._low, self._high) - q) / dt, -self._top, self._top), dq)
        if wanted_size < 1e-9:
            return IkStep(dq, 1.0, "")
        moved = jacobian @ dq
        share = float(moved @ twist) / wanted_size**2
        aside = float(np.linalg.norm(moved - share * twist)) / wanted_size
        # What the arm cannot do straight it does slower, not askew.
        straight = min(1.0, self.config.aside * max(share, 0.0) / max(aside, 1e-9))
        share = float(np.clip(share * straight, 0.0, 1.0))
        return IkStep(dq * straight, share, self._why(share, smallest, locked | beyond))

    def _weights(self, q: Array, twist: Array, jacobian: Array) -> Array:
        """(n,) in (0, 1]: how willingly each joint moves; the less, the nearer the end that it moves towards."""
        if not self.config.avoid:
            return np.ones(len(q))
        way = jacobian.T @ twist  # the direction in which the motion drives each joint
        room = np.where(way > 0.0, self._high - q, q - self._low)
        return np.clip(room / self.config.avoid, 0.05, 1.0)

    def _why(self, share: float, smallest: float, locked: NDArray[np.bool_]) -> str:
        if share > 0.97:
            return ""
        percent = f"the tool moves at {100.0 * share:.0f} % of what is asked for"
        if locked.any():
            joints = ", ".join(str(index + 1) for index in np.nonzero(locked)[0])
            return f"{percent}: joint {joints} is at the end of its range"
        if smallest < self.config.near:
            return f"{percent}: the arm is near a singular posture"
        return f"{percent}: the joints are as fast as they may be"


def _at_most(vector: Array, length: float) -> Array:
    return vector * min(1.0, length / max(float(np.linalg.norm(vector)), 1e-9))


def in_base(twist: Array, rotation: Array) -> Array:
    """A twist (6,) of the tool's own axes, ``rotation`` (3, 3) as columns in the base frame, in the base frame."""
    return np.concatenate([rotation @ twist[:3], rotation @ twist[3:]])
