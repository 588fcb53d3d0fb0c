"""``flowpolicy push RUN USER/NAME``."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from flowpolicy.commands.arguments import call
from flowpolicy.core.errors import ConfigError


def run(argv: Sequence[str]) -> int:
    """Send a run to the hub."""
    return call(push, argv, "push")


def push(
    run: Annotated[Path, tyro.conf.Positional],
    name: Annotated[str, tyro.conf.Positional],
    /,
    private: bool = False,
    license: str = "",  # noqa: A002  the flag
    message: str = "",
) -> None:
    """Send a checkpoint to a model repository of the Hugging Face hub, in one commit, with what speaks of it.

    That is the checkpoint itself, evaluations, videos, card and curves, and a model card. They name paths, commands and
    versions of this machine. What an earlier push left there is replaced; its commits stay.

    Args:
        run: run folder (its newest checkpoint) or checkpoint folder.
        name: USER/NAME, or hf://USER/NAME; made if it is not there. Log in with HF_TOKEN or `hf auth login`.
        private: make a new repository private.
        license: of the model card, such as mit; none is stated unless given.
        message: of the commit.

    """
    from flowpolicy.core import checkpoint
    from flowpolicy.core.hub_run import hub_endpoint, hub_name, push_run
    from flowpolicy.report.model_card import files_to_share, model_card

    place = hub_name(name)
    if place.revision != "main":
        raise ConfigError(f"push to the revision '{place.revision}'", expected=f"hf://{place.repo}: its branch main")
    if license and not re.fullmatch(r"[a-z0-9][a-z0-9.-]{0,60}", license):
        raise ConfigError(f"--license {license[:60]!r}", expected="an identifier such as mit, apache-2.0 or cc-by-4.0")
    folder = checkpoint.resolve(run)
    if checkpoint.run_of(folder) == folder:
        raise ConfigError(f"{run} lies in no run folder", expected="RUN/checkpoints/step_...", fix="name a run folder")
    names = files_to_share(folder)
    card = model_card(folder, place.repo, hub_endpoint(), license)
    done = push_run(checkpoint.run_of(folder), names, folder.name, card, place.repo, private=private, message=message)
    size = sum((checkpoint.run_of(folder) / each).stat().st_size for each in names)
    sys.stdout.write(f"{len(names)} files, {size / 1e6:.1f} MB\n{done.url}\n")
