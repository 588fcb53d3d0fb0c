"""Roll a run out and keep what happened: ``flowpolicy.evaluate``."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from flowpolicy.core.checkpoint import resolve, run_of
from flowpolicy.core.errors import ConfigError, DataWarning
from flowpolicy.core.files import require_free
from flowpolicy.core.progress import progress_bar
from flowpolicy.core.protocols import VecEnv
from flowpolicy.core.remote_run import push_beside
from flowpolicy.core.run_places import run_name
from flowpolicy.envs import find_env, normalized_score
from flowpolicy.envs.camera_renderer import RENDERERS
from flowpolicy.envs.robosuite import RobosuiteConfig
from flowpolicy.evaluate.plan import EvaluationPlan, load_plan, make_plan
from flowpolicy.evaluate.records import acted, identity, record_name, record_path, repeats
from flowpolicy.evaluate.report import Evaluation, make_evaluation, save_evaluation
from flowpolicy.evaluate.rollout import Episode, rollout
from flowpolicy.evaluate.video import require_imageio, save_videos
from flowpolicy.policy import Policy, load_engine
from flowpolicy.policy.inputs import require_followed


def evaluate(
    run: str | os.PathLike[str],
    *,
    episodes: int = 100,
    seed: int = 0,
    plan: EvaluationPlan | Path | None = None,
    nfe: int | None = None,
    video: int = 0,
    noise_scale: float = 1.0,
    also: Path | None = None,
    overwrite: bool = False,
    renderer: str = "",
    allow_render_mismatch: bool = False,
    command: str = "",
    progress: bool = True,
    device: str = "cpu",
    engine: str = "",
    env: VecEnv | None = None,
    instruction: str = "",
) -> Evaluation:
    """Success and return of a run on an evaluation plan, with intervals; every episode is kept in RUN/eval.

    Args:
        run: a run or its folder (the newest checkpoint), a checkpoint folder, or a run elsewhere: s3://BUCKET/NAME,
            hf://USER/NAME@REVISION.
        episodes: number of planned initial states.
        seed: of the plan; the plans of two seeds share no initial state, and none is in generated data.
        plan: an evaluation plan or its file, instead of ``episodes`` and ``seed``.
        nfe: network evaluations per chunk; the contract's number unless given.
        video: how many episodes to record as MP4, in RUN/videos.
        noise_scale: factor of the policy's initial noise: 1 acts by the law that was learned, 0 by its middle.
        also: another file to write the outcomes to.
        overwrite: replace what stands there; an earlier record of this very evaluation is replaced anyway.
        renderer: 'fast', 'exact' or 'collision': draw the policy's pictures so; as they were in training unless given.
        allow_render_mismatch: act on pictures that are drawn otherwise than in training.
        command: command line that asked, for the record.
        progress: show a bar.
        device: where the policy acts: 'cpu' or a CUDA device. Noise is drawn there, so that another device plays other
            episodes.
        engine: what computes the decisions: a name that :func:`flowpolicy.load_engine` takes, such as 'numpy'; the
            policy itself, in PyTorch, unless given. Another engine rounds otherwise, and its noise is another.
        env: where to play, started already; it stays open. Started for this, one slot per core, unless given.
        instruction: what is to be done, one of the texts of the contract, for policies that were trained on several;
            the only one unless given.

    Returns:
        The evaluation; ``print`` shows its figures.

    """
    run = Path(run)
    if video:
        require_imageio()
    with loaded(run, device, renderer, allow_render_mismatch, env) as (policy, env, folder):
        mismatch = differing_pictures(policy, env, allow_render_mismatch)
        instruction = require_followed(instruction, policy.contract.spec)
        if isinstance(plan, EvaluationPlan):
            todo = plan
        else:
            todo = load_plan(plan) if plan else make_plan(env.spec.env_id, episodes, seed)
        way = (nfe or policy.contract.nfe, noise_scale, mismatch, engine, instruction)
        if also is not None and not repeats(also, identity(folder), todo, *way):
            require_free(also, overwrite)
        acting = load_engine(folder, engine, nfe=nfe, device=device) if engine else policy
        with counting(run, todo, env.spec.defines_success, progress) as count:
            outcomes = rollout(
                acting,
                env,
                todo,
                nfe=nfe,
                progress=count,
                record=range(video),
                noise_scale=noise_scale,
                allow_render_mismatch=allow_render_mismatch,
                instruction=instruction,
            )
        simulation = getattr(env, "simulation", "")
    evaluation = make_evaluation(
        todo,
        outcomes,
        run=run_name(run),
        **acted(folder, policy.contract, command, policy.parameters_count),
        simulation=simulation,
        noise_scale=noise_scale,
        mismatch=mismatch,
        engine=engine,
        instruction=instruction,
        success_defined=policy.contract.spec.defines_success,
        normalized_score=normalized_score(policy.contract.spec.env_id),
    )
    home, name = run_of(folder), record_name(evaluation)
    for place in (record_path(home, evaluation), also):
        if place is not None:
            save_evaluation(place, evaluation)
    push_beside(home, record_path(home, evaluation))
    if video:
        rate = policy.contract.spec.action.rate_hz or 20.0
        save_videos(home / "videos", name, outcomes[:video], rate, evaluation.success_defined)
    return evaluation


_OTHER = "evaluate where the policy was trained for, or train for this environment"


@contextmanager
def loaded(
    run: Path,
    device: str = "cpu",
    renderer: str = "",
    allow_render_mismatch: bool = False,
    env: VecEnv | None = None,
) -> Iterator[tuple[Policy, VecEnv, Path]]:
    """The policy of a run on ``device``, its environment (one slot per core unless given) and its checkpoint folder.

    The environment draws pictures as they were drawn in training, or as ``renderer`` says, where that is allowed.
    """
    torch.set_num_threads(1)
    folder = resolve(run)
    policy = Policy.load(folder, device=device)
    spec = policy.contract.spec
    config = find_env(spec.env_id, spec.images)
    if renderer:
        if not spec.images:
            raise ConfigError(f"--renderer {renderer} for a policy that sees no pictures", fix="leave it out")
        if renderer not in RENDERERS or not isinstance(config, RobosuiteConfig):
            raise ConfigError(f"--renderer {renderer} for {spec.env_id}", expected=", ".join(RENDERERS))
        config = config.seeing(spec.images, RENDERERS[renderer])
    policy.contract.require(config.spec(), "the environment", _OTHER, allow_render_mismatch=allow_render_mismatch)
    if env is not None:
        yield policy, env, folder
        return
    env = config.make(len(os.sched_getaffinity(0)))
    try:
        yield policy, env, folder
    finally:
        env.close()


def differing_pictures(policy: Policy, env: VecEnv, allowed: bool) -> tuple[str, ...]:
    """In what the environment's pictures differ from those of training, in lines; ContractError unless allowed."""
    lines = policy.contract.require(env.spec, "the environment", _OTHER, allow_render_mismatch=allowed)
    for line in lines:
        warnings.warn(f"the policy acts on other pictures than it was trained on: {line}", DataWarning, stacklevel=3)
    return tuple(lines)


@contextmanager
def counting(
    run: Path, plan: EvaluationPlan, success_defined: bool, shown: bool = True
) -> Iterator[Callable[[Episode], None]]:
    """Progress of a rollout: episodes done, and successes or the mean return so far."""
    done, successes, returns = 0, 0, 0.0
    with progress_bar(f"eval {run_name(run)}", len(plan.indices), shown=shown) as move:

        def progress(episode: Episode) -> None:
            nonlocal done, successes, returns
            done, successes, returns = done + 1, successes + episode.success, returns + episode.return_
            move(done, f"success {successes}/{done}" if success_defined else f"return {returns / done:.4g}")

        yield progress
