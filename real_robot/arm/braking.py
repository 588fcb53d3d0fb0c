"""The shortest jerk-limited stop of every joint, in closed form and for many arms at once.

A trajectory is safe for ever if its next state can still stop within the limits: the shortest stop is consistent in
time, so that what remains of it after one tick is again the shortest stop. :mod:`flowpolicy.real_robot.arm.envelope`
builds its guarantee on this.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Motion(NamedTuple):
    """State of the commanded trajectory; every array (..., n)."""

    q: Array
    """rad."""
    v: Array
    """rad/s."""
    a: Array
    """rad/s^2."""


class Stop(NamedTuple):
    """Three phases of constant jerk, -sign J, 0 and sign J, that bring a motion to rest; every array (..., n)."""

    start: Motion
    sign: Array
    """Direction in which the joint would still be moving when its acceleration alone had ended."""
    jerk: Array
    """J, rad/s^3."""
    first: Array
    """Durations of the phases, s."""
    second: Array
    third: Array

    @property
    def duration(self) -> Array:
        """(..., n) s until each joint rests."""
        return self.first + self.second + self.third


def stop(motion: Motion, acceleration: Array, jerk: Array) -> Stop:
    """The shortest stop within ``acceleration`` (n,) rad/s^2 and ``jerk`` (n,) rad/s^3.

    With u and b the velocity and acceleration counted in the direction ``sign``, the largest deceleration p satisfies
    p^2 = J u + b^2 / 2 as long as it stays below the limit; else it is the limit, held for as long as it takes.
    """
    q, v, a = motion
    sign = np.where(coasting(motion, jerk) < 0.0, -1.0, 1.0)
    u, b = sign * v, sign * a
    squared = np.maximum(jerk * u + 0.5 * b * b, 0.0)
    peak = np.minimum(np.sqrt(squared), acceleration)
    hold = np.where(squared > acceleration**2, (squared / acceleration - acceleration) / jerk, 0.0)
    return Stop(motion, sign, np.broadcast_to(jerk, q.shape), np.maximum(b + peak, 0.0) / jerk, hold, peak / jerk)


def coasting(motion: Motion, jerk: Array) -> Array:
    """(..., n) rad/s: the velocity when the acceleration has been brought to zero; its extreme on the way to rest."""
    return motion.v + motion.a * np.abs(motion.a) / (2.0 * jerk)


def along(stopping: Stop, t: Array | float) -> Motion:
    """State of a stop after ``t`` s, which broadcasts against (..., n)."""
    motion = stopping.start
    phases = ((-1.0, stopping.first), (0.0, stopping.second), (1.0, stopping.third))
    left = np.asarray(t, dtype=np.float64)
    for factor, length in phases:
        span = np.minimum(np.maximum(left, 0.0), length)  # np.clip takes several times as long for so few numbers
        motion = advance(motion, factor * stopping.sign * stopping.jerk, span)
        left = left - length
    return motion


def advance(motion: Motion, jerk: Array, t: Array | float) -> Motion:
    """State after ``t`` s of constant ``jerk`` (..., n) rad/s^3."""
    q, v, a = motion
    return Motion(
        q + t * (v + t * (a / 2.0 + t * jerk / 6.0)),
        v + t * (a + t * jerk / 2.0),
        a + t * jerk,
    )


def extent(stopping: Stop, end: Array) -> tuple[Array, Array]:
    """Lowest and highest position (..., n) rad that a stop passes, from its start to its ``end`` (..., n)."""
    start = stopping.start
    # A joint that moves against ``sign`` turns round in the first phase: where, is the root of its velocity.
    u, b = stopping.sign * start.v, stopping.sign * start.a
    root = np.sqrt(np.maximum(b * b + 2.0 * stopping.jerk * u, 0.0))
    turn = np.where(u < 0.0, np.clip((b - root) / stopping.jerk, 0.0, stopping.first), 0.0)
    turned = advance(start, -stopping.sign * stopping.jerk, turn).q
    return np.minimum(np.minimum(start.q, end), turned), np.maximum(np.maximum(start.q, end), turned)
