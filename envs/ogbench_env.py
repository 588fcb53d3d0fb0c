"""OGBench single-task variants (Park et al., "OGBench: Benchmarking Offline Goal-Conditioned RL", ICLR 2025).

``<env>-singletask-task<k>-v0`` turns goal k of an environment into an ordinary task. Reward: manipulation gives
minus the number of sub-tasks that are not solved (a cube in place, a button, the drawer, the window), the mazes
give -1 until the goal is reached and 0 there. Nothing is added to it.

*When* success is measured: from OGBench 1.2 on, reward, ``terminated`` and success of a step speak of the state
*before* the action, in the environment as in the labels of its files (issue 34 of the project: labels used to be
the only ones to do so). An episode therefore ends one step after the goal was reached, and a goal reached by the
last action before the horizon does not count. This adapter keeps OGBench's timing, so that scores compare.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np

from flowpolicy.core.errors import ConfigError, DataError, MissingExtraError, nearest
from flowpolicy.core.seed import derive
from flowpolicy.core.spec import UNSTATED, ActionSpec, ObservationSpec, Spec
from flowpolicy.data.d4rl import STATE
from flowpolicy.data.ogbench import CAMERA, PIXELS, pixels_spec
from flowpolicy.envs.global_random import GlobalRandom
from flowpolicy.envs.rendering import choose_opengl, opengl
from flowpolicy.envs.vector import Outcome, ProcessVecEnv, SerialVecEnv

if TYPE_CHECKING:
    from flowpolicy.data.dataset import Dataset  # brings torch, a second of every worker's start

VERSION = "1.2"
"""The supported OGBench releases; before 1.2 reward and success spoke of the state after the action."""

TASKS = 5
"""Tasks of every environment, numbered from 1."""

SUITE = {
    "pointmaze-medium": (2, 1000, 1),
    "pointmaze-large": (2, 1000, 1),
    "pointmaze-giant": (2, 1000, 1),
    "pointmaze-teleport": (2, 1000, 1),
    "antmaze-medium": (29, 1000, 1),
    "antmaze-large": (29, 1000, 1),
    "antmaze-giant": (29, 1000, 1),
    "antmaze-teleport": (29, 1000, 1),
    "humanoidmaze-medium": (69, 2000, 1),
    "humanoidmaze-large": (69, 2000, 1),
    "humanoidmaze-giant": (69, 4000, 1),
    "antsoccer-arena": (42, 1000, 4),
    "antsoccer-medium": (42, 1000, 4),
    "cube-single": (28, 200, 2),
    "cube-double": (37, 500, 2),
    "cube-triple": (46, 1000, 2),
    "cube-quadruple": (55, 1000, 2),
    "scene": (40, 750, 2),
    "puzzle-3x3": (55, 500, 4),
    "puzzle-4x4": (83, 500, 4),
    "puzzle-4x5": (99, 1000, 2),
    "puzzle-4x6": (115, 1000, 2),
}
"""Environment -> size of the observation, horizon in steps, default task."""

_BODY = {"point": (2, 10.0), "ant": (8, 10.0), "humanoid": (21, 40.0)}  # actions, Hz
_ARM = ActionSpec(
    5,
    convention="delta",
    frame="world",
    units="1 stands for 0.05 m, 0.3 rad about the vertical and the whole opening of the gripper, per step",
    rotation="yaw",
    gripper="last dimension: -1 opens, +1 closes",
    rate_hz=20.0,
)
_SUCCESS = {
    "cube": "every cube's centre is within 0.04 m of its target",
    "scene": "cube, drawer and window are within 0.04 m of their targets and both buttons show their target state",
    "puzzle": "every button shows its target state",
    "antsoccer": "the ball's centre is within 0.5 m of the goal",
    "pointmaze": "the point is within 1 m of the goal",
    "maze": "the torso is within 0.5 m of the goal",
}
_ARMS = ("cube", "scene", "puzzle")
_SIZE = (64, 64, 3)
_NAME = re.compile(
    r"(?:ogbench/)?(?P<visual>visual-)?(?P<env>[a-z0-9-]+?)(?:-play|-navigate)?(?:-singletask)?(?:-task(?P<task>\d+))?(?:-v0)?"
)


@dataclasses.dataclass(frozen=True)
class OGBenchConfig:
    """One task of an OGBench environment."""

    env: str = "cube-single"
    """Name of the environment without version, e.g. cube-single or pointmaze-medium."""
    task: int = 0
    """Task 1 to 5; 0 stands for OGBench's default task."""
    horizon: int = 0
    """Steps after which an episode is cut off; 0 stands for OGBench's own."""
    visual: bool = False
    """Observe one picture of 64 x 64 and nothing else, as OGBench's visual environments of arms do."""

    def __post_init__(self) -> None:
        if self.env not in SUITE:
            raise ConfigError(f"unknown OGBench environment '{self.env}'", expected=nearest(self.env, SUITE))
        if not 0 <= self.task <= TASKS:
            raise ConfigError(f"{self.env} has no task {self.task}", expected=f"1 to {TASKS}, or 0 for the default")
        if self.visual and self.env.partition("-")[0] not in _ARMS:
            raise ConfigError(f"visual-{self.env} is not supported", expected="an arm's: visual-cube-single, ...")

    @property
    def task_id(self) -> int:
        """Number of the task, never 0."""
        return self.task or SUITE[self.env][2]

    @property
    def name(self) -> str:
        """OGBench's name of the task, e.g. ``cube-single-singletask-task2-v0``."""
        return f"{'visual-' if self.visual else ''}{self.env}-singletask-task{self.task_id}-v0"

    def spec(self) -> Spec:
        """The spec, without importing the simulator."""
        size, horizon, _ = SUITE[self.env]
        kind = self.env.partition("-")[0]
        arm = kind in _ARMS
        body = kind.removesuffix("maze").removesuffix("soccer")
        units = "OGBench's scaled joint, gripper and object state" if arm else "joint positions and velocities"
        state = {STATE: ObservationSpec((size,), "position, m" if body == "point" else units)}
        return Spec(
            observation={PIXELS: pixels_spec(_SIZE, _drawn_by())} if self.visual else state,
            action=_ARM if arm else _locomotion(body),
            env_id=f"ogbench/{self.name}",
            env_version=VERSION,
            horizon=self.horizon or horizon,
            success=_SUCCESS.get(kind, _SUCCESS["maze"]) + " before the action of a step",
        )

    def make(self, num_envs: int) -> SerialVecEnv | ProcessVecEnv:
        """In this process where a step costs less than a message to a worker (point and ant), else one per core."""
        spec = self.spec()
        factory = functools.partial(OGBenchEnv, self)
        return (SerialVecEnv if spec.action.rate_hz == 10.0 else ProcessVecEnv)(spec, factory, num_envs)

    def replay(self, dataset: Dataset, episodes: int) -> list[bool]:
        """Refused: OGBench's episodes do not aim at a task, so replaying them tells nothing about success."""
        raise DataError(
            f"{dataset.path} holds OGBench data, whose episodes do not aim at the task of {self.name}",
            fix="check the file without --env; masks = 0 tells where the task happens to be solved",
        )

    @classmethod
    def parse(cls, name: str) -> OGBenchConfig | None:
        """The task that a name means, or None.

        Understands ``cube-single``, ``cube-single-task3``, ``cube-single-singletask-task3-v0``, the same with the
        kind of data (``cube-single-play-singletask-task3-v0``) and with ``ogbench/`` before it.
        """
        match = _NAME.fullmatch(name)
        if match is None or match["env"] not in SUITE:
            return None
        return cls(match["env"], int(match["task"] or 0), visual=bool(match["visual"]))


