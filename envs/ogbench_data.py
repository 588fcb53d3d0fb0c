"""Generate OGBench files by the procedure and in the layout of the official generators.

Play: a scripted oracle of the OGBench package moves one random object to a random place along a plan with
temporally correlated noise (0.1, smoothed over 0.5 steps); when it is done the next target is drawn; an episode
is 1001 rows. In cube-double a block is stacked with a probability drawn for each episode from U(0, 0.25). A scene
episode in which the cube leaves the visible part of the table is thrown away and repeated.

Navigate: the point moves towards the next cell on the shortest path to its goal, action = direction + N(0, 0.5);
at the goal the next one is drawn from the cells that are not corridors; an episode is 1001 rows.

Unlike the official generators, which leave their seeds to chance, episode i depends on (seed, i) alone.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flowpolicy.core.errors import ConfigError, SimulatorError, nearest
from flowpolicy.core.seed import derive, numpy_generator
from flowpolicy.data.ogbench import PIXELS, open_npz, pixels_json, write_npz
from flowpolicy.envs.global_random import GlobalRandom
from flowpolicy.envs.ogbench_env import SUITE, TASKS, OGBenchConfig, create, create_unseeing, look, reset_seeded
from flowpolicy.envs.worker import in_order

EPISODE_ROWS = 1001
"""Rows of an episode: 1000 transitions and the last state."""

_NOISE, _SMOOTHING = 0.1, 0.5  # of the plans
_MAZE_NOISE = 0.5
_ATTEMPTS = 50
_VISUAL = "visual-"
_TYPES = {"terminals": np.bool_, "button_states": np.int64}  # every other column is float32

Columns = dict[str, np.ndarray]


class PlayRecorder:
    """Records ``play`` episodes of a manipulation environment.

    Args:
        name: of the environment, e.g. ``cube-single``; ``visual-cube-single`` records its pictures instead of states.

    """

    def __init__(self, name: str) -> None:
        self._visual, name = name.startswith(_VISUAL), name.removeprefix(_VISUAL)
        self._name = name
        options: dict[str, Any] = {"terminate_at_goal": False, "mode": "data_collection"}
        self._env = (create_unseeing if self._visual else create)(f"{self._visual * _VISUAL}{name}-v0", **options)
        self._oracles = _oracles(name, self._env)
        self._random = GlobalRandom()

    def record(self, seed: int, index: int) -> Columns:
        """The rows of episode ``index`` under ``seed``."""
        for attempt in range(_ATTEMPTS):
            columns = self._run(derive(seed, "demonstration", "ogbench", self._name, index, attempt))
            if self._name != "scene" or _cube_in_sight(columns["qpos"][:, 14:17]):
                return columns
        raise SimulatorError(f"{_ATTEMPTS} episodes of {self._name} in a row lost the cube (episode {index})")

    def _run(self, seed: int) -> Columns:
        self._random.seed(seed)
        obs, info = reset_seeded(self._env, self._random, seed)
        with self._random:
            stack = _stacking(self._name)
            oracle = self._oracles[info["privileged/target_task"]]
            oracle.reset(obs, info)
            rows: list[dict[str, Any]] = []
            while len(rows) < EPISODE_ROWS:
                seen = look(self._env) if self._visual else obs
                action = np.clip(np.asarray(oracle.select_action(obs, info)), -1.0, 1.0)
                following, _, _, _, info = self._env.step(action)
                if oracle.done:
                    oracle = self._next_target(stack)
                rows.append(_row(seen, action, info, len(rows) == EPISODE_ROWS - 1))
                obs = following
        return _stack(rows)

    def _next_target(self, stack: float) -> Any:
        obs, info = self._env.set_new_target(p_stack=stack)
        oracle = self._oracles[info["privileged/target_task"]]
        oracle.reset(obs, info)
        return oracle


class NavigateRecorder:
    """Records ``navigate`` episodes of a point maze.

    Args:
        name: of the environment, e.g. ``pointmaze-medium``.

    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._env = create(f"{name}-v0", terminate_at_goal=False)
        self._free, self._goals = _cells(self._env.maze_map)
        self._random = GlobalRandom()

    def record(self, seed: int, index: int) -> Columns:
        """The rows of episode ``index`` under ``seed``."""
        stream = ("demonstration", "ogbench", self._name, index)
        rng, start = numpy_generator(seed, *stream, "policy"), derive(seed, *stream, "state")
        self._random.seed(start)
        task = {"init_ij": self._free[rng.integers(len(self._free))], "goal_ij": self._draw_goal(rng)}
        obs, _ = reset_seeded(self._env, self._random, start, options={"task_info": task})
        rows: list[dict[str, Any]] = []
        with self._random:
            while len(rows) < EPISODE_ROWS:
                here = self._env.get_xy()
                towards = self._env.get_oracle_subgoal(here, self._env.cur_goal_xy)[0] - here
                action = towards / (np.linalg.norm(towards) + 1e-6) + rng.normal(0.0, _MAZE_NOISE, size=2)
                action = np.clip(action, -1.0, 1.0)
                following, _, _, _, info = self._env.step(action)
                rows.append(_row(obs, action, info, len(rows) == EPISODE_ROWS - 1))
                if info["success"]:
                    self._env.set_goal(goal_ij=self._draw_goal(rng))
                obs = following
        return _stack(rows)

    def _draw_goal(self, rng: np.random.Generator) -> tuple[int, int]:
        return self._goals[rng.integers(len(self._goals))]


