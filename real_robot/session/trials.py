"""Trials at the arm: a person says of each episode whether it succeeded, and a record like that of `eval` is kept.

Two policies may take turns without the person being told which plays: in every pair both meet the same start, in an
order that is drawn. Records of both are on one plan, so that `flowpolicy compare` pairs them.
"""

from __future__ import annotations

import dataclasses
import os
import select
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from flowpolicy.core.checkpoint import resolve
from flowpolicy.core.errors import ConfigError, MissingExtraError
from flowpolicy.core.run_places import run_name
from flowpolicy.core.seed import derive, first_planned, numpy_generator
from flowpolicy.core.spec import Contract
from flowpolicy.data.hdf5 import open_hdf5
from flowpolicy.evaluate.plan import EvaluationPlan
from flowpolicy.evaluate.records import acted
from flowpolicy.evaluate.report import Evaluation, make_evaluation, save_evaluation
from flowpolicy.evaluate.rollout import Episode
from flowpolicy.evaluate.video import save_video
from flowpolicy.real_robot.session.operate import EpisodeOutcome
from flowpolicy.real_robot.session.policy_process import is_address
from flowpolicy.real_robot.session.turns import Trial

QUESTION = "did it succeed? y yes, n no, d discard the episode and play it again"


class Trials:
    """The episodes of an evaluation at the arm, and what came of them.

    Args:
        contracts: of the policies that take turns, one or two.
        episodes: of each.
        seed: of the starts, the noise and the order.
        ask: answers 'y', 'n' or 'd' about an episode; None where the task's own criterion decides.
        change: called after every verdict with what is known, so that nothing is lost with the session.
        instruction: what the policies were told to do, for the records.

    """

    def __init__(
        self,
        contracts: Sequence[Contract],
        episodes: int,
        seed: int,
        ask: Callable[[int], str] | None = None,
        change: Callable[[Trials], None] = lambda trials: None,
        instruction: str = "",
    ) -> None:
        self.contracts, self.seed, self._ask, self._change = list(contracts), seed, ask, change
        self.instruction = instruction
        rng = numpy_generator(seed, "trials", "order")
        pairs = [rng.permutation(len(self.contracts)).tolist() for _ in range(episodes)]
        self._left = [Trial(index, policy) for index, order in enumerate(pairs) for policy in order]
        self.played: list[tuple[Trial, int, Episode]] = []
        """Trial, number of its recording and outcome, as they were played."""

    @property
    def next(self) -> Trial | None:
        """What is to be played now; None at the end."""
        return self._left[0] if self._left else None

    def noise(self, trial: Trial) -> int:
        """Seed of the policy's noise: the same for both of a pair."""
        return derive(self.seed, "trials", trial.index)

    def judge(self, number: int, outcome: EpisodeOutcome, chunks: int) -> bool | None:
        """Take the verdict on the episode just played; None where it is discarded and comes again.

        Args:
            number: of its recording.
            outcome: what the session says of it.
            chunks: decisions that the bridge took.

        """
        trial, success = self._left[0], outcome.success
        if self._ask is not None:
            answer = self._ask(number)
            if answer == "d":
                return None
            success = answer == "y"
        self._left.pop(0)
        contract = self.contracts[trial.policy]
        steps = max(1, round(outcome.seconds * (contract.spec.action.rate_hz or 20.0)))
        episode = Episode(
            index=self._place(trial.index),
            policy_seed=self.noise(trial),
            success_step=steps if success else None,
            return_=float(success),
            length=steps,
            chunks=max(chunks, 1),
            evaluations=max(chunks, 1) * contract.nfe,
            decision_seconds=(),
        )
        self.played.append((trial, number, episode))
        self._change(self)
        return success

    def episodes(self, policy: int) -> list[tuple[int, Episode]]:
        """Number of the recording and outcome of every episode of a policy, in plan order."""
        found = [(trial.index, number, one) for trial, number, one in self.played if trial.policy == policy]
        return [(number, one) for _, number, one in sorted(found, key=lambda each: each[0])]

    def plan(self, policy: int) -> EvaluationPlan:
        """What has been played by a policy: two that were played out have one plan."""
        played = [one for _, one in self.episodes(policy)]
        env_id = self.contracts[policy].spec.env_id
        return EvaluationPlan(env_id, tuple(one.index for one in played), tuple(one.policy_seed for one in played))

    def _place(self, index: int) -> int:
        return first_planned(self.seed) + index


