"""Generate Maze2D files in D4RL's layout with a way-point controller, as D4RL did.

The point mass is steered to random goals one after the other: at every moment towards the centre of the next cell
on a shortest path, by a PD controller (10 times the distance, minus the velocity) with noise N(0, 0.5), clipped to
[-1, 1]. Rewards are those of the evaluation task, whatever the controller was up to: 1 within 0.5 m of its one goal.

An episode is as long as an evaluation episode (300, 600 or 800 steps) and ends with a timeout; D4RL's own files are
cut at every goal that the controller reaches instead. Episode i depends on (seed, i) alone.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable
from pathlib import Path

import numpy as np

from flowpolicy.core.errors import ConfigError, nearest
from flowpolicy.core.seed import derive, numpy_generator
from flowpolicy.data.hdf5 import written_whole
from flowpolicy.envs.d4rl_env import SUITE, D4RLConfig, D4RLEnv
from flowpolicy.envs.worker import in_order

MAZES = tuple(name for name in SUITE if name.startswith("maze2d-"))
"""Environments whose data can be generated."""

_P, _D, _NOISE = 10.0, -1.0, 0.5
_ARRIVED = 0.1  # m from the controller's goal
_PAID = 0.5  # m from the goal of the task

Cell = tuple[int, int]


class WaypointRecorder:
    """Records episodes of a maze.

    Args:
        name: of the environment, e.g. ``maze2d-umaze``.

    """

    def __init__(self, name: str) -> None:
        self._name, config = name, D4RLConfig(name)
        self._env, self._steps = D4RLEnv(config), config.spec().horizon
        rows = SUITE[name].maze.split()
        self._free = [(i, j) for i, row in enumerate(rows) for j, cell in enumerate(row) if cell != "#"]
        (goal,) = [(i, j) for i, row in enumerate(rows) for j, cell in enumerate(row) if cell == "g"]
        self._task_goal = np.array(goal, dtype=np.float64)

    def record(self, seed: int, index: int) -> dict[str, np.ndarray]:
        """The rows of episode ``index`` under ``seed``."""
        stream = ("demonstration", "d4rl", self._name, index)
        rng = numpy_generator(seed, *stream, "policy")
        state = self._env.reset_from(derive(seed, *stream, "state"))["state"].astype(np.float64)
        target, distances = self._draw_target(rng)
        rows: list[dict[str, np.ndarray]] = []
        while len(rows) < self._steps:
            if np.linalg.norm(state[:2] - target) <= _ARRIVED:
                target, distances = self._draw_target(rng)
            way = waypoint(state[:2], target, distances)
            action = _P * (way - state[:2]) + _D * state[2:] + rng.normal(0.0, _NOISE, size=2)
            action = np.clip(action, -1.0, 1.0)
            reward = float(np.linalg.norm(state[:2] - self._task_goal) <= _PAID)
            rows.append({"observations": state, "actions": action, "rewards": np.array(reward), "goal": target})
            state = self._env.step(action).obs["state"].astype(np.float64)
        return {key: np.stack([row[key] for row in rows]).astype(np.float32) for key in rows[0]}

    def _draw_target(self, rng: np.random.Generator) -> tuple[np.ndarray, dict[Cell, int]]:
        cell = self._free[rng.integers(len(self._free))]
        return np.array(cell) + rng.uniform(-0.1, 0.1, size=2), cells_to_go(self._free, cell)


def cells_to_go(free: list[Cell], goal: Cell) -> dict[Cell, int]:
    """Free cell -> number of cells on the shortest path to ``goal``."""
    found, queue = {goal: 0}, deque([goal])
    while queue:
        i, j = queue.popleft()
        for near in ((i - 1, j), (i, j - 1), (i + 1, j), (i, j + 1)):
            if near in free and near not in found:
                found[near] = found[i, j] + 1
                queue.append(near)
    return found


def waypoint(position: np.ndarray, target: np.ndarray, distances: dict[Cell, int]) -> np.ndarray:
    """Where to head (2,): the centre of the next cell, or the target itself in its own cell."""
    cell = (round(float(position[0])), round(float(position[1])))
    if cell not in distances:  # pressed against a wall
        cell = min(distances, key=lambda one: float(np.hypot(*(position - one))))
    if distances[cell] == 0:
        return target
    i, j = cell
    nexts = [one for one in ((i - 1, j), (i, j - 1), (i + 1, j), (i, j + 1)) if one in distances]
    return np.array(min(nexts, key=distances.__getitem__), dtype=np.float64)


def make_maze2d(
    name: str,
    out: Path,
    episodes: int,
    seed: int = 0,
    workers: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Write a D4RL file of ``episodes`` episodes, whole or not at all, the same bytes for the same seed.

    Args:
        name: one of :data:`MAZES`.
        out: the file.
        episodes: number of episodes.
        seed: seed of everything.
        workers: processes; default one per core.
        progress: called with the number of finished episodes.

    Returns:
        Rows in the file.

    """
    if name not in MAZES:
        raise ConfigError(f"there is no generator for '{name}'", expected=nearest(name, MAZES))
    if episodes < 1:
        raise ConfigError(f"{episodes} episodes were asked for", expected="at least 1")
    create, calls = functools.partial(WaypointRecorder, name), [(seed, index) for index in range(episodes)]
    found = list(in_order(create, "record", calls, workers, progress))
    columns = {key: np.concatenate([one[key] for one in found]) for key in found[0]}
    columns["infos/goal"] = columns.pop("goal")
    columns["terminals"] = np.zeros(len(columns["actions"]), dtype=bool)
    columns["timeouts"] = columns["terminals"].copy()
    columns["timeouts"][np.cumsum([len(one["actions"]) for one in found]) - 1] = True
    _write(out, columns)
    return len(columns["actions"])


def _write(out: Path, columns: dict[str, np.ndarray]) -> None:
    with written_whole(out) as file:
        for key, value in columns.items():
            file.create_dataset(key, data=value, track_times=False)
