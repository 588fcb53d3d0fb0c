"""Adroit hand of Gymnasium-Robotics (Rajeswaran et al., "Learning Complex Dexterous Manipulation", 2018).

``AdroitHandPen-v1``, ``Door``, ``Hammer`` and ``Relocate`` stand in for D4RL's mujoco-py tasks of the same names. Same
model, rewards and horizon; contacts are computed by MuJoCo 3 instead of 2.1, so a stored action sequence comes out
close to, but not exactly, where it did (the human door demonstrations of D4RL open the door in 8 of 25 episodes).
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
from typing import TYPE_CHECKING, Any

import numpy as np

from flowpolicy.core.errors import ConfigError, DataError, MissingExtraError, nearest
from flowpolicy.core.seed import derive
from flowpolicy.core.spec import ActionSpec, ObservationSpec, Spec
from flowpolicy.data.d4rl import initial_states
from flowpolicy.envs.action_replay import Replayed, replay_episodes
from flowpolicy.envs.rendering import choose_opengl, opengl
from flowpolicy.envs.vector import Outcome, SerialVecEnv

if TYPE_CHECKING:
    from flowpolicy.data.dataset import Dataset  # brings torch, a second of every worker's start


@dataclasses.dataclass(frozen=True)
class _Task:
    env: str
    obs: int
    actions: int
    holds: str
    """What the observation holds."""
    state: str
    """What a stored state names beside qpos and qvel."""
    success: str
    random: float
    """Mean return of D4RL's random policy."""
    expert: float
    """Mean return of D4RL's expert."""


_TASKS = {
    "door": _Task(
        "AdroitHandDoor-v1",
        39,
        28,
        "joint angles (rad), palm and handle positions (m)",
        "door_body_pos",
        "the door's hinge has been opened by 1.35 rad or more at any step of the episode",
        -56.512833,
        2880.5693087298737,
    ),
    "hammer": _Task(
        "AdroitHandHammer-v1",
        46,
        26,
        "joint angles (rad) and velocities, positions of palm, hammer and nail (m), orientation, force on the nail",
        "board_pos",
        "the nail has been within 0.01 m of its final position at any step of the episode",
        -274.856578,
        12794.134825156867,
    ),
    "pen": _Task(
        "AdroitHandPen-v1",
        45,
        24,
        "joint angles (rad), position, velocity and orientation of the pen, desired orientation, their differences",
        "desired_orien",
        "the pen has been within 0.075 m and a cosine of 0.95 of its target at any step of the episode",
        96.262799,
        3076.8331017826877,
    ),
    "relocate": _Task(
        "AdroitHandRelocate-v1",
        39,
        30,
        "joint angles (rad), positions of palm, ball and target relative to each other (m)",
        "obj_pos target_pos",
        "the ball has been within 0.1 m of the target at any step of the episode",
        -6.425911,
        4233.877797728884,
    ),
}