def record_of(trials: Trials, policy: int, run: str, simulation: str, command: str = "") -> Evaluation:
    """The record of one policy's trials.

    Args:
        trials: played.
        policy: which.
        run: its folder, or the address of its server.
        simulation: what was driven, and who judged.
        command: command line that asked.

    """
    contract = trials.contracts[policy]
    made = {"command": command} if is_address(run) else acted(resolve(Path(run)), contract, command)
    named = run if is_address(run) else run_name(run)
    episodes = [one for _, one in trials.episodes(policy)]
    said = {**made, "instruction": trials.instruction}
    return make_evaluation(trials.plan(policy), episodes, run=named, simulation=simulation, **said)


def keep_records(
    trials: Trials, runs: Sequence[str], folder: Path, simulation: str, command: str = ""
) -> list[tuple[Path, Evaluation]]:
    """Write the record of every policy that has played, as ``FOLDER/trials-<seed>[-a|-b].json``; returns them."""
    kept = []
    for policy, run in enumerate(runs):
        if trials.episodes(policy):
            path = folder / f"trials-{trials.seed}{_mark(trials, policy)}.json"
            record = record_of(trials, policy, run, simulation, command)
            save_evaluation(path, record)
            kept.append((path, record))
    return kept


def keep_videos(trials: Trials, policy: int, folder: Path) -> list[Path]:
    """Films of a policy's recorded episodes, its cameras side by side, in ``FOLDER/videos``; none without pictures."""
    made = []
    mark, rate = _mark(trials, policy), trials.contracts[policy].spec.action.rate_hz or 20.0
    for place, (number, episode) in enumerate(trials.episodes(policy)):
        frames = recorded_frames(folder / f"episode_{number:04d}.hdf5")
        if frames is None:
            continue
        shown = dataclasses.replace(episode, frames=tuple(frames))
        try:
            made.append(save_video(folder / "videos", place, shown, rate, f"trials-{trials.seed}{mark}"))
        except MissingExtraError:
            return []
    return made


def _mark(trials: Trials, policy: int) -> str:
    """What tells the files of two policies apart."""
    return f"-{'ab'[policy]}" if len(trials.contracts) > 1 else ""


def recorded_frames(path: Path) -> np.ndarray | None:
    """(steps, h, w, 3) pictures of an episode file, its cameras side by side; None where it holds none."""
    if not path.is_file():
        return None
    with open_hdf5(path) as file:
        obs = file["data/demo_0/obs"]
        films = [obs[key][()] for key in sorted(obs) if key.endswith("_image")]
    if not films:
        return None
    height = max(film.shape[1] for film in films)
    shaped = [np.pad(film, ((0, 0), (0, height - film.shape[1]), (0, 0), (0, 0))) for film in films]
    return np.concatenate(shaped, axis=2)


def ask_person(number: int, alive: Callable[[], None] = lambda: None) -> str:
    """Ask whether an episode succeeded; 'y', 'n' or 'd'.

    A key in a terminal, a line where the input is none.

    Args:
        number: of the episode.
        alive: called while nobody answers; raises where the session has ended.

    Raises:
        ConfigError: nobody will answer.

    """
    sys.stderr.write(f"episode {number}: {QUESTION} ")
    sys.stderr.flush()
    typed = sys.stdin.fileno()
    terminal = sys.stdin.isatty()
    while True:
        while not select.select([typed], [], [], 0.2)[0]:
            alive()
        key = os.read(typed, 1)
        if not key:
            raise ConfigError("--ask, and the input has ended", fix="run it in a terminal, or answer by y, n and d")
        answer = key.decode(errors="replace").lower()
        if answer in "ynd":
            sys.stderr.write(f"{answer}\n")
            return answer
        if terminal or not answer.isspace():
            sys.stderr.write("\a")
