"""``flowpolicy compare RUN_A RUN_B``."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from flowpolicy.commands.arguments import call
from flowpolicy.commands.console import console

if TYPE_CHECKING:
    from flowpolicy.evaluate.report import Evaluation  # brings torch, seconds of every --help


def run(argv: Sequence[str]) -> int:
    """Compare two runs."""
    return call(compare, argv, "compare")


def compare(run_a: Annotated[Path, tyro.conf.Positional], run_b: Annotated[Path, tyro.conf.Positional], /) -> None:
    """Paired comparison of two runs evaluated on one plan: of their newest checkpoints.

    Args:
        run_a: run folder or checkpoint folder with evaluations, or an evaluation file.
        run_b: the other one.

    """
    from flowpolicy.evaluate import report
    from flowpolicy.evaluate.records import current_records
    from flowpolicy.evaluate.tables import comparison_table

    first, second = _newest_common(current_records(run_a), current_records(run_b))
    if run_a.resolve() == run_b.resolve():
        sys.stderr.write(f"warning: {run_a} is compared with itself, which says nothing about another run\n")
    # A record holds the path that its run had then; the run may have been moved or copied.
    first, second = (
        dataclasses.replace(evaluation, run=str(run)) if run.is_dir() else evaluation
        for evaluation, run in ((first, run_a), (second, run_b))
    )
    console().print(comparison_table(first, second, report.compare(first, second)))


def _newest_common(ours: Sequence[Evaluation], theirs: Sequence[Evaluation]) -> tuple[Evaluation, Evaluation]:
    """The newest evaluations of both on one plan, with the same noise and pictures if there are; else of each."""
    shared = [(a, b) for a in ours for b in theirs if a.plan.digest == b.plan.digest]
    shared.sort(  # stable: newest first among equals
        key=lambda pair: (pair[0].noise_scale != pair[1].noise_scale, len(pair[0].mismatch) + len(pair[1].mismatch))
    )
    return shared[0] if shared else (ours[0], theirs[0])
