"""Record any behaviour in any environment, as a D4RL, OGBench, RoboMimic or Minari file.

Episode j of behaviour k depends on (seed, k, j) alone, whatever the number of workers, and starts where no evaluation
plan does. Beside what is learned from, the file holds the simulator's state before every action (``infos/qpos`` and
``qvel``, or RoboMimic's ``states``), so that the doctor can replay it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from flowpolicy.core.errors import ActionError, ConfigError
from flowpolicy.core.seed import derive, numpy_generator
from flowpolicy.data.episode_writers import WRITERS, FileHeader
from flowpolicy.data.stored_episode import INFOS, StoredEpisode
from flowpolicy.envs import single_env
from flowpolicy.envs.adroit import AdroitConfig, AdroitEnv
from flowpolicy.envs.behaviours import BehaviourSource
from flowpolicy.envs.d4rl_env import D4RLConfig
from flowpolicy.envs.ogbench_env import OGBenchConfig
from flowpolicy.envs.policy_rollouts import LEVELS
from flowpolicy.envs.robosuite import RobosuiteConfig, RobosuiteEnv
from flowpolicy.envs.toy import ToyConfig, ToyEnv
from flowpolicy.envs.worker import in_order

RecordedFormat = Literal["d4rl", "ogbench", "robomimic", "minari"]
RecordableConfig = AdroitConfig | D4RLConfig | OGBenchConfig | RobosuiteConfig | ToyConfig
"""Environments that a recorder can make."""

_FIRST = 10**15  # initial states from here on: no evaluation plan and no online training holds them
_EPISODES = 10**6  # of one behaviour under one seed


@dataclasses.dataclass(frozen=True)
class BehaviourRequest:
    """What is recorded."""

    sources: tuple[BehaviourSource, ...]
    """Who acts, one after the other; all record about as much."""
    episodes: int = 200
    """In all; not looked at where ``steps`` says how many."""
    steps: int = 0
    """In all: the last episode of each behaviour is cut off. 0 counts episodes."""
    seed: int = 0
    """Of initial states and noise."""
    noise_scale: tuple[float, float] = (1.0, 1.0)
    """Of the behaviour's own noise, lowest and highest: five even steps, an episode each in turn."""
    action_noise: float = 0.0
    """Deviation of further noise on every action, in units of the action."""

    def share(self, number: int) -> int:
        """Episodes or steps of behaviour ``number``."""
        total, many = self.steps or self.episodes, len(self.sources)
        return total * (number + 1) // many - total * number // many


@dataclasses.dataclass(frozen=True)
class BehaviourEpisode:
    """One recorded episode of T steps."""

    rows: list[tuple[Any, ...]]
    """T times (observation, simulator state, action, reward, success, next observation)."""
    terminated: bool
    infos: dict[str, NDArray[Any]]
    """Name -> (T, n), the simulator's state by its parts; empty where it is one."""
    model_xml: str | None = None

    @property
    def steps(self) -> int:
        """T."""
        return len(self.rows)

    @property
    def success(self) -> bool:
        """Whether the task was solved at any step."""
        return any(row[4] for row in self.rows)

    @property
    def return_(self) -> float:
        """Sum of the rewards."""
        return float(sum(row[3] for row in self.rows))

    def stored(self, number: int) -> StoredEpisode:
        """The episode as a writer takes it."""
        obs, states, actions, rewards, _, after = zip(*self.rows, strict=True)
        return StoredEpisode(
            name=f"episode_{number}",
            obs={key: np.stack([row[key] for row in obs]) for key in obs[0]},
            action=np.stack(actions),
            reward=np.array(rewards, dtype=np.float32),
            terminated=np.arange(self.steps) == (self.steps - 1 if self.terminated else -1),
            cut_off=not self.terminated,
            last_obs=dict(after[-1]),
            success=self.success,
            states=None if states[0] is None else np.stack(states),
            model_xml=self.model_xml,
            filters=("successful" if self.success else "failed",),
            aside={f"{INFOS}{name}": value for name, value in self.infos.items()},
        )

    def cut(self, steps: int) -> BehaviourEpisode:
        """The first ``steps`` steps, cut off there."""
        if steps >= self.steps:
            return self
        infos = {name: value[:steps] for name, value in self.infos.items()}
        return dataclasses.replace(self, rows=self.rows[:steps], terminated=False, infos=infos)


