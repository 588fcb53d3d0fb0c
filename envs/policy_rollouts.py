"""Record a policy's own episodes, failures among them, as a RoboMimic file: data on what the policy really does.

Episode i depends on (seed, i) alone. Its streams are named apart from those of evaluation plans and demonstrations:
no evaluation state is ever trained on.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from flowpolicy.core.seed import derive
from flowpolicy.data.robomimic_writer import RobomimicWriter
from flowpolicy.envs.recording import KeptEpisode, make_episode, validation_episodes
from flowpolicy.envs.robosuite import RobosuiteConfig, RobosuiteEnv
from flowpolicy.envs.toy import ToyConfig, ToyEnv
from flowpolicy.envs.vector import Outcome
from flowpolicy.envs.worker import in_order
from flowpolicy.policy.session import Session

if TYPE_CHECKING:
    from flowpolicy.policy import Policy

LEVELS = 5
"""Scales of noise that a range is played at, in turn."""


class RecordableEnv(Protocol):
    """An environment whose state can be stored."""

    def reset_from(self, seed: int) -> dict[str, np.ndarray]:
        """Start the initial state that ``seed`` draws."""

    def state(self) -> np.ndarray:
        """(n,) simulator state."""

    def step(self, action: np.ndarray) -> Outcome:
        """Apply one action (a,) in environment units."""


def load_alone(path: Path) -> Policy:
    """The policy of a checkpoint in a worker process, on one thread."""
    import torch

    from flowpolicy.policy import Policy

    torch.set_num_threads(1)
    return Policy.load(path)


class PolicyRecorder:
    """Plays a policy from initial states of its own; lives in a worker process.

    Args:
        config: the environment.
        policy: checkpoint folder.

    """

    def __init__(self, config: RobosuiteConfig | ToyConfig, policy: Path) -> None:
        self.policy = load_alone(policy)
        self.env: RecordableEnv
        self.xml: str | None = None
        self.look: Callable[[], dict[str, np.ndarray]]
        if isinstance(config, RobosuiteConfig):
            env = RobosuiteEnv.create(config.seeing(self.policy.contract.spec.images))
            self.env, self.xml, self.look = env, env.model_xml(), env.look
        else:
            self.env, self.look = ToyEnv(config.horizon), dict

    def record(self, seed: int, index: int, noise_scale: float) -> KeptEpisode:
        """Episode ``index`` under ``seed``, until success or the horizon, at a scale of the policy's noise."""
        session = Session(self.policy, seed=derive(seed, "rollout", "noise", index), noise_scale=noise_scale)
        obs = self.env.reset_from(derive(seed, "rollout", session.contract.spec.env_id, index))
        rows: list[tuple[Any, ...]] = []
        while True:
            seen = obs | self.look() if session.episode.looks else obs
            state, action = self.env.state(), session.act(seen)
            outcome = self.env.step(action)
            rows.append((obs, state, action, outcome.reward, outcome.success, outcome.obs))
            obs = outcome.obs
            if outcome.success or outcome.terminated or outcome.truncated:
                return KeptEpisode(make_episode(rows, self.xml), outcome.success, 1)


def record_rollouts(
    config: RobosuiteConfig | ToyConfig,
    policy: Path,
    out: Path,
    episodes: int,
    *,
    seed: int = 0,
    noise_scale: tuple[float, float] = (1.0, 1.0),
    provenance: Mapping[str, Any] | None = None,
    workers: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Write a RoboMimic file with episodes of a policy; returns how many succeeded.

    A policy that sees takes its pictures, and the file holds states alone: `flowpolicy data render` adds pictures.

    Filter keys: ``successful`` and ``failed``, ``train`` and ``valid`` (a tenth). The actions are those that the policy
    asked for; the environment clips them.

    Args:
        config: the environment.
        policy: checkpoint folder.
        out: the file; appears whole or not at all.
        episodes: how many.
        seed: of initial states and noise.
        noise_scale: of the policy's noise, lowest and highest: :data:`LEVELS` even steps, an episode each in turn.
        provenance: what the file is to say about where it comes from.
        workers: processes; one per core unless given, 0 for none.
        progress: called with the number of finished episodes.

    """
    scales = np.linspace(*noise_scale, LEVELS).tolist()
    calls = [(seed, i, scales[i % LEVELS]) for i in range(episodes)]
    valid = validation_episodes(episodes, seed, "rollout")
    successes = 0
    with RobomimicWriter(out, config.env_args(), provenance) as writer:
        create = functools.partial(PolicyRecorder, config, policy)
        for index, recording in enumerate(in_order(create, "record", calls, workers, progress)):
            filters = ["valid" if index in valid else "train", "successful" if recording.success else "failed"]
            writer.add(recording.episode, filters)
            successes += recording.success
    return successes
