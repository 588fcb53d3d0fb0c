"""``flowpolicy distill RUN``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from flowpolicy.commands.arguments import call
from flowpolicy.core.ranges import Count, Few, Natural, Positive, Seed, Share

if TYPE_CHECKING:
    from flowpolicy.train import Experiment

Method = Literal[
    "reflow",
    "improved-reflow",
    "annealed-reflow",
    "k-step",
    "slimflow",
    "boss",
    "refiner",
    "backward-simulation",
    "arcflow",
]

SAMPLES = 512
"""Training observations that a method fits something to beforehand."""


def run(argv: Sequence[str]) -> int:
    """Train a student on the flow of a trained policy."""
    return call(distill, argv, "distill")


def distill(
    run: Annotated[Path, tyro.conf.Positional],
    /,
    method: Method = "reflow",
    steps: Count = 2_500,
    nfe: Few = 1,
    teacher_nfe: Few = 32,
    width: Natural = 0,
    depth: Natural = 0,
    lr: Positive = 1e-3,
    real: Share = 0.0,
    inversion: Literal["afp", "midpoint", "exact"] = "afp",
    seed: Seed = 0,
    out: Path | None = None,
) -> None:
    """Train a student on the flow of a trained policy: as good in few evaluations, or with a small network.

    Every batch has fresh noise and the same observations as the teacher's training. A student of the teacher's size
    starts from its weights; a smaller one from random ones.

    Args:
        run: run folder of the teacher.
        method: 'reflow' (Rectified Flow), 'improved-reflow' (times at both ends and a robust loss, which these pairs
            allow; --real), 'annealed-reflow' (for small students), 'k-step' (times 0, 1/k, ... alone), 'slimflow'
            (annealed reflow, then guided distillation to one evaluation), 'boss' (chords between fitted nodes),
            'refiner' (FlowTurbo: the teacher's network once, then a small one that refines its velocity; --width is
            the small one's), 'backward-simulation' (AnyFlow: a flow map that is judged by its own samples), 'arcflow'
            (curved segments).
        steps: gradient updates.
        nfe: evaluations per chunk of the student.
        teacher_nfe: evaluations of the teacher per pair.
        width: width of a student with an MLP; 0 is the teacher's.
        depth: its hidden layers; 0 is the teacher's.
        lr: peak learning rate.
        real: 'improved-reflow': share of rows with real chunks, whose noise the teacher's flow gives, run backwards.
        inversion: how it runs backwards: 'afp', 'midpoint', or 'exact' at eight times the evaluations.
        seed: seeds weights, batches and noise.
        out: run folder of the student; RUN-METHOD unless given.

    """
    from flowpolicy.commands.train import report
    from flowpolicy.core.checkpoint import resolve, run_of
    from flowpolicy.train.training import train

    home = run_of(resolve(run))
    experiment = student(
        run,
        method,
        steps=steps,
        seed=seed,
        nfe=nfe,
        teacher_nfe=teacher_nfe,
        width=width,
        depth=depth,
        lr=lr,
        real=real,
        inversion=inversion,
    )
    report(train(experiment, out or home.with_name(f"{home.name}-{method}")))


def student(run: Path, method: Method, *, steps: int, seed: int, **order: Any) -> Experiment:
    """The experiment that trains a student of the policy in ``run``.

    Args:
        run: run or checkpoint folder of the teacher.
        method: what the student is trained on.
        steps: gradient updates.
        seed: seeds weights, batches and noise.
        order: fields of :class:`flowpolicy.agents.students.distillation.Order`.

    Raises:
        ConfigError: the teacher does not fit the method, or the order does not.

    """
    import dataclasses

    from flowpolicy.agents.students.distillation import Order, student_of
    from flowpolicy.train.run import Run

    teacher = Run.load(run)
    experiment = teacher.experiment
    teacher.data()
    agent, _ = student_of(
        teacher.checkpoint, experiment.agent, method, Order(**order), lambda: teacher.observations(SAMPLES, seed)
    )
    return dataclasses.replace(experiment, agent=agent, steps=steps, seed=seed)
