"""Presets by the names of published files, ``<agent>-<dataset>``: read from one table of values per suite.

The tables are ``d4rl.toml``, ``ogbench.toml`` and ``robomimic.toml`` beside this file; the first says how a preset is
put together. Names come from the tables alone, so that listing and finding them needs no agent; an experiment is made
when it is asked for.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from flowpolicy.core.config import nested
from flowpolicy.core.errors import ConfigError
from flowpolicy.data.catalogue import PUBLISHED

if TYPE_CHECKING:
    from flowpolicy.train.experiment import Experiment  # which brings torch

TABLES = ("d4rl", "ogbench", "robomimic")
"""Names of the suites' tables."""
OWN = "flowpolicy's defaults"
"""The source of values that nobody has published."""


@dataclasses.dataclass(frozen=True)
class BenchmarkFile:
    """A published file, or one of the tasks that its rewards can be of."""

    name: str
    """What a preset calls it, e.g. ``hopper-medium-v2`` or ``cube-single-play-singletask-task2-v0``."""
    file: str
    """Name of the file, which several tasks may share."""
    env: str
    """Environment that policies trained on it act in."""
    table: str
    """Suite's table."""
    group: str
    """Group of the table."""
    task: int = 0
    """Task of an OGBench environment; 0 for the default one, and elsewhere."""

    @property
    def base_env(self) -> str:
        """The environment without its task."""
        return self.env.removesuffix(f"-task{self.task}")


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """One preset, not made yet."""

    agent: str
    """First part of its name."""
    data: BenchmarkFile
    """What the rest of its name stands for."""

    @property
    def name(self) -> str:
        """``<agent>-<dataset>``."""
        return f"{self.agent}-{self.data.name}"

    @property
    def source(self) -> str:
        """Whose values it takes."""
        return str(self._said.get("source", OWN))

    @property
    def description(self) -> str:
        """One line of help."""
        return f"{self._table['agents'][self.agent]['text']}, on {self.data.name} ({self.source})"

    @property
    def values(self) -> dict[str, Any]:
        """Everything that differs from the defaults of the agent's class and of an experiment: nested options."""
        group, data = self._table["groups"][self.data.group], self.data
        layers = [self._table.get("all", {}), self._table["agents"][self.agent].get("values", {})]
        layers += [group.get("values", {}), _row(group, data), self._said.get("values", {}), _row(self._said, data)]
        if data.task:
            layers.append({"data": {"filter_key": f"task{data.task}"}})
        return functools.reduce(_merged, layers, {})

    def experiment(self) -> Experiment:
        """What ``flowpolicy train`` starts from."""
        from flowpolicy.core.config import changed
        from flowpolicy.train.experiment import Experiment
        from flowpolicy.train.kinds import KINDS

        agent: Any = KINDS[self._table["agents"][self.agent]["kind"]]
        start = Experiment(agent=agent(), env=self.data.env, dataset=self.data.name)
        made: Experiment = changed(start, _with_classes(self.values))
        return made

    @property
    def _table(self) -> Mapping[str, Any]:
        return _tables()[self.data.table]

    @property
    def _said(self) -> Mapping[str, Any]:
        """What the group says of the agent."""
        found: Mapping[str, Any] = self._table["groups"][self.data.group].get("agents", {}).get(self.agent, {})
        return found


@functools.cache
def benchmark_files() -> Mapping[str, BenchmarkFile]:
    """Every file, or task of a file, that presets are named after."""
    return {one.name: one for table in TABLES for one in _files(table)}


@functools.cache
def benchmarks() -> Mapping[str, Benchmark]:
    """Every preset by name, suite by suite."""
    found = (Benchmark(agent, data) for data in benchmark_files().values() for agent in agents_of(data))
    return {one.name: one for one in found}


def agents_of(data: BenchmarkFile) -> Sequence[str]:
    """First parts of the names of the presets on a file."""
    table = _tables()[data.table]
    only: Sequence[str] = table["groups"][data.group].get("only", tuple(table["agents"]))
    return only


def group_title(data: BenchmarkFile) -> str:
    """Suite and group in words."""
    table = _tables()[data.table]
    return f"{table['title']}: {table['groups'][data.group]['title']}"


def known_file(path: str | PurePath) -> str:
    """Name of the published file that a path's name says it is, whatever folder it lies in; empty for any other.

    The names of ``flowpolicy data download`` and of the publishers are known, validation halves too, and RoboMimic's
    files by their folders (``lift/ph/low_dim_v141.hdf5``).
    """
    path = PurePath(path)
    stem = path.name.removesuffix(".hdf5").removesuffix(".npz")
    if stem in _stems():
        return _stems()[stem]
    if stem.startswith(("low_dim", "image", "demo")) and len(path.parts) > 2:
        task, kind = path.parts[-3].replace("_", "-"), path.parts[-2]
        found = f"{task}-{kind}" + ("-image" if stem.startswith("image") else "")
        return found if found in benchmark_files() else ""
    return ""


