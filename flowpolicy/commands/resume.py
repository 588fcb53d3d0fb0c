"""``flowpolicy resume RUN``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from flowpolicy.commands.arguments import call


def run(argv: Sequence[str]) -> int:
    """Continue a run from its newest checkpoint; the result equals the uninterrupted run bit for bit."""
    return call(resume, argv, "resume")


def resume(run: Annotated[Path, tyro.conf.Positional], /) -> None:
    """Continue a run from its newest checkpoint; the result equals the uninterrupted run bit for bit.

    Args:
        run: run folder.

    """
    from flowpolicy.commands.train import train
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
    train(experiment, run, resume=True)
