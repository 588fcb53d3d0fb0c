"""``flowpolicy pull USER/NAME``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from flowpolicy.commands.arguments import call
from flowpolicy.core.errors import ConfigError
from flowpolicy.core.files import require_writable


def run(argv: Sequence[str]) -> int:
    """Fetch a run from the hub."""
    return call(pull, argv, "pull")


def pull(name: Annotated[str, tyro.conf.Positional], /, out: Path | None = None) -> None:
    """Fetch a run from the Hugging Face hub into a new run folder, every file compared with its hash.

    Commands take hf://USER/NAME wherever they take a run; then it lies in the cache.

    Args:
        name: USER/NAME or USER/NAME@REVISION, with or without hf://; a branch, a tag or a commit, main unless given.
        out: new run folder; runs/NAME unless given.

    """
    from flowpolicy.core.hub_run import hub_name, pull_run

    place = hub_name(name)
    out = out or Path("runs") / place.repo.rpartition("/")[2]
    if out.exists():
        raise ConfigError(f"{out} is there already", expected="a new folder", fix="choose another --out")
    require_writable(out.parent)
    sys.stdout.write(f"{pull_run(place, out).url}\n{out}: every file has the hash that is stated for it\n")
