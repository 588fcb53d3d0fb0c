"""A scripted demonstrator for PushT: it tries pushes in a simulator of its own and does one of the better ones.

A push starts beside the T, goes inwards and stops where the T is nearest to its outline. Which of some forty it takes
is drawn, better ones more often: the same board is solved from several sides, so that demonstrations have several
modes. Between pushes the pusher goes round the T.
"""

from __future__ import annotations

import dataclasses
import heapq
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowpolicy.core.errors import SimulatorError
from flowpolicy.core.seed import derive, numpy_generator
from flowpolicy.envs.pusht import BOARD, PushTConfig, PushTEnv
from flowpolicy.envs.recording import KeptEpisode, make_episode

_T = np.array([(-60, 0), (60, 0), (60, 30), (15, 30), (15, 120), (-15, 120), (-15, 30), (-60, 30)], dtype=float)
"""(8, 2) corners of the T in its own frame, pixels of the board."""
_RADIUS = 15.0  # of the pusher
_GAP = 6.0  # between T and pusher where a push begins
_MARGIN = 22.0  # from the edge of the board
_TRIED = 40  # pushes, before one is chosen
_STEPS = 12  # of a push at most
_FREE = 70.0  # lead of the target over the pusher on its way round, pixels
_ATTEMPTS = 50
_NOISE = {"better": 1.0, "okay": 5.0, "worse": 12.0}
"""Standard deviation of the targets, pixels, by quality level."""

Pose = NDArray[np.float64]
"""(3,) x, y and angle of the T."""
Place = NDArray[np.float64]
"""(2,) position on the board."""


@dataclasses.dataclass(frozen=True)
class Push:
    """One push."""

    start: Place
    """Where the pusher begins."""
    towards: Place
    """Unit vector."""
    lead: float
    """Pixels by which the target is ahead of the pusher: five a second of speed each."""
    steps: int
    """How long it goes on."""
    gain: float
    """By how much it brings the T nearer, less what going there costs; pixels."""


def corners(pose: Pose) -> NDArray[np.float64]:
    """(8, 2) corners of a T that lies there."""
    cos, sin = np.cos(pose[2]), np.sin(pose[2])
    found: NDArray[np.float64] = _T @ np.array([[cos, sin], [-sin, cos]]) + pose[:2]
    return found


class PushPlanner:
    """Tries pushes in a board of its own.

    Args:
        rng: draws which are tried, and which is taken.

    """

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng, self._board = rng, PushTEnv(PushTConfig(horizon=0))
        self._goal = corners(np.asarray(self._board.sim_env.goal_pose, dtype=np.float64))

    def error(self, pose: Pose) -> float:
        """Mean distance of the corners of the T from where they should be, pixels."""
        return float(np.linalg.norm(corners(pose) - self._goal, axis=1).mean())

    def pushes(self, pose: Pose, pusher: Place) -> list[Push]:
        """Pushes that can be done, with what they would bring."""
        now = self.error(pose)
        lead = 12.0 if now < 12 else 24.0 if now < 40 else 40.0
        found = []
        for start, towards in self._starts(pose):
            errors = self._tried(pose, start, towards, lead)
            best = int(errors.argmin())
            gain = now - errors[best] - 0.01 * float(np.linalg.norm(start - pusher))
            found.append(Push(start, towards, lead, best + 1, gain))
        return found

    def choose(self, pose: Pose, pusher: Place) -> Push | None:
        """One of the better pushes; None where there is no room for any."""
        tried = self.pushes(pose, pusher)
        if not tried:
            return None
        gains = np.array([push.gain for push in tried])
        weight = np.exp((gains - gains.max()) / max(0.15 * abs(gains.max()), 0.3))
        return tried[self._rng.choice(len(tried), p=weight / weight.sum())]

    def _starts(self, pose: Pose) -> list[tuple[Place, Place]]:
        """Random places beside the T, and unit vectors about inwards."""
        import shapely

        outline = corners(pose)
        sides = np.roll(outline, -1, axis=0) - outline
        lengths = np.linalg.norm(sides, axis=1)
        ends, polygon = np.cumsum(lengths), shapely.Polygon(outline)
        found = []
        for along in self._rng.uniform(0, ends[-1], _TRIED):
            side = int(np.searchsorted(ends, along))
            along_side = sides[side] / lengths[side]
            inwards = np.array([-along_side[1], along_side[0]])
            touched = outline[side] + (along - ends[side] + lengths[side]) * along_side
            start, angle = touched - (_RADIUS + _GAP) * inwards, self._rng.normal(0.0, 0.25)
            on_board = ((start > _MARGIN) & (start < BOARD - _MARGIN)).all()
            if on_board and polygon.distance(shapely.Point(start)) >= _RADIUS + 2:
                cos, sin = np.cos(angle), np.sin(angle)
                found.append((start, np.array([[cos, -sin], [sin, cos]]) @ inwards))
        return found

    def _tried(self, pose: Pose, start: Place, towards: Place, lead: float) -> NDArray[np.float64]:
        """(steps,) errors in the course of a push."""
        self._board.put(np.array([*start, 0, 0, *pose, 0, 0, 0]))
        errors = []
        for _ in range(_STEPS):
            here = np.array(self._board.sim_env.agent.position)
            move(self._board.sim_env, np.clip(here + lead * towards, 16, BOARD - 16))
            errors.append(self.error(pose_of(self._board)))
        return np.array(errors)


