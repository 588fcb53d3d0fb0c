"""Which records and runs a report is about: what was named on the command line, opened."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from flowpolicy.core import checkpoint
from flowpolicy.core.errors import ConfigError, EvaluationError
from flowpolicy.core.files import read_object
from flowpolicy.core.spec import Contract, load_contract
from flowpolicy.evaluate.records import identity, stored_records
from flowpolicy.evaluate.report import Evaluation, load_evaluation

TRIALS = "trials-*.json"
"""Records of trials at an arm, in the folder of their recordings."""
RECORD = "*-seed[0-9]*.json"
"""Records of a suite, in a folder for each task."""


@dataclasses.dataclass(frozen=True)
class ReportedRun:
    """A run folder."""

    path: Path
    checkpoint: Path | None
    """Its newest checkpoint, or the one that was named; None where it holds records alone."""

    @property
    def metrics(self) -> Path | None:
        """Its training CSV."""
        path = self.path / "metrics.csv"
        return path if path.is_file() else None

    @property
    def contract(self) -> Contract | None:
        """What its policy may be used for."""
        return None if self.checkpoint is None else load_contract(self.checkpoint / "contract.json")

    @property
    def experiment(self) -> dict[str, Any]:
        """Every option, as its checkpoint holds it; empty where there is none."""
        if self.checkpoint is None or not (self.checkpoint / "config.json").is_file():
            return {}
        return dict(read_object(self.checkpoint / "config.json").get("experiment") or {})

    @property
    def cards(self) -> list[Evaluation]:
        """The newest card: the same plan at several numbers of network evaluations."""
        found = sorted((self.path / "card").glob("nfe_*.json"), key=lambda path: (len(path.name), path.name))
        return [load_evaluation(path) for path in found]


@dataclasses.dataclass(frozen=True)
class PlayedRecord:
    """An evaluation and where it lies."""

    path: Path
    evaluation: Evaluation
    label: str
    run: ReportedRun | None = None
    """The run folder that it was found in."""
    current: bool = True
    """Whether it is of the checkpoint that the report is about."""

    @property
    def films(self) -> tuple[Path, str]:
        """The folder of its videos, and what their names say of the evaluation."""
        home = self.path.parent.parent if self.path.parent.name == "eval" else self.path.parent
        return home / "videos", self.path.stem


@dataclasses.dataclass(frozen=True)
class Gathered:
    """Everything that a report is about."""

    records: list[PlayedRecord]
    runs: dict[str, ReportedRun]
    """By label."""


def gather(paths: Sequence[Path]) -> Gathered:
    """Open what was named.

    Args:
        paths: run folders, checkpoint folders, records of evaluations or of trials, folders of trials, and folders of
            suites.

    Raises:
        ConfigError: something is none of these, or holds nothing to show.
        EvaluationError: a record is damaged.

    """
    runs: dict[Path, ReportedRun] = {}
    files: dict[Path, Path | None] = {}
    for path in paths:
        if not path.exists():
            raise ConfigError(f"{path} does not exist", expected=_EXPECTED)
        for run in _runs_in(path):
            runs.setdefault(run.path.resolve(), run)
            files |= dict.fromkeys(stored_records(run.path), run.path.resolve())
        files |= {file: None for file in _records_in(path) if file not in files}
    if not files and not any(run.metrics for run in runs.values()):
        named = ", ".join(map(str, paths)) or "nothing"
        raise ConfigError(f"{named} holds nothing to report", expected=_EXPECTED, fix="flowpolicy eval RUN")
    labels = dict(zip(runs, unique_labels([run.path for run in runs.values()]), strict=True))
    alone = [file for file, home in files.items() if home is None]
    names = dict(zip(alone, unique_labels([file.with_suffix("") for file in alone]), strict=True))
    records = [
        _played(file, None if home is None else runs[home], names[file] if home is None else labels[home])
        for file, home in files.items()
    ]
    # The records of a suite are copies of those in its run folders, which know their videos.
    first: dict[tuple[Any, ...], PlayedRecord] = {}
    for record in records:
        first.setdefault(_identity(record), record)
    shown = sorted(first.values(), key=lambda one: not one.current)
    return Gathered(shown, {labels[home]: run for home, run in runs.items()})


def _identity(record: PlayedRecord) -> tuple[Any, ...]:
    e = record.evaluation
    if not e.checkpoint_sha256:
        return (record.path,)
    return (e.checkpoint_sha256, e.plan.digest, e.nfe, e.noise_scale, e.mismatch, e.engine, e.commit, e.command)


_EXPECTED = "a run folder, an evaluation file, a folder of trials of flowpolicy robot run, or the folder of a suite"


def suite_records(path: Path) -> Path | None:
    """The folder of a suite's records, TASK/ARM-seedS.json; None where ``path`` is no suite."""
    for folder in (path / "records", path):
        if folder.is_dir() and any(folder.glob(f"*/{RECORD}")):
            return folder
    return None


def _runs_in(path: Path) -> list[ReportedRun]:
    if not path.is_dir():
        return []
    if _is_run(path):
        return [_opened(path)]
    # A suite, or a folder of runs: one level down, or below the tasks.
    return [_opened(one) for pattern in ("*", "*/*") for one in sorted(path.glob(pattern)) if _is_run(one)]


def _is_run(path: Path) -> bool:
    if not path.is_dir() or path.parent.name == checkpoint.FOLDER:
        return (path / checkpoint.MANIFEST).is_file()
    return any((path / part).exists() for part in (checkpoint.FOLDER, checkpoint.MANIFEST, "metrics.csv", "eval"))


def _opened(path: Path) -> ReportedRun:
    if (path / checkpoint.MANIFEST).exists():
        return ReportedRun(checkpoint.run_of(path), path)
    name = checkpoint.newest(path)
    folder = path / checkpoint.FOLDER / name
    return ReportedRun(path, folder if name and (folder / checkpoint.MANIFEST).exists() else None)


def _records_in(path: Path) -> Iterable[Path]:
    if path.is_file():
        return [path]
    if _is_run(path):
        return []
    records = suite_records(path)
    return [*sorted(path.glob(TRIALS)), *(sorted(records.glob(f"*/{RECORD}")) if records else ())]


def _played(file: Path, run: ReportedRun | None, label: str) -> PlayedRecord:
    try:
        evaluation = load_evaluation(file)
    except UnicodeDecodeError as error:
        raise EvaluationError(f"{file} is no evaluation: {error}", expected=_EXPECTED) from error
    current = run is None or run.checkpoint is None or identity(run.checkpoint).made(evaluation)
    return PlayedRecord(file, evaluation, label, run, current)


def unique_labels(paths: Sequence[Path]) -> list[str]:
    """The last parts of paths, as many as it takes to tell them apart."""
    parts = [path.absolute().parts for path in paths]
    deep = 1
    while deep < max(map(len, parts), default=0):
        names = ["/".join(each[-deep:]) for each in parts]
        if len(set(names)) == len(names):
            break
        deep += 1
    return ["/".join(each[-deep:]) for each in parts]
