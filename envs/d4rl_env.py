"""D4RL's suites beside Adroit (Fu et al., "D4RL: Datasets for Deep Data-Driven Reinforcement Learning", 2020).

D4RL was recorded in mujoco-py environments on MuJoCo 2.0; current environments stand in for them. What differs,
and what a score measured here therefore means:

- **Gym locomotion** (``-v2`` files): the ``-v4`` environments, same observations and rewards. MuJoCo 3 moves
  differently from the first step on; close to the published scores, never the same ones. (``-v5`` differs more:
  Hopper's reward loses its bonus in the step that falls.)
- **AntMaze**: D4RL's walls, start and goal are rebuilt and the 29 numbers of its observation restored (position,
  joints, velocities; 105 with contact forces in ``AntMaze-v5``), in D4RL's frame. The ant itself is Gymnasium's:
  time step 0.01 s against 0.02 s and other gears. A policy learnt from D4RL's files does not carry over; use
  Minari's AntMaze files, which were recorded with this ant, and never compare with published D4RL scores.
- **Maze2D**: same walls, goal, frame and point mass. Scores compare, up to MuJoCo's version.
- **Kitchen**: 59 numbers against D4RL's 60 (of which 30 repeated the goal): D4RL's files do not fit; Minari's do.

Reward shift: AntMaze -1 (so -1 per step until the goal, 0 there), all others none; its files are to be read with
``DataConfig.reward_shift`` -1 (the contract insists).
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flowpolicy.core import keys
from flowpolicy.core.errors import ConfigError, DataError, nearest
from flowpolicy.core.seed import derive
from flowpolicy.core.spec import NO_SUCCESS, ActionSpec, ObservationSpec, Spec
from flowpolicy.data.d4rl import STATE, row_states
from flowpolicy.envs.adroit import import_gymnasium_robotics
from flowpolicy.envs.rendering import opengl
from flowpolicy.envs.vector import Outcome, ProcessVecEnv, SerialVecEnv

if TYPE_CHECKING:
    from flowpolicy.data.dataset import Dataset  # brings torch, a second of every worker's start

_PIECE = 20  # steps that are replayed from one stored state
_REACHED = 0.5  # distance to the goal, m (Gymnasium's own criterion is 0.45)

# Rows as in D4RL: # wall, g goal, r start; without r every free cell is a start.
_UMAZE = "##### #g..# ###.# #...# #####"
_ANT_UMAZE = "##### #r..# ###.# #g..# #####"
_MEDIUM = "######## #..##..# #..#...# ##...### #..#...# #.#..#.# #...#.g# ########"
_LARGE = (
    "############ #....#.....# #.##.#.#.#.# #......#...# #.####.###.# #..#.#.....# ##.#.#.#.### #..#...#.g.# "
    "############"
)


@dataclasses.dataclass(frozen=True)
class _Suite:
    env_id: str
    obs: int
    action: ActionSpec
    horizon: int
    success: str
    reference: tuple[float, float]
    """Returns of D4RL's random policy and expert."""
    holds: str
    maze: str = ""
    reward_shift: float = 0.0
    start: tuple[float, ...] = ()


_MOTORS = "-1 and 1 stand for the ends of each motor's range"


def _maze2d(name: str, maze: str, horizon: int, reference: tuple[float, float]) -> _Suite:
    action = ActionSpec(2, "absolute", "world", "force, 1 stands for 100 N", rate_hz=100.0)
    success = f"the point is within {_REACHED} m of the goal"
    holds = "position in cells of the maze (m) and velocity (m/s)"
    return _Suite(f"gymnasium-robotics/PointMaze_{name}-v3", 4, action, horizon, success, reference, holds, maze)


