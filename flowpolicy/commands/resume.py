"""``flowpolicy resume RUN``."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from flowpolicy.commands.arguments import call
from flowpolicy.core.errors import ConfigError

if TYPE_CHECKING:
    from flowpolicy.train import Experiment  # brings torch, seconds of every --help


def run(argv: Sequence[str]) -> int:
    """Continue a run from its newest checkpoint; the result equals the uninterrupted run bit for bit."""
    if any(word.partition("=")[0] == "--steps" for word in argv):
        raise ConfigError(
            "a run ends where it was planned to: the schedule of its learning rate depends on the number of updates",
            fix="train a new run with more updates: flowpolicy train PRESET --steps N --out OUT",
        )
    return call(resume, argv, "resume")


def resume(
    run: Annotated[Path, tyro.conf.Positional],
    /,
    data: Annotated[Path | None, tyro.conf.arg(name="data.path")] = None,
) -> None:
    """Continue a run from its newest checkpoint; the result equals the uninterrupted run bit for bit.

    Args:
        run: run folder.
        data: where the training file lies now, if it was moved; its content must be the same.

    """
    from flowpolicy.commands.train import train
    from flowpolicy.core.checkpoint import resolve, run_of
    from flowpolicy.core.spec import load_contract
    from flowpolicy.train.experiment import require_unchanged

    folder = resolve(run)
    if folder.resolve() == run.resolve():
        raise ConfigError(
            f"{run} is a checkpoint, and a run goes on from its newest one", fix=f"flowpolicy resume {run_of(run)}"
        )
    experiment = stored_experiment(run)
    if data is not None:
        experiment = dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, path=str(data)))
    require_unchanged(experiment.data, load_contract(folder / "contract.json"))
    train(experiment, run, resume=True)


def stored_experiment(run: Path) -> Experiment:
    """The experiment of a run folder's newest checkpoint, or of a checkpoint folder."""
    from flowpolicy.configs.presets import KINDS
    from flowpolicy.core.checkpoint import resolve
    from flowpolicy.core.config import decode
    from flowpolicy.core.errors import CheckpointError
    from flowpolicy.core.files import read_json
    from flowpolicy.train import Experiment

    path = resolve(run) / "config.json"
    experiment = decode(read_json(path).get("experiment"), KINDS, str(path))
    if not isinstance(experiment, Experiment):
        raise CheckpointError(f"{path} holds no experiment", fix="resume with the flowpolicy version that wrote it")
    return experiment
