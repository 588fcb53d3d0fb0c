"""A scripted operator that lifts a cube by looking at it: what it does depends on where things are, not on a plan.

A plan that rests in waypoints beside the cube teaches a policy to rest beside the cube, for it cannot see which
waypoint it is at. Here the way leads down a funnel whose tip is the cube; every state has one answer, and so does every
state that a policy's own errors may lead to.

Disturbances are DART's (Laskey et al. 2017, arXiv 1703.09327): now and then the hand is pushed aside while the rows
that are sent, which are what a policy learns, go on leading to the cube.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from flowpolicy.real_robot.arm.envelope_limits import EnvelopeLimits
from flowpolicy.real_robot.arm.kinematics import rotation_error
from flowpolicy.real_robot.bridge.shared_ring import Records
from flowpolicy.real_robot.drivers.driver_protocols import Array

_DT = 0.05  # s between rows


@dataclasses.dataclass(frozen=True)
class ServoConfig:
    """How the operator moves."""

    speed: float = 0.16
    """Of the tool, m/s; slower than the envelope slows it near the table, or it would run away from the arm."""
    gain: float = 4.0
    """Speed per distance where it is slower, 1/s."""
    least: float = 0.025
    """Speed that it does not fall below before it is there, m/s: nothing is approached for ever."""
    tip: float = 0.006
    """Distance beside the cube at which the funnel begins to rise, m."""
    slope: float = 2.5
    """Of the funnel."""
    hover: float = 0.10
    """Height of the funnel, m."""
    near: float = 0.005
    """Distance from the cube's centre at which the gripper closes, m."""
    up: float = 0.18
    """Height at which it ends, m."""
    smooth: float = 0.08
    """Time constant of the joint velocities, s."""
    share: float = 0.6
    """Of the envelope's joint velocities that it uses at most."""
    lead: float = 0.12
    """Largest distance of a joint from what is commanded, rad: it waits for an arm that cannot follow."""
    push: float = 0.08
    """Largest speed of a disturbance, m/s; it comes about once a second and lasts 0.3 s."""


class LiftServo:
    """One demonstration.

    Args:
        q: (n,) rad where it begins.
        limits: for the tool.
        rng: draws pace and disturbances.
        config: how it moves.

    """

    def __init__(self, q: Array, limits: EnvelopeLimits, rng: np.random.Generator, config: ServoConfig) -> None:
        self._config, self._arm, self._tool, self._rng = config, limits.arm, limits.tool, rng
        self._home = np.array(limits.arm.home)
        self._upright = limits.arm.chain.forward(self._home).rotation
        self._top_speed = config.share * np.array(limits.velocity)
        self._pace = rng.uniform(0.85, 1.1)
        self._q, self._dq, self._t = np.array(q), np.zeros(len(q)), 0.0
        self._closing, self._top = False, float("inf")
        self._push, self._push_ends, self._next_push = np.zeros(3), 0.0, rng.uniform(0.3, 1.5)

    def over(self, t: float) -> bool:
        """Whether ``t`` s after the start the cube has been up for half a second."""
        return t - self._top > 0.5

    def rows(self, times: Array, tick: Records) -> tuple[Array, Array]:
        """(h, n) rad and (h,) openings in m at ``times`` (h,) s since the start, seen from ``tick``."""
        ahead = self._q - tick["q_cmd"]
        self._q = tick["q_cmd"] + ahead * min(1.0, self._config.lead / max(float(np.abs(ahead).max()), 1e-9))
        while self._t < times[0]:
            dt = min(_DT, float(times[0]) - self._t)
            self._t += dt
            self._q, self._dq, opening = self._advance(self._q, self._dq, tick, dt, self._pushed())
            self._closing = opening == 0.0
        if self._closing and self._arm.chain.forward(self._q, self._tool).position[2] > self._config.up - 0.01:
            self._top = min(self._top, float(times[0]))
        q, dq, path, openings = self._q, self._dq, [self._q], [0.0 if self._closing else self._arm.hand.width]
        for dt in np.diff(times):
            q, dq, opening = self._advance(q, dq, tick, float(dt), np.zeros(3))
            path.append(q)
            openings.append(opening)
        return np.stack(path), np.array(openings)

    def _advance(self, q: Array, dq: Array, tick: Records, dt: float, push: Array) -> tuple[Array, Array, float]:
        """Position, velocity and opening ``dt`` s later."""
        config, pose = self._config, self._arm.chain.forward(q, self._tool)
        target, opening = self._target(pose.position, tick)
        error = target - pose.position
        distance = float(np.linalg.norm(error))
        speed = min(self._pace * config.speed, max(config.gain * distance, config.least), distance / dt)
        linear = push + (error * (speed / distance) if distance > 1e-4 else 0.0)
        turn = 3.0 * rotation_error(pose.rotation, self._upright)
        turn *= min(1.0, 0.6 / max(float(np.linalg.norm(turn)), 1e-9))
        jacobian = np.concatenate([pose.levers, pose.axes], -1).T
        pinv = jacobian.T @ np.linalg.inv(jacobian @ jacobian.T + 1e-5 * np.eye(6))
        wanted = pinv @ np.concatenate([linear, turn])
        wanted += (np.eye(self._arm.joints) - pinv @ jacobian) @ (self._home - q)
        wanted /= max(1.0, float((np.abs(wanted) / self._top_speed).max()))
        dq = dq + (wanted - dq) * min(1.0, dt / config.smooth)
        return q + dt * dq, dq, opening

    def _target(self, tool: Array, tick: Records) -> tuple[Array, float]:
        """Where the tool should go, m, and how far the gripper should be open, m."""
        config, cube, width = self._config, tick["task"][:3], float(tick["width"])
        if 0.02 < width < 0.06:  # it holds
            return np.array([tool[0], tool[1], config.up]), 0.0
        beside = float(np.linalg.norm(cube[:2] - tool[:2]))
        near = 3.0 * config.near if self._closing else config.near
        if width > 0.06 and np.linalg.norm(cube - tool) < near:
            return tool, 0.0
        rise = float(np.clip(config.slope * (beside - config.tip), 0.0, config.hover))
        return cube + np.array([0.0, 0.0, rise]), self._arm.hand.width

    def _pushed(self) -> Array:
        """Velocity of the disturbance, m/s; it fades towards the table, which it would drive the hand into."""
        height = self._arm.chain.forward(self._q, self._tool).position[2]
        if self._config.push and self._t >= self._next_push:
            self._push = self._config.push * self._rng.uniform(-1.0, 1.0, 3) * np.array([1.0, 1.0, 0.5])
            self._push_ends, self._next_push = self._t + 0.3, self._t + self._rng.uniform(0.7, 1.5)
        fade = float(np.clip((height - 0.02) / 0.06, 0.0, 1.0))
        return fade * self._push if self._t < self._push_ends else np.zeros(3)
