"""``flowpolicy data make TASK`` and ``flowpolicy data info FILE``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from flowpolicy.commands.arguments import call, pick
from flowpolicy.commands.console import console
from flowpolicy.commands.progress import progress_bar


def run(argv: Sequence[str]) -> int:
    """Make or describe a dataset file."""
    commands: dict[str, tuple[str, Callable[..., None]]] = {
        "make": ("generate demonstrations with a scripted demonstrator", make),
        "info": ("describe a file", info),
    }
    name, rest = pick(argv, commands, "data", "action")
    return call(commands[name][1], rest, f"data {name}")


def make(
    task: Annotated[Literal["lift", "can", "toy"], tyro.conf.Positional],
    /,
    out: Path,
    episodes: int = 200,
    seed: int = 0,
    quality: Literal["expert", "mixed"] = "expert",
    workers: int | None = None,
) -> None:
    """Generate demonstrations in RoboMimic HDF5.

    Args:
        task: what to demonstrate.
        out: file to write.
        episodes: number of episodes in the file.
        seed: same seed, same file content, whatever the number of workers.
        quality: expert keeps successes only; mixed adds three levels and labelled failures as filter keys.
        workers: processes; one per core unless given.

    """
    from flowpolicy.envs.demonstrators import make_demonstrations

    done = 0
    with progress_bar(f"demonstrate {task}", episodes) as move:

        def progress(count: int = 1) -> None:
            nonlocal done
            done += count
            move(done, "")

        make_demonstrations(
            task, out, episodes=episodes, seed=seed, quality=quality, workers=workers, progress=progress
        )
    sys.stdout.write(f"wrote {out}\n")


def info(file: Annotated[Path, tyro.conf.Positional], /) -> None:
    """Describe a dataset file as a table.

    Args:
        file: RoboMimic or D4RL HDF5.

    """
    from flowpolicy.data.doctor import describe
    from flowpolicy.data.report import print_description

    print_description(describe(file), console())
