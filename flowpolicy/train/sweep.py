"""Runs that differ in numbers of their agent, and are trained together: one process, one sweep."""

from __future__ import annotations

import dataclasses
import fnmatch
import itertools
import typing
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from flowpolicy.core.config import changed, nested
from flowpolicy.core.errors import ConfigError, nearest
from flowpolicy.train.experiment import Experiment


class Member(NamedTuple):
    """One run of a sweep."""

    label: str
    """What it differs in, as a part of a folder's name; empty where nothing is swept."""
    experiment: Experiment


def members(experiment: Experiment, words: Sequence[str], seeds: int = 1) -> list[Member]:
    """Every combination of swept numbers, each with every seed.

    Args:
        experiment: what all of them have in common.
        words: ``NAME=VALUE,VALUE,...``, such as ``agent.alpha=1,10,100``. A ``*`` in the name stands for anything, and
            all numbers that it finds get the same value: ``agent.*optimizer.lr=1e-4,3e-4``.
        seeds: so many from the experiment's own on.

    Raises:
        ConfigError: a path finds no number, a value is none, is named twice, or is out of its range.

    """
    axes = [_axis(experiment, word) for word in words]
    if len({axis.name for axis in axes}) < len(axes):
        raise ConfigError(f"--sweep {' '.join(words)} names a number twice", expected="every number once")
    found = []
    for values in itertools.product(*(axis.values for axis in axes)):
        member, label = experiment, ""
        for axis, (word, value) in zip(axes, values, strict=True):
            for path in axis.paths:
                member = changed(member, nested(path.split("."), value))
            label += f"-{axis.name}-{word}"
        for seed in range(experiment.seed, experiment.seed + seeds):
            found.append(Member(f"{label}-seed{seed}", dataclasses.replace(member, seed=seed)))
    return found


class _Axis(NamedTuple):
    name: str
    paths: list[str]
    values: list[tuple[str, float]]


def _axis(experiment: Experiment, word: str) -> _Axis:
    path, equals, listed = word.partition("=")
    path = path.removeprefix("--").replace("-", "_")
    texts = [text.strip() for text in listed.split(",") if text.strip()]
    if not equals or not texts:
        raise ConfigError(f"--sweep {word}", expected="NAME=VALUE,VALUE,..., such as agent.alpha=1,10,100")
    numbers = dict(_numbers(experiment.agent, "agent."))
    paths = [name for name in numbers if fnmatch.fnmatchcase(name, path)]
    if not paths:
        raise ConfigError(
            f"--sweep {word}: the agent has no number '{path}'",
            expected=f"{nearest(path, numbers)}; only these may differ in runs that are trained together",
        )
    try:
        values = [(text, float(text)) for text in texts]
    except ValueError as error:
        raise ConfigError(f"--sweep {word}", expected="numbers, with commas between them") from error
    if len({value for _, value in values}) < len(values):
        raise ConfigError(f"--sweep {word} names a value twice", expected="every value once")
    return _Axis(path.rpartition(".")[2].replace("_", "-"), paths, values)


def _numbers(config: Any, prefix: str) -> Iterator[tuple[str, float]]:
    """Paths and values of the real numbers of a config."""
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if hints[field.name] is float:
            yield f"{prefix}{field.name}", float(value)
        elif dataclasses.is_dataclass(value):
            yield from _numbers(value, f"{prefix}{field.name}.")
