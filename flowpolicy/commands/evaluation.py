"""Roll a run out and keep what happened: what ``eval``, ``card`` and ``demo`` share."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from flowpolicy.commands.progress import progress_bar
from flowpolicy.core.checkpoint import resolve
from flowpolicy.core.files import read_json
from flowpolicy.core.protocols import VecEnv
from flowpolicy.envs import find_env, normalized_score
from flowpolicy.evaluate.plan import EvaluationPlan, load_plan, make_plan
from flowpolicy.evaluate.report import Evaluation, make_evaluation, save_evaluation
from flowpolicy.evaluate.rollout import Episode, rollout
from flowpolicy.evaluate.video import require_imageio, save_video
from flowpolicy.policy import Policy


def evaluate_run(
    run: Path,
    *,
    episodes: int = 100,
    seed: int = 0,
    plan: Path | None = None,
    nfe: int | None = None,
    video: int = 0,
    noise_scale: float = 1.0,
) -> tuple[Evaluation, Path]:
    """Roll a run out, write its outcomes to RUN/eval and its videos to RUN/videos."""
    if video:
        require_imageio()
    with loaded(run) as (policy, env, folder):
        todo = load_plan(plan) if plan else make_plan(env.spec.env_id, episodes, seed)
        policy.noise_scale = noise_scale
        with counting(run, todo) as progress:
            outcomes = rollout(policy, env, todo, nfe=nfe, progress=progress, record=range(video))
    state = read_json(folder / "state.json")
    evaluation = make_evaluation(
        todo,
        outcomes,
        run=str(run),
        step=state["step"],
        command=shlex.join(["flowpolicy", *sys.argv[1:]]),
        training={
            "experiment": read_json(folder / "config.json")["experiment"],
            "dataset_sha256": policy.contract.dataset_sha256,
            "seconds": state["train_seconds"],
            "parameters": policy.parameters_count,
        },
        noise_scale=noise_scale,
        normalized_score=normalized_score(policy.contract.spec.env_id),
    )
    home = folder.parent.parent if folder.parent.name == "checkpoints" else folder
    scaled = "" if noise_scale == 1 else f"-noise{noise_scale:g}"
    path = home / "eval" / f"{todo.digest[:12]}-nfe{evaluation.nfe}{scaled}.json"
    save_evaluation(path, evaluation)
    rate = policy.contract.spec.action.rate_hz or 20.0
    for position in range(min(video, len(outcomes))):
        save_video(home / "videos", position, outcomes[position], rate)
    return evaluation, path


@contextmanager
def loaded(run: Path) -> Iterator[tuple[Policy, VecEnv, Path]]:
    """The policy of a run, its environment (one slot per core) and its checkpoint folder."""
    torch.set_num_threads(1)
    folder = resolve(run)
    policy = Policy.load(folder)
    config = find_env(policy.contract.spec.env_id)
    policy.contract.require(
        config.spec(), "the environment", "evaluate where the policy was trained for, or train for this environment"
    )
    env = config.make(len(os.sched_getaffinity(0)))
    try:
        yield policy, env, folder
    finally:
        env.close()


@contextmanager
def counting(run: Path, plan: EvaluationPlan) -> Iterator[Callable[[Episode], None]]:
    """Progress of a rollout: episodes done and successes so far."""
    done = successes = 0
    with progress_bar(f"eval {run}", len(plan.indices)) as move:

        def progress(episode: Episode) -> None:
            nonlocal done, successes
            done += 1
            successes += episode.success
            move(done, f"success {successes}/{done}")

        yield progress
