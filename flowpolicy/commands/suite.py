"""``flowpolicy suite run NAME`` and ``flowpolicy suite table NAME``."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from flowpolicy.commands.arguments import call, pick
from flowpolicy.commands.console import console
from flowpolicy.configs.suites import SUITES, Suite
from flowpolicy.core.errors import ConfigError, TrainingError, nearest
from flowpolicy.core.files import held_alone
from flowpolicy.core.progress import progress_bar
from flowpolicy.core.ranges import Seed, Threads

Name = Annotated[str, tyro.conf.Positional]
Words = tuple[str, ...]


def run(argv: Sequence[str]) -> int:
    """Train, evaluate and tabulate several arms on several tasks under one budget."""
    actions: dict[str, tuple[str, Callable[..., None]]] = {
        "run": ("train and evaluate what is missing, then print the table", run_suite),
        "table": ("print the table of stored records", table),
    }
    name, rest = pick(argv, actions, "suite", "action")
    if len(rest) == 1 and rest[0] not in SUITES and rest[0] not in ("-h", "--help"):
        raise ConfigError(f"unknown suite '{rest[0]}'", expected=nearest(rest[0], SUITES))
    return call(actions[name][1], rest, f"suite {name}")


@dataclass(frozen=True)
class Job:
    """One run of a suite."""

    task: str
    arm: str
    seed: int
    run: Path
    record: Path
    train: Words
    """Words after ``flowpolicy`` that train it."""
    evaluate: Words


def run_suite(
    name: Name,
    /,
    data: Path,
    out: Path,
    records: Path | None = None,
    arms: tuple[str, ...] = (),
    tasks: tuple[str, ...] = (),
    seeds: tuple[Seed, ...] = (),
    jobs: Threads = 1,
) -> None:
    """Train and evaluate what has no record yet; a stopped suite goes on where it was, runs included.

    Args:
        name: suite of `flowpolicy.configs.suites`, such as offline-rl.
        data: folder of training files, DATA/TASK.npz or .hdf5; what can be generated and is missing is generated.
        out: run folders go to OUT/TASK/ARM-seedS, with a log file beside each.
        records: where the evaluation records go; OUT/records unless given.
        arms: only these arms, in this order.
        tasks: only these tasks.
        seeds: only these training seeds.
        jobs: runs side by side, one thread each.

    """
    suite = find_suite(name)
    home = records or out / "records"
    every = plan_jobs(suite, data, out, home, arms=arms, tasks=tasks, seeds=seeds)
    todo = [job for job in every if not job.record.exists()]
    with held_alone(out, "flowpolicy suite"):
        require_current(job for job in every if job.record.exists())
        for task in dict.fromkeys(job.task for job in todo):
            _require_data(suite, task, data)
        failed = _run_all(todo, jobs, f"suite {name}")
    _print_table(name, suite, home)
    if failed:
        raise TrainingError(
            f"{len(failed)} of {len(todo)} runs failed: {', '.join(f'{j.task}/{j.arm}-seed{j.seed}' for j in failed)}",
            fix=f"read {_log(failed[0])}, then run the same command again: what is done is kept",
        )


def table(name: Name, /, records: Path, reference: str = "", picture: Path | None = None) -> None:
    """Success per task with intervals, IQM over tasks, and the difference to one arm.

    Args:
        name: suite of `flowpolicy.configs.suites`.
        records: folder with TASK/ARM-seedS.json.
        reference: arm that every other is compared with; the suite's unless given.
        picture: PNG to draw.

    """
    _print_table(name, find_suite(name), records, reference, picture)


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
) -> list[Job]:
    """The runs of a suite: seed by seed, so that an unfinished suite has all arms before it has a second seed."""
    for chosen, known, noun in ((arms, suite.arms, "arm"), (tasks, suite.tasks, "task")):
        for word in chosen:
            if word not in known:
                raise ConfigError(f"the suite has no {noun} '{word}'", expected=nearest(word, known))
    if beyond := [seed for seed in seeds if not 0 <= seed < suite.seeds]:
        raise ConfigError(f"the suite has no seed {beyond[0]}", expected=f"0 to {suite.seeds - 1}")
    jobs = []
    for seed, arm, task in itertools.product(seeds or range(suite.seeds), arms or suite.arms, tasks or suite.tasks):
        file, folder = data_file(task, data), out / task / f"{arm}-seed{seed}"
        record = records / task / f"{arm}-seed{seed}.json"
        preset = f"{suite.arms[arm].preset}-{task}"
        words = (*suite.flags, *suite.arms[arm].flags, "--seed", str(seed))
        train = ("train", preset, "--data.path", str(file), *words, "--out", str(folder))
        episodes = ("--episodes", str(suite.episodes), "--seed", "0")
        jobs.append(
            Job(task, arm, seed, folder, record, train, ("eval", str(folder), *episodes, "--json", str(record)))
        )
    return jobs


def data_file(task: str, folder: Path) -> Path:
    """Where a suite looks for the training file of a task: RoboMimic and D4RL data are HDF5, OGBench's npz."""
    return folder / f"{task}.{'hdf5' if task.endswith('-human') or task == 'toy' else 'npz'}"