def _antmaze(name: str, maze: str, horizon: int) -> _Suite:
    action = ActionSpec(8, "absolute", "joints", _MOTORS, rate_hz=20.0)
    success, holds = f"the torso is within {_REACHED} m of the goal", "position from the start (m), joints, velocities"
    env_id = f"gymnasium-robotics/AntMaze_{name}-v5"
    return _Suite(env_id, 29, action, horizon, success, (0.0, 1.0), holds, maze, -1.0)


def _locomotion(
    name: str, obs: int, actions: int, rate: float, reference: tuple[float, float], height: float
) -> _Suite:
    action = ActionSpec(actions, "absolute", "joints", _MOTORS, rate_hz=rate)
    holds = "joint positions and velocities"
    return _Suite(f"gymnasium/{name}-v4", obs, action, 1000, NO_SUCCESS, reference, holds, start=(height,))


def _kitchen(variant: str) -> _Suite:
    action = ActionSpec(9, "absolute", "joints", "1 stands for 2 rad/s, or full opening of a finger", rate_hz=12.5)
    holds = "noisy positions and velocities of joints and objects"
    success = f"all of {', '.join(_KITCHEN[variant])} have been done"
    return _Suite(f"gymnasium-robotics/FrankaKitchen-v1-{variant}", 59, action, 280, success, (0.0, 4.0), holds)


_KITCHEN = {
    "partial": ("microwave", "kettle", "light switch", "slide cabinet"),
    "mixed": ("microwave", "kettle", "bottom burner", "light switch"),
}

SUITE = {
    "hopper": _locomotion("Hopper", 11, 3, 125.0, (-20.272305, 3234.3), 1.25),
    "halfcheetah": _locomotion("HalfCheetah", 17, 6, 20.0, (-280.178953, 12135.0), 0.0),
    "walker2d": _locomotion("Walker2d", 17, 6, 125.0, (1.629008, 4592.3), 1.25),
    "maze2d-umaze": _maze2d("UMaze", _UMAZE, 300, (23.85, 161.86)),
    "maze2d-medium": _maze2d("Medium", _MEDIUM, 600, (13.13, 277.39)),
    "maze2d-large": _maze2d("Large", _LARGE, 800, (6.7, 273.99)),
    "d4rl-antmaze-umaze": _antmaze("UMaze", _ANT_UMAZE, 700),
    "d4rl-antmaze-medium": _antmaze("Medium", _MEDIUM.replace("#..##..#", "#r.##..#", 1), 1000),
    "d4rl-antmaze-large": _antmaze("Large", _LARGE.replace("#....#.....#", "#r...#.....#", 1), 1000),
    "kitchen": _kitchen("partial"),
    "kitchen-mixed": _kitchen("mixed"),
}
"""Environments by name; ``d4rl-`` tells its AntMaze from OGBench's."""