class OGBenchEnv:
    """One copy of a task (:class:`flowpolicy.envs.vector.SingleEnv`).

    ``terminated`` and success follow OGBench: they speak of the state before the action (see the module).

    Args:
        config: the task.

    """

    def __init__(self, config: OGBenchConfig) -> None:
        self.sim_env: Any = create_unseeing(config.name) if config.visual else create(config.name)
        self._visual = config.visual
        self.horizon = config.spec().horizon
        self._stream = ("ogbench", config.env, config.task_id)
        self._random = GlobalRandom()
        self._draws = config.env.endswith("teleport")  # where a teleporter leads is drawn in a step
        self._steps = 0

    def reset(self, index: int) -> dict[str, np.ndarray]:
        """Start planned initial state ``index``."""
        seed = derive(0, "plan", *self._stream, index)
        self._steps = 0
        self._random.seed(seed)
        return self._observation(reset_seeded(self.sim_env, self._random, seed)[0])

    def step(self, action: np.ndarray) -> Outcome:
        """Apply one action, clipped to [-1, 1]; the simulator itself would not clip it."""
        clipped = np.clip(np.asarray(action, dtype=np.float64), -1.0, 1.0)
        if self._draws:
            with self._random:
                state, reward, terminated, _, info = self.sim_env.step(clipped)
        else:
            state, reward, terminated, _, info = self.sim_env.step(clipped)
        self._steps += 1
        truncated = self._steps >= self.horizon
        return Outcome(self._observation(state), float(reward), bool(terminated), truncated, bool(info["success"]))

    def look(self) -> dict[str, np.ndarray]:
        """The picture of this moment, (64, 64, 3) uint8, rows top down."""
        return {PIXELS: look(self.sim_env)}

    def render(self) -> np.ndarray:
        """(200, 200, 3) uint8 picture."""
        with opengl():
            return np.asarray(self.sim_env.render())

    def close(self) -> None:
        """Free the simulator."""
        self.sim_env.close()

    def _observation(self, state: np.ndarray) -> dict[str, np.ndarray]:
        return {} if self._visual else {STATE: np.asarray(state, dtype=np.float32)}


