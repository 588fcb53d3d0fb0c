"""The parser of every command, as the command line builds it."""

from __future__ import annotations

import argparse
import functools
import importlib
import itertools
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

import tyro

from flowpolicy.cli import COMMANDS
from flowpolicy.commands import train
from flowpolicy.configs.presets import PRESETS
from flowpolicy.core.ranges import checked
from flowpolicy.flows.axes.registry import AXES, VALUES

PARSED_AS_TRAIN = ("train", "online")
"""One parser per preset, or for the experiment of a run."""


class _Reached(Exception):
    """The function behind a command was found."""


@functools.cache
def functions() -> dict[str, Callable[..., Any]]:
    """Command, such as ``data make``, -> the function that it calls; those of :data:`PARSED_AS_TRAIN` are not here."""
    found: dict[str, Callable[..., Any]] = {}
    for command, (module, _) in COMMANDS.items():
        if command in PARSED_AS_TRAIN:
            continue
        place = importlib.import_module(f"flowpolicy.commands.{module}")
        tables: list[dict[str, Any]] = []

        def pick(argv: list[str], table: dict[str, Any], *names: str, tables: Any = tables) -> tuple[str, list[str]]:
            tables.append(table)
            return (argv[0] if argv else next(iter(table))), []

        def call(function: Callable[..., Any], argv: list[str], words: str) -> int:
            found[words] = function
            raise _Reached

        with mock.patch.multiple(place, pick=pick, call=call, create=True):
            _run(place, [])
            for name in tables[0] if tables else ():
                _run(place, [name])
    return found


def _run(place: Any, argv: list[str]) -> None:
    try:
        place.run(argv)
    except _Reached:
        return
    raise AssertionError(f"{place.__name__} {argv} calls nothing")


class Option(NamedTuple):
    """A flag or a positional argument."""

    takes: str
    """Type of its value as the help shows it, such as PATH; empty where it takes none."""
    help: str


@functools.cache
def options(command: str) -> dict[str, Option]:
    """Every flag, and every positional argument by its name in capitals, of a command."""
    if command == "train":
        # The values of all axes once, many at a time: what may not be combined is refused later than it is parsed.
        columns = itertools.zip_longest(*([f"--flow.{axis} {name}" for name in VALUES[axis]] for axis in AXES))
        laboratory = ["debug " + " ".join(filter(None, column)) for column in columns]
        every = (options(f"train {words}") for words in (*PRESETS, *laboratory))
        taken = {flag: one for one_parser in every for flag, one in one_parser.items()}
        values = [*(f"--flow.{axis}" for axis in AXES), *(f"--{field}" for field in train.VARIANTS)]
        taken["--list"] = Option("WORD", "words of presets")  # answered before an option of any preset is parsed
        return taken | dict.fromkeys(values, Option("VALUE", "value of an axis, or kind of a network"))
    if command == "online":
        return {"RUN": Option("PATH", "run folder"), **options("train fql-toy")}
    if command.startswith("train "):
        return _of(_train_parser(command.removeprefix("train ")))
    return _of(_parser(checked(functions()[command])))


def commands() -> tuple[str, ...]:
    """All commands; ``train`` stands for all presets."""
    return (*PARSED_AS_TRAIN, *functions())


def _train_parser(words: str) -> argparse.ArgumentParser:
    parser: list[argparse.ArgumentParser] = []

    def cli(kind: Any, *, config: Any = (), default: Any = None, **rest: Any) -> Any:
        parser.append(_parser(kind, default=default, config=config))
        raise _Reached

    with mock.patch.object(train.tyro, "cli", cli):
        try:
            train.run(words.split())
        except _Reached:
            return parser[0]
    raise AssertionError(f"train {words} parses nothing")


def _parser(kind: Any, **rest: Any) -> argparse.ArgumentParser:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # nothing else tells what tyro understands
        return tyro.extras.get_parser(kind, **rest)


def _of(parser: argparse.ArgumentParser) -> dict[str, Option]:
    found = {}
    for action in parser._actions:
        names = action.option_strings or [action.dest.rpartition(".")[2].upper()]
        takes = "" if action.nargs == 0 else str(action.metavar)
        found.update(dict.fromkeys(names, Option(takes, str(action.help))))
    return found
