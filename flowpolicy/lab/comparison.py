"""Tables of the laboratory: several recipes, or several students of one teacher, each from several seeds."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from flowpolicy.agents.students.distillation import METHODS
from flowpolicy.agents.students.order import Order
from flowpolicy.core.errors import ConfigError
from flowpolicy.evaluate.report import git_commit
from flowpolicy.lab.courses import NFES, TEACHER, Course, parse_course, run_course, teacher_of
from flowpolicy.lab.lab_plan import LabPlan
from flowpolicy.lab.lab_report import write_report
from flowpolicy.lab.recipes import check, parse_recipe, run_once, sized

Job = tuple[str, Callable[..., Any], tuple[Any, ...]]
"""What the progress calls it, a function, and its arguments."""
Move = Callable[[int, str], None]
"""Called with the number of finished jobs and the name of the last one."""
Bar = Callable[[str, int], AbstractContextManager[Move]]
"""Shows progress: title and number of jobs -> what is called after each."""


def _silent(title: str, total: int) -> AbstractContextManager[Move]:
    return nullcontext(lambda done, name: None)


def compare_recipes(
    recipes: Sequence[str],
    plan: LabPlan,
    seeds: int,
    folder: Path,
    *,
    workers: int = 0,
    command: str = "",
    bar: Bar = _silent,
) -> list[dict[str, Any]]:
    """Train and measure recipes from ``seeds`` seeds each; ``lab.md``, ``lab.png`` and ``lab.json`` in ``folder``.

    Args:
        recipes: points on the axes, as words (:func:`flowpolicy.lab.recipes.parse_recipe`).
        plan: task, budget and measure.
        seeds: runs of each recipe.
        folder: records, table and picture; a record that is there is not made again.
        workers: runs at a time; 0 is one per core.
        command: command line that asked, for the records.
        bar: shows progress.

    Returns:
        The record of every run, recipe by recipe.

    Raises:
        ConfigError: a recipe is wrong, or two have one name; nothing was trained.

    """
    chosen = [parse_recipe(text) for text in recipes]
    _require_names([recipe.name for recipe in chosen])
    check(chosen, plan)
    folder.mkdir(parents=True, exist_ok=True)  # before anything is trained
    sizes = [(recipe, sized(recipe, plan)) for recipe in chosen]
    jobs: list[Job] = [
        (f"{recipe.name}, seed {seed}", run_once, (recipe, equal, seed, folder, command))
        for recipe, equal in sizes
        for seed in range(seeds)
    ]
    records = _in_parallel(jobs, workers, bar)
    write_report(records, folder, note="All rows have the parameters of plain flow matching, give or take 5 %.")
    return records


def compare_students(
    methods: Sequence[str],
    plan: LabPlan,
    seeds: int,
    folder: Path,
    *,
    order: Order,
    updates: int = 2500,
    workers: int = 0,
    command: str = "",
    bar: Bar = _silent,
) -> list[dict[str, Any]]:
    """Students of one teacher, plain flow matching; ``distill.md``, ``distill.png`` and ``distill.json``.

    Args:
        methods: distillation methods with their options (:func:`flowpolicy.lab.courses.parse_course`), or ``all``.
        plan: task, teacher and measure; the columns are 1, 2 and 4 evaluations.
        seeds: teachers, and students of each method.
        folder: teachers, records, table and picture; what is there is not made again.
        order: what is asked of the students; the words of a method change it.
        updates: gradient updates of a student.
        workers: runs at a time; 0 is one per core.
        command: command line that asked, for the records.
        bar: shows progress.

    Returns:
        The record of every row and seed, the teacher's first.

    Raises:
        ConfigError: a method or its options are wrong, or two rows have one name; nothing was trained.

    """
    plan = dataclasses.replace(plan, nfes=NFES)
    chosen = [parse_course(text, order) for text in (METHODS if tuple(methods) == ("all",) else methods)]
    _require_names([course.name for course in chosen])
    folder.mkdir(parents=True, exist_ok=True)  # before anything is trained
    origin = {"command": command, "commit": git_commit()}
    # The teachers first: their students must not train them side by side.
    _in_parallel([(f"teacher, seed {seed}", teacher_of, (plan, seed, folder)) for seed in range(seeds)], workers, bar)
    jobs: list[Job] = [
        (f"{course.name}, seed {seed}", run_course, (course, plan, updates, seed, folder, origin))
        for course in [Course(TEACHER, TEACHER, order), *chosen]
        for seed in range(seeds)
    ]
    note = (
        f"Students: {updates} updates of {plan.batch} on the same teacher (row 1, Euler, {order.teacher_nfe} "
        f"evaluations per chunk that it makes), network {plan.depth} x {order.width or plan.width}; seconds are those "
        "of one student."
    )
    records = _in_parallel(jobs, workers, bar)
    write_report(records, folder, "distill", note)
    return records


def _require_names(names: Sequence[str]) -> None:
    """Refuse two rows of one name: they would be averaged into one."""
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise ConfigError(
            f"two rows are named '{twice[0]}'", expected="a name for each", fix="name them: 'NAME: axis=value ...'"
        )


def _in_parallel(jobs: Sequence[Job], workers: int, bar: Bar) -> list[Any]:
    """Results of named calls in their order, several at a time in processes of one thread each."""
    count = min(workers or len(os.sched_getaffinity(0)), len(jobs))
    with (
        bar("lab", len(jobs)) as move,
        ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn")) as pool,
    ):
        waiting = [pool.submit(function, *arguments) for _, function, arguments in jobs]
        results = []
        for done, ((name, _, _), future) in enumerate(zip(jobs, waiting, strict=True), 1):
            results.append(future.result())
            move(done, name)
        return results
