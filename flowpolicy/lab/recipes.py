"""Recipes: points on the axes, written as words, and the record of training and measuring each on the chunk toy."""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import json
import math
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from flowpolicy.agents.base.imitation import ImitationAgent
from flowpolicy.agents.base.optimizer import Optimizer
from flowpolicy.agents.cloning.dm1 import DM1
from flowpolicy.agents.cloning.flow import Flow, as_flow
from flowpolicy.agents.cloning.mip import MIP
from flowpolicy.agents.cloning.regression import Regression
from flowpolicy.core.config import encode
from flowpolicy.core.errors import ConfigError, nearest
from flowpolicy.core.files import read_json, write_json
from flowpolicy.core.seed import torch_generator
from flowpolicy.core.spec import library_versions
from flowpolicy.evaluate.report import git_commit
from flowpolicy.flows.axes.flow_spec import FlowSpec
from flowpolicy.flows.axes.registry import AXES, VALUES, make
from flowpolicy.lab.chunk_toy import ChunkToy
from flowpolicy.lab.lab_plan import LabPlan
from flowpolicy.lab.measure import agent_on, measure, observations, train
from flowpolicy.nets.encoder import StateEncoder
from flowpolicy.nets.mlp import MLP
from flowpolicy.policy.actor import KINDS
from flowpolicy.policy.fitted_solver import fitted

CONTROLS: dict[str, Any] = {"regression": Regression, "mip": MIP}
"""Agents without a flow, by what a recipe calls them."""
BASES = ("dm1", "encoder", *CONTROLS)
TOLERANCE = 0.05
"""Rows of a table have the parameters of plain flow matching, give or take this share."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A point on the axes with what it takes to train it."""

    name: str
    """What the tables call it."""
    flow: FlowSpec = FlowSpec()
    """The point."""
    lr: float = 1e-3
    """Peak learning rate."""
    base: str = ""
    """One of :data:`BASES`, or none: 'dm1' starts from DM1 with its own law of intervals, its encoder and its
    regulariser, 'encoder' from plain flow matching behind that encoder; the others are controls beside the axes."""
    fit: bool = False
    """Measure the solver that is fitted to the trained field as well."""


KINDS_OF_RECORDS: dict[str, type] = {"recipe": Recipe, "lab_plan": LabPlan, "toy": ChunkToy}


def parse_recipe(text: str) -> Recipe:
    """A recipe from words: ``[NAME:] axis=value axis.option=number lr=0.002 base=dm1 fit=olss``.

    Raises:
        ConfigError: a word that is no axis, value or option.

    """
    name, colon, words = text.partition(":")
    if colon and not name.strip():
        raise ConfigError(f"the recipe '{text}' has no name", expected="NAME: axis=value ..., or words alone")
    values, options, rest = {}, {axis: {} for axis in AXES}, {}  # type: ignore[var-annotated]
    for word in (words if colon else text).split():
        key, equals, value = word.partition("=")
        axis, _, option = key.partition(".")
        if not equals or (axis not in AXES and key not in ("lr", "base", "fit")):
            known = [*AXES, "lr", "base", "fit"]
            raise ConfigError(
                f"the word '{word}' of the recipe '{text}'", expected=f"KEY=VALUE; {nearest(axis, known)}"
            )
        if axis not in AXES:
            rest[key] = value
        elif option:
            options[axis][option] = _literal(value)
        else:
            values[axis] = value
    control = rest.get("base", "")
    if control not in ("", *BASES) or (control in CONTROLS and (values or any(options.values()))):
        raise ConfigError(
            f"the recipe '{text}' with the base '{control}'",
            expected=f"base={' or base='.join(BASES)}; {' and '.join(CONTROLS)} have no axes",
        )
    base = as_flow(DM1()).flow if control == "dm1" else FlowSpec()
    changes = {
        axis: make(axis, values.get(axis, getattr(base, axis).name), **_fitting(axis, values, base, options[axis]))
        for axis in AXES
        if axis in values or options[axis]
    }
    return Recipe(
        name=name.strip() if colon else " ".join(text.split()) or "flow matching",
        flow=dataclasses.replace(base, **changes),
        lr=_rate(rest.get("lr", "1e-3"), text),
        base=control,
        fit="fit" in rest,
    )


def _rate(value: str, text: str) -> float:
    """A learning rate in words."""
    try:
        rate = float(value)
    except ValueError:
        rate = math.nan
    if not 0 < rate < math.inf:
        raise ConfigError(f"lr={value} of the recipe '{text}'", expected="a number above 0")
    return rate


