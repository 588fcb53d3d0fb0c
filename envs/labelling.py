"""Score candidate chunks in the simulator: execute them from stored states and let the policy finish the episode.

One call labels one state, and depends on its arguments alone: labels do not depend on the number of workers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from flowpolicy.core.errors import ConfigError
from flowpolicy.core.seed import derive
from flowpolicy.data.robomimic import StoredState, read_stored_state
from flowpolicy.envs.policy_rollouts import load_alone
from flowpolicy.envs.robosuite import RobosuiteConfig, RobosuiteEnv
from flowpolicy.envs.toy import ToyConfig, ToyEnv
from flowpolicy.envs.vector import Outcome
from flowpolicy.policy.session import LiveEpisode, Session

RESTORABLE = ("lift", "can", "toy")
"""Environments that can start from a stored state in the middle of an episode."""


class RestorableEnv(Protocol):
    """An environment that can start from a stored state."""

    def restore(self, stored: StoredState) -> dict[str, np.ndarray]:
        """Continue an episode from a stored state."""

    def step(self, action: np.ndarray) -> Outcome:
        """Apply one action (a,) in environment units."""


class RestorableRobosuite(RobosuiteEnv):
    """robosuite, from stored states: simulator, posture of the arm, and what the gripper remembers."""

    def restore(self, stored: StoredState) -> dict[str, np.ndarray]:
        """Continue an episode from a stored state."""
        obs = self.load(stored.model_xml, stored.state)
        self._steps = len(stored.actions)
        for robot in self.sim_env.robots:
            for gripper in robot.gripper.values():
                # Its command is a running sum of signs, clipped: closing takes several steps.
                gripper.current_action = np.zeros(gripper.dof)
                for action in stored.actions:
                    gripper.format_action(np.asarray(action[-gripper.dof :], dtype=np.float64))
        return obs


def require_restorable(
    config: Any, name: str, fix: str = "use --source critic or --source returns"
) -> RobosuiteConfig | ToyConfig:
    """The config; :class:`ConfigError` where its environment cannot start from a stored state."""
    if not isinstance(config, RobosuiteConfig | ToyConfig):
        raise ConfigError(
            f"{name} cannot start from a stored state in the middle of an episode",
            expected=f"one of {', '.join(RESTORABLE)}",
            fix=fix,
        )
    return config


@dataclasses.dataclass(frozen=True)
class Labels:
    """Outcomes of the k candidates of one state, r rollouts each."""

    success: np.ndarray
    """(k, r) bool."""
    steps: np.ndarray
    """(k, r) int64: steps from the state to success, or to the end of the rollout."""


class CandidateRunner:
    """Executes candidates; lives in a worker process.

    Args:
        config: the environment.
        policy: checkpoint folder of the policy that completes the episodes.
        data: RoboMimic file with the simulator states.
        limit: steps from the state after which a rollout has failed; 0 for the environment's horizon alone.

    """

    def __init__(self, config: RobosuiteConfig | ToyConfig, policy: Path, data: Path, limit: int = 0) -> None:
        self.policy, self.data, self.limit = load_alone(policy), data, limit
        self.env: RestorableEnv
        if isinstance(config, RobosuiteConfig):
            self.env = RestorableRobosuite(config.env_args(), config.obs_keys, config.horizon)
        else:
            self.env = ToyEnv(config.horizon)

    def label(
        self,
        episode: str,
        step: int,
        history: Mapping[str, np.ndarray],
        chunks: np.ndarray,
        seed: int,
        rollouts: int,
        noise_scales: Sequence[float],
    ) -> Labels:
        """Label the candidates of one state.

        Args:
            episode: name in the data file, e.g. 'demo_3'.
            step: row of the episode.
            history: name -> (o, d), the observations up to that row.
            chunks: (k, h, a) candidates, each of which is executed as a whole.
            seed: of the policy's noise in the completions; rollout j has the same for all candidates.
            rollouts: r.
            noise_scales: (k,) of the policy's noise while it completes each candidate; at 0 nothing is left to chance.

        """
        stored = read_stored_state(self.data, episode, step)
        success = np.zeros((len(chunks), rollouts), dtype=bool)
        steps = np.zeros((len(chunks), rollouts), dtype=np.int64)
        for k, (chunk, scale) in enumerate(zip(chunks, noise_scales, strict=True)):
            session = Session(self.policy, noise_scale=scale)
            for r in range(rollouts):
                acting = session.begin(derive(seed, "complete", episode, step, r), chunk)
                success[k, r], steps[k, r] = self._run(stored, history, acting)
        return Labels(success, steps)

    def _run(self, stored: StoredState, history: Mapping[str, np.ndarray], acting: LiveEpisode) -> tuple[bool, int]:
        self.env.restore(stored)
        for row in range(self.policy.contract.history):
            acting.see({key: values[row] for key, values in history.items()})
        taken = 0
        while True:
            outcome = self.env.step(acting.act())
            taken += 1
            acting.see(outcome.obs)
            if outcome.success or outcome.terminated or outcome.truncated or taken == self.limit:
                return outcome.success, taken