def create(name: str, **options: Any) -> Any:
    """An OGBench environment without wrappers: the horizon is ours, and so are all seeds.

    Args:
        name: registered name, e.g. ``cube-single-v0``.
        options: passed on to OGBench.

    Raises:
        MissingExtraError: OGBench is not installed.

    """
    choose_opengl()
    try:
        import gymnasium
        import ogbench  # noqa: F401  registers the environments
        from gymnasium.envs.registration import load_env_creator
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "ogbench", "ogbench") from error
    registered = gymnasium.spec(name)
    entry = registered.entry_point
    maker: Any = load_env_creator(entry) if isinstance(entry, str) else entry
    if isinstance(maker, type):
        # The arm's action_space is made anew, unseeded, at every look; a reset takes random steps from it.
        space = gymnasium.spaces.Box(-1.0, 1.0, (5,), np.float32)
        maker = type(maker.__name__, (maker,), {"action_space": space})
    return maker(**{**registered.kwargs, **options})


def reset_seeded(env: Any, random: GlobalRandom, seed: int, **options: Any) -> tuple[np.ndarray, dict[str, Any]]:
    """Reset with every source of chance fixed: the environment's, its action space's and NumPy's global one."""
    env.action_space.seed(seed % 2**32)
    with random:
        state, info = env.reset(seed=seed, **options)
    return state, info


def create_unseeing(name: str, **options: Any) -> Any:
    """A visual environment of OGBench whose steps give states and draw nothing; :func:`look` takes its picture."""
    env = create(name, **options)
    with GlobalRandom():
        env.reset(seed=0)  # builds the scene, with the colours of pictures
    env._ob_type = "states"
    return env


def look(env: Any) -> np.ndarray:
    """The picture that OGBench gives as the observation of this moment, (64, 64, 3) uint8."""
    with opengl():
        return np.ascontiguousarray(env.render(camera=CAMERA))


def _drawn_by() -> str:
    try:
        return metadata.version("mujoco")
    except metadata.PackageNotFoundError:
        return UNSTATED


def _locomotion(body: str) -> ActionSpec:
    size, rate = _BODY[body]
    if body == "point":
        return ActionSpec(size, "delta", "world", "1 stands for 0.2 m per step", rate_hz=rate)
    return ActionSpec(size, "absolute", "joints", "-1 and 1 stand for the ends of each motor's range", rate_hz=rate)
