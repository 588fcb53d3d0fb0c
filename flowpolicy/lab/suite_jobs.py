"""Runs of a suite: what is to be trained and evaluated, which of it is done, and doing the rest in processes.

Imports no torch: a worker of a cluster that only starts processes would spend five seconds on it.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from flowpolicy.configs.suites import PEER_ARMS, SUITES, Arm, Suite
from flowpolicy.core import checkpoint
from flowpolicy.core.errors import ConfigError, nearest
from flowpolicy.core.files import read_object, write_json
from flowpolicy.core.progress import progress_bar
from flowpolicy.lab.tied_process import run_tied

Words = tuple[str, ...]


@dataclass(frozen=True)
class SuiteJob:
    """One run of a suite."""

    task: str
    arm: str
    seed: int
    run: Path
    record: Path
    train: Words
    """Words after ``flowpolicy`` that train it."""
    evaluate: Words
    together: Words
    """Words that train it with others of its arm and task, but for the seeds; folders are named like its own."""

    def __str__(self) -> str:
        return f"{self.task}/{self.arm}-seed{self.seed}"

    @property
    def log(self) -> Path:
        """The file that its commands write to."""
        return self.run.with_suffix(".log")

    @property
    def data(self) -> str:
        """Training file."""
        return self.train[self.train.index("--data.path") + 1]

    @property
    def newest(self) -> str:
        """Name of its newest checkpoint; empty where there is none."""
        return checkpoint.newest(self.run)

    def to_json(self) -> dict[str, Any]:
        """JSON values, for another process or machine; :func:`job_from` is the inverse."""
        return dataclasses.asdict(self) | {"run": str(self.run), "record": str(self.record)}

    def elsewhere(self, places: Mapping[str, str]) -> SuiteJob:
        """The same run with other paths: old -> new."""

        def moved(words: Words) -> Words:
            return tuple(places.get(word, word) for word in words)

        together = self.together
        if (run := places.get(str(self.run))) is not None:  # the company's folder lacks the seed, as --out of it does
            together = (*together[:-1], str(Path(run).with_name(Path(together[-1]).name)))
        return dataclasses.replace(
            self,
            run=Path(places.get(str(self.run), self.run)),
            record=Path(places.get(str(self.record), self.record)),
            train=moved(self.train),
            evaluate=moved(self.evaluate),
            together=moved(together),
        )


def job_from(value: Mapping[str, Any]) -> SuiteJob:
    """A job of JSON values."""
    words = {name: tuple(value[name]) for name in ("train", "evaluate", "together")}
    return SuiteJob(**{**value, **words, "run": Path(value["run"]), "record": Path(value["record"])})


Company = list[SuiteJob]
"""Runs of one arm and task that are trained by one process: a single one, or several seeds."""
Finished = Callable[[SuiteJob, bool], None]
"""Called of every run when it has ended: whether it was trained and evaluated."""


class Place(Protocol):
    """Where the runs of a suite are carried out."""

    def carry_out(self, companies: Sequence[Company], finished: Finished) -> None:
        """Train and evaluate all of them; what was begun before goes on from its newest checkpoint."""


@dataclass(frozen=True)
class Here:
    """Processes of this machine."""

    at_once: int = 1

    def carry_out(self, companies: Sequence[Company], finished: Finished) -> None:
        """Some side by side."""
        with ThreadPoolExecutor(max_workers=self.at_once) as pool:
            list(pool.map(lambda company: carry_out(company, finished), companies))


def find_suite(name: str) -> Suite:
    """The suite of this name."""
    if name not in SUITES:
        raise ConfigError(f"unknown suite '{name}'", expected=nearest(name, SUITES))
    return SUITES[name]


def plan_jobs(
    suite: Suite,
    data: Path,
    out: Path,
    records: Path,
    *,
    arms: Sequence[str] = (),
    tasks: Sequence[str] = (),
    seeds: Sequence[int] = (),
    more: Words = (),
    peers: Mapping[str, Words] | None = None,
) -> list[SuiteJob]:
    """The runs of a suite: seed by seed, so that an unfinished suite has all arms before it has a second seed.

    ``more`` are further flags of every training, such as ``--device cuda``. ``peers`` are the words that say where the
    code of a peer lies; arms of other peers are left out.
    """
    for chosen, known, noun in ((arms, suite.arms, "arm"), (tasks, suite.tasks, "task")):
        for word in chosen:
            if word not in known:
                raise ConfigError(f"the suite has no {noun} '{word}'", expected=nearest(word, known))
    peers = peers or {}
    for arm in arms:
        if (peer := suite.arms[arm].peer) and peer not in peers:
            raise ConfigError(f"the arm '{arm}' is the code of others", fix=f"say where it lies: --peer {peer}=PATH")
    there = [name for name, arm in suite.arms.items() if not arm.peer or arm.peer in peers]
    jobs = []
    for seed, arm, task in itertools.product(seeds or range(suite.seeds), arms or there, tasks or suite.tasks):
        file, folder = data_file(task, data), out / task / f"{arm}-seed{seed}"
        record = records / task / f"{arm}-seed{seed}.json"
        preset = f"{suite.arms[arm].preset}-{task}"
        words = ("train", preset, "--data.path", str(file), *suite.flags, *suite.arms[arm].flags, *more)
        train: Words = (*words, "--seed", str(seed), "--out", str(folder))
        together: Words = (*words, "--out", str(folder.with_name(arm)))
        episodes = ("--episodes", str(suite.episodes), "--seed", "0")
        evaluate: Words = ("eval", str(folder), *episodes, "--json", str(record))
        if peer := suite.arms[arm].peer:
            options = shlex.join((*suite.flags, *suite.arms[arm].flags, *more, "--seed", str(seed)))
            place = ("--data", str(file), "--out", str(folder), *peers[peer])
            train = ("peer", "train", preset, *place, f"--options={options}")
            together, evaluate = train, ("peer", *evaluate)
        jobs.append(
            SuiteJob(
                task,
                arm,
                seed,
                folder,
                record,
                train,
                evaluate,
                together,
            )
        )
    return jobs


def data_file(task: str, folder: Path) -> Path:
    """Where a suite looks for the training file of a task: RoboMimic and D4RL data are HDF5, OGBench's npz."""
    from flowpolicy.configs.benchmark_presets import benchmark_files

    if task in benchmark_files():
        known = benchmark_files()[task]
        return folder / f"{known.file}{'.npz' if known.table == 'ogbench' else '.hdf5'}"
    return folder / f"{task}.{'hdf5' if task.endswith(('-human', '-image')) or task == 'toy' else 'npz'}"


