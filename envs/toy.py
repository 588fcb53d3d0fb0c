"""Reaching a goal past a round obstacle in the plane: two ways round, NumPy only, microseconds per step.

It exercises every part of training and evaluation without a simulator. The expert passes left or right of
the obstacle with equal probability, so the mean of the demonstrated actions runs into it: a regression
fails where a policy that represents both modes succeeds.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from flowpolicy.core.seed import derive, numpy_generator
from flowpolicy.core.spec import ActionSpec, ObservationSpec, Spec
from flowpolicy.data.robomimic import StoredState, read_initial_state
from flowpolicy.envs.action_replay import replay_episodes, require_recorded_in
from flowpolicy.envs.recording import KeptEpisode, make_episode
from flowpolicy.envs.vector import Outcome, SerialVecEnv

if TYPE_CHECKING:
    from flowpolicy.data.dataset import Dataset  # brings torch, a second of every worker's start

_STEP = 0.1  # length that an action of 1 stands for
_GOAL = np.array([0.0, 1.0])
_OBSTACLE = 0.3  # radius, centre at the origin
_REACHED = 0.1


@dataclasses.dataclass(frozen=True)
class ToyConfig:
    """Point reaching with an obstacle."""

    horizon: int = 40
    """Steps after which an episode is cut off."""

    def spec(self) -> Spec:
        """The spec."""
        return Spec(
            observation={"position": ObservationSpec((2,), "position of the point in the plane, m")},
            action=ActionSpec(2, "delta", "world", "1 stands for 0.1 m per step", rate_hz=10.0),
            env_id="flowpolicy/Toy",
            env_version="1",
            horizon=self.horizon,
            success="the point is within 0.1 m of (0, 1)",
        )

    def env_args(self) -> dict[str, Any]:
        """``env_args`` of a RoboMimic file; type 2 (gym) only because the format has no word for our own."""
        return {"env_name": "flowpolicy/Toy", "env_version": "1", "type": 2, "env_kwargs": {}}

    def make(self, num_envs: int) -> SerialVecEnv:
        """All slots in this process."""
        return SerialVecEnv(self.spec(), functools.partial(ToyEnv, self.horizon), num_envs)

    def replay(self, dataset: Dataset, episodes: int) -> list[bool]:
        """Success of the first episodes of a file, replayed open-loop from their stored states."""
        require_recorded_in(self.spec(), dataset)

        def start(row: int) -> ToyEnv:
            env = ToyEnv(horizon=0)
            env.position = read_initial_state(dataset.path, dataset.names[row])[0]
            return env

        return [one.success for one in replay_episodes(dataset, episodes, start)]


class ToyEnv:
    """One point (:class:`flowpolicy.envs.vector.SingleEnv`). The obstacle stops it; reaching the goal terminates."""

    def __init__(self, horizon: int) -> None:
        self.horizon = horizon
        self.position = np.zeros(2)
        self._steps = 0

    def reset(self, index: int) -> dict[str, np.ndarray]:
        """Start planned initial state ``index``."""
        return self.reset_from(derive(0, "plan", "toy", index))

    def reset_from(self, seed: int) -> dict[str, np.ndarray]:
        """Start the initial state that ``seed`` draws, below the obstacle."""
        self.position = np.array([0.0, -1.0]) + np.random.default_rng(seed).uniform(-0.3, 0.3, size=2)
        self._steps = 0
        return self._observe()

    def state(self) -> np.ndarray:
        """(2,) position."""
        return self.position.copy()

    def restore(self, stored: StoredState) -> dict[str, np.ndarray]:
        """Continue an episode from a stored state."""
        self.position, self._steps = np.array(stored.state, dtype=np.float64), len(stored.actions)
        return self._observe()

    def step(self, action: np.ndarray) -> Outcome:
        """Move by an action (2,), clipped to [-1, 1]."""
        moved = self.position + _STEP * np.clip(np.asarray(action, dtype=np.float64), -1.0, 1.0)
        if np.linalg.norm(moved) > _OBSTACLE:
            self.position = moved
        self._steps += 1
        success = bool(np.linalg.norm(self.position - _GOAL) < _REACHED)
        return Outcome(self._observe(), float(success), success, self._steps >= self.horizon, success)

    def render(self) -> np.ndarray:
        """(128, 128, 3) uint8 picture: obstacle grey, goal green, point blue."""
        x, y = np.meshgrid(np.linspace(-1.5, 1.5, 128), np.linspace(1.5, -1.5, 128))
        picture = np.full((128, 128, 3), 255, dtype=np.uint8)
        picture[np.hypot(x, y) < _OBSTACLE] = 128
        picture[np.hypot(x - _GOAL[0], y - _GOAL[1]) < _REACHED] = (0, 160, 0)
        picture[np.hypot(x - self.position[0], y - self.position[1]) < 0.05] = (0, 0, 200)
        return picture

    def close(self) -> None:
        """Nothing to free."""

    def _observe(self) -> dict[str, np.ndarray]:
        return {"position": self.position.astype(np.float32)}


def expert_action(position: np.ndarray, side: int, speed: float) -> np.ndarray:
    """(2,) action of the expert: towards the goal, around the obstacle on ``side`` (-1 left, 1 right).

    While the straight line to the goal passes the centre closer than 0.45 m it heads for the tangent point
    of that circle instead.
    """
    heading = _GOAL - position
    radius, distance = 0.45, float(np.linalg.norm(position))
    ahead = -float(position @ heading) / float(heading @ heading)  # where the line is closest to the centre
    if 0.0 < ahead < 1.0 and np.linalg.norm(position + ahead * heading) < radius:
        # Angle between the direction to the centre and the tangent to the circle.
        angle = np.arcsin(min(1.0, radius / distance)) * -side
        cos, sin = np.cos(angle), np.sin(angle)
        heading = np.array([[cos, -sin], [sin, cos]]) @ -position
    length = max(float(np.linalg.norm(heading)), 1e-9)
    return heading / length * min(speed, length / _STEP)


class ToyRecorder:
    """Records expert episodes (:class:`flowpolicy.envs.recording.EpisodeRecorder`)."""

    def __init__(self, config: ToyConfig) -> None:
        self._env = ToyEnv(config.horizon)

    def record(self, seed: int, index: int, level: str, keep_failures: bool) -> KeptEpisode:
        """One episode; ``worse`` is slower and noisier than ``better``."""
        stream = ("demonstration", "toy", index, 0)
        rng = numpy_generator(seed, *stream, "style")
        obs = self._env.reset_from(derive(seed, *stream, "state"))
        slow, noise = {"better": (0.9, 0.03), "okay": (0.7, 0.15), "worse": (0.45, 0.3)}[level]
        side, speed = int(rng.choice([-1, 1])), rng.uniform(slow, slow + 0.1)
        rows: list[tuple[Any, ...]] = []
        done = False
        while not done:
            state = self._env.state()
            action = expert_action(state, side, speed) + noise * rng.normal(size=2)
            action = np.clip(action, -1.0, 1.0).astype(np.float32)
            outcome = self._env.step(action)
            rows.append((obs, state, action, outcome.reward, outcome.success, outcome.obs))
            obs, done = outcome.obs, outcome.terminated or outcome.truncated
        return KeptEpisode(make_episode(rows), rows[-1][4], 1)