class BehaviourRecorder:
    """Plays one behaviour; lives in a worker process.

    Args:
        config: the environment.
        source: who acts.
        number: its place among the behaviours of the file.
        asked: what is recorded.

    """

    def __init__(self, config: RecordableConfig, source: BehaviourSource, number: int, asked: BehaviourRequest) -> None:
        self._env: Any = single_env(config)
        self._spec, self._number, self._asked = config.spec(), number, asked
        self._scales = np.linspace(*asked.noise_scale, LEVELS).tolist()
        self._behaviours = {scale: source.load(self._spec, scale) for scale in dict.fromkeys(self._scales)}
        self._whole = isinstance(self._env, (RobosuiteEnv, ToyEnv))

    def record(self, index: int) -> BehaviourEpisode:
        """Episode ``index``, until success where the task ends there, or the horizon."""
        asked, spec = self._asked, self._spec
        behaviour = self._behaviours[self._scales[index % LEVELS]]
        stream = ("behaviour", spec.env_id, self._number, index)
        behaviour.begin(derive(asked.seed, *stream))
        jitter = numpy_generator(asked.seed, *stream, "action noise")
        obs = self._env.reset(_FIRST * (1 + asked.seed) + _EPISODES * self._number + index)
        rows: list[tuple[Any, ...]] = []
        parts: list[dict[str, NDArray[Any]]] = []
        while True:
            state = self._env.state() if self._whole else None
            parts.append({} if self._whole else _physics(self._env))
            action = self._action(behaviour.act(obs), jitter, len(rows))
            outcome = self._env.step(action)
            rows.append((obs, state, action, outcome.reward - spec.reward_shift, outcome.success, outcome.obs))
            obs = outcome.obs
            ended = outcome.success and self._whole
            if ended or outcome.terminated or outcome.truncated:
                infos = {name: np.stack([part[name] for part in parts]) for name in parts[0]}
                xml = self._env.model_xml() if isinstance(self._env, RobosuiteEnv) else None
                return BehaviourEpisode(rows, bool(outcome.terminated or ended), infos, xml)

    def _action(self, action: NDArray[Any], jitter: np.random.Generator, step: int) -> NDArray[Any]:
        """What is executed and stored: with the noise that was asked for, inside the environment's range."""
        size = self._spec.action.size
        if action.shape != (size,) or not np.isfinite(action).all():
            raise ActionError(
                f"{self._asked.sources[self._number].name} gave an action of the shape {action.shape} at step {step}"
                if action.shape != (size,)
                else f"{self._asked.sources[self._number].name} gave NaN or infinity at step {step}",
                expected=f"{size} finite numbers, for {self._spec.env_id}",
            )
        if self._asked.action_noise:
            action = action + self._asked.action_noise * jitter.standard_normal(size)
        return np.clip(action, self._spec.action.low, self._spec.action.high).astype(np.float32)


def record_behaviours(
    config: RecordableConfig,
    asked: BehaviourRequest,
    out: Path,
    written_as: RecordedFormat,
    *,
    provenance: Mapping[str, Any] | None = None,
    workers: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[tuple[float, bool, int]]:
    """Write a file of recorded episodes, whole or not at all.

    Args:
        config: the environment.
        asked: who acts, and how much is recorded.
        out: the file.
        written_as: its format.
        provenance: what the file is to say about where it comes from.
        workers: processes; one per core unless given, 0 for none.
        progress: called with the number of finished episodes, or of steps where those are counted.

    Returns:
        Return, success and steps of every episode.

    """
    args = config.env_args() if isinstance(config, RobosuiteConfig | ToyConfig) else {}
    header, found = FileHeader(config.spec(), args, dict(provenance or {})), []
    with WRITERS[written_as](out, header) as writer:
        for number, one in enumerate(_recorded(config, asked, workers, progress or (lambda done: None))):
            writer.add(one.stored(number))
            found.append((one.return_, one.success, one.steps))
    return found


def recordable(config: Any, name: str) -> RecordableConfig:
    """The config; ConfigError where its environment cannot be recorded in."""
    if not isinstance(config, RecordableConfig):
        raise ConfigError(
            f"nothing is recorded in {name} here",
            expected="an environment of robosuite, D4RL, OGBench or the toy; flowpolicy robot record for arms",
        )
    return config


def format_of(config: RecordableConfig) -> RecordedFormat:
    """The format in which the field shares data of an environment."""
    if isinstance(config, OGBenchConfig):
        return "ogbench"
    return "robomimic" if isinstance(config, RobosuiteConfig | ToyConfig) else "d4rl"


def _recorded(
    config: RecordableConfig, asked: BehaviourRequest, workers: int | None, progress: Callable[[int], None]
) -> Iterator[BehaviourEpisode]:
    total = 0
    for number, source in enumerate(asked.sources):
        share, done = asked.share(number), 0
        create = functools.partial(BehaviourRecorder, config, source, number, asked)
        calls = [(index,) for index in range(share)]  # an episode has one step at least; those left are not called
        stream = in_order(create, "record", calls, workers)
        while done < share:
            episode = next(stream)
            if asked.steps:
                episode = episode.cut(share - done)
            done += episode.steps if asked.steps else 1
            progress(total + done)
            yield episode
        stream.close()  # type: ignore[attr-defined]  # ends the workers, which are ahead
        total += done


def _physics(env: Any) -> dict[str, NDArray[Any]]:
    """Simulator state by its parts: qpos, qvel, and what a task's start names beside them."""
    sim = env.sim_env
    if isinstance(env, AdroitEnv):
        return {name: np.array(value, dtype=np.float64) for name, value in sim.get_env_state().items()}
    holder = next((getattr(sim, name) for name in ("point_env", "ant_env") if hasattr(sim, name)), sim)
    return {name: np.array(getattr(holder.data, name), dtype=np.float64) for name in ("qpos", "qvel")}