def require_data(suite: Suite, task: str, folder: Path) -> None:
    """Generate the training file of a task that is missing; raise ConfigError where it cannot be generated."""
    from flowpolicy.configs.benchmark_presets import benchmark_files
    from flowpolicy.configs.preset_table import find_preset

    file, episodes = data_file(task, folder), suite.tasks[task]
    if file.exists():
        return
    if task in benchmark_files():
        known = benchmark_files()[task]
        fetched = f"flowpolicy data download {known.file} --folder {folder}, or " if known.table != "robomimic" else ""
        raise ConfigError(
            f"{file} is missing",
            expected=f"the published file {known.file}, or one like it",
            fix=f"{fetched}put it there; flowpolicy data rollouts records one of your own",
        )
    if not episodes:
        raise ConfigError(f"{file} is missing", fix=f"put D4RL's {task} file there; it cannot be generated")
    folder.mkdir(parents=True, exist_ok=True)
    seen = find_preset(f"{next(iter(suite.arms.values())).preset}-{task}")[1].data.cameras
    drawn = ("--cameras", *seen) if seen else ()
    made = task.removesuffix("-image")
    words = ("data", "make", made, "--episodes", str(episodes), "--seed", "0", *drawn, "--out", str(file))
    subprocess.run([sys.executable, "-m", "flowpolicy", *words], check=True)


ADDED = "arms.json"
"""File beside a suite's records that says which arms were added to it."""
_ARM = re.compile(r"\s*([A-Za-z0-9][A-Za-z0-9_.-]*)\s*=\s*(\S.*)")


def with_added(suite: Suite, records: Path, more: Sequence[str] = (), peers: Iterable[str] = ()) -> Suite:
    """The suite with the arms that were added to its records, and with ``more``, which are kept beside them.

    Args:
        suite: as it is defined.
        records: folder of the records.
        more: arms as they are typed, NAME=PRESET FLAG ..., such as ``iql-greedy=iql --agent.alpha 10``.
        peers: public implementations, each with an arm PEER-official.

    Raises:
        ConfigError: an arm is not understood, or another one has its name.

    """
    path = records / ADDED
    stored = {name: list(words) for name, words in read_object(path).items()} if path.exists() else {}
    new = {}
    for text in more:
        match = _ARM.fullmatch(text)
        if not match:
            raise ConfigError(
                f"--add '{text}'", expected="NAME=PRESET FLAG ..., e.g. 'iql-greedy=iql --agent.alpha 10'"
            )
        name, words = match[1], shlex.split(match[2])
        if name in suite.arms or stored.get(name, words) != words:
            raise ConfigError(f"--add '{text}': the suite has another arm '{name}'", fix="choose another name")
        new[name] = words
    new |= {f"{peer}-official": [f"{_PEER}{peer}"] for peer in peers}
    if new and new.keys() - stored.keys():
        records.mkdir(parents=True, exist_ok=True)
        write_json(path, stored | new)
    added = {name: _arm(words, path) for name, words in (stored | new).items()}
    return dataclasses.replace(suite, arms=suite.arms | added)


