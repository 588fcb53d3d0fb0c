"""``flowpolicy groups make RUN`` and ``picture RUN``: candidates for post-training, and how a run fared."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import tyro

from flowpolicy.agents.groups.making import Making
from flowpolicy.commands.arguments import call, pick
from flowpolicy.commands.console import console
from flowpolicy.core.files import require_free
from flowpolicy.core.progress import progress_bar
from flowpolicy.core.ranges import Natural, Seed


def run(argv: Sequence[str]) -> int:
    """Make a group file, or draw the picture of a post-training."""
    commands: dict[str, tuple[str, Callable[..., None]]] = {
        "make": ("candidate chunks of a run with scores, for --groups of the presets gdro-*", make),
        "picture": ("training reward, corrected score and true success of a post-training", picture),
    }
    name, rest = pick(argv, commands, "groups", "action")
    return call(commands[name][1], rest, f"groups {name}")


def make(run: Annotated[Path, tyro.conf.Positional], /, options: Annotated[Making, tyro.conf.arg(name="")]) -> None:
    """Score candidate chunks of a run, for post-training. Candidate 0 of every state is the data's own chunk.

    Simulator labels are kept in OUT.labels as they come; stopped, the same command goes on after the last one.

    Args:
        run: base run, a dm1 or flow-bc one: it generates the candidates.
        options: what is scored, and how.

    """
    require_free(options.out, options.overwrite)
    from flowpolicy.agents.groups.group_file import describe_groups, read_groups, write_groups
    from flowpolicy.data.dataset_report import print_rows
    from flowpolicy.train.group_sources import make_groups

    with progress_bar(f"groups {options.source}", options.states) as move:
        groups = make_groups(run, options, progress=move)
        move(options.states, "")
    write_groups(options.out, groups)
    options.labels.unlink(missing_ok=True)
    print_rows(str(options.out), describe_groups(read_groups(options.out)), console())


def picture(
    run: Annotated[Path, tyro.conf.Positional],
    /,
    episodes: Natural = 0,
    seed: Seed = 0,
    out: str = "",
    device: str = "cpu",
) -> None:
    """Draw training reward, corrected score and, with --episodes, true success of a post-training.

    Args:
        run: run of a preset gdro-*.
        episodes: planned episodes per stored checkpoint (--keep-checkpoints 0 keeps all); 0 plays none. For looking
            at, not for choosing: the corrected score chooses.
        seed: seed of the plan.
        out: picture; RUN/corrected.png unless given.
        device: where the policy plays: cpu or a CUDA device.

    """
    from flowpolicy.train.post_training_figure import draw_corrected, success_along

    png = Path(out) if out else run / "corrected.png"
    success = success_along(run, episodes, seed, device) if episodes else []
    draw_corrected(run / "metrics.csv", png, success, episodes)
    sys.stdout.write(f"picture {png}\n")
