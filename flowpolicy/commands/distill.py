"""``flowpolicy distill RUN``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from flowpolicy.agents.students.order import Order
from flowpolicy.commands.arguments import call
from flowpolicy.core.ranges import Count, Seed

ORDER = Order()


def run(argv: Sequence[str]) -> int:
    """Train a student on the flow of a trained policy."""
    return call(distill, argv, "distill")


def distill(
    run: Annotated[Path, tyro.conf.Positional],
    /,
    method: str = "reflow",
    order: Annotated[Order, tyro.conf.arg(name="")] = ORDER,
    steps: Count = 2_500,
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
        order: what is asked of the student.
        steps: gradient updates.
        seed: seeds weights, batches and noise.
        out: run folder of the student; RUN-METHOD unless given.
        device: where the student is trained: cpu or a CUDA device; where the teacher was unless given.

    """
    from flowpolicy.commands.train import report
    from flowpolicy.train.derive import student
    from flowpolicy.train.run import Run
    from flowpolicy.train.training import train

    teacher = Run.load(run)
    experiment = student(teacher, method, order, steps=steps, seed=seed, device=device)
    report(train(experiment, out or teacher.path.with_name(f"{teacher.path.name}-{method}")))
