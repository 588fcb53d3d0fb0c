"""All presets by name: ``flowpolicy.presets["dm1-lift"]``, and how they are listed."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from flowpolicy.configs.benchmark_presets import benchmarks, group_title, known_file, near_names
from flowpolicy.configs.presets import OGBENCH, PRESETS
from flowpolicy.core.errors import ConfigError
from flowpolicy.train.experiment import Experiment

_WIDTH = 118
_LINES = 16  # presets of a group that are listed one by one; more are told by agent and data set


class PresetTable:
    """The experiments that have a name. Printed, it says what each of them is."""

    def __getitem__(self, name: str) -> Experiment:
        return find_preset(name)[1]

    def __contains__(self, name: object) -> bool:
        return name in PRESETS or name in benchmarks()

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*PRESETS, *benchmarks()]))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def find(self, *words: str) -> list[str]:
        """Names whose name, description or suite holds all ``words``, whatever their case."""
        return [name for names in _groups(*words).values() for name in names]

    def __repr__(self) -> str:
        return listing()

    def _ipython_key_completions_(self) -> list[str]:
        return list(self)


presets = PresetTable()
"""All of them."""


def find_preset(name: str) -> tuple[str, Experiment]:
    """Description and experiment of a preset.

    Raises:
        ConfigError: there is none of this name.

    """
    if name in PRESETS:
        return PRESETS[name]
    if name not in benchmarks():
        raise ConfigError(
            f"unknown preset '{name}'",
            expected=near_names(name, list(presets)),
            fix="flowpolicy train --list WORD ... finds presets by words",
        )
    benchmark = benchmarks()[name]
    return benchmark.description, benchmark.experiment()


def preset_of(word: str, path: str) -> str:
    """The preset that a word means: its name, or an agent whose preset the name of the training file completes.

    Args:
        word: as ``dm1-lift`` or ``fql``.
        path: of the training file; empty if there is none.

    Raises:
        ConfigError: the word is an agent, and the file's name is no published one.

    """
    if word not in {one.agent for one in benchmarks().values()}:
        return word
    known = known_file(path) if path else ""
    if not known:
        raise ConfigError(
            f"'{word}' names an agent, and {path or 'no --data.path'} no published file",
            expected=f"a preset, such as {word}-hopper-medium-v2, or a file of a published name",
            fix=f"flowpolicy train --list {word}",
        )
    return f"{word}-{known}"


def listing(*words: str) -> str:
    """Presets that hold all ``words``, suite by suite; those of many data sets told by agent and data set.

    Raises:
        ConfigError: no preset holds them.

    """
    groups = {title: names for title, names in _groups(*words).items() if names}
    if not groups:
        raise ConfigError(
            f"no preset holds {' and '.join(map(repr, words))}", expected="words of names, such as antmaze or iql"
        )
    count = sum(map(len, groups.values()))
    parts = [f"{title}\n{_told(names)}" for title, names in groups.items()]
    return "\n\n".join([*parts, f"{count:,} presets{' in all' if not words else ''}"])


def _groups(*words: str) -> dict[str, list[str]]:
    """Title -> the names below it that hold all words; descriptions of published data sets are made of their names."""
    own = "Demonstrations, toys, robots, post-training"
    small = "OGBench data made here: networks of 3 x 256, which a CPU trains"
    found: dict[str, list[str]] = {own: [], small: []}
    for name, (description, _) in PRESETS.items():
        title = small if name in OGBENCH else own
        if _holds(f"{name} {description} {title}", words):
            found[title].append(name)
    for name, one in benchmarks().items():
        title = group_title(one.data)
        if name not in PRESETS and _holds(f"{name} {title} {one.data.env}", words):
            found.setdefault(title, []).append(name)
    return found


def _holds(text: str, words: tuple[str, ...]) -> bool:
    return all(word.lower() in text.lower() for word in words)


def _told(names: list[str]) -> str:
    """Lines about the presets of a group: by agent and data set where many data sets have the same agents."""
    agents: dict[str, list[str]] = {}
    for name in names:
        agent, data = _split(name)
        agents.setdefault(data, []).append(agent)
    blocks: dict[tuple[str, ...], list[str]] = {}
    for data, theirs in agents.items():
        blocks.setdefault(tuple(theirs), []).append(data)
    parts, single = [], []
    for found, data_sets in blocks.items():
        if len(found) * len(data_sets) > _LINES:
            told = f"{_wrapped('AGENT', found)}\n{_wrapped('DATASET', data_sets)}"
            parts.append(f"{told}\n  as AGENT-DATASET, e.g. {found[0]}-{data_sets[0]}")
        else:
            single += [name for name in names if _split(name)[1] in data_sets]
    width = max(map(len, single), default=0)
    described = {
        name: PRESETS[name][0] if name in PRESETS else benchmarks()[name].description.partition(" (")[0]
        for name in single
    }
    return "\n".join([*parts, *(f"  {name:<{width}}  {text}" for name, text in described.items())])


def _split(name: str) -> tuple[str, str]:
    """Agent and data set."""
    if name in benchmarks() and name not in PRESETS:
        return benchmarks()[name].agent, benchmarks()[name].data.name
    task = max((PRESETS[name][1].env, ""), key=lambda env: name.endswith(f"-{env}"))
    return name.removesuffix(f"-{task}"), task


def _wrapped(head: str, words: Sequence[str]) -> str:
    """Words after a head, tasks of one data set as a range."""
    short: dict[str, None] = {}
    for word in words:
        stem, number, rest = word.partition("-task")
        short[f"{stem}-task1..5{rest[1:]}" if number and f"{stem}-task5{rest[1:]}" in words else word] = None
    lines = textwrap.wrap(", ".join(short), _WIDTH - 11, break_on_hyphens=False)
    return "\n".join(f"  {head if not row else '':<8} {line}" for row, line in enumerate(lines))
