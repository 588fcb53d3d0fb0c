"""What an episode is about, when it has succeeded, and a scripted operator that demonstrates it."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from flowpolicy.real_robot.arm.envelope_limits import EnvelopeLimits
from flowpolicy.real_robot.bridge.shared_ring import Records
from flowpolicy.real_robot.drivers.driver_protocols import RobotError
from flowpolicy.real_robot.tasks.lift_servo import LiftServo, ServoConfig

Array = NDArray[np.float64]

SCATTER = 0.15
"""How far from home each joint may be where a demonstration of a built-in task begins, rad."""
_INSIDE = 0.02
"""Distance that the way aside keeps from the walls of the workspace, m."""
_DRAWS = 200
"""Of a place aside, before the arm stays where it is."""


class Waypoint(NamedTuple):
    """Where a demonstration passes."""

    q: Array
    """(n,) rad."""
    gripper: float
    """Opening, m."""
    seconds: float
    """From the waypoint before, s."""


class WaypointPath:
    """A path through waypoints, at rest in each: minimum-jerk polynomials (Flash and Hogan 1985).

    Args:
        start: (n,) rad.
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

    def over(self, t: float) -> bool:
        """Whether it has come to its end ``t`` s after the start."""
        return t >= self.seconds

    def rows(self, times: Array, tick: Records | None = None) -> tuple[Array, Array]:
        """(h, n) rad and (h,) openings in m at ``times`` (h,) s since the start."""
        last = len(self._times) - 2
        leg = np.clip(np.searchsorted(self._times, times, side="right") - 1, 0, last)
        share = np.clip((times - self._times[leg]) / np.diff(self._times)[leg], 0.0, 1.0)
        smooth = share**3 * (10.0 + share * (6.0 * share - 15.0))
        q = self._q[leg] + smooth[:, None] * (self._q[leg + 1] - self._q[leg])
        return q, self._gripper[leg]


class Demonstration(Protocol):
    """What the operator plays: a plan made beforehand, or answers to what it sees."""

    def over(self, t: float) -> bool:
        """Whether it has come to its end ``t`` s after the start."""

    def rows(self, times: Array, tick: Records) -> tuple[Array, Array]:
        """(h, n) rad and (h,) openings in m at ``times`` (h,) s since the start, seen from the newest ``tick``."""


class CubeTable(Protocol):
    """Where the cube is seen and placed."""

    def cube(self) -> Array:
        """(7,) position of the cube in the base frame, m, and quaternion w x y z."""

    def place(self, position: Array) -> None:
        """Put the cube on the table at (2,) m."""


class Task(Protocol):
    """A task of the arm."""

    name: str

    def draw(self, rng: np.random.Generator) -> Array:
        """Set an episode up, the arm being at home; returns the numbers that its own observation shows."""

    def look(self) -> Array | None:
        """The same numbers as they are now; None where they do not change."""

    def solved(self, tick: Records) -> bool:
        """Whether the success criterion holds now."""

    def aside(self, tick: Records, rng: np.random.Generator) -> WaypointPath | None:
        """Where the operator goes before a demonstration begins; None to begin here."""

    def demonstrate(self, tick: Records, rng: np.random.Generator) -> Demonstration:
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
        return rng.uniform(*self.limits.arm.goals)

    def look(self) -> Array | None:
        """A goal does not move."""
        return None

    def solved(self, tick: Records) -> bool:
        """Whether the tool point is within 0.02 m of the goal."""
        tool = self.limits.arm.chain.forward(tick["q"], self.limits.tool).position
        return bool(np.linalg.norm(tool - tick["task"][:3]) < self._NEAR)

    def aside(self, tick: Records, rng: np.random.Generator) -> WaypointPath | None:
        """Somewhere near."""
        return aside(tick, rng, self.limits)

    def demonstrate(self, tick: Records, rng: np.random.Generator) -> WaypointPath:
        """At a speed of its own, and a second of rest."""
        goal = solve(tick["task"][:3], self.limits)
        seconds = 1.9 * float(np.abs(goal - tick["q_cmd"]).max()) / rng.uniform(0.35, 0.55)
        legs = [(goal, max(seconds, 0.6)), (goal, 1.0)]
        opening = self.limits.arm.hand.width
        return WaypointPath(tick["q_cmd"], opening, [Waypoint(q, opening, length) for q, length in legs])


class Lift:
    """The cube on the table is lifted.

    Args:
        limits: of the arm.
        table: the twin's, or the scene's in this process.
        servo: how it is demonstrated.

    """

    name = "lift"
    _HEIGHT = 0.08

    def __init__(self, limits: EnvelopeLimits, table: CubeTable, servo: ServoConfig) -> None:
        self.limits, self.table, self.servo = limits, table, servo
        self._rest = 0.0

    def draw(self, rng: np.random.Generator) -> Array:
        """Put the cube anywhere on a patch of 0.16 m by 0.24 m."""
        self.table.place(rng.uniform([0.42, -0.12], [0.58, 0.12]))
        pose = self.table.cube()
        self._rest = float(pose[2])
        return pose

    def look(self) -> Array | None:
        """Where the cube is."""
        return self.table.cube()

    def solved(self, tick: Records) -> bool:
        """Whether the cube is 0.08 m above where it lay."""
        return bool(tick["task"][2] > self._rest + self._HEIGHT)

    def aside(self, tick: Records, rng: np.random.Generator) -> WaypointPath | None:
        """Somewhere near."""
        return aside(tick, rng, self.limits)

    def demonstrate(self, tick: Records, rng: np.random.Generator) -> LiftServo:
        """Down a funnel to the cube, close, up."""
        return LiftServo(tick["q_cmd"], self.limits, rng, self.servo)


def aside(tick: Records, rng: np.random.Generator, limits: EnvelopeLimits) -> WaypointPath:
    """To joint positions near the present ones, before the recording begins.

    Demonstrations that all ran the same way would teach no way back to it. Recorded, the way aside would teach to
    stray.
    """
    q, opening = scattered(tick["q_cmd"], SCATTER, rng, limits), limits.arm.hand.width
    return WaypointPath(tick["q_cmd"], opening, [Waypoint(q, opening, 0.9)])


def scattered(q: Array, scatter: float, rng: np.random.Generator, limits: EnvelopeLimits) -> Array:
    """(n,) joint positions within ``scatter`` rad of ``q``, the tool inside the workspace; ``q`` where none is found.

    From one start every demonstration of a place is one line, and where the arm is tells a policy where it is going:
    it learns to go on instead of to look.
    """
    low, high = np.array(limits.box_low) + _INSIDE, np.array(limits.box_high) - _INSIDE
    for _ in range(_DRAWS if scatter else 0):  # home lies well inside: every second draw or so does too
        drawn = np.clip(q + rng.uniform(-scatter, scatter, limits.arm.joints), limits.q_low, limits.q_high)
        tool = limits.arm.chain.forward(drawn, limits.tool).position
        if ((tool > low) & (tool < high)).all():
            return np.asarray(drawn)
    return q


def solve(position: Array, limits: EnvelopeLimits) -> Array:
    """(n,) joint positions that put the tool point at ``position``, the hand pointing down as at home.

    Raises:
        RobotError: out of reach.

    """
    chain, home = limits.arm.chain, np.array(limits.arm.home)
    found = chain.inverse(
        position, chain.forward(home).rotation, home, tool=limits.tool, low=limits.q_low, high=limits.q_high, steps=200
    )
    if found is None:
        raise RobotError(f"the tool cannot be put at {np.round(position, 3).tolist()} m", expected="a place in reach")
    return found
