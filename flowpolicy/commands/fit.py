"""``flowpolicy fit RUN``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from flowpolicy.commands.arguments import call
from flowpolicy.core.ranges import Count, Few, Seed


def run(argv: Sequence[str]) -> int:
    """Fit a solver to a trained policy."""
    return call(fit, argv, "fit")


def fit(
    run: Annotated[Path, tyro.conf.Positional],
    /,
    nfe: Few = 4,
    what: Literal["olss", "boss"] = "olss",
    samples: Count = 512,
    seed: Seed = 0,
    out: Path | None = None,
    device: str = "cpu",
) -> None:
    """Fit a solver to the field of a trained policy and write a run that uses it; the weights do not change.

    The new run holds the hash of the weights that the solver belongs to. It is evaluated like any other.

    Args:
        run: run folder.
        nfe: evaluations per chunk of the new policy.
        what: 'olss' fits every state as a combination of noise and velocities; 'boss' only the times of Euler's steps.
        samples: training observations, and trajectories, to fit on.
        seed: seeds observations and noise.
        out: run folder of the result; RUN-WHATNFE unless given.
        device: where to compute: cpu or a CUDA device.

    """
    from flowpolicy.train.derive import fit_solver
    from flowpolicy.train.run import Run

    made = fit_solver(Run.load(run), nfe, what, samples=samples, seed=seed, out=out, device=device)
    sys.stdout.write(f"fitted {what}, {nfe} evaluations per chunk: {made.path}\n")