@dataclasses.dataclass(frozen=True)
class D4RLConfig:
    """One environment of D4RL."""

    env: str
    """One of the names of :data:`SUITE`."""
    horizon: int = 0
    """Steps after which an episode is cut off; 0 stands for D4RL's own."""

    def __post_init__(self) -> None:
        if self.env not in SUITE:
            raise ConfigError(f"unknown D4RL environment '{self.env}'", expected=nearest(self.env, SUITE))

    def spec(self) -> Spec:
        """The spec, without importing the simulator."""
        suite = SUITE[self.env]
        return Spec(
            observation={STATE: ObservationSpec((suite.obs,), suite.holds)},
            action=suite.action,
            env_id=suite.env_id,
            env_version="1",
            horizon=self.horizon or suite.horizon,
            success=suite.success,
            reward_shift=suite.reward_shift,
            start=suite.start,
        )

    def make(self, num_envs: int) -> SerialVecEnv | ProcessVecEnv:
        """In this process, or for the costly kitchen in one per core."""
        factory = functools.partial(D4RLEnv, self)
        return (ProcessVecEnv if "kitchen" in self.env else SerialVecEnv)(self.spec(), factory, num_envs)

    def normalized_score(self, episode_return: float) -> float:
        """D4RL's score: 0 at the random policy's return, 100 at the expert's.

        Of AntMaze the return is shifted: an episode that ends at the goal scores 100, so the score is the rate of
        success, and a return alone does not tell it.

        Raises:
            ConfigError: for AntMaze.

        """
        suite = SUITE[self.env]
        if suite.reward_shift:
            raise ConfigError(f"{self.env} has no score by return", fix="100 times its rate of success is D4RL's score")
        low, high = suite.reference
        return 100.0 * (episode_return - low) / (high - low)

    def replay(self, dataset: Dataset, episodes: int) -> list[bool]:
        """Whether the first episodes earn the return that the file says, to 1 %.

        They are replayed from the simulator states of the file, twenty steps at a time: over a whole episode the
        rounding of one state ends elsewhere.

        Raises:
            DataError: the file holds no states, or those of another model; or the environment is no locomotion, whose
                state alone says how it goes on.

        """
        if self.spec().defines_success:
            raise DataError(
                f"{dataset.path} cannot be replayed in {self.spec().env_id}",
                expected="a file of locomotion, robosuite or Adroit",
                fix="what the file says is compared all the same",
            )
        states = row_states(dataset.path)
        env = D4RLEnv(self)
        with contextlib.closing(env):
            sizes = {name: getattr(env.sim_env.data, name).shape for name in ("qpos", "qvel")}
            for name, shape in sizes.items():
                if name not in states or states[name].shape[1:] != shape:
                    found = states[name].shape[1:] if name in states else "nothing"
                    raise DataError(
                        f"{dataset.path}: infos/{name} holds {found} per step, so it cannot be replayed",
                        expected=f"{shape}, the state of {self.spec().env_id}",
                    )
            return [env.earns(dataset, states, row) for row in range(min(episodes, len(dataset.names)))]


class D4RLEnv:
    """One copy of an environment (:class:`flowpolicy.envs.vector.SingleEnv`).

    Success ends an AntMaze episode; Maze2D goes on and pays 1 in every step at the goal.

    Args:
        config: which one.

    """

    def __init__(self, config: D4RLConfig) -> None:
        self.name, self._suite, self.horizon = config.env, SUITE[config.env], config.spec().horizon
        self.sim_env: Any = _create(config.env, self._suite)
        self._origin = _origin(self._suite, self.sim_env)
        self._steps, self._done = 0, 0

    def reset(self, index: int) -> dict[str, np.ndarray]:
        """Start planned initial state ``index``."""
        return self.reset_from(derive(0, "plan", "d4rl", self.name, index))

    def reset_from(self, seed: int) -> dict[str, np.ndarray]:
        """Start the initial state that ``seed`` draws."""
        self._steps, self._done = 0, 0
        return self._observe(self.sim_env.reset(seed=seed)[0])

    def step(self, action: np.ndarray) -> Outcome:
        """Apply one action, clipped to [-1, 1]."""
        clipped = np.clip(np.asarray(action, dtype=np.float64), -1.0, 1.0)
        state, reward, terminated, _, info = self.sim_env.step(clipped)
        self._steps += 1
        success = False
        if self._suite.maze:
            success = bool(np.linalg.norm(state["achieved_goal"] - state["desired_goal"]) <= _REACHED)
            terminated = success and "antmaze" in self.name
            reward = float(success) + self._suite.reward_shift
        elif "kitchen" in self.name:
            self._done += len(info["step_task_completions"])
            success = self._done == 4
        truncated = self._steps >= self.horizon
        return Outcome(self._observe(state), float(reward), bool(terminated), truncated, success)

    def earns(self, dataset: Dataset, states: dict[str, np.ndarray], row: int) -> bool:
        """Whether episode ``row`` of a file earns its return, to 1 %, replayed from its states in short pieces."""
        first, steps = int(dataset.starts[row]), int(dataset.lengths[row])
        rows = range(first, first + steps)
        actions, earned = dataset.steps[keys.ACTION][first : first + steps].numpy(), 0.0
        self.reset_from(0)
        for number, action in zip(rows, actions, strict=True):
            if (number - first) % _PIECE == 0:
                self.sim_env.set_state(*(states[name][number].astype(np.float64) for name in ("qpos", "qvel")))
            earned += float(self.sim_env.step(np.clip(action.astype(np.float64), -1.0, 1.0))[1])
        stored = float(dataset.steps[keys.REWARD][first : first + steps].double().sum())
        return abs(earned - stored) <= 0.01 * max(1.0, abs(stored))

    def render(self) -> np.ndarray:
        """(height, width, 3) uint8 picture."""
        with opengl():
            return np.asarray(self.sim_env.render())

    def close(self) -> None:
        """Free the simulator."""
        self.sim_env.close()

    def goal(self) -> np.ndarray:
        """Goal of a maze (2,), in the frame of the observation."""
        return np.asarray(self.sim_env.goal) - self._origin

    def _observe(self, state: Any) -> dict[str, np.ndarray]:
        if isinstance(state, dict):
            parts = [state["achieved_goal"]] if "antmaze" in self.name else []
            state = np.concatenate([*parts, state["observation"]])
        state = np.array(state, dtype=np.float64)
        if self._suite.maze:
            state[:2] -= self._origin
        return {STATE: state.astype(np.float32)}


