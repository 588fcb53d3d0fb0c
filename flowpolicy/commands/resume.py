"""``flowpolicy resume RUN``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from flowpolicy.commands.arguments import call

if TYPE_CHECKING:
    from flowpolicy.train import Experiment  # brings torch, seconds of every --help


def run(argv: Sequence[str]) -> int:
    """Continue a run from its newest checkpoint; the result equals the uninterrupted run bit for bit."""
    return call(resume, argv, "resume")


def resume(run: Annotated[Path, tyro.conf.Positional], /) -> None:
    """Continue a run from its newest checkpoint; the result equals the uninterrupted run bit for bit.

    Args:
        run: run folder.

    """
    from flowpolicy.commands.train import train

    train(stored_experiment(run), run, resume=True)


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
