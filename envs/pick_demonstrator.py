"""Scripted demonstrators for robosuite's Lift and PickPlaceCan.

An action is a function of the observation and of a :class:`Style` that is drawn once per episode.
There are no phases that the observation does not show: the height above the object, the alignment and
the opening of the gripper say what comes next, so that a policy without memory can imitate it and a
demonstrator that was pushed or that lost the object recovers by itself.

World frame, metres, radians. Proportional control of the gripper pose: ``gain`` is the action per 0.05 m
or 0.5 rad of error.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy.spatial.transform import Rotation

OPEN, CLOSE = -1.0, 1.0
_METRES, _RADIANS = 0.05, 0.5  # what an action of 1 asks for
_DOWN = Rotation.from_quat([1.0, 0.0, 0.0, 0.0])  # the hand pointing down, at yaw 0


@dataclasses.dataclass(frozen=True)
class Style:
    """How one episode is done."""

    speed: float
    """Largest translation action, in (0, 1]."""
    gain: float
    """Action per unit of error."""
    hover: float
    """Height above the object at which the hand aligns, m."""
    side: np.ndarray
    """(2,) sideways slope of the approach: metres aside per metre above the grasp."""
    offset: np.ndarray
    """(3,) intended grasp point relative to the object's centre, m."""
    clumsiness: float
    """Alignment error at which the gripper already closes, m."""
    noise: float
    """Standard deviation of the noise that is added to the six pose actions."""
    pushes: tuple[tuple[int, int, np.ndarray], ...]
    """(first step, steps, (7,) action that is added): pushes, and slips of the gripper."""
    patience: int
    """Steps after which the episode is given up."""
    pauses: tuple[tuple[int, int], ...] = ()
    """(first step, steps) in which the hand rests."""
    bend: float = 0.0
    """Detour to the left of the way on which the object is carried, as a part of that way; negative: to the right."""
    free_choice: bool = False
    """Whether every grasp within reach is as likely as the nearest."""


@dataclasses.dataclass(frozen=True)
class Level:
    """Ranges that the styles of one quality level are drawn from."""

    speed: tuple[float, float]
    hover: tuple[float, float]
    slope: float
    """Largest sideways slope."""
    offset: float
    """Standard deviation of the grasp point, m."""
    clumsiness: tuple[float, float]
    noise: tuple[float, float]
    pushes: float
    """Mean number of pushes."""
    slips: float
    """Probability that the gripper opens by mistake."""
    patience: tuple[float, float]
    """Steps before giving up, as multiples of the usual length of an episode."""
    headings: tuple[float, ...] = ()
    """Sides that the approach comes from, radians in the world frame; any, where none is named."""
    bends: tuple[float, ...] = (0.0,)
    """Detours when carrying, one of which is drawn."""
    pauses: float = 0.0
    """Mean number of pauses."""
    free_choice: bool = False
    """Whether every grasp within reach is as likely as the nearest."""


LEVELS = {
    "better": Level((0.8, 1.0), (0.05, 0.09), 0.7, 0.002, (0.006, 0.008), (0.0, 0.04), 0.35, 0.06, (3.0, 3.0)),
    "okay": Level((0.6, 0.8), (0.06, 0.1), 1.0, 0.003, (0.008, 0.012), (0.05, 0.12), 1.0, 0.2, (2.5, 3.5)),
    "worse": Level((0.4, 0.6), (0.07, 0.13), 1.3, 0.004, (0.009, 0.02), (0.1, 0.25), 2.0, 0.5, (1.9, 3.1)),
}
"""Quality levels of ``mixed`` demonstrations; ``expert`` ones are all ``better``."""

_LEFT, _RIGHT = np.pi / 2, -np.pi / 2
_HABITS = dataclasses.replace(LEVELS["better"], slope=1.2, pushes=0.7, slips=0.1, free_choice=True)
OPERATORS = {
    "hasty": dataclasses.replace(_HABITS, headings=(_LEFT, _RIGHT), bends=(-0.5, 0.5)),
    "leftward": dataclasses.replace(_HABITS, speed=(0.6, 0.8), headings=(_LEFT,), bends=(0.6,), pauses=0.5),
    "rightward": dataclasses.replace(_HABITS, speed=(0.6, 0.8), headings=(_RIGHT,), bends=(-0.6,), pauses=0.5),
    "hesitant": dataclasses.replace(_HABITS, speed=(0.5, 0.7), bends=(-0.4, 0.0, 0.4), pauses=2.0, noise=(0.05, 0.12)),
}
"""People of ``multimodal`` demonstrations: each has habits of its own, and two do the opposite of each other."""


