"""``flowpolicy eval RUN``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from flowpolicy.commands.arguments import call, typed
from flowpolicy.commands.console import console
from flowpolicy.core.ranges import Count, Few, Natural, NonNegative, Seed

if TYPE_CHECKING:
    from flowpolicy.evaluate.report import Evaluation


def run(argv: Sequence[str]) -> int:
    """Evaluate a run."""
    return call(evaluate, argv, "eval")


def evaluate(
    run: Annotated[Path, tyro.conf.Positional],
    /,
    episodes: Count = 100,
    seed: Seed = 0,
    plan: Path | None = None,
    nfe: Few | None = None,
    noise_scale: NonNegative = 1.0,
    video: Natural = 0,
    json: Path | None = None,
    overwrite: bool = False,
    renderer: Literal["", "fast", "exact", "collision"] = "",
    allow_render_mismatch: bool = False,
    device: str = "cpu",
    engine: str = "",
    instruction: str = "",
) -> None:
    """Success and return of a run on an evaluation plan, with intervals.

    Args:
        run: run folder (its newest checkpoint) or checkpoint folder.
        episodes: number of planned initial states.
        seed: seed of the plan; the plans of two seeds share no initial state, and none is in generated data.
        plan: file with an evaluation plan, instead of --episodes and --seed.
        nfe: network evaluations per chunk; the contract's number unless given.
        noise_scale: factor of the policy's initial noise: 1 samples the learned law, 0 acts without randomness. Other
            scales than 1 are no published protocol; they are recorded with the outcomes.
        video: how many episodes to record as MP4.
        json: where to write the outcomes, besides RUN/eval.
        overwrite: replace an existing file at --json; an earlier record of this very evaluation is replaced anyway.
        renderer: draw the policy's pictures otherwise than in training: see `flowpolicy data render`. Refused without
            --allow-render-mismatch.
        allow_render_mismatch: act on pictures that differ from those of training, and say what that costs.
        device: where the policy acts: cpu or a CUDA device, such as cuda or cuda:1. Another device draws other noise.
        engine: what computes the decisions, such as numpy or onnx, which are far faster for small networks; PyTorch
            unless given. They draw other noise: compare runs that were played by the same.
        instruction: what is to be done, for policies that were trained on several instructions; the only one unless
            given.

    """
    from flowpolicy.core.checkpoint import resolve, run_of
    from flowpolicy.evaluate import evaluation as playing
    from flowpolicy.evaluate.records import record_path
    from flowpolicy.evaluate.tables import evaluation_table

    evaluation = playing.evaluate(
        run,
        episodes=episodes,
        seed=seed,
        plan=plan,
        nfe=nfe,
        video=video,
        noise_scale=noise_scale,
        also=json,
        overwrite=overwrite,
        renderer=renderer,
        allow_render_mismatch=allow_render_mismatch,
        command=typed(),
        device=device,
        engine=engine,
        instruction=instruction,
    )
    console().print(evaluation_table(evaluation))
    home = run_of(resolve(run))
    if evaluation.mismatch:
        sys.stdout.write(f"{_cost(home, evaluation, run)}\n")
    sys.stdout.write(f"outcomes {record_path(home, evaluation)}\n")


def _cost(home: Path, evaluation: Evaluation, run: Path) -> str:
    """What pictures that were drawn otherwise than in training have cost."""
    from flowpolicy.evaluate.records import as_trained
    from flowpolicy.evaluate.report import compare

    before = as_trained(home, evaluation)
    if before is None:
        return f"what other pictures than those of training cost is told once there is: flowpolicy eval {run}"
    found = compare(evaluation, before)
    if before.success and evaluation.success:
        what, was, now, difference = "success", before.success, evaluation.success, found.difference
    else:
        what, was, now, difference = "return", before.return_, evaluation.return_, found.return_difference
    return (
        f"{what} {now.mean:.4g} on these pictures and {was.mean:.4g} on those of training: difference "
        f"{difference.mean:+.4g} [{difference.low:+.4g}, {difference.high:+.4g}], p = {found.p_value:.2g}"
    )
