"""Generate demonstration files with the scripted demonstrators, in parallel.

Episode i depends on (seed, i) alone, so the same seed gives the same file content whatever the number of
workers. The streams are named apart from those of evaluation plans: no evaluation state is ever trained on.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from flowpolicy.core.errors import ConfigError, SimulatorError, nearest
from flowpolicy.core.seed import derive, numpy_generator
from flowpolicy.data.robomimic_writer import RecordedEpisode, RobomimicWriter
from flowpolicy.envs.can_demonstrator import CanDemonstrator
from flowpolicy.envs.pick_demonstrator import LEVELS, OPERATORS, LiftDemonstrator, PickDemonstrator, draw_style
from flowpolicy.envs.pusht import PushTConfig
from flowpolicy.envs.pusht_demonstrator import PushTRecorder
from flowpolicy.envs.recording import EpisodeRecorder, KeptEpisode, make_episode, validation_episodes
from flowpolicy.envs.robosuite import RobosuiteConfig, RobosuiteEnv
from flowpolicy.envs.square_demonstrator import SquareDemonstrator
from flowpolicy.envs.toy import ToyConfig, ToyRecorder
from flowpolicy.envs.worker import in_order

Quality = Literal["expert", "mixed", "multimodal"]

_ATTEMPTS = 50  # a demonstrator that fails this often is broken
_SETTLED = 4  # an episode ends when success has held for this many steps


@dataclasses.dataclass(frozen=True)
class Summary:
    """What was generated."""

    episodes: int
    steps: int
    attempts: int
    """Episodes simulated, including the rejected ones."""
    successes: int


class RobosuiteRecorder:
    """Runs a scripted demonstrator in robosuite.

    Args:
        config: the task.
        demonstrator: class of its demonstrator.

    """

    def __init__(self, config: RobosuiteConfig, demonstrator: type[PickDemonstrator]) -> None:
        self._env = RobosuiteEnv.create(config)
        self._xml = self._env.model_xml()
        self._task, self._demonstrator = config.task, demonstrator

    def record(self, seed: int, index: int, level: str, keep_failures: bool) -> KeptEpisode:
        """The first successful attempt, or the first one at all when failures are kept."""
        for attempt in range(_ATTEMPTS):
            stream = ("demonstration", "robosuite", self._task, index, attempt)
            rng = numpy_generator(seed, *stream, "style")
            obs = self._env.reset_from(derive(seed, *stream, "state"))
            episode, success = self._run(obs, level, rng)
            if success or keep_failures:
                return KeptEpisode(episode, success, attempt + 1)
        raise SimulatorError(f"the demonstrator of {self._task} failed {_ATTEMPTS} times in a row (episode {index})")

    def _run(self, obs: dict[str, np.ndarray], level: str, rng: np.random.Generator) -> tuple[RecordedEpisode, bool]:
        style = draw_style((LEVELS | OPERATORS)[level], self._demonstrator.usual_steps, rng)
        demonstrator = self._demonstrator(style, rng)
        rows: list[tuple[Any, ...]] = []
        held = 0
        while held < _SETTLED and len(rows) < style.patience:
            state, action = self._env.state(), demonstrator.act(obs)
            outcome = self._env.step(action)
            rows.append((obs, state, action, outcome.reward, outcome.success, outcome.obs))
            obs, held = outcome.obs, held + 1 if outcome.success else 0
        return make_episode(rows, self._xml), held == _SETTLED


@dataclasses.dataclass(frozen=True)
class _Task:
    create: Callable[[], EpisodeRecorder]
    env_args: Callable[[], Mapping[str, Any]]
    operators: bool = False
    """Whether its demonstrator takes the habits of an operator."""
    in_process: bool = False
    """Whether a whole file takes less time than starting a worker."""


def _robosuite(config: RobosuiteConfig, demonstrator: type[PickDemonstrator]) -> _Task:
    return _Task(functools.partial(RobosuiteRecorder, config, demonstrator), config.env_args, operators=True)


TASKS = {
    "lift": _robosuite(RobosuiteConfig("Lift"), LiftDemonstrator),
    "can": _robosuite(RobosuiteConfig("PickPlaceCan"), CanDemonstrator),
    "square": _robosuite(RobosuiteConfig("NutAssemblySquare", horizon=400), SquareDemonstrator),
    "pusht": _Task(functools.partial(PushTRecorder, PushTConfig()), PushTConfig().env_args),
    "toy": _Task(functools.partial(ToyRecorder, ToyConfig()), ToyConfig().env_args, in_process=True),
}
"""Tasks with a scripted demonstrator."""


def make_demonstrations(
    task: str,
    out: Path,
    episodes: int,
    seed: int = 0,
    quality: str = "expert",
    workers: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Summary:
    """Write a RoboMimic file with ``episodes`` demonstrations of ``task`` ("lift", "can", "square", "pusht" or "toy").

    ``expert`` keeps successful episodes only. ``mixed`` has equal shares of three quality levels with the
    filter keys ``better``, ``okay`` and ``worse``, and keeps failed episodes, filter key ``failed`` (the
    others: ``successful``). ``multimodal`` has successful episodes of four operators with habits of their own
    (:data:`~flowpolicy.envs.pick_demonstrator.OPERATORS`, filter keys of the same names): the same scene is solved by
    either of two grasps, from either side, by a detour to either side, with pauses. All have ``train`` and ``valid``
    (a tenth of the episodes).

    Args:
        task: one of :data:`TASKS`.
        out: the file; appears whole or not at all.
        episodes: number of episodes.
        seed: seed of everything.
        quality: ``expert``, ``mixed`` or, of robosuite's tasks, ``multimodal``.
        workers: processes; default one per core.
        progress: called with the number of finished episodes.

    """
    if task not in TASKS:
        raise ConfigError(f"there is no demonstrator for '{task}'", expected=nearest(task, TASKS))
    if quality not in get_args(Quality):
        raise ConfigError(f"unknown quality '{quality}'", expected=nearest(quality, get_args(Quality)))
    if quality == "multimodal" and not TASKS[task].operators:
        raise ConfigError(f"{task} has no multimodal demonstrations", expected="lift, can or square")
    if episodes < 1:
        raise ConfigError(f"{episodes} episodes were asked for", expected="at least 1")
    levels = {"expert": ["better"], "mixed": list(LEVELS), "multimodal": list(OPERATORS)}[quality]
    calls = [(seed, i, levels[i % len(levels)], quality == "mixed") for i in range(episodes)]
    workers = 0 if TASKS[task].in_process else workers
    valid = validation_episodes(episodes, seed, "demonstration", task)
    steps = attempts = successes = 0
    with RobomimicWriter(out, TASKS[task].env_args()) as writer:
        for index, recording in enumerate(in_order(TASKS[task].create, "record", calls, workers, progress)):
            filters = ["valid" if index in valid else "train"]
            if quality != "expert":
                filters += [calls[index][2]]
            if quality == "mixed":
                filters += ["successful" if recording.success else "failed"]
            writer.add(recording.episode, filters)
            steps += len(recording.episode.actions)
            attempts += recording.attempts
            successes += recording.success
    return Summary(episodes, steps, attempts, successes)
