"""``flowpolicy data make TASK``, ``flowpolicy data label FILE`` and ``flowpolicy data info FILE``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console

from flowpolicy.commands.arguments import call, pick
from flowpolicy.commands.progress import progress_bar
from flowpolicy.core.errors import ConfigError

Task = Literal[
    "lift",
    "can",
    "toy",
    "cube-single",
    "cube-double",
    "scene",
    "puzzle-3x3",
    "pointmaze-medium",
    "pointmaze-large",
]


def run(argv: Sequence[str]) -> int:
    """Make, label or describe a dataset file."""
    commands: dict[str, tuple[str, Callable[..., None]]] = {
        "make": ("generate data with a scripted demonstrator", make),
        "label": ("add the rewards of every task to an OGBench file", label),
        "info": ("describe a file", info),
    }
    name, rest = pick(argv, commands, "data", "action")
    return call(commands[name][1], rest, f"data {name}")


def make(
    task: Annotated[Task, tyro.conf.Positional],
    /,
    out: Path,
    episodes: int = 200,
    seed: int = 0,
    quality: Literal["expert", "mixed"] = "expert",
    workers: int | None = None,
) -> None:
    """Generate data: RoboMimic HDF5 for lift, can and toy; OGBench npz for the others.

    Args:
        task: what to demonstrate.
        out: file to write; .npz for OGBench, which gets FILE-val.npz with a tenth as many episodes beside it.
        episodes: number of (training) episodes in the file.
        seed: same seed, same file content, whatever the number of workers.
        quality: lift, can and toy: expert keeps successes only; mixed adds three levels and labelled failures as
            filter keys. OGBench data has one quality.
        workers: processes; one per core unless given.

    """
    from flowpolicy.envs.demonstrators import TASKS, make_demonstrations
    from flowpolicy.envs.ogbench_data import make_ogbench, validation_episodes

    scripted = task in TASKS
    if not scripted and quality != "expert":
        raise ConfigError(f"--quality {quality} does not exist for {task}", fix="leave --quality out")
    done = 0
    with progress_bar(f"make {task}", episodes if scripted else episodes + validation_episodes(episodes)) as move:

        def progress(count: int = 1) -> None:
            nonlocal done
            done += count
            move(done, "")

        if scripted:
            make_demonstrations(task, out, episodes, seed, quality, workers, progress)
        else:
            make_ogbench(task, out, episodes, seed, workers, progress)
    sys.stdout.write(f"wrote {out}\n")


def label(file: Annotated[Path, tyro.conf.Positional], /, env: str, out: Path) -> None:
    """Add the rewards and masks of every task to an OGBench file (the official ones carry none).

    Args:
        file: OGBench npz with qpos.
        env: its environment, e.g. cube-single.
        out: file to write; may be the same.

    """
    from flowpolicy.envs.ogbench import OGBenchConfig
    from flowpolicy.envs.ogbench_data import label_file

    label_file(file, OGBenchConfig(env).env, out)
    sys.stdout.write(f"wrote {out}\n")


def info(file: Annotated[Path, tyro.conf.Positional], /) -> None:
    """Describe a dataset file as a table.

    Args:
        file: RoboMimic or D4RL HDF5, or OGBench npz.

    """
    from flowpolicy.data.doctor import describe
    from flowpolicy.data.report import print_description

    print_description(describe(file), Console())