RECORDERS: dict[str, Callable[[], PlayRecorder | NavigateRecorder]] = {
    **{
        name: functools.partial(PlayRecorder, name)
        for name in ("cube-single", "cube-double", "cube-triple", "scene", "puzzle-3x3", "puzzle-4x4")
        for name in (name, f"{_VISUAL}{name}")
    },
    **{name: functools.partial(NavigateRecorder, name) for name in SUITE if name.startswith("pointmaze-")},
}
"""Environments whose data can be generated."""


def make_ogbench(
    name: str,
    out: Path,
    episodes: int,
    seed: int = 0,
    workers: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Write ``episodes`` training episodes to ``out`` and a tenth as many (at least one) to ``<out>-val.npz``.

    Both carry the rewards and masks of every task beside the official columns.

    Args:
        name: one of :data:`RECORDERS`.
        out: the training file; both files appear whole or not at all.
        episodes: number of training episodes.
        seed: seed of everything; same seed, same bytes.
        workers: processes; default one per core.
        progress: called with the number of finished episodes, validation episodes included.

    Returns:
        Rows in both files together.

    """
    if name not in RECORDERS:
        raise ConfigError(f"there is no generator for '{name}'", expected=nearest(name, RECORDERS))
    if episodes < 1:
        raise ConfigError(f"{episodes} episodes were asked for", expected="at least 1")
    if out.suffix != ".npz":
        raise ConfigError(f"--out {out} is no npz file", expected="FILE.npz; FILE-val.npz is written beside it")
    config = OGBenchConfig.parse(name)
    drawn = pixels_json(config.spec().images[PIXELS]) if config and config.visual else {}
    calls = [(seed, index) for index in range(episodes + validation_episodes(episodes))]
    found: list[Columns] = list(in_order(RECORDERS[name], "record", calls, workers, progress))
    for path, part in ((validation_path(out), found[episodes:]), (out, found[:episodes])):
        columns = {key: np.concatenate([one[key] for one in part]) for key in part[0]}
        write_npz(path, columns | label(name, columns) | drawn)
    return sum(len(one["terminals"]) for one in found)


def validation_episodes(episodes: int) -> int:
    """Episodes in the validation file: a tenth, at least one (OGBench's loader refuses an empty file)."""
    return max(1, episodes // 10)


def validation_path(path: Path) -> Path:
    """Where OGBench's loader looks for the validation file."""
    return path.with_name(f"{path.stem}-val.npz")


def label(name: str, columns: Mapping[str, np.ndarray]) -> Columns:
    """Rewards and masks of every task, by OGBench's own relabelling, and the name of the default task.

    Args:
        name: of the environment.
        columns: at least ``qpos`` (N, nq) and, where there are buttons, ``button_states`` (N, n).

    """
    config = OGBenchConfig.parse(name) or OGBenchConfig(name)
    env = create(dataclasses.replace(config, visual=False).name)
    from ogbench.relabel_utils import relabel_dataset

    found: Columns = {}
    for task in range(1, TASKS + 1):
        env._reward_task_id = task  # what the constructor stores; a new environment takes seconds
        labelled = dict(columns)
        with GlobalRandom():
            relabel_dataset(config.env, env, labelled)
        found |= {f"rewards_task{task}": labelled["rewards"], f"masks_task{task}": labelled["masks"]}
    env.close()
    default = {key: found[f"{key}_task{config.task_id}"] for key in ("rewards", "masks")}
    return found | default | {"env_id": np.array(config.spec().env_id)}


def label_file(path: Path, name: str, out: Path) -> None:
    """Copy an OGBench file and add the rewards and masks of every task of environment ``name``."""
    with open_npz(path) as file:
        file.read("qpos", 2)
        columns = file.all()
    write_npz(out, columns | label(name, columns))


def _oracles(name: str, env: Any) -> dict[str, Any]:
    from ogbench.manipspace.oracles.plan.button_plan import ButtonPlanOracle
    from ogbench.manipspace.oracles.plan.cube_plan import CubePlanOracle
    from ogbench.manipspace.oracles.plan.drawer_plan import DrawerPlanOracle
    from ogbench.manipspace.oracles.plan.window_plan import WindowPlanOracle

    options = {"env": env, "noise": _NOISE, "noise_smoothing": _SMOOTHING}
    if name.startswith("cube"):
        return {"cube": CubePlanOracle(**options)}
    if name.startswith("puzzle"):
        return {"button": ButtonPlanOracle(**options, gripper_always_closed=True)}
    return {
        "cube": CubePlanOracle(**options),
        "button": ButtonPlanOracle(**options),
        "drawer": DrawerPlanOracle(**options),
        "window": WindowPlanOracle(**options),
    }


def _stacking(name: str) -> float:
    """Probability that a block is put on another one, drawn once per episode (from NumPy's global stream)."""
    ranges = {"cube-single": (0.0, 0.0), "cube-double": (0.0, 0.25), "cube-triple": (0.05, 0.35)}
    return float(np.random.uniform(*ranges.get(name, (0.5, 0.5))))  # noqa: NPY002


def _cube_in_sight(cube: np.ndarray) -> bool:
    """Whether the cube (T, 3) never goes too far right, nor too far left without lying in the drawer."""
    y, z = cube[:, 1], cube[:, 2]
    return not ((y >= 0.29) | ((y <= -0.3) & ((z < 0.06) | (z > 0.08)))).any()


def _cells(maze: np.ndarray) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Free cells, and those among them that are no corridor (free on two opposite sides, walls on the others)."""
    free = [(int(i), int(j)) for i, j in np.argwhere(maze == 0)]
    corridors = ([0, 0, 1, 1], [1, 1, 0, 0])
    around = {(i, j): [maze[i - 1, j], maze[i + 1, j], maze[i, j - 1], maze[i, j + 1]] for i, j in free}
    return free, [cell for cell in free if around[cell] not in corridors]


def _row(obs: np.ndarray, action: np.ndarray, info: Mapping[str, Any], last: bool) -> dict[str, Any]:
    row = {"observations": obs, "actions": action, "terminals": last}
    row |= {"qpos": info["prev_qpos"], "qvel": info["prev_qvel"]}
    return row | ({"button_states": info["prev_button_states"]} if "prev_button_states" in info else {})


def _stack(rows: list[dict[str, Any]]) -> Columns:
    types = _TYPES | ({"observations": np.uint8} if np.ndim(rows[0]["observations"]) > 1 else {})
    return {key: np.array([row[key] for row in rows], dtype=types.get(key, np.float32)) for key in rows[0]}