def _fitting(axis: str, values: dict[str, str], base: FlowSpec, options: dict[str, Any]) -> dict[str, Any]:
    """Options with whole numbers where whole numbers belong, and floats where floats do."""
    cls = VALUES[axis].get(values.get(axis, getattr(base, axis).name))
    hints = typing.get_type_hints(cls) if cls else {}
    floats = {name for name, hint in hints.items() if float in (hint, *typing.get_args(hint))}
    return {key: float(value) if type(value) is int and key in floats else value for key, value in options.items()}


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def build(recipe: Recipe, plan: LabPlan, seed: int) -> ImitationAgent:
    """The agent of a recipe."""
    dm1 = recipe.base == "dm1"
    config: Any = CONTROLS[recipe.base]() if recipe.base in CONTROLS else as_flow(DM1()) if dm1 else Flow()
    config = dataclasses.replace(
        config,
        net=MLP(width=plan.width, depth=plan.depth),
        encoder=StateEncoder(width=plan.width if recipe.base in ("dm1", "encoder") else 0),
        chunk=plan.toy.steps,
        execute=plan.toy.steps,
        optimizer=Optimizer(lr=recipe.lr),
    )
    if isinstance(config, Flow):
        nfe = recipe.flow.guidance.total(recipe.flow.solver.usual)
        config = dataclasses.replace(config, flow=recipe.flow, nfe=nfe)
    return agent_on(plan, config, plan.updates, seed)


def parameters(recipe: Recipe, plan: LabPlan) -> int:
    """How many numbers the networks of a recipe have, encoder included."""
    return sum(value.numel() for value in build(recipe, plan, 0).actor.parameters())


def sized(recipe: Recipe, plan: LabPlan) -> LabPlan:
    """The plan with the width at which the recipe has the parameters of plain flow matching at the plan's width.

    That is the plan's own width where the two differ by at most ``TOLERANCE``, and otherwise the nearest one.
    """
    wanted = parameters(Recipe("flow matching"), plan)

    def excess(width: int) -> int:
        return parameters(recipe, dataclasses.replace(plan, width=width)) - wanted

    if abs(excess(plan.width)) <= TOLERANCE * wanted:
        return plan
    low, high = 1, plan.width
    while excess(high) < 0:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if excess(middle) < 0 else (low, middle)
    return dataclasses.replace(plan, width=min((low, high), key=lambda width: abs(excess(width))))


def run(recipe: Recipe, plan: LabPlan, seed: int, command: str = "") -> dict[str, Any]:
    """Train and measure; the record of the run as JSON values. ``command``: the command line it is part of."""
    torch.set_num_threads(1)
    agent = build(recipe, plan, seed)
    trained = train(agent, plan, plan.updates, seed)
    policy = agent.policy()
    record: dict[str, Any] = {
        "schema": 2,
        "name": recipe.name,
        "command": command,
        "commit": git_commit(),
        "seed": seed,
        "recipe": encode(recipe, {**KINDS_OF_RECORDS, **KINDS}),
        "plan": encode(plan, KINDS_OF_RECORDS),
        "parameters": sum(value.numel() for value in agent.actor.parameters()),
        **trained,
        "versions": library_versions(),
        "error": measure(policy, plan, seed),
    }
    if recipe.fit:
        small = [nfe for nfe in plan.nfes if 2 <= nfe <= 8]
        record["fitted"] = {}
        for nfe in small:
            better = fitted(policy, observations(plan), nfe, "olss", torch_generator(seed, "fit"))
            record["fitted"] |= measure(better, dataclasses.replace(plan, nfes=(nfe,)), seed)
    return record


def record_path(folder: Path, recipe: Recipe, plan: LabPlan, seed: int) -> Path:
    """Where the record of a run stands: named by recipe, plan and seed, so that it is made once."""
    text = json.dumps([encode(recipe, {**KINDS_OF_RECORDS, **KINDS}), encode(plan, KINDS_OF_RECORDS)])
    name = "".join(c if c.isalnum() else "-" for c in recipe.name)[:60].strip("-")
    return folder / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}-seed{seed}.json"


def run_once(recipe: Recipe, plan: LabPlan, seed: int, folder: Path, command: str = "") -> dict[str, Any]:
    """The record of a run, from its file where there is one."""
    path = record_path(folder, recipe, plan, seed)
    if not path.exists():
        write_json(path, run(recipe, plan, seed, command))
    record: dict[str, Any] = read_json(path)
    if "parameters" not in record:  # a record from before they were counted
        record["parameters"] = parameters(recipe, plan)
    return record


def check(recipes: Sequence[Recipe], plan: LabPlan) -> None:
    """Refuse wrong recipes before any is trained."""
    for recipe in recipes:
        build(recipe, dataclasses.replace(plan, width=8, depth=1), 0)
