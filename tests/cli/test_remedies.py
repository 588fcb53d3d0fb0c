"""What errors advise exists: every command and every flag that a message names is one that the command line takes."""

import ast
import dataclasses
import importlib
import inspect
import re
from pathlib import Path

import pytest

from flowpolicy.agents.cloning.flow import Flow
from flowpolicy.cli import COMMANDS
from flowpolicy.configs.presets import PRESETS
from flowpolicy.flows.axes.registry import AXES, VALUES, make

ROOT = Path(__file__).parents[2]
FOREIGN = {"--force-reinstall"}
"""Flags of pip."""


def messages():
    """(place, text) of everything that is said as an expectation or a remedy; {} stands for what is filled in."""
    for room in ("flowpolicy", "agents", "envs", "configs", "real_robot"):
        for path in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.keyword) and node.arg in ("fix", "expected"):
                    parts = [
                        part.value if isinstance(part, ast.Constant) else "{}"
                        for part in ast.walk(node.value)
                        if isinstance(part, (ast.Constant, ast.FormattedValue))
                    ]
                    yield f"{path.relative_to(ROOT)}:{node.value.lineno}", "".join(map(str, parts))


def subcommands(name):
    """Words that may follow a command, from the table in its module; empty where it has none."""
    module = importlib.import_module(f"flowpolicy.commands.{COMMANDS[name][0]}")
    source = inspect.getsource(module.run)
    return set(re.findall(r'"([a-z]+)": \(', source))


def flags():
    """Every flag of every command."""
    found = {"--help", "--version", "--out", "--verify-resume", "--overwrite"}

    def fields(value, prefix="--"):
        for field in dataclasses.fields(value):
            found.add(prefix + field.name.replace("_", "-"))
            inner = getattr(value, field.name, None)
            if dataclasses.is_dataclass(inner) and not isinstance(inner, type):
                fields(inner, f"{prefix}{field.name.replace('_', '-')}.")

    for _, preset in PRESETS.values():
        fields(preset)
    fields(Flow(), "--agent.")
    for axis in AXES:
        found.add(f"--flow.{axis}")
        for name in VALUES[axis]:
            fields(make(axis, name), f"--flow.{axis}.")
    for command, (name, _) in COMMANDS.items():
        module = importlib.import_module(f"flowpolicy.commands.{name}")
        for value in vars(module).values():
            if inspect.isfunction(value) and value.__module__ == module.__name__:
                found |= {"--" + parameter.replace("_", "-") for parameter in inspect.signature(value).parameters}
            elif dataclasses.is_dataclass(value) and isinstance(value, type) and command:
                found |= {"--" + field.name.replace("_", "-") for field in dataclasses.fields(value)}
    return found


@pytest.fixture(scope="module")
def known():
    return flags()


def test_every_command_that_a_message_names_exists():
    wrong = []
    for place, text in messages():
        for name, word in re.findall(r"flowpolicy ([a-z]+)(?: ([a-z]+))?", text):
            if name in ("version", "in"):  # prose
                continue
            if name not in COMMANDS or (subcommands(name) and word and word not in subcommands(name)):
                wrong.append(f"{place}: flowpolicy {name} {word}")
    assert not wrong


def test_every_flag_that_a_message_names_exists(known):
    wrong = []
    for place, text in messages():
        for flag in re.findall(r"--[a-z][a-z0-9-]*(?:\.[a-z][a-z0-9-]*)*", text):
            if flag.replace("--no-", "--") not in known | FOREIGN:
                wrong.append(f"{place}: {flag}")
    assert not wrong