def _create(name: str, suite: _Suite) -> Any:
    """The simulator without wrappers: the horizon is ours."""
    gymnasium = import_gymnasium_robotics()
    options: dict[str, Any] = {"render_mode": "rgb_array"}
    registered = suite.env_id.partition("/")[2]
    if "kitchen" in name:
        registered, variant = "FrankaKitchen-v1", registered.rpartition("-")[2]
        options["tasks_to_complete"] = list(_KITCHEN[variant])
    elif suite.maze:
        options["maze_map"] = _maze_map(suite.maze, "antmaze" in name)
        if "antmaze" in name:
            options["include_cfrc_ext_in_observation"] = False
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is out of date", category=DeprecationWarning)  # v4, on purpose
        env: Any = gymnasium.make(registered, **options).unwrapped
    if suite.maze:  # its model was written for this simulator alone, and nobody else removes it
        Path((env.ant_env if "antmaze" in name else env.point_env).fullpath).unlink(missing_ok=True)
    if name.startswith("maze2d"):
        env.position_noise_range = 0.1  # D4RL's
    if "antmaze" in name:  # the camera follows nothing of its own accord: look at the whole maze from above
        size = 4.0 * max(len(suite.maze.split()), len(suite.maze.split()[0]))
        view = {"distance": 1.3 * size, "elevation": -90.0, "lookat": np.zeros(3)}
        env.ant_env.mujoco_renderer.default_cam_config = view
    return env


def _maze_map(maze: str, ant: bool) -> list[list[Any]]:
    """The maze as Gymnasium-Robotics wants it, turned so that its axes are D4RL's.

    There, x grows along columns and y against rows. D4RL's ant has x along columns and y along rows, its point
    mass x along rows and y along columns.
    """
    rows = [[{"#": 1, ".": 0}.get(cell, cell) for cell in row] for row in maze.split()]
    return rows[::-1] if ant else [list(column) for column in zip(*rows, strict=True)][::-1]


def _origin(suite: _Suite, env: Any) -> np.ndarray:
    """D4RL's origin (2,) in the simulator's frame: the ant's start, or the centre of cell (0, 0) of Maze2D."""
    if not suite.maze:
        return np.zeros(2)
    rows = suite.maze.split()
    centre = np.array([len(rows), len(rows[0])]) / 2
    if "r" not in suite.maze:
        return 0.5 - centre
    row, column = next((i, line.index("r")) for i, line in enumerate(rows) if "r" in line)
    return 4.0 * (np.array([column, row]) + 0.5 - centre[::-1])
