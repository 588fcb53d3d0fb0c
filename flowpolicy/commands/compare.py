"""``flowpolicy compare RUN_A RUN_B``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from flowpolicy.commands.arguments import call
from flowpolicy.commands.console import console
from flowpolicy.core.errors import EvaluationError

if TYPE_CHECKING:
    from flowpolicy.evaluate.report import Evaluation  # brings torch, seconds of every --help


def run(argv: Sequence[str]) -> int:
    """Compare two runs."""
    return call(compare, argv, "compare")


def compare(run_a: Annotated[Path, tyro.conf.Positional], run_b: Annotated[Path, tyro.conf.Positional], /) -> None:
    """Paired comparison of two runs evaluated on one plan.

    Args:
        run_a: run folder with evaluations, or an evaluation file.
        run_b: the other one.

    """
    from flowpolicy.evaluate import report
    from flowpolicy.evaluate.tables import comparison_table

    first, second = _newest_common(run_a, run_b)
    console().print(comparison_table(first, second, report.compare(first, second)))


def _newest_common(run_a: Path, run_b: Path) -> tuple[Evaluation, Evaluation]:
    """The newest evaluations of both on one plan, at one scale of noise if there are; else the newest of each."""
    ours, theirs = _evaluations(run_a), _evaluations(run_b)
    shared = [(a, b) for a in ours for b in theirs if a.plan.digest == b.plan.digest]
    shared.sort(key=lambda pair: pair[0].noise_scale != pair[1].noise_scale)  # stable: newest first among equals
    return shared[0] if shared else (ours[0], theirs[0])


def _evaluations(run: Path) -> list[Evaluation]:
    """Evaluations of a run, newest first."""
    from flowpolicy.evaluate.report import load_evaluation

    if run.is_file():
        return [load_evaluation(run)]
    files = sorted((run / "eval").glob("*.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    if not files:
        raise EvaluationError(f"{run} has no evaluations", fix=f"flowpolicy eval {run}")
    return [load_evaluation(path) for path in files]
