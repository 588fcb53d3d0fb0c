"""``flowpolicy cite RUN``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

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
    from flowpolicy.train.run import Run

    cited = Run.load(run)
    sys.stdout.write("\n".join(citations(cited.experiment.agent, cited.policy_config)) + "\n")


def citations(agent: Any, policy: Any) -> list[str]:
    """Lines: what is used, and where it was published."""
    import re

    from flowpolicy.agents.cloning.flow import Flow
    from flowpolicy.agents.groups.gdro import GDRO

    module = sys.modules[type(agent).__module__].__doc__ or ""
    lines = [f"agent {type(agent).__name__}: {module.splitlines()[0]}"]
    # The docstring of an agent's file names its papers.
    lines += [f"  https://arxiv.org/abs/{number}" for number in dict.fromkeys(re.findall(r"\d{4}\.\d{5}", module))]
    used = agent.flow.references() if isinstance(agent, Flow) else {}
    used |= agent.references() if isinstance(agent, GDRO) else {}
    if policy.flow is not None:  # a solver that was fitted later
        for value in (policy.flow.solver, policy.flow.schedule):
            used[f"{value.axis} {value.name}"] = value.references
    for name, references in used.items():
        for reference in references:
            link = f" https://arxiv.org/abs/{reference.arxiv}" if reference.arxiv else ""
            lines.append(f"{name}: {reference.title}{link}")
    return lines