def move(sim_env: Any, target: Place) -> None:
    """What a step of gym-pusht does to the bodies, without its observations and areas."""
    from pymunk.vec2d import Vec2d

    aim, pusher = Vec2d(*target.tolist()), sim_env.agent
    for _ in range(round(1 / (sim_env.dt * sim_env.control_hz))):
        pusher.velocity += (sim_env.k_p * (aim - pusher.position) - sim_env.k_v * pusher.velocity) * sim_env.dt
        sim_env.space.step(sim_env.dt)


def pose_of(env: PushTEnv) -> Pose:
    """Where the T lies."""
    block = env.sim_env.block
    return np.array([*block.position, block.angle])


def way_round(pose: Pose, pusher: Place, goal: Place) -> list[Place]:
    """Places to go to one after the other so as not to touch the T; the goal alone where there is no such way."""
    import shapely

    polygon = shapely.Polygon(corners(pose))
    kept_clear = polygon.buffer(_RADIUS + 2)
    around = np.array(polygon.buffer(_RADIUS + 7, join_style="mitre").exterior.coords)[:-1]
    around = around.clip(_MARGIN - 4, BOARD - _MARGIN + 4)
    places = [pusher, goal, *(place for place in around if not kept_clear.contains(shapely.Point(place)))]

    def free(a: int, b: int) -> bool:
        line = shapely.LineString([places[a], places[b]])
        through = kept_clear.intersection(line).length
        # Pusher and goal may lie nearer than what is kept clear elsewhere.
        near = min(a, b) < 2 and through < _RADIUS + 6 and polygon.distance(line) > _RADIUS - 4
        return through < 1e-6 or near

    # Dijkstra's shortest path.
    reached: dict[int, tuple[float, int]] = {}
    queue: list[tuple[float, int, int]] = [(0.0, 0, -1)]
    while queue:
        length, place, before = heapq.heappop(queue)
        if place in reached:
            continue
        reached[place] = (length, before)
        for other in range(len(places)):
            if other not in reached and free(place, other):
                heapq.heappush(queue, (length + float(np.linalg.norm(places[place] - places[other])), other, place))
    if 1 not in reached:
        return [goal]
    way, place = [], 1
    while place > 0:
        way.append(places[place])
        place = reached[place][1]
    return way[::-1]


class PushTRecorder:
    """Records episodes of the demonstrator (:class:`flowpolicy.envs.recording.EpisodeRecorder`)."""

    def __init__(self, config: PushTConfig) -> None:
        self._env = PushTEnv(config)

    def record(self, seed: int, index: int, level: str, keep_failures: bool) -> KeptEpisode:
        """The first successful attempt, or the first one at all when failures are kept."""
        for attempt in range(_ATTEMPTS):
            stream = ("demonstration", "pusht", index, attempt)
            self._env.reset_from(derive(seed, *stream, "state"))
            rows = _Run(self._env, numpy_generator(seed, *stream, "style"), _NOISE[level]).rows()
            success = bool(rows[-1][4])
            if success or keep_failures:
                return KeptEpisode(make_episode(rows), success, attempt + 1)
        raise SimulatorError(f"the demonstrator of PushT failed {_ATTEMPTS} times in a row (episode {index})")


class _Run:
    """One episode."""

    def __init__(self, env: PushTEnv, rng: np.random.Generator, noise: float) -> None:
        self._env, self._rng, self._noise = env, rng, noise
        self._rows: list[tuple[Any, ...]] = []
        self._over = False

    def rows(self) -> list[tuple[Any, ...]]:
        """Everything that is recorded, until the T lies or time is up."""
        planner = PushPlanner(self._rng)
        while not self._over:
            pose, pusher = pose_of(self._env), self._here()
            push = planner.choose(pose, pusher)
            if push is None:
                self._act(np.array([BOARD / 2, BOARD / 2]))
                continue
            way = way_round(pose, pusher, push.start)
            for place in way:
                self._go(place, 3.0 if place is way[-1] else 12.0)
            for _ in range(push.steps):
                self._act(np.clip(self._here() + push.lead * push.towards, 16, BOARD - 16))
        return self._rows

    def _go(self, place: Place, near: float) -> None:
        for _ in range(_STEPS * 3):
            ahead = place - self._here()
            distance = float(np.linalg.norm(ahead))
            if distance < near or self._over:
                return
            self._act(self._here() + ahead * min(1.0, _FREE / distance))

    def _here(self) -> Place:
        return np.array(self._env.sim_env.agent.position)

    def _act(self, target: Place) -> None:
        if self._over:
            return
        obs, state = self._env.observe(), self._env.state()
        action = np.clip(target + self._rng.normal(0.0, self._noise, 2), 0, BOARD).astype(np.float32)
        outcome = self._env.step(action)
        self._rows.append((obs, state, action, outcome.reward, outcome.success, outcome.obs))
        self._over = outcome.terminated or outcome.truncated
