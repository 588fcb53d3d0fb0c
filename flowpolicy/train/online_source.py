"""Environment steps between the updates: an agent trained on a file goes on with its own experience."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flowpolicy.core import keys
from flowpolicy.core.columns import Columns
from flowpolicy.core.errors import ActionError, TrainingError
from flowpolicy.core.files import write_text
from flowpolicy.core.protocols import Agent, BatchSource, Observation, VecEnv
from flowpolicy.core.ranges import Count, NonNegative, Share, require_ranges
from flowpolicy.core.seed import derive
from flowpolicy.core.spec import Contract
from flowpolicy.data.replay import MixedReplay
from flowpolicy.policy.session import Session

FIRST_INDEX = 500_000
"""Initial states are those of the training seed from here on: no evaluation plan of up to half a million episodes
holds them."""
_BLOCK = 1_000_000  # initial states that one seed of a plan owns


@dataclasses.dataclass(frozen=True)
class OnlineConfig:
    """How an agent goes on in its environment."""

    base: str = ""
    """Run or checkpoint that is continued: weights, targets, optimisers, normaliser. Empty trains offline."""
    ratio: Share = 0.5
    """Share of every batch that comes from the collected episodes; the rest comes from the file."""
    updates_per_step: Count = 1
    """Gradient updates per environment step."""
    refresh: Count = 50
    """Environment steps after which the acting policy gets the newest weights; every episode begins with them."""
    noise: NonNegative = 0.0
    """Standard deviation of exploration noise on the action, as a share of its range of [-1, 1]. 0 for stochastic
    policies, about 0.1 for IQL and ReBRAC, whose own policy is deterministic."""

    def __post_init__(self) -> None:
        require_ranges(self, "--online.")


class OnlineSource(BatchSource):
    """Steps the environment, keeps whole episodes, and draws mixed batches: the trainer's source of batches.

    Episode n always begins in the same initial state with the same noise, so a run that resumes at the end of an
    episode goes on as if it had not stopped.

    Args:
        config: options.
        agent: acts; its newest weights.
        contract: of the agent.
        env: one slot.
        replay: where episodes go and batches come from.
        seed: of the run.
        log: ``episodes.csv``, one line per finished episode; ``step`` counts environment steps.

    """

    def __init__(
        self,
        config: OnlineConfig,
        agent: Agent,
        contract: Contract,
        env: VecEnv,
        replay: MixedReplay,
        seed: int,
        log: Path,
    ) -> None:
        self.config, self.agent, self.contract, self.env, self.replay = config, agent, contract, env, replay
        self.seed, self.log = seed, log
        self.updates = 0
        self._episode: _Episode | None = None

    @property
    def at_boundary(self) -> bool:
        """Whether no episode is under way, so that a checkpoint now holds everything."""
        return self._episode is None

    def draw(self, generator: torch.Generator) -> Columns:
        """Take an environment step where one is due, then draw a batch."""
        if self.updates % self.config.updates_per_step == 0:
            self._step()
        self.updates += 1
        return self.replay.draw(generator)

    def state(self) -> dict[str, Any]:
        """What :meth:`restore` needs; an episode under way is not part of it."""
        return {"updates": self.updates, "episodes": len(self.replay.episodes)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on after :meth:`state`."""
        self.updates = state["updates"]
        self.replay.restore(state["episodes"])
        if self.log.exists():
            lines = self.log.read_text(encoding="utf-8").splitlines(keepends=True)
            write_text(self.log, "".join(lines[: 1 + state["episodes"]]))

    def _step(self) -> None:
        episode = self._episode or self._begin()
        if episode.length and episode.length % self.config.refresh == 0:
            episode.explorer.policy = self.agent.policy()
        self._episode = None if episode.step(self.env) else episode
        if self._episode is None:
            self.replay.add(episode.rows())
            self._record(episode)

    def _begin(self) -> _Episode:
        number = len(self.replay.episodes)
        obs = self.env.reset([self.seed * _BLOCK + FIRST_INDEX + number], [0])
        seed, scale = derive(self.seed, "online", number), self.contract.reward_scale
        return _Episode(self.agent.policy(), self.config.noise, obs, seed, scale)

    def _record(self, episode: _Episode) -> None:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        if not self.log.exists():
            writer.writerow(("step", "success", "return", "length"))
        steps = self.updates // self.config.updates_per_step + 1
        success = int(episode.success) if self.contract.spec.defines_success else ""
        row = (steps, success, f"{episode.return_:.6g}", episode.length)
        writer.writerow(row)
        with self.log.open("a", encoding="utf-8") as stream:
            stream.write(text.getvalue())


