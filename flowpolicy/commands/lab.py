"""``flowpolicy lab RECIPE ...``."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from flowpolicy.commands.arguments import call, typed
from flowpolicy.core.ranges import Count, Few, Natural
from flowpolicy.lab.lab_plan import LabPlan

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


@dataclasses.dataclass(frozen=True)
class Students:
    """Students of one teacher instead of recipes."""

    distill: tuple[str, ...] = ()
    """'all', or distillation methods with their options, such as reflow 'improved-reflow real=0.5': compares students
    of one teacher, plain flow matching, instead of recipes."""
    student_updates: Count = 2500
    """Gradient updates of a student."""
    student_width: Natural = 0
    """Width of its network (of 'refiner', that of the small one); 0 is the teacher's."""
    teacher_nfe: Few = 32
    """Evaluations of the teacher per chunk that it makes."""


STUDENTS, PLAN = Students(), LabPlan()


def run(argv: Sequence[str]) -> int:
    """Compare points on the axes of the flow laboratory."""
    return call(lab, argv, "lab")


def lab(
    recipes: Annotated[tuple[str, ...], tyro.conf.Positional] = USUAL,
    /,
    plan: Annotated[LabPlan, tyro.conf.arg(name="")] = PLAN,
    students: Annotated[Students, tyro.conf.arg(name="")] = STUDENTS,
    seeds: Few = 2,
    workers: Natural = 0,
    out: Path = Path("runs/lab"),
) -> None:
    """Train points on the axes on the chunk toy; energy distance at 1, 2, 4, 8 and 64 evaluations, table and picture.

    A recipe is words: '[NAME:] axis=value axis.option=value lr=0.002 base=dm1 fit=olss', for example
    'LSD: consistency=lsd solver=map lr=0.002'. What is not named keeps its default, plain flow matching;
    base=encoder puts DM1's encoder before it; base=regression and base=mip are controls. Rows that would have other
    numbers of parameters than plain flow matching (by more than 5 %) get another width. Records are kept: a run that
    has one is not repeated.

    Args:
        recipes: points on the axes.
        plan: how each is trained and measured.
        students: students of one teacher instead of recipes.
        seeds: runs of each recipe.
        workers: runs at a time; 0 is one per core.
        out: folder of records, table and picture.

    """
    from flowpolicy.agents.students.order import Order
    from flowpolicy.core.progress import progress_bar
    from flowpolicy.lab.comparison import compare_recipes, compare_students

    if students.distill:
        name, order = "distill", Order(teacher_nfe=students.teacher_nfe, width=students.student_width)
        updates = students.student_updates
        compare_students(
            students.distill,
            plan,
            seeds,
            out,
            updates=updates,
            order=order,
            workers=workers,
            command=typed(),
            bar=progress_bar,
        )
    else:
        name = "lab"
        compare_recipes(recipes, plan, seeds, out, workers=workers, command=typed(), bar=progress_bar)
    sys.stdout.write((out / f"{name}.md").read_text(encoding="utf-8"))
    sys.stdout.write(f"table   {out / f'{name}.md'}\npicture {out / f'{name}.png'}\n")