@dataclasses.dataclass(frozen=True)
class AdroitConfig:
    """A task of the 24-joint hand, with its dense reward as it is."""

    horizon: int = 200
    """Steps after which an episode is cut off; D4RL uses 200 (100 for the pen)."""
    task: str = "door"
    """door, hammer, pen or relocate."""

    def __post_init__(self) -> None:
        if self.task not in _TASKS:
            raise ConfigError(f"unknown Adroit task '{self.task}'", expected=nearest(self.task, _TASKS))

    def spec(self) -> Spec:
        """The spec, without importing the simulator."""
        task = _TASKS[self.task]
        return Spec(
            observation={"state": ObservationSpec((task.obs,), task.holds)},
            action=ActionSpec(
                task.actions,
                convention="absolute",
                frame="joints",
                units="-1 and 1 stand for the ends of each actuator's control range",
                rate_hz=100.0,
            ),
            env_id=f"gymnasium-robotics/{task.env}",
            env_version="1",
            horizon=self.horizon,
            success=task.success,
        )

    def normalized_score(self, episode_return: float) -> float:
        """D4RL's score: 0 at the random policy's return, 100 at the expert's."""
        task = _TASKS[self.task]
        return 100.0 * (episode_return - task.random) / (task.expert - task.random)

    def make(self, num_envs: int) -> SerialVecEnv:
        """All slots in this process: a step costs less than a message to a worker."""
        return SerialVecEnv(self.spec(), functools.partial(AdroitEnv, self.horizon, self.task), num_envs)

    def replay(self, dataset: Dataset, episodes: int) -> list[bool]:
        """Success of the first episodes of a D4RL file, replayed open-loop from their stored states."""
        return [one.success for one in self.replay_returns(dataset, episodes)]

    def replay_returns(self, dataset: Dataset, episodes: int) -> list[Replayed]:
        """Like :meth:`replay`, with returns; whole episodes, whatever the horizon."""
        states = initial_states(dataset.path)
        for name in ("qpos", "qvel", *_TASKS[self.task].state.split()):
            if name not in states:
                raise DataError(f"{dataset.path}: infos/initial_state/{name} is missing, so it cannot be replayed")
        env = AdroitEnv(task=self.task)

        def start(row: int) -> AdroitEnv:
            env.load({name: value[row].astype(np.float64) for name, value in states.items()})
            return env

        with contextlib.closing(env):
            return replay_episodes(dataset, episodes, start)


def import_gymnasium_robotics() -> Any:
    """The gymnasium package, with the environments of Gymnasium-Robotics registered."""
    choose_opengl()
    try:
        import gymnasium

        with contextlib.redirect_stderr(io.StringIO()):  # a notice about other environments
            import gymnasium_robotics
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "gymnasium-robotics", "adroit") from error
    gymnasium.register_envs(gymnasium_robotics)
    return gymnasium


class AdroitEnv:
    """One hand (:class:`flowpolicy.envs.vector.SingleEnv`).

    Never terminates (D4RL's pen did when it was dropped; that of Gymnasium-Robotics goes on): return counts the
    steps in which the task is solved. ``success`` stays True once it has been. The horizon truncates.

    Args:
        horizon: steps until truncation; 0 for none.
        task: door, hammer, pen or relocate.

    """

    def __init__(self, horizon: int = 0, task: str = "door") -> None:
        gymnasium = import_gymnasium_robotics()
        self.horizon, self.task = horizon, task
        # Without the wrappers: the horizon is ours, and checks of every step cost as much as the step.
        self.sim_env: Any = gymnasium.make(_TASKS[task].env, render_mode="rgb_array").unwrapped
        self._steps, self._solved = 0, False

    def reset(self, index: int) -> dict[str, np.ndarray]:
        """Start planned initial state ``index``."""
        seed = derive(0, "plan", "adroit", self.task, index)
        return self._start(self.sim_env.reset(seed=seed)[0])

    def load(self, state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Start from a stored state: ``qpos``, ``qvel`` and what the task adds, such as ``door_body_pos`` (3,)."""
        return self._start(self.sim_env.reset(seed=0, options={"initial_state_dict": state})[0])

    def step(self, action: np.ndarray) -> Outcome:
        """Apply one action, clipped to [-1, 1]."""
        state, reward, _, _, info = self.sim_env.step(np.asarray(action, dtype=np.float64))
        self._steps += 1
        self._solved = self._solved or bool(info["success"])
        truncated = bool(self.horizon and self._steps >= self.horizon)
        return Outcome(_observation(state), float(reward), False, truncated, self._solved)

    def render(self) -> np.ndarray:
        """(height, width, 3) uint8 picture."""
        with opengl():
            return np.asarray(self.sim_env.render())

    def close(self) -> None:
        """Free the simulator."""
        self.sim_env.close()

    def _start(self, state: np.ndarray) -> dict[str, np.ndarray]:
        self._steps, self._solved = 0, False
        return _observation(state)


def _observation(state: np.ndarray) -> dict[str, np.ndarray]:
    return {"state": np.asarray(state, dtype=np.float32)}