class _Explorer:
    """The agent's newest policy, with noise on its actions; what a session acts by.

    Args:
        policy: acts; replaced by newer ones in the middle of an episode.
        deviation: of the noise, in the scaled box, where one size fits every dimension.

    """

    def __init__(self, policy: Any, deviation: float) -> None:
        self.policy, self.deviation = policy, deviation

    def __getattr__(self, name: str) -> Any:
        return getattr(self.policy, name)

    def act(
        self, obs: dict[str, torch.Tensor], generator: torch.Generator, nfe: int | None = None, **told: Any
    ) -> torch.Tensor:
        """The policy's chunk with noise; arguments of :meth:`flowpolicy.policy.policy.Policy.act`."""
        chunk: torch.Tensor = self.policy.act(obs, generator, nfe, **told)
        if not self.deviation:
            return chunk
        normalizer = self.policy.normalizer
        scaled = normalizer.action(chunk)
        wobble = self.deviation * torch.randn(scaled.shape, generator=generator, device=generator.device).to(scaled)
        return normalizer.unaction(normalizer.within(scaled + wobble))


class _Episode:
    """One episode under way: what acts in it, and what is stored of it."""

    def __init__(self, policy: Any, noise: float, obs: Observation, seed: int, reward_scale: float = 1.0) -> None:
        self.explorer, self.reward_scale = _Explorer(policy, noise), reward_scale
        self.acting = Session(self.explorer).begin(seed)
        self.columns: dict[str, list[Any]] = {}
        self.success = False
        self._observe(obs)

    @property
    def length(self) -> int:
        return len(self.columns.get(keys.ACTION, ()))

    @property
    def return_(self) -> float:
        return float(np.sum(self.columns[keys.REWARD]))

    def step(self, env: VecEnv) -> bool:
        """Take one step; True where it was the last."""
        current = self.acting.history.newest
        try:
            action = self.acting.act()
        except ActionError as error:
            raise TrainingError(
                f"step {self.length} of an episode: {error.what}",
                expected=error.expected,
                fix="resume from an earlier checkpoint with a lower learning rate",
            ) from error
        step = env.step(action[None], [0])
        if not np.isfinite(step.reward[0]):
            raise TrainingError(f"the environment's reward is {step.reward[0]}", expected="a finite number")
        values: dict[str, Any] = {f"{keys.OBS}.{name}": value for name, value in current.items()}
        values |= {keys.ACTION: action, keys.REWARD: step.reward[0], keys.MASK: 1.0 - float(step.terminated[0])}
        for name, value in values.items():
            self.columns.setdefault(name, []).append(value)
        self.success |= bool(step.success[0])
        self._observe(step.obs)
        return bool(step.terminated[0] or step.truncated[0])

    def rows(self) -> dict[str, torch.Tensor]:
        """The columns of the finished episode, rewards scaled as those of the file."""
        found = {name: torch.from_numpy(np.asarray(v, dtype=np.float32)) for name, v in self.columns.items()}
        return {**found, keys.REWARD: found[keys.REWARD] * self.reward_scale}

    def _observe(self, obs: Observation) -> None:
        self.acting.see({name: value[0] for name, value in obs.items()})
