"""``flowpolicy card RUN``."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from flowpolicy.commands.arguments import call
from flowpolicy.commands.console import console
from flowpolicy.commands.progress import progress_bar


def run(argv: Sequence[str]) -> int:
    """Make the card of a run."""
    return call(card, argv, "card")


def card(run: Annotated[Path, tyro.conf.Positional], /, episodes: int = 50, seed: int = 0) -> None:
    """Success against network evaluations against latency: a table and RUN/card/card.png.

    Args:
        run: run folder or checkpoint folder.
        episodes: planned initial states, the same for every number of evaluations.
        seed: seed of the plan.

    """
    from rich.markdown import Markdown

    from flowpolicy.commands.evaluation import loaded
    from flowpolicy.core.files import read_json
    from flowpolicy.evaluate.card import NFES, supported
    from flowpolicy.evaluate.card import card as draw
    from flowpolicy.evaluate.plan import make_plan

    with loaded(run) as (policy, env, folder):
        plan = make_plan(env.spec.env_id, episodes, seed)
        done = 0
        with progress_bar(f"card {run}", episodes * len(supported(policy, NFES))) as move:

            def progress(_: object) -> None:
                nonlocal done
                done += 1
                move(done, "")

            step = read_json(folder / "state.json")["step"]
            command = shlex.join(["flowpolicy", *sys.argv[1:]])
            draw(policy, env, plan, run / "card", run=str(run), step=step, command=command, progress=progress)
    console().print(Markdown((run / "card" / "card.md").read_text(encoding="utf-8").split("![")[0]))
    sys.stdout.write(f"picture {run / 'card' / 'card.png'}\n")
