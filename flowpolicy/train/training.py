"""From an experiment to a finished run: ``flowpolicy.train``."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from flowpolicy.core.checkpoint import newest
from flowpolicy.core.config import TAG, encode
from flowpolicy.core.errors import FlowPolicyError, from_system
from flowpolicy.core.files import held_alone
from flowpolicy.core.memory import keep_freed_memory
from flowpolicy.core.object_store import find_address
from flowpolicy.core.progress import progress_bar
from flowpolicy.core.protocols import VecEnv
from flowpolicy.core.ranks import leads, shared
from flowpolicy.core.remote_run import begin
from flowpolicy.core.run_upload import Published, uploading
from flowpolicy.core.torchrun import require_alone
from flowpolicy.envs import find_env
from flowpolicy.train.compiling import told
from flowpolicy.train.experiment import Experiment
from flowpolicy.train.kinds import KINDS
from flowpolicy.train.loop import Report, Trainer
from flowpolicy.train.run import Run


def train(experiment: Experiment, out: str | os.PathLike[str] | None = None, *, progress: bool = True) -> Run:
    """Train to the end, with checkpoints on the way, and draw the learning curves. Nobody else may do so meanwhile.

    Args:
        experiment: what is trained, such as ``flowpolicy.presets["dm1-lift"].with_(data="lift.hdf5")``.
        out: run folder; ``runs/AGENT-ENV-seedS`` unless given. ``s3://BUCKET/NAME`` or ``gs://`` trains in a folder of
            the cache, and stores every checkpoint there.
        progress: show a bar.

    Returns:
        The finished run.

    Raises:
        ConfigError: the folder holds a run already, or an option makes no sense.
        ContractError: file and environment disagree.
        DataError: the file cannot be trained on.
        TrainingError: a loss or a weight is not finite.
        StoreError: checkpoints could not be stored; they are kept here.

    """
    if out is not None and find_address(out) is not None:
        require_alone("--out in a store", "each process would begin a run of its own there", "train in --out FOLDER")
    return _train(experiment, begin(out) if out is not None else default_folder(experiment), progress)


def go_on(experiment: Experiment, folder: Path, *, progress: bool = True) -> Run:
    """Train what is left of a run; :meth:`flowpolicy.train.run.Run.resume` knows what to go on with."""
    return _train(experiment, folder, progress, resume=True)


def default_folder(experiment: Experiment) -> Path:
    """Where a run goes that nobody named a folder for."""
    agent = encode(experiment.agent, KINDS)[TAG].replace("_", "-")
    return Path("runs") / f"{agent}-{experiment.env.replace('/', '-')}-seed{experiment.seed}"


def _train(experiment: Experiment, folder: Path, progress: bool, *, resume: bool = False) -> Run:
    keep_freed_memory()
    with shared(experiment.device), contextlib.ExitStack() as stack:
        published: Published = _nobody
        if leads():
            stack.enter_context(held_alone(folder, f"flowpolicy {'resume' if resume else 'train'}"))
            published = stack.enter_context(uploading(folder, experiment.keep_checkpoints))
        _train_alone(experiment, folder, progress and leads(), resume, published)
        return Run.load(folder)


def _nobody(checkpoint: Path) -> None:
    """Is told of a checkpoint, and does nothing."""


def _train_alone(experiment: Experiment, folder: Path, progress: bool, resume: bool, published: Published) -> None:
    if progress and not resume:
        sys.stderr.write(f"{told(experiment)}\n")
    with _slot(experiment) as slot:
        trainer = Trainer(experiment, folder, resume=resume, slot=slot, published=published)
        with _shown(trainer, folder, progress) as report:
            _trained(trainer, report)
    if not leads():
        return
    from flowpolicy.evaluate.curves import draw_curves  # matplotlib: a second that a run need not begin with

    draw_curves(folder / "metrics.csv", folder / "curves.png")
    if (folder / "episodes.csv").exists():
        draw_curves(folder / "episodes.csv", folder / "online.png", "environment step")
    if trainer.experiment.base:
        from flowpolicy.train.post_training_figure import draw_corrected

        draw_corrected(folder / "metrics.csv", folder / "corrected.png")


def _trained(trainer: Trainer, report: Report) -> None:
    """Train to the end; whoever has to stop it is told how to go on from what there is."""
    try:
        with trainer.ranks.training() if trainer.ranks else contextlib.nullcontext():
            trainer.train(report)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_how_to_go_on(trainer)) from None
    except (OSError, FlowPolicyError) as error:
        refused = from_system(error if isinstance(error, OSError) else error.__cause__ or error)
        if refused is None:
            raise
        what = error.what if isinstance(error, FlowPolicyError) else refused.what
        raise FlowPolicyError(what, fix=f"free some space or mend what is said; {_how_to_go_on(trainer)}") from error


def _how_to_go_on(trainer: Trainer) -> str:
    if newest(trainer.run):
        command = f"torchrun --nproc-per-node {trainer.ranks.count} -m flowpolicy" if trainer.ranks else "flowpolicy"
        return f"go on from {newest(trainer.run)} with: {command} resume {shlex.quote(str(trainer.run))}"
    return (
        f"there is no checkpoint yet (the first is written after {trainer.experiment.checkpoint_every} updates: "
        "--checkpoint-every); the same command starts anew"
    )


@contextmanager
def _shown(trainer: Trainer, folder: Path, shown: bool) -> Iterator[Callable[[int, dict[str, float]], None]]:
    """A bar that shows loss and where the time goes."""
    with progress_bar(f"train {folder}", trainer.experiment.steps, trainer.step, shown=shown) as move:

        def report(step: int, row: dict[str, float]) -> None:
            times = "  ".join(f"{name} {row[f'{name}_ms']:.2f}" for name in ("data", "update", "log"))
            move(step, f"loss {row['loss']:.4f}  ms per step: {times}")

        yield report


@contextmanager
def _slot(experiment: Experiment) -> Iterator[VecEnv | None]:
    """One environment to step in, where the experiment asks for steps."""
    if not experiment.online.base:
        yield None
        return
    slot = find_env(experiment.env).make(1)
    try:
        yield slot
    finally:
        slot.close()