def require_file_of(experiment: Experiment, preset: str = "") -> None:
    """Refuse a training file whose name says that it is other data than the options are for, or of another environment.

    Args:
        experiment: what is to be trained.
        preset: name of the preset that it was made of, for the error.

    Raises:
        ConfigError: naming the preset that is for the file.

    """
    known = known_file(experiment.data.path) if experiment.data.path else ""
    if not known:
        return
    told = f"the preset {preset} is" if preset else "the experiment is"
    wanted = benchmark_files().get(experiment.dataset)
    if wanted is not None and wanted.file.removesuffix("-image") != known:
        right = f"{benchmarks()[preset].agent}-{known}" if preset in benchmarks() else f"AGENT-{known}"
        raise ConfigError(
            f"{told} for {wanted.file}, and {experiment.data.path} is named as {known}",
            fix=f"flowpolicy train {right}, or give the file another name if it is {wanted.file} all the same",
        )
    from flowpolicy.envs import find_env

    meant, asked = (find_env(name).spec() for name in (benchmark_files()[known].env, experiment.env))
    if meant.env_id.partition("-singletask")[0] != asked.env_id.partition("-singletask")[0]:
        raise ConfigError(
            f"{experiment.data.path} is named as {known}, whose environment is {benchmark_files()[known].env}, and "
            f"{told} for {experiment.env}",
            fix=f"choose a preset of this file (flowpolicy train --list {known}), or give the file another name",
        )


def published(data: str, agent: str) -> tuple[float, str] | None:
    """Score that somebody else published for an agent on a file, in per cent or normalised, and its source."""
    score = None
    for table in _tables().values():
        for part in table.get("published", ()):
            if agent in part["columns"] and data in part["rows"]:
                score = float(part["rows"][data][part["columns"].index(agent)]), str(part["source"])
    return score


def published_agents(data: str) -> dict[str, tuple[float, str]]:
    """All of :func:`published` for a file, by agent."""
    columns = [name for table in _tables().values() for part in table.get("published", ()) for name in part["columns"]]
    found = {name: published(data, name) for name in dict.fromkeys(columns)}
    return {name: score for name, score in found.items() if score}


def near_names(name: str, known: Sequence[str]) -> str:
    """What a name may have been meant to be, and where to look; for more names than a line can list."""
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(repr(one) for one in close)}? " if close else ""
    return f"{hint}{len(known):,} presets are known"


def _files(table: str) -> Iterator[BenchmarkFile]:
    read = _tables()[table]
    tasks = read.get("tasks", 0)
    for group, values in read["groups"].items():
        for name, env in values["datasets"].items():
            yield BenchmarkFile(name, name, env, table, group)
            kind = name.removesuffix("-v0")
            for task in range(1, tasks + 1):
                yield BenchmarkFile(f"{kind}-singletask-task{task}-v0", name, f"{env}-task{task}", table, group, task)


@functools.cache
def _tables() -> Mapping[str, Mapping[str, Any]]:
    folder = Path(__file__).parent
    return {name: tomllib.loads((folder / f"{name}.toml").read_text(encoding="utf-8")) for name in TABLES}


@functools.cache
def _stems() -> Mapping[str, str]:
    """Name of a file without its ending -> name of the published file."""
    known = {one.file for one in benchmark_files().values()}
    found: dict[str, str] = {}
    for name, entry in PUBLISHED.items():
        if (file := name.removesuffix("-val")) in known:
            theirs = PurePath(entry.url).name.removesuffix(".hdf5").removesuffix(".npz")
            found |= {name: file, theirs: file}
    return found


def _row(said: Mapping[str, Any], data: BenchmarkFile) -> dict[str, Any]:
    """The row of a file, or of its environment, as nested options."""
    rows = said.get("rows", {})
    row = rows.get(data.file, rows.get(data.base_env))
    options: dict[str, Any] = {}
    for column, value in zip(said.get("columns", ()) if row else (), row or (), strict=True):
        options = _merged(options, nested(column.split("."), value))
    return options


def _merged(first: Mapping[str, Any], then: Mapping[str, Any]) -> dict[str, Any]:
    """Nested options with those of ``then`` over them."""
    merged = dict(first)
    for name, value in then.items():
        both = isinstance(value, Mapping) and "class" not in value and isinstance(merged.get(name), Mapping)
        merged[name] = _merged(merged[name], value) if both else value
    return merged


def _with_classes(value: Any) -> Any:
    """Options with every table that names a class made a configuration of it, and lists tuples."""
    from flowpolicy.train.kinds import KINDS

    if isinstance(value, list):
        return tuple(map(_with_classes, value))
    if not isinstance(value, Mapping):
        return value
    fields = {name: _with_classes(inner) for name, inner in value.items() if name != "class"}
    if "class" not in value:
        return fields
    if value["class"] not in KINDS:
        raise ConfigError(f"a table of presets names the kind '{value['class']}', which there is not")
    kind: Any = KINDS[value["class"]]
    return kind(**fields)
