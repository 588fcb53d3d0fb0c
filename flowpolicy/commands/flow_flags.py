"""Flags ``--flow.AXIS NAME``: a value of an axis picked by its name; its options are flags of their own."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from flowpolicy.agents.cloning.flow import Flow, as_flow
from flowpolicy.core.errors import ConfigError, nearest
from flowpolicy.flows.axes.registry import AXES, VALUES, make

PREFIX = "--flow."


def split_flow_flags(argv: Sequence[str]) -> tuple[dict[str, str] | None, list[str]]:
    """Axis -> picked name, and the other words; None where no word is a flag of an axis.

    Raises:
        ConfigError: no such axis or value, or a flag without a value.

    """
    picked: dict[str, str] = {}
    rest: list[str] = []
    words = list(argv)
    while words:
        word = words.pop(0)
        axis, equals, name = word.removeprefix(PREFIX).partition("=")
        if not word.startswith(PREFIX) or "." in axis:
            rest.append(word)
            continue
        if axis not in VALUES:
            raise ConfigError(f"there is no axis '{axis}' ({word})", expected=nearest(axis, AXES))
        if not equals:
            name = words.pop(0) if words else ""
        make(axis, name)
        picked[axis] = name
    used = picked or any(word.startswith(PREFIX) for word in rest)
    return (picked if used else None), rest


def with_flow(agent: Any, picked: dict[str, str]) -> Flow:
    """The agent of a preset with some values of the axes replaced: then a plain point on them, no longer its name.

    A new solver brings its usual number of evaluations; guidance multiplies or adds to it.
    """
    config = as_flow(agent)
    if not picked:
        return agent
    spec = dataclasses.replace(config.flow, **{axis: make(axis, name) for axis, name in picked.items()})
    nfe = spec.solver.usual if "solver" in picked else config.flow.guidance.budget(config.nfe)
    return dataclasses.replace(config, flow=spec, nfe=spec.guidance.total(nfe))


def settled(agent: Flow, default: Flow, picked: dict[str, str]) -> Flow:
    """The agent with the evaluations per chunk that the options of its solver and guidance ask for."""
    guidance, solver = default.flow.guidance, agent.flow.solver
    spent = solver.usual if "solver" in picked else guidance.budget(default.nfe)
    return dataclasses.replace(agent, nfe=agent.flow.guidance.total(spent))


def axes_help(agent: Any) -> str:
    """What the help of a preset says about the axes; empty where the agent is no point on them."""
    if not isinstance(agent, Flow):
        return ""
    lines = [f"  {PREFIX}{axis} {' | '.join(VALUES[axis])}" for axis in AXES]
    return (
        ". Flow laboratory: any value of any axis, picked by its name; options of a picked value are then flags "
        "of their own, such as --flow.coupling.weight.\n\n" + "\n".join(lines)
    )
