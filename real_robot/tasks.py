"""What an episode is about, when it has succeeded, and a scripted operator that demonstrates it."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from flowpolicy.real_robot.kinematics import forward, inverse
from flowpolicy.real_robot.limits import GRIPPER_WIDTH, HOME, EnvelopeLimits
from flowpolicy.real_robot.protocols import RobotError
from flowpolicy.real_robot.shared import Records
from flowpolicy.real_robot.twin import TwinLink

Array = NDArray[np.float64]


class Waypoint(NamedTuple):
    """Where a demonstration passes."""

    q: Array
    """(7,) rad."""
    gripper: float
    """Opening, m."""
    seconds: float
    """From the waypoint before, s."""


class Plan:
    """A path through waypoints, at rest in each: minimum-jerk polynomials (Flash and Hogan 1985).

    Args:
        start: (7,) rad.
        gripper: opening at the start, m.
        waypoints: at least one.

    """

    def __init__(self, start: Array, gripper: float, waypoints: list[Waypoint]) -> None:
        self._q = np.stack([start, *(w.q for w in waypoints)])
        self._gripper = np.array([w.gripper for w in waypoints])
        self._times = np.cumsum([0.0, *(w.seconds for w in waypoints)])

    @property
    def seconds(self) -> float:
        """Duration, s."""
        return float(self._times[-1])

    def rows(self, times: Array) -> tuple[Array, Array]:
        """(h, 7) rad and (h,) openings in m at ``times`` (h,) s since the start."""
        last = len(self._times) - 2
        leg = np.clip(np.searchsorted(self._times, times, side="right") - 1, 0, last)
        share = np.clip((times - self._times[leg]) / np.diff(self._times)[leg], 0.0, 1.0)
        smooth = share**3 * (10.0 + share * (6.0 * share - 15.0))
        q = self._q[leg] + smooth[:, None] * (self._q[leg + 1] - self._q[leg])
        return q, self._gripper[leg]


class Task(Protocol):
    """A task of the arm."""

    name: str

    def draw(self, rng: np.random.Generator) -> Array:
        """Set an episode up, the arm being at home; returns the numbers that its own observation shows."""

    def look(self) -> Array | None:
        """The same numbers as they are now; None where they do not change."""

    def solved(self, tick: Records) -> bool:
        """Whether the success criterion holds now."""

    def aside(self, tick: Records, rng: np.random.Generator) -> Plan | None:
        """Where the operator goes before a demonstration begins; None to begin here."""

    def demonstrate(self, tick: Records, rng: np.random.Generator) -> Plan:
        """How the operator does it from here."""


class Reach:
    """The tool point goes to a drawn place and stays there.

    Args:
        limits: of the arm, for the inverse kinematics and the tool.

    """

    name = "reach"
    _NEAR = 0.02

    def __init__(self, limits: EnvelopeLimits) -> None:
        self.limits = limits

    def draw(self, rng: np.random.Generator) -> Array:
        """A place in front of the arm, m."""
        return rng.uniform([0.40, -0.20, 0.15], [0.60, 0.20, 0.40])

    def look(self) -> Array | None:
        """A goal does not move."""
        return None

    def solved(self, tick: Records) -> bool:
        """Whether the tool point is within 0.02 m of the goal."""
        tool = forward(tick["q"], self.limits.tool).position
        return bool(np.linalg.norm(tool - tick["task"][:3]) < self._NEAR)

    def aside(self, tick: Records, rng: np.random.Generator) -> Plan | None:
        """Somewhere near."""
        return aside(tick, rng)

    def demonstrate(self, tick: Records, rng: np.random.Generator) -> Plan:
        """At a speed of its own, and a second of rest."""
        goal = solve(tick["task"][:3], self.limits)
        seconds = 1.9 * float(np.abs(goal - tick["q_cmd"]).max()) / rng.uniform(0.35, 0.55)
        legs = [(goal, max(seconds, 0.6)), (goal, 1.0)]
        return Plan(tick["q_cmd"], GRIPPER_WIDTH, [Waypoint(q, GRIPPER_WIDTH, length) for q, length in legs])


class Lift:
    """The cube on the twin's table is lifted.

    Args:
        limits: of the arm.
        twin: where the cube is seen and placed.

    """

    name = "lift"
    _HEIGHT = 0.08

    def __init__(self, limits: EnvelopeLimits, twin: TwinLink) -> None:
        self.limits, self.twin = limits, twin
        self._rest = 0.0

    def draw(self, rng: np.random.Generator) -> Array:
        """Put the cube anywhere on a patch of 0.16 m by 0.24 m."""
        self.twin.place(rng.uniform([0.42, -0.12], [0.58, 0.12]))
        pose = self.twin.cube()
        self._rest = float(pose[2])
        return pose

    def look(self) -> Array | None:
        """Where the cube is."""
        return self.twin.cube()

    def solved(self, tick: Records) -> bool:
        """Whether the cube is 0.08 m above where it lay."""
        return bool(tick["task"][2] > self._rest + self._HEIGHT)

    def aside(self, tick: Records, rng: np.random.Generator) -> Plan | None:
        """Somewhere near."""
        return aside(tick, rng)

    def demonstrate(self, tick: Records, rng: np.random.Generator) -> Plan:
        """To somewhere above the cube, down, close, up."""
        place, wide = tick["task"][:2], GRIPPER_WIDTH
        # From all sides, so that the policy has seen how to come back from where its own errors take it.
        begin = np.array([*(place + rng.uniform(-0.04, 0.04, 2)), rng.uniform(0.08, 0.16)])
        above, down, up = (solve(p, self.limits) for p in (begin, np.array([*place, 0.018]), np.array([*place, 0.16])))
        pace = rng.uniform(0.9, 1.1)
        far = 1.9 * float(np.abs(above - tick["q_cmd"]).max()) / 0.5
        legs = [(above, wide, max(far, 0.8)), (down, wide, 1.2), (down, 0.0, 0.7), (up, 0.0, 1.6)]
        return Plan(tick["q_cmd"], wide, [Waypoint(q, opening, pace * seconds) for q, opening, seconds in legs])


def aside(tick: Records, rng: np.random.Generator) -> Plan:
    """To joint positions near the present ones, before the recording begins.

    Demonstrations that all ran the same way would teach no way back to it. Recorded, the way aside would teach to
    stray.
    """
    q = tick["q_cmd"] + rng.uniform(-0.15, 0.15, 7)
    return Plan(tick["q_cmd"], GRIPPER_WIDTH, [Waypoint(q, GRIPPER_WIDTH, 0.9)])


def solve(position: Array, limits: EnvelopeLimits) -> Array:
    """(7,) joint positions that put the tool point at ``position``, the hand pointing down as at home.

    Raises:
        RobotError: out of reach.

    """
    home = np.array(HOME)
    found = inverse(
        position, forward(home).rotation, home, tool=limits.tool, low=limits.q_low, high=limits.q_high, steps=200
    )
    if found is None:
        raise RobotError(f"the tool cannot be put at {np.round(position, 3).tolist()} m", expected="a place in reach")
    return found