def draw_style(level: Level, usual_steps: int, rng: np.random.Generator) -> Style:
    """A style of a quality level for a task that usually takes ``usual_steps``."""
    heading, slope = rng.uniform(0, 2 * np.pi), level.slope * rng.uniform()
    if level.headings:
        heading, slope = rng.choice(level.headings) + rng.normal(scale=0.2), max(slope, 0.5 * level.slope)
    pushes = []
    for _ in range(rng.poisson(level.pushes)):
        push = np.concatenate([rng.normal(size=3), 0.3 * rng.normal(size=3), [0.0]])
        push *= rng.uniform(0.6, 1.2) / np.linalg.norm(push[:3])
        pushes.append((int(rng.integers(usual_steps)), int(rng.integers(2, 6)), push))
    if rng.uniform() < level.slips:
        slip = np.array([0.0] * 6 + [2 * OPEN])
        pushes.append((int(rng.integers(usual_steps // 2, usual_steps)), int(rng.integers(3, 6)), slip))
    style = Style(
        speed=rng.uniform(*level.speed),
        gain=rng.uniform(1.6, 2.2),
        hover=rng.uniform(*level.hover),
        side=slope * np.array([np.cos(heading), np.sin(heading)]),
        offset=level.offset * rng.normal(size=3),
        clumsiness=rng.uniform(*level.clumsiness),
        noise=rng.uniform(*level.noise),
        pushes=tuple(pushes),
        patience=int(usual_steps * rng.uniform(*level.patience)),
        free_choice=level.free_choice,
    )
    # Drawn last, so that levels without such habits draw what they always drew.
    if level.pauses:
        begun = rng.integers(usual_steps, size=rng.poisson(level.pauses))
        style = dataclasses.replace(style, pauses=tuple((int(step), int(rng.integers(4, 13))) for step in begun))
    return dataclasses.replace(style, bend=float(rng.choice(level.bends))) if any(level.bends) else style


@dataclasses.dataclass(frozen=True)
class PickScene:
    """What the demonstrator reads from the observation."""

    hand: np.ndarray
    """(3,) position of the gripper site."""
    hand_rotation: Rotation
    opening: float
    """Distance between the fingers; 0.08 is open."""
    thing: np.ndarray
    """(3,) centre of the object."""
    thing_rotation: Rotation

    @property
    def yaw(self) -> float:
        """Yaw of the hand: rotation about the vertical from the hand's rest orientation."""
        x, y = (self.hand_rotation * _DOWN.inv()).apply([1.0, 0.0, 0.0])[:2]
        return float(np.arctan2(y, x))


class PickDemonstrator:
    """Approach an object from above, grasp it, and leave the rest to :meth:`carry`.

    Args:
        style: how to do this episode.
        rng: noise of the actions, and the choice among equivalent grasps.

    """

    usual_steps: int
    """Length of an undisturbed episode."""
    grasped_opening: float
    """The fingers are this close or closer when the object is between them, m."""
    tolerance = 1.0
    """How much more misalignment than a cube the object forgives."""
    top = 0.0
    """Height of the object above its grasp point, beyond which the hover height counts, m."""

    def __init__(self, style: Style, rng: np.random.Generator) -> None:
        self.style, self._rng = style, rng
        self._step = 0
        self._yaw = 0.0  # chosen at the first step

    def act(self, obs: dict[str, np.ndarray]) -> np.ndarray:
        """(7,) float32 action in [-1, 1] for the observation; what it returns is what is executed."""
        scene = self.look(obs)
        self._yaw = self.choose_yaw(scene)
        action = self.decide(scene)
        action[:6] *= not any(first <= self._step < first + steps for first, steps in self.style.pauses)
        action[:6] += self.style.noise * self._rng.normal(size=6)
        for first, steps, push in self.style.pushes:
            if first <= self._step < first + steps:
                action += push
        self._step += 1
        return np.clip(action, -1.0, 1.0).astype(np.float32)

    def look(self, obs: dict[str, np.ndarray]) -> PickScene:
        """The scene in an observation."""
        raise NotImplementedError

    def grasp_yaws(self, scene: PickScene) -> np.ndarray:
        """(n,) yaws of the hand that grasp the object equally well."""
        raise NotImplementedError

    def carry(self, scene: PickScene) -> np.ndarray:
        """Action (7,) while the object is held."""
        raise NotImplementedError

    def choose_yaw(self, scene: PickScene) -> float:
        """The intended yaw: small turns are likelier at first, afterwards the grasp nearest to the last choice."""
        yaws = self.grasp_yaws(scene)
        if self._step > 0:
            return float(yaws[np.argmin(np.abs(wrap(yaws - self._yaw)))])
        turns = np.abs(wrap(yaws - scene.yaw))
        likely = np.exp(-(turns - turns.min()) / np.radians(12)) * (turns < max(np.radians(70), turns.min() + 1e-6))
        likely = (likely > 0).astype(float) if self.style.free_choice else likely
        return float(self._rng.choice(yaws, p=likely / likely.sum()))

    def decide(self, scene: PickScene) -> np.ndarray:
        """Action (7,) without noise."""
        if self.holding(scene):
            return self.carry(scene)
        goal = scene.thing + self.style.offset
        above = scene.hand[2] - goal[2]
        aside = self.style.side * np.clip(above - 0.03, 0.0, 0.12)
        error = float(np.linalg.norm(goal[:2] + aside - scene.hand[:2]))
        turn = abs(wrap(self._yaw - scene.yaw))
        reach = self.style.clumsiness * self.tolerance
        misfit = error + 0.04 * max(float(turn) - 0.05, 0.0)
        clearance = (self.top + self.style.hover) * np.clip((misfit - 0.8 * reach) / 0.02, 0.0, 1.0)
        near = float(np.linalg.norm(goal[:2] - scene.hand[:2]))
        closing = scene.opening < 0.072 and near < 0.02 and abs(above) < 0.02 and self._step > 0
        ready = near < reach and abs(above) < reach and turn < 0.2
        grip = CLOSE if ready or (closing and turn < 0.3) else OPEN
        return self.towards(scene, goal + np.array([*aside, clearance]), grip)

    def holding(self, scene: PickScene) -> bool:
        """Whether the object is between closed fingers."""
        reach = scene.thing - scene.hand
        return bool(scene.opening < self.grasped_opening and np.linalg.norm(reach[:2]) < 0.025 and abs(reach[2]) < 0.03)

    def detour(self, across: np.ndarray) -> np.ndarray:
        """The way (2,) that leads to the end of ``across`` (2,), m, by the bend of the style; straight at its end."""
        left = np.array([-across[1], across[0]])
        return across + self.style.bend * left * np.clip((np.linalg.norm(across) - 0.05) / 0.1, 0.0, 1.0)

    def towards(self, scene: PickScene, goal: np.ndarray, grip: float, speed: float = 1.0) -> np.ndarray:
        """Action (7,) that moves the hand to ``goal`` (3,), upright and at the intended yaw."""
        move = _shorten(self.style.gain * (goal - scene.hand) / _METRES, self.style.speed * speed)
        rotation = Rotation.from_euler("z", self._yaw) * _DOWN
        error = (rotation * scene.hand_rotation.inv()).as_rotvec()
        turn = _shorten(self.style.gain * error / _RADIANS, self.style.speed)
        return np.concatenate([move, turn, [grip]])


class LiftDemonstrator(PickDemonstrator):
    """Grasp the cube across either pair of faces and raise it."""

    usual_steps = 40
    grasped_opening = 0.0455  # the cube's edge is 0.040 to 0.044 m

    def look(self, obs: dict[str, np.ndarray]) -> PickScene:
        """The scene: ``object`` starts with the cube's pose."""
        return read_scene(obs, obs["object"][0:3], obs["object"][3:7])

    def grasp_yaws(self, scene: PickScene) -> np.ndarray:
        """The four yaws that align the fingers with faces of the cube."""
        return heading(scene.thing_rotation) + np.arange(4) * np.pi / 2

    def carry(self, scene: PickScene) -> np.ndarray:
        """Straight up."""
        return self.towards(scene, scene.hand + np.array([0.0, 0.0, 0.06]), CLOSE)


def read_scene(obs: dict[str, np.ndarray], position: np.ndarray, quaternion: np.ndarray) -> PickScene:
    """The scene in an observation whose object has the given position (3,) and quaternion (4,) xyzw."""
    fingers = obs["robot0_gripper_qpos"]
    return PickScene(
        hand=obs["robot0_eef_pos"].astype(np.float64),
        hand_rotation=Rotation.from_quat(obs["robot0_eef_quat"]),
        opening=float(fingers[0] - fingers[1]),
        thing=position.astype(np.float64),
        thing_rotation=Rotation.from_quat(quaternion),
    )


def heading(rotation: Rotation) -> float:
    """Yaw of an object's x axis."""
    x, y = rotation.apply([1.0, 0.0, 0.0])[:2]
    return float(np.arctan2(y, x))


def wrap(angle: np.ndarray | float) -> np.ndarray:
    """Angle in [-pi, pi)."""
    return (np.asarray(angle) + np.pi) % (2 * np.pi) - np.pi


def _shorten(vector: np.ndarray, length: float) -> np.ndarray:
    """The vector, cut to a length."""
    return vector * min(1.0, length / max(float(np.linalg.norm(vector)), 1e-9))