def _require_data(suite: Suite, task: str, folder: Path) -> None:
    file, episodes = data_file(task, folder), suite.tasks[task]
    if file.exists():
        return
    if not episodes:
        raise ConfigError(f"{file} is missing", fix=f"put D4RL's {task} file there; it cannot be generated")
    folder.mkdir(parents=True, exist_ok=True)
    words = ("data", "make", task, "--episodes", str(episodes), "--seed", "0", "--out", str(file))
    subprocess.run([sys.executable, "-m", "flowpolicy", *words], check=True)


def require_current(done: Iterable[Job]) -> None:
    """Refuse a record whose run has gone on, or was trained anew, since it was evaluated."""
    from flowpolicy.core import checkpoint
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


def _run_all(todo: list[Job], jobs: int, title: str) -> list[Job]:
    """Run the jobs, some side by side; the failed ones."""
    failed: list[Job] = []
    finished, lock = 0, threading.Lock()
    with progress_bar(title, max(1, len(todo))) as move, ThreadPoolExecutor(max_workers=max(1, jobs)) as pool:

        def work(job: Job) -> None:
            nonlocal finished
            good = _run_one(job)
            with lock:
                finished += 1
                failed.extend([] if good else [job])
                move(finished, f"{job.task}/{job.arm}-seed{job.seed} {'done' if good else 'FAILED'}")

        list(pool.map(work, todo))
    return failed


def _run_one(job: Job) -> bool:
    """Train (or resume) and evaluate in processes of their own; True if both went well."""
    started = any(job.run.glob("checkpoints/step_*"))
    job.run.mkdir(parents=True, exist_ok=True)
    with _log(job).open("a") as log:
        for words in (("resume", str(job.run)) if started else job.train, job.evaluate):
            command = [sys.executable, "-m", "flowpolicy", *words]
            if subprocess.run(command, stdout=log, stderr=log, check=False).returncode:
                return False
    return True


def _log(job: Job) -> Path:
    return job.run.with_suffix(".log")


def _print_table(name: str, suite: Suite, records: Path, reference: str = "", picture: Path | None = None) -> None:
    from flowpolicy.evaluate.suite import draw_suite, load_records, suite_table

    found = load_records(records, suite.tasks, suite.arms)
    reference = reference or suite.reference
    if reference not in suite.arms:
        raise ConfigError(f"the suite has no arm '{reference}'", expected=nearest(reference, suite.arms))
    for part in suite_table(name, found, reference):
        console().print(part)
    if picture:
        draw_suite(picture, found, reference)
        sys.stdout.write(f"picture {picture}\n")
