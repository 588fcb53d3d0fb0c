"""Students of one teacher on the chunk toy, a row per distillation method: same student, data and updates."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from flowpolicy.agents.cloning.flow import Flow
from flowpolicy.agents.students.distillation import METHODS, student_of
from flowpolicy.agents.students.order import Order
from flowpolicy.core.checkpoint import resolve
from flowpolicy.core.config import encode
from flowpolicy.core.errors import ConfigError, nearest
from flowpolicy.core.files import read_json, write_json
from flowpolicy.core.ranges import require_ranges
from flowpolicy.core.spec import library_versions
from flowpolicy.lab.lab_plan import LabPlan
from flowpolicy.lab.measure import agent_on, measure, observations, train
from flowpolicy.lab.recipes import KINDS_OF_RECORDS, Recipe, build
from flowpolicy.train.kinds import KINDS

NFES = (1, 2, 4)
TEACHER = "teacher"
"""Row of the teacher itself, with Euler's method."""


@dataclasses.dataclass(frozen=True)
class Course:
    """A row of the table."""

    name: str
    """What the table calls it."""
    method: str
    """Distillation method, or 'teacher'."""
    order: Order
    """What is asked of the student; ``nfe`` changes from column to column."""


def parse_course(text: str, order: Order) -> Course:
    """A row from words: ``METHOD key=value ...`` with fields of :class:`Order`, e.g. ``improved-reflow real=0.5``.

    Raises:
        ConfigError: no such method or option.

    """
    method, *words = text.split() or [""]
    if method not in METHODS:
        raise ConfigError(f"the distillation method '{method}' does not exist", expected=nearest(method, METHODS))
    kinds = {field.name: type(getattr(order, field.name)) for field in dataclasses.fields(Order)}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or key not in kinds or key == "nfe":
            raise ConfigError(f"the word '{word}' of '{text}'", expected=f"KEY=VALUE; {nearest(key, kinds)}")
        try:
            order = dataclasses.replace(order, **{key: kinds[key](value)})
        except ValueError as error:
            raise ConfigError(f"the word '{word}' of '{text}'", expected=f"a number ({kinds[key].__name__})") from error
    require_ranges(order, f"{method} ")
    return Course(" ".join(text.split()), method, order)


def teacher_of(plan: LabPlan, seed: int, folder: Path) -> Path:
    """The run of the teacher, plain flow matching; trained where it is not there yet."""
    text = json.dumps(encode(plan, KINDS_OF_RECORDS))
    run = folder / f"teacher-{hashlib.sha256(text.encode()).hexdigest()[:8]}-seed{seed}"
    if not (run / "trained.json").exists():
        torch.set_num_threads(1)
        agent = build(Recipe(TEACHER), plan, seed)
        trained = train(agent, plan, plan.updates, seed)
        agent.policy().save(run)
        write_json(run / "trained.json", {**trained, "seed": seed})
    return run


def students(run: Path, course: Course, plan: LabPlan, seed: int) -> list[tuple[Flow, tuple[int, ...]]]:
    """The students of a row, and the evaluations that each of them is measured at.

    Where the number of evaluations changes nothing else, one student is measured at all of them.

    Raises:
        ConfigError: the method has no student for any number of evaluations.

    """
    teacher = build(Recipe(TEACHER), plan, seed).config
    found: list[tuple[Flow, tuple[int, ...]]] = []
    refused: ConfigError | None = None
    for nfe in plan.nfes:
        order = dataclasses.replace(course.order, nfe=nfe)
        try:
            config = student_of(resolve(run), teacher, course.method, order, lambda: observations(plan))[0]
        except ConfigError as error:  # a method for one evaluation, or for two and more
            refused = error
            continue
        same = [k for k, (known, _) in enumerate(found) if dataclasses.replace(config, nfe=known.nfe) == known]
        if same:
            found[same[0]] = (found[same[0]][0], (*found[same[0]][1], nfe))
        else:
            found.append((config, (nfe,)))
    if not found and refused is not None:
        raise refused
    return found


def run_course(
    course: Course, plan: LabPlan, updates: int, seed: int, folder: Path, origin: dict[str, str]
) -> dict[str, Any]:
    """The record of a row, from its file where there is one.

    Args:
        course: the row.
        plan: toy, teacher and measure; its ``nfes`` are the columns.
        updates: gradient updates of every student.
        seed: of teacher and student.
        folder: where teachers and records stand.
        origin: ``command`` and ``commit``, for the record.

    """
    torch.set_num_threads(1)
    asked = {"course": dataclasses.asdict(course), "plan": encode(plan, KINDS_OF_RECORDS), "updates": updates}
    mark = hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:8]
    path = folder / f"distill-{course.method}-{mark}-seed{seed}.json"
    if path.exists():
        stored: dict[str, Any] = read_json(path)
        return stored
    run = teacher_of(plan, seed, folder)
    record: dict[str, Any] = {
        "schema": 1,
        "name": course.name,
        "seed": seed,
        "method": course.method,
        "order": dataclasses.asdict(course.order),
        "updates": updates,
        "plan": asked["plan"],
        "versions": library_versions(),
        **origin,
    }
    if course.method == TEACHER:
        from flowpolicy.policy.policy import Policy

        record |= {
            **{key: read_json(run / "trained.json")[key] for key in ("seconds", "cpu_seconds")},
            "error": measure(Policy.load(run), plan, seed),
        }
    else:
        record |= _trained(students(run, course, plan, seed), plan, updates, seed)
    write_json(path, record)
    return record


def _trained(found: Sequence[tuple[Flow, tuple[int, ...]]], plan: LabPlan, updates: int, seed: int) -> dict[str, Any]:
    """Errors by evaluations, mean seconds per student, and what each student was."""
    error: dict[str, list[float]] = {}
    told: list[dict[str, Any]] = []
    for config, nfes in found:
        agent = agent_on(plan, config, updates, seed)
        trained = train(agent, plan, updates, seed)
        error |= measure(agent.policy(), dataclasses.replace(plan, nfes=nfes), seed)
        told.append({"nfes": list(nfes), **trained, "agent": encode(config, KINDS)})
    mean = {key: round(sum(s[key] for s in told) / len(told), 2) for key in ("seconds", "cpu_seconds")}
    return {**mean, "students": told, "error": error}
