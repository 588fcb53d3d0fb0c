"""``flowpolicy lab RECIPE ...``."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from flowpolicy.bench.toy_options import Toy
from flowpolicy.commands.arguments import call

USUAL = (
    "flow matching:",
    "data prediction: target=data fit=olss",
    "C2OT: coupling=c2ot",
    "Gibbs weights: coupling=gibbs",
    "AB2: solver=ab2",
    "MeanFlow: consistency=meanflow solver=map",
    "DM1: base=dm1",
    "LSD: consistency=lsd solver=map lr=0.002",
)


TOY = Toy()


def run(argv: Sequence[str]) -> int:
    """Compare points on the axes of the flow laboratory."""
    return call(lab, argv, "lab")


def lab(
    recipes: Annotated[tuple[str, ...], tyro.conf.Positional] = USUAL,
    /,
    seeds: int = 2,
    updates: int = 5000,
    batch: int = 512,
    width: int = 128,
    observations: int = 64,
    samples: int = 192,
    toy: Toy = TOY,
    workers: int = 0,
    out: Path = Path("runs/lab"),
) -> None:
    """Train points on the axes on the chunk toy; energy distance at 1, 2, 4, 8 and 64 evaluations, table and picture.

    A recipe is words: '[NAME:] axis=value axis.option=value lr=0.002 base=dm1 fit=olss', for example
    'LSD: consistency=lsd solver=map lr=0.002'. What is not named keeps its default, plain flow matching;
    base=regression and base=mip are controls. Records are kept: a run that is there is not made again.

    Args:
        recipes: points on the axes.
        seeds: runs of each recipe.
        updates: gradient updates of a run.
        batch: chunks per update.
        width: width of the network's three hidden layers.
        observations: observations that were not trained on, for the measure.
        samples: chunks drawn for each of them.
        toy: the task.
        workers: runs at a time; 0 is one per core.
        out: folder of records, table and picture.

    """
    from flowpolicy.bench.chunk_toy import ChunkToy
    from flowpolicy.bench.lab_report import write_report
    from flowpolicy.bench.laboratory import Plan, check, parse_recipe

    task = ChunkToy(**dataclasses.asdict(toy))
    plan = Plan(toy=task, updates=updates, batch=batch, width=width, observations=observations, samples=samples)
    chosen = [parse_recipe(text) for text in recipes]
    check(chosen, plan)
    records = _run_all([(recipe, plan, seed) for recipe in chosen for seed in range(seeds)], out, workers)
    write_report(records, out)
    sys.stdout.write((out / "lab.md").read_text(encoding="utf-8"))
    sys.stdout.write(f"table   {out / 'lab.md'}\npicture {out / 'lab.png'}\n")


def _run_all(jobs: list[tuple[Any, Any, int]], out: Path, workers: int) -> list[dict[str, Any]]:
    """The records of all jobs in their order, several at a time in processes of one thread each."""
    import multiprocessing
    import os
    from concurrent.futures import ProcessPoolExecutor

    from flowpolicy.bench.laboratory import run_once
    from flowpolicy.commands.progress import progress_bar

    count = min(workers or len(os.sched_getaffinity(0)), len(jobs))
    with (
        progress_bar("lab", len(jobs)) as move,
        ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn")) as pool,
    ):
        waiting = [pool.submit(run_once, recipe, plan, seed, out, sys.argv[1:]) for recipe, plan, seed in jobs]
        records = []
        for done, ((recipe, _, seed), future) in enumerate(zip(jobs, waiting, strict=True), 1):
            records.append(future.result())
            move(done, f"{recipe.name}, seed {seed}")
        return records
