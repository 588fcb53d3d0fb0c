"""Distillation methods by name: which student of a trained flow policy each of them trains.

All of them get the same :class:`Order`, so that a table of them is fair: same teacher, student, data and plan.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

from torch import Tensor

from flowpolicy.agents.cloning.flow import Flow, as_flow
from flowpolicy.agents.students.order import Order
from flowpolicy.agents.students.teacher import Teacher, inverter
from flowpolicy.core.errors import ConfigError, nearest
from flowpolicy.core.files import digest
from flowpolicy.flows.axes.flow_spec import FlowSpec
from flowpolicy.flows.axes.registry import make
from flowpolicy.nets.mlp import MLP
from flowpolicy.policy.policy import Policy


class Lesson(NamedTuple):
    """What a method makes its student from."""

    trained: Flow
    """What the teacher was trained as."""
    student: Flow
    """Network, optimiser, teacher and source of the student, trained by reflow unless the method changes that."""
    order: Order
    teacher: Teacher
    observe: Callable[[], dict[str, Tensor]]
    """Observations of the training file, name -> (n, o, *shape), for methods that fit something first."""


METHODS: dict[str, Callable[[Lesson], Flow]] = {}
"""Name -> what makes the student's config. Grows when a method is registered."""

_F = TypeVar("_F", bound=Flow)


def method(name: str) -> Callable[[Callable[[Lesson], Flow]], Callable[[Lesson], Flow]]:
    """Decorator that gives a method its name on the command line."""

    def add(make_student: Callable[[Lesson], Flow]) -> Callable[[Lesson], Flow]:
        if name in METHODS:
            raise ConfigError(f"the distillation method '{name}' is registered twice")
        METHODS[name] = make_student
        return make_student

    return add


def student_of(
    run: Path, config: object, name: str, order: Order, observe: Callable[[], dict[str, Tensor]]
) -> tuple[Flow, Teacher]:
    """The config of the student that a method makes of the policy in ``run``, and the teacher.

    Args:
        run: checkpoint folder of the teacher.
        config: the agent's config that the teacher was trained with.
        name: method.
        order: what is asked of the student.
        observe: see :class:`Lesson`.

    Raises:
        ConfigError: no such method; the teacher is no point on the axes, has no velocity at all times or cannot spend
            the evaluations; the order does not fit the method.

    """
    if name not in METHODS:
        raise ConfigError(f"the distillation method '{name}' does not exist", expected=nearest(name, METHODS))
    if order.real and name != "improved-reflow":
        raise ConfigError(f"--real {order.real} with the method {name}", fix="--method improved-reflow")
    trained = as_flow(config)
    if not cast(Flow, config).everywhere:  # asked of the student that it may be, not of the plain point
        raise ConfigError(
            f"the teacher {run} knows its velocity at the {trained.nfe} times of its own steps only",
            expected="a flow with a velocity at all times",
            fix="distil the run that it was distilled from",
        )
    policy = Policy.load(run)
    teacher = Teacher(policy)
    teacher.require_evaluations(order.teacher_nfe)
    base = _base(trained, order, str(run.absolute()), digest(policy.actor.state_dict()))
    student = METHODS[name](Lesson(trained, base, order, teacher, observe))
    student.check(policy.contract.spec.action.size)
    return student, teacher


def _base(trained: Flow, order: Order, run: str, weights: str) -> Flow:
    """What the students of all methods have in common; reflow, unless a method changes it."""
    net = trained.net
    if order.width or order.depth:
        if not isinstance(net, MLP):
            raise ConfigError("--width or --depth for a teacher whose network is no MLP", fix="leave them out")
        net = MLP(width=order.width or net.width, depth=order.depth or net.depth)
    told = trained.flow
    velocity = not told.consistency.two_time and not told.guidance.null and told.target.name == "velocity"
    flow = FlowSpec(interpolant=told.interpolant, source=told.source, coupling=make("coupling", "table"))
    return Flow(
        **{
            **values_of(trained),
            "flow": flow,
            "nfe": order.nfe,
            "net": net,
            "dispersive": dataclasses.replace(trained.dispersive, weight=0.0),
            "teacher": run,
            "teacher_weights": weights,
            "teacher_nfe": order.teacher_nfe,
            "from_teacher": velocity and net == trained.net,
            "optimizer": dataclasses.replace(trained.optimizer, lr=order.lr),
        }
    )


def values_of(config: Flow) -> dict[str, Any]:
    """Options that every point on the axes has, by name."""
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(Flow)}


def as_kind(kind: type[_F], base: Flow, **changes: Any) -> _F:
    """The options of ``base`` as a config of another class, with some of them changed."""
    return kind(**{**values_of(base), **changes})


def _with_flow(base: Flow, **changes: Any) -> Flow:
    return dataclasses.replace(base, flow=dataclasses.replace(base.flow, **changes))


@method("reflow")
def reflow(lesson: Lesson) -> Flow:
    """Straight lines between noise and the teacher's chunks (Rectified Flow, arXiv 2209.03003)."""
    return lesson.student


@method("improved-reflow")
def improved_reflow(lesson: Lesson) -> Flow:
    """Times at both ends, a robust loss, and real chunks with inverted noise (arXiv 2405.20320)."""
    if lesson.order.real:
        inverter(lesson.order.inversion).steps(lesson.order.teacher_nfe)
    pairs = make("coupling", "table", real=lesson.order.real, inversion=lesson.order.inversion)
    return _with_flow(lesson.student, coupling=pairs, time=make("time", "u-shape"), loss=make("loss", "pseudo-huber"))


@method("annealed-reflow")
def annealed_reflow(lesson: Lesson) -> Flow:
    """Reflow that starts on fresh noise, for students with random initial weights (SlimFlow, arXiv 2407.12718)."""
    return _with_flow(lesson.student, coupling=make("coupling", "table", anneal=0.6))


@method("k-step")
def k_step(lesson: Lesson) -> Flow:
    """Reflow at the times of the student's own steps alone (Rectified Flow, arXiv 2209.03003)."""
    return _with_flow(lesson.student, time=make("time", "grid", steps=lesson.order.nfe))
