"""``flowpolicy peer train PRESET`` and ``flowpolicy peer eval RUN``."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import tyro

from flowpolicy.commands.arguments import call, pick, typed
from flowpolicy.commands.console import console
from flowpolicy.core.errors import ConfigError
from flowpolicy.core.ranges import Count, Seed


def run(argv: Sequence[str]) -> int:
    """Train and evaluate the code of others."""
    actions: dict[str, tuple[str, Callable[..., None]]] = {
        "train": ("train a public implementation where a preset would be trained", train),
        "eval": ("play it on an evaluation plan, as flowpolicy eval does", evaluate),
    }
    name, rest = pick(argv, actions, "peer", "action")
    return call(actions[name][1], rest, f"peer {name}")


def train(
    preset: Annotated[str, tyro.conf.Positional],
    /,
    peer: str,
    data: Path,
    out: Path,
    peer_python: str = "",
    options: str = "",
) -> None:
    """Train a public implementation on a file, with the updates, rows, networks and options of one of our presets.

    Args:
        preset: of `flowpolicy train`, such as fql-cube-single.
        peer: NAME=PATH: fql, a checkout of github.com/seohongpark/fql, or fisher, one of
            github.com/ARC0127/Fisher-Decorator. Its code is run: name only what you would run yourself.
        data: training file.
        out: run folder.
        peer_python: Python that has the peer's packages; this one unless given. docs/benchmarks.md says how to make it.
        options: further options of `flowpolicy train`, in one word: --options='--steps 20000 --agent.alpha 100'.

    """
    from flowpolicy.commands.train import parse
    from flowpolicy.configs.preset_table import find_preset
    from flowpolicy.lab.peer_run import find_checkout, train_peer

    checkout = find_checkout(peer, peer_python)
    try:
        words = shlex.split(options)
    except ValueError as error:
        raise ConfigError(f"--options '{options}': {error}", expected="options of flowpolicy train") from error
    command = parse(find_preset(preset)[1], ["--data.path", str(data), *words], f"peer train {preset}", "")
    if command.out or command.seeds > 1 or command.sweep or command.verify_resume:
        raise ConfigError(
            f"--options '{options}' names what a peer does not do, or where it goes",
            expected="updates, rows, seed, networks and values of one run",
        )
    train_peer(checkout, command.experiment, out)
    sys.stdout.write(f"trained    {out / 'peer'}\n")


def evaluate(
    run: Annotated[Path, tyro.conf.Positional],
    /,
    episodes: Count = 100,
    seed: Seed = 0,
    json: Path | None = None,
) -> None:
    """Success and return of a peer on an evaluation plan: the states and the record of `flowpolicy eval`.

    Args:
        run: run folder of `flowpolicy peer train`.
        episodes: number of planned initial states.
        seed: seed of the plan.
        json: where to write the record, besides RUN/peer.

    """
    from flowpolicy.evaluate.tables import evaluation_table
    from flowpolicy.lab.peer_run import evaluate_peer

    evaluation = evaluate_peer(run, episodes=episodes, seed=seed, also=json, command=typed())
    console().print(evaluation_table(evaluation))
    sys.stdout.write(f"outcomes {run / 'peer' / 'record.json'}\n")
