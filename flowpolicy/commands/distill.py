"""``flowpolicy distill RUN``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from flowpolicy.commands.arguments import call
from flowpolicy.core.ranges import Count, Few, Natural, Positive, Seed, Share


def run(argv: Sequence[str]) -> int:
    """Train a student on the flow of a trained policy."""
    return call(distill, argv, "distill")


def distill(
    run: Annotated[Path, tyro.conf.Positional],
    /,
    method: str = "reflow",
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
    device: str | None = None,
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
        device: where the student is trained: cpu or a CUDA device; where the teacher was unless given.

    """
    from flowpolicy.agents.students.distillation import Order
    from flowpolicy.commands.train import report
    from flowpolicy.train.derive import student
    from flowpolicy.train.run import Run
    from flowpolicy.train.training import train

    teacher = Run.load(run)
    order = Order(nfe=nfe, teacher_nfe=teacher_nfe, width=width, depth=depth, lr=lr, real=real, inversion=inversion)
    experiment = student(teacher, method, order, steps=steps, seed=seed, device=device)
    report(train(experiment, out or teacher.path.with_name(f"{teacher.path.name}-{method}")))