_PEER = "peer:"


def _arm(words: Sequence[str], path: Path) -> Arm:
    """An arm as it is stored: its preset and flags, or the peer that it is."""
    if not words[0].startswith(_PEER):
        return Arm(words[0], tuple(words[1:]))
    peer = words[0].removeprefix(_PEER)
    if peer not in PEER_ARMS:
        raise ConfigError(f"{path} names the peer '{peer}'", expected=nearest(peer, PEER_ARMS))
    return PEER_ARMS[peer]


def published_scores(suite: Suite) -> dict[str, dict[str, tuple[float, str]]]:
    """What others have published on the suite's tasks, by task and arm."""
    from flowpolicy.configs.benchmark_presets import published_agents

    return {task: found for task in suite.tasks if (found := published_agents(task))}


def require_budget(done: Iterable[SuiteJob], steps: int) -> None:
    """Refuse records of another number of updates than is asked for."""
    from flowpolicy.evaluate.report import load_evaluation

    for job in done:
        if (found := load_evaluation(job.record).training["experiment"]["steps"]) != steps:
            raise ConfigError(
                f"{job.record} is of {found:,} updates, and --steps {steps} is asked for",
                fix="ask for as many, or choose another --out",
            )


def require_current(done: Iterable[SuiteJob]) -> None:
    """Refuse a record whose run has gone on, or was trained anew, since it was evaluated."""
    from flowpolicy.evaluate.records import identity
    from flowpolicy.evaluate.report import load_evaluation

    for job in done:
        if not (newest := checkpoint.newest(job.run)):
            continue  # the record alone is there, which is enough
        if not identity(job.run / checkpoint.FOLDER / newest).made(load_evaluation(job.record)):
            raise ConfigError(
                f"{job.record} is of another checkpoint than {newest} of {job.run}",
                fix="move the record away and run the same command again",
            )


def companies(jobs: Sequence[SuiteJob]) -> list[Company]:
    """Jobs that differ in their seed alone, such as can be trained together: seeds in a row, and all new or none."""
    found: list[Company] = []
    for job in sorted(jobs, key=lambda job: (job.task, job.arm, job.seed)):
        last = found[-1][-1] if found else None
        if last and (last.together, last.seed + 1, _started(last)) == (job.together, job.seed, _started(job)):
            found[-1].append(job)
        else:
            found.append([job])
    return found


def run_jobs(todo: list[SuiteJob], place: Place, title: str, *, batch_seeds: bool = False) -> list[SuiteJob]:
    """Carry the jobs out at a place, with ``batch_seeds`` all seeds of an arm in one training; the failed ones."""
    failed: list[SuiteJob] = []
    ended, lock = 0, threading.Lock()
    with progress_bar(title, max(1, len(todo))) as move:

        def finished(job: SuiteJob, good: bool) -> None:
            nonlocal ended
            with lock:
                ended += 1
                failed.extend([] if good else [job])
                move(ended, f"{job} {'done' if good else 'FAILED'}")

        place.carry_out(companies(todo) if batch_seeds else [[job] for job in todo], finished)
    return failed


def carry_out(company: Company, finished: Finished) -> None:
    """Train the runs of a company, or go on with them, and evaluate each, in processes that write to the logs."""
    first = company[0]
    first.run.mkdir(parents=True, exist_ok=True)
    trained = run_tied(_training(company), first.log)
    for job in company:
        finished(job, trained and run_tied(job.evaluate, job.log))


def _started(job: SuiteJob) -> bool:
    return any(job.run.glob("checkpoints/step_*"))


def _training(company: Company) -> Words:
    """Words that train, or go on with, jobs of a company; the file may lie elsewhere than when they were begun."""
    first = company[0]
    if _started(first):
        return ("resume", *(str(job.run) for job in company), "--data.path", first.data)
    if len(company) == 1:
        return first.train
    return (*first.together, "--seed", str(first.seed), "--seeds", str(len(company)))
