"""Adroit door of Gymnasium-Robotics (Rajeswaran et al., "Learning Complex Dexterous Manipulation", 2018)."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
from typing import TYPE_CHECKING, Any

import numpy as np

from flowpolicy.core.errors import DataError, MissingExtraError
from flowpolicy.core.seed import derive
from flowpolicy.core.spec import ActionSpec, ObservationSpec, Spec
from flowpolicy.data.d4rl import initial_states
from flowpolicy.envs.rendering import choose_opengl, opengl
from flowpolicy.envs.replay import Replayed, replay_episodes
from flowpolicy.envs.vector import Outcome, SerialVecEnv

if TYPE_CHECKING:
    from flowpolicy.data.dataset import Dataset  # brings tensordict, seconds of every worker's start

_RANDOM, _EXPERT = -56.5, 2880.6  # reference returns of D4RL (Fu et al., 2020, table of Adroit scores)


@dataclasses.dataclass(frozen=True)
class AdroitConfig:
    """Open a door with a 24-joint hand: ``AdroitHandDoor-v1`` with its dense reward as it is."""

    horizon: int = 200
    """Steps after which an episode is cut off; D4RL uses 200."""

    def spec(self) -> Spec:
        """The spec, without importing the simulator."""
        return Spec(
            observation={"state": ObservationSpec((39,), "joint angles (rad), palm and handle positions (m)")},
            action=ActionSpec(
                28,
                convention="absolute",
                frame="joints",
                units="-1 and 1 stand for the ends of each actuator's control range",
                rate_hz=100.0,
            ),
            env_id="gymnasium-robotics/AdroitHandDoor-v1",
            env_version="1",
            horizon=self.horizon,
            success="the door's hinge has been opened by 1.35 rad or more at any step of the episode",
        )

    def make(self, num_envs: int) -> SerialVecEnv:
        """All slots in this process: a step costs less than a message to a worker."""
        return SerialVecEnv(self.spec(), functools.partial(AdroitEnv, self.horizon), num_envs)

    def replay(self, dataset: Dataset, episodes: int) -> list[bool]:
        """Success of the first episodes of a D4RL file, replayed open-loop from their stored states."""
        return [one.success for one in self.replay_returns(dataset, episodes)]

    def replay_returns(self, dataset: Dataset, episodes: int) -> list[Replayed]:
        """Like :meth:`replay`, with returns; whole episodes, whatever the horizon."""
        states = initial_states(dataset.path)
        for name in ("qpos", "qvel", "door_body_pos"):
            if name not in states:
                raise DataError(f"{dataset.path}: infos/initial_state/{name} is missing, so it cannot be replayed")
        env = AdroitEnv()

        def start(row: int) -> AdroitEnv:
            env.load({name: value[row].astype(np.float64) for name, value in states.items()})
            return env

        with contextlib.closing(env):
            return replay_episodes(dataset, episodes, start)


class AdroitEnv:
    """One door (:class:`flowpolicy.envs.vector.SingleEnv`).

    Never terminates: return counts the steps with the door open. ``success`` stays True once the door has
    been open. The horizon truncates.

    Args:
        horizon: steps until truncation; 0 for none.

    """

    def __init__(self, horizon: int = 0) -> None:
        choose_opengl()
        try:
            import gymnasium

            with contextlib.redirect_stderr(io.StringIO()):  # a notice about other environments
                import gymnasium_robotics
        except ModuleNotFoundError as error:
            raise MissingExtraError(error.name or "gymnasium-robotics", "adroit") from error
        gymnasium.register_envs(gymnasium_robotics)
        self.horizon = horizon
        # Without the wrappers: the horizon is ours, and checks of every step cost as much as the step.
        self.sim_env: Any = gymnasium.make("AdroitHandDoor-v1", render_mode="rgb_array").unwrapped
        self._steps, self._opened = 0, False

    def reset(self, index: int) -> dict[str, np.ndarray]:
        """Start planned initial state ``index``."""
        seed = derive(0, "plan", "adroit", "door", index)
        return self._start(self.sim_env.reset(seed=seed)[0])

    def load(self, state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Start from a stored state: ``qpos`` (30,), ``qvel`` (30,), ``door_body_pos`` (3,)."""
        return self._start(self.sim_env.reset(seed=0, options={"initial_state_dict": state})[0])

    def step(self, action: np.ndarray) -> Outcome:
        """Apply one action (28,), clipped to [-1, 1]."""
        state, reward, _, _, info = self.sim_env.step(np.asarray(action, dtype=np.float64))
        self._steps += 1
        self._opened = self._opened or bool(info["success"])
        truncated = bool(self.horizon and self._steps >= self.horizon)
        return Outcome(_observation(state), float(reward), False, truncated, self._opened)

    def render(self) -> np.ndarray:
        """(height, width, 3) uint8 picture."""
        with opengl():
            return np.asarray(self.sim_env.render())

    def close(self) -> None:
        """Free the simulator."""
        self.sim_env.close()

    def _start(self, state: np.ndarray) -> dict[str, np.ndarray]:
        self._steps, self._opened = 0, False
        return _observation(state)


def normalized_door_score(episode_return: float) -> float:
    """D4RL's score: 0 at the random policy's return, 100 at the expert's."""
    return 100.0 * (episode_return - _RANDOM) / (_EXPERT - _RANDOM)


def _observation(state: np.ndarray) -> dict[str, np.ndarray]:
    return {"state": np.asarray(state, dtype=np.float32)}
