"""``flowpolicy lab RECIPE ...``."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from flowpolicy.bench.toy_options import Toy
from flowpolicy.commands.arguments import call
from flowpolicy.core.errors import ConfigError
from flowpolicy.core.ranges import Count, Few, Natural, Width

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
    seeds: Few = 2,
    updates: Count = 5000,
    batch: Count = 512,
    width: Width = 128,
    observations: Count = 64,
    samples: Count = 192,
    toy: Toy = TOY,
    distill: tuple[str, ...] = (),
    student_updates: Count = 2500,
    student_width: Natural = 0,
    teacher_nfe: Few = 32,
    workers: Natural = 0,
    out: Path = Path("runs/lab"),
) -> None:
    """Train points on the axes on the chunk toy; energy distance at 1, 2, 4, 8 and 64 evaluations, table and picture.

    A recipe is words: '[NAME:] axis=value axis.option=value lr=0.002 base=dm1 fit=olss', for example
    'LSD: consistency=lsd solver=map lr=0.002'. What is not named keeps its default, plain flow matching;
    base=encoder puts DM1's encoder before it; base=regression and base=mip are controls. Rows that would have other
    numbers of parameters than plain flow matching (by more than 5 %) get another width. Records are kept: a run that
    is there is not made again.

    Args:
        recipes: points on the axes.
        seeds: runs of each recipe.
        updates: gradient updates of a run.
        batch: chunks per update.
        width: width of the three hidden layers of plain flow matching; all rows have as many parameters.
        observations: observations that were not trained on, for the measure.
        samples: chunks drawn for each of them.
        toy: the task.
        distill: 'all', or distillation methods with their options, such as reflow 'improved-reflow real=0.5': compares
            students of one teacher, plain flow matching, instead of recipes.
        student_updates: gradient updates of a student.
        student_width: width of its network (of 'refiner', that of the small one); 0 is the teacher's.
        teacher_nfe: evaluations of the teacher per chunk that it makes.
        workers: runs at a time; 0 is one per core.
        out: folder of records, table and picture.

    """
    from flowpolicy.bench.chunk_toy import ChunkToy
    from flowpolicy.bench.lab_report import write_report
    from flowpolicy.bench.laboratory import Plan, check, parse_recipe, sized

    task = ChunkToy(**dataclasses.asdict(toy))
    plan = Plan(toy=task, updates=updates, batch=batch, width=width, observations=observations, samples=samples)
    if distill:
        _distil(distill, plan, seeds, (student_updates, student_width, teacher_nfe), out, workers)
        return
    chosen = [parse_recipe(text) for text in recipes]
    _require_names([recipe.name for recipe in chosen])
    check(chosen, plan)
    sizes = [(recipe, sized(recipe, plan)) for recipe in chosen]
    records = _run_all([(r, equal, seed) for r, equal in sizes for seed in range(seeds)], out, workers)
    write_report(records, out, note="All rows have the parameters of plain flow matching, give or take 5 %.")
    sys.stdout.write((out / "lab.md").read_text(encoding="utf-8"))
    sys.stdout.write(f"table   {out / 'lab.md'}\npicture {out / 'lab.png'}\n")


def _distil(
    methods: tuple[str, ...], plan: Any, seeds: int, student: tuple[int, int, int], out: Path, workers: int
) -> None:
    """The table of distillation methods."""
    import shlex

    from flowpolicy.agents.distillation import METHODS, Order
    from flowpolicy.bench.distillation import NFES, TEACHER, Course, parse_course, run_course, teacher_of
    from flowpolicy.bench.lab_report import write_report
    from flowpolicy.evaluate.report import git_commit

    updates, width, teacher_nfe = student
    plan = dataclasses.replace(plan, nfes=NFES)
    order = Order(teacher_nfe=teacher_nfe, width=width)
    chosen = [parse_course(text, order) for text in (METHODS if methods == ("all",) else methods)]
    origin = {"command": shlex.join(["flowpolicy", *sys.argv[1:]]), "commit": git_commit()}
    _require_names([course.name for course in chosen])
    # The teachers first: their students must not train them side by side.
    _in_parallel([(f"teacher, seed {seed}", teacher_of, (plan, seed, out)) for seed in range(seeds)], workers)
    jobs = [
        (f"{course.name}, seed {seed}", run_course, (course, plan, updates, seed, out, origin))
        for course in [Course(TEACHER, TEACHER, order), *chosen]
        for seed in range(seeds)
    ]
    note = (
        f"Students: {updates} updates of {plan.batch} on the same teacher (row 1, Euler, {teacher_nfe} evaluations per "
        f"chunk that it makes), network {plan.depth} x {width or plan.width}; seconds are those of one student."
    )
    write_report(_in_parallel(jobs, workers), out, "distill", note)
    sys.stdout.write((out / "distill.md").read_text(encoding="utf-8"))
    sys.stdout.write(f"table   {out / 'distill.md'}\npicture {out / 'distill.png'}\n")


def _require_names(names: Sequence[str]) -> None:
    """Refuse two rows of one name: they would be averaged into one."""
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise ConfigError(
            f"two rows are named '{twice[0]}'", expected="a name for each", fix="name them: 'NAME: axis=value ...'"
        )


def _run_all(jobs: list[tuple[Any, Any, int]], out: Path, workers: int) -> list[dict[str, Any]]:
    """The records of all recipes in their order."""
    from flowpolicy.bench.laboratory import run_once

    named = [
        (f"{recipe.name}, seed {seed}", run_once, (recipe, plan, seed, out, sys.argv[1:]))
        for recipe, plan, seed in jobs
    ]
    return _in_parallel(named, workers)


def _in_parallel(jobs: list[tuple[str, Callable[..., Any], tuple[Any, ...]]], workers: int) -> list[Any]:
    """Results of named calls in their order, several at a time in processes of one thread each."""
    import multiprocessing
    import os
    from concurrent.futures import ProcessPoolExecutor

    from flowpolicy.commands.progress import progress_bar

    count = min(workers or len(os.sched_getaffinity(0)), len(jobs))
    with (
        progress_bar("lab", len(jobs)) as move,
        ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn")) as pool,
    ):
        waiting = [pool.submit(function, *arguments) for _, function, arguments in jobs]
        results = []
        for done, ((name, _, _), future) in enumerate(zip(jobs, waiting, strict=True), 1):
            results.append(future.result())
            move(done, name)
        return results
