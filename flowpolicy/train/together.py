"""Several runs on the same data in one process, update by update together: seeds of a table, or a sweep."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from flowpolicy.agents.base.captured_update import CapturedUpdate
from flowpolicy.agents.base.company import Company
from flowpolicy.core.checkpoint import newest
from flowpolicy.core.devices import multiplying
from flowpolicy.core.errors import ConfigError
from flowpolicy.core.files import held_alone
from flowpolicy.core.memory import keep_freed_memory
from flowpolicy.core.progress import progress_bar
from flowpolicy.core.protocols import Metrics
from flowpolicy.core.remote_run import begin, take_over
from flowpolicy.core.run_upload import uploading
from flowpolicy.core.torchrun import require_alone
from flowpolicy.train.compiling import operators
from flowpolicy.train.experiment import Experiment
from flowpolicy.train.loop import Keep, Trainer
from flowpolicy.train.run import Run


def train_together(
    experiments: Sequence[Experiment],
    folders: Sequence[str | os.PathLike[str]],
    *,
    resume: bool = False,
    progress: bool = True,
) -> list[Run]:
    """Train experiments that differ in their seed and in numbers of their agent, all of them in every update.

    Each leaves an ordinary run folder, which is resumed, evaluated and compared like any other. What a run comes to
    does not depend on the company but for round-off; where every bit must be the same again, resume the same company.
    Where updates are compiled, those of all are one graph; 'auto' does so on a GPU alone.

    Args:
        experiments: on the same data, with the same sizes.
        folders: of the runs, one for each.
        resume: go on from the newest checkpoints. Runs that are behind catch up first.
        progress: show a bar.

    Returns:
        The finished runs.

    Raises:
        ConfigError: there are none, a folder is named twice or holds a run already, or the experiments cannot be
            trained together.
        DataError: the file cannot be trained on.
        TrainingError: a loss or a weight of one of them is not finite; all stop there.

    """
    places = [Path(folder) for folder in folders]
    if not experiments or len(places) != len(experiments) or len(set(places)) < len(places):
        raise ConfigError(
            f"{len(experiments)} experiments for the folders {', '.join(map(str, places)) or 'none'}",
            expected="a folder of its own for each",
        )
    require_alone(
        "runs in company", "they share one update already", "train one run at a time, without --seeds or --sweep"
    )
    keep_freed_memory()
    if not resume:
        places = [begin(folder) for folder in folders]
    with contextlib.ExitStack() as stack:
        for place in places:
            stack.enter_context(held_alone(place, f"flowpolicy {'resume' if resume else 'train'}"))
        trainers: list[Trainer] = []
        keep = experiments[0].keep_checkpoints
        published = [stack.enter_context(uploading(place, keep)) for place in places]
        for experiment, place, told in zip(experiments, places, published, strict=True):
            # From how many updates on the compilation of a company pays on a CPU, nobody has measured.
            waits = experiment.compile == "auto" and not experiment.device.startswith("cuda")
            choice = dataclasses.replace(experiment, compile="off") if waits else experiment
            first = trainers[0] if trainers else None
            trainers.append(Trainer(choice, place, resume=resume, beside=first, published=told))
        try:
            _train(trainers, stack, progress)
        except KeyboardInterrupt:
            if not all(newest(place) for place in places):
                raise
            how = f"go on with: flowpolicy resume {shlex.join(map(str, places))}"
            raise KeyboardInterrupt(how) from None
    from flowpolicy.evaluate.curves import draw_curves

    for place in places:
        draw_curves(place / "metrics.csv", place / "curves.png")
    return [Run.load(place) for place in places]


def resume_together(
    runs: Sequence[str | os.PathLike[str]],
    data: str | os.PathLike[str] | None = None,
    *,
    device: str | None = None,
    progress: bool = True,
) -> list[Run]:
    """Go on with runs that were trained together; arguments of :meth:`Run.resume`, errors of :func:`train_together`."""
    experiments, loaded = [], [Run.load(run) for run in runs]
    for run in loaded:
        place = run.experiment.device if device is None else device
        experiments.append(dataclasses.replace(run.experiment, data=run.data(data), device=place))
    return train_together(experiments, [take_over(run.path) for run in loaded], resume=True, progress=progress)


def _train(trainers: list[Trainer], stack: contextlib.ExitStack, progress: bool) -> None:
    steps = trainers[0].experiment.steps
    name = f"train {len(trainers)} runs, {trainers[0].run} to {trainers[-1].run.name}"
    move = stack.enter_context(progress_bar(name, steps, min(t.step for t in trainers), shown=progress))

    def report(step: int, row: dict[str, float]) -> None:
        times = "  ".join(f"{name} {row[f'{name}_ms']:.2f}" for name in ("data", "update", "log"))
        move(step, f"loss {row['loss']:.4f}  ms per step and run: {times}")

    keeps = [stack.enter_context(trainer.keeping(report)) for trainer in trainers[:1]]
    keeps += [stack.enter_context(trainer.keeping()) for trainer in trainers[1:]]
    while unfinished := [index for index, trainer in enumerate(trainers) if not trainer.finished]:
        lowest = min(trainers[index].step for index in unfinished)
        group = [index for index in unfinished if trainers[index].step == lowest]
        until = min([steps, *(trainers[index].step for index in unfinished if trainers[index].step > lowest)])
        _train_until(until, [trainers[index] for index in group], [keeps[index] for index in group])


def _train_until(until: int, trainers: list[Trainer], keeps: list[Keep]) -> None:
    """Updates of runs that are equally far. The seconds that one takes are shared out among them."""
    first, count = trainers[0], len(trainers)
    choice = first.experiment.compile
    company = Company([trainer.agent for trainer in trainers], compile=choice == "on")
    noise = [trainer.streams["noise"] for trainer in trainers]
    drawn = 0.0

    def update() -> list[Metrics]:
        nonlocal drawn
        batches = [trainer.source.draw(trainer.streams["batches"]) for trainer in trainers]
        drawn = time.perf_counter()
        return company.update(batches, noise)

    take: Callable[[], list[Metrics]] = update
    if first.experiment.capture:
        streams = [stream for trainer in trainers for stream in trainer.streams.values()]
        take = CapturedUpdate(company.agents, first.source, update, streams)
    while first.step < until:
        start = drawn = time.perf_counter()
        with operators(choice), multiplying(first.precision, first.experiment.device):
            metrics = take()
        done = time.perf_counter()
        for keep, own in zip(keeps, metrics, strict=True):
            keep(own, (drawn - start) / count, (done - drawn) / count)
