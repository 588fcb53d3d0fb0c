"""Environment steps between the updates: an agent that was trained on a file goes on with what it experiences."""

from __future__ import annotations

import csv
import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict

from flowpolicy.core import keys
from flowpolicy.core.errors import TrainingError
from flowpolicy.core.files import write_text
from flowpolicy.core.protocols import Agent, Observation, VecEnv
from flowpolicy.core.ranges import Count, NonNegative, Share, require_ranges
from flowpolicy.core.seed import derive
from flowpolicy.core.spec import Contract
from flowpolicy.data.replay import MixedReplay
from flowpolicy.policy.history import ObservationHistory
from flowpolicy.policy.queue import ChunkQueue

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


class OnlineSource:
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

    def draw(self, generator: torch.Generator) -> TensorDict:
        """Take an environment step where one is due, then draw a batch."""
        if self.updates % self.config.updates_per_step == 0:
            self._step()
        self.updates += 1
        return self.replay.draw(generator)

    def state(self) -> dict[str, Any]:
        """What :meth:`restore` needs; an episode under way is not part of it."""
        return {"updates": self.updates, "episodes": len(self.replay.episodes)}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on after :meth:`state`."""
        self.updates = state["updates"]
        self.replay.restore(state["episodes"])
        if self.log.exists():
            lines = self.log.read_text(encoding="utf-8").splitlines(keepends=True)
            write_text(self.log, "".join(lines[: 1 + state["episodes"]]))

    def _step(self) -> None:
        episode = self._episode or self._begin()
        if episode.length and episode.length % self.config.refresh == 0:
            episode.policy = self.agent.policy()
        self._episode = None if episode.step(self.env, self.config.noise) else episode
        if self._episode is None:
            self.replay.add(episode.rows())
            self._record(episode)

    def _begin(self) -> _Episode:
        number = len(self.replay.episodes)
        obs = self.env.reset([self.seed * _BLOCK + FIRST_INDEX + number], [0])
        generator = torch.Generator().manual_seed(derive(self.seed, "online", number))
        return _Episode(self.contract, self.agent.policy(), obs, generator)

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


class _Episode:
    """One episode under way: its policy, its observations so far, its chunk queue."""

    def __init__(self, contract: Contract, policy: Any, obs: Observation, generator: torch.Generator) -> None:
        self.policy, self.generator = policy, generator
        self.queue = ChunkQueue(contract.execute)
        self.history = ObservationHistory(contract)
        self.columns: dict[str, list[Any]] = {}
        self.success = False
        self._observe(obs)

    @property
    def length(self) -> int:
        return len(self.columns.get(keys.ACTION, ()))

    @property
    def return_(self) -> float:
        return float(np.sum(self.columns[keys.REWARD]))

    def step(self, env: VecEnv, noise: NonNegative) -> bool:
        """Take one step; True where it was the last."""
        current = self.history.newest
        action = self._act(noise)
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
        """The columns of the finished episode."""
        return {name: torch.from_numpy(np.asarray(v, dtype=np.float32)) for name, v in self.columns.items()}

    def _observe(self, obs: Observation) -> None:
        self.history.append({name: value[0] for name, value in obs.items()})

    def _act(self, noise: NonNegative) -> np.ndarray:
        policy = self.policy
        if self.queue.empty:
            device = next(policy.parameters()).device
            obs = {name: torch.from_numpy(rows[None]).to(device) for name, rows in self.history.stacked().items()}
            chunk = policy.act(obs, self.generator)[0]
            if noise:
                # In the scaled box, where one size of noise fits every dimension.
                scaled = policy.normalizer.action(chunk)
                wobble = noise * torch.randn(scaled.shape, generator=self.generator).to(scaled)
                chunk = policy.normalizer.unaction(policy.normalizer.within(scaled + wobble))
            if not bool(torch.isfinite(chunk).all()):
                raise TrainingError(
                    f"the acting policy gives NaN or infinity in step {self.length} of an episode",
                    fix="resume from an earlier checkpoint with a lower learning rate",
                )
            self.queue.push(chunk.cpu())
        return self.queue.pop().numpy()
