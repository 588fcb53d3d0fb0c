"""``flowpolicy cite RUN``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from flowpolicy.commands.arguments import call


def run(argv: Sequence[str]) -> int:
    """List the publications that a run stands on."""
    return call(cite, argv, "cite")


def cite(run: Annotated[Path, tyro.conf.Positional], /) -> None:
    """List the publications that a run stands on: of its agent, and of every value of every axis.

    Args:
        run: run folder.

    """
    from flowpolicy.core.references import citations
    from flowpolicy.train.run import Run

    cited = Run.load(run)
    agent = cited.experiment.agent
    summary = (type(agent).__doc__ or "").splitlines()[0]
    lines = [f"agent {type(agent).__name__}: {summary}", *citations(f"agent {type(agent).__name__}", agent)]
    lines += citations("policy", cited.policy_config)  # a solver may have been fitted later
    sys.stdout.write("\n".join(dict.fromkeys(lines)) + "\n")
