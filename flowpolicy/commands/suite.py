"""``flowpolicy suite run NAME`` and ``flowpolicy suite table NAME``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from flowpolicy.commands.arguments import call, pick
from flowpolicy.commands.console import console
from flowpolicy.commands.report import end_with_report, write_and_tell
from flowpolicy.configs.suites import SUITES, Suite
from flowpolicy.core.errors import ConfigError, TrainingError, nearest
from flowpolicy.core.files import held_alone
from flowpolicy.core.ranges import Count, NonNegative, Positive, Seed, Threads

if TYPE_CHECKING:
    from flowpolicy.lab.suite_jobs import Place

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


def run_suite(
    name: Name,
    /,
    data: Path,
    out: Path,
    records: Path | None = None,
    arms: tuple[str, ...] = (),
    tasks: tuple[str, ...] = (),
    seeds: tuple[Seed, ...] = (),
    add: tuple[str, ...] = (),
    peer: tuple[str, ...] = (),
    peer_python: str = "",
    steps: Count | None = None,
    jobs: Threads | None = None,
    batch_seeds: bool = False,
    on: str = "local",
    cpus_per_run: Positive = 1.0,
    gpus_per_run: NonNegative = 0.0,
    partition: str = "",
    hours: Positive = 4.0,
    device: str = "cpu",
    precision: Literal["fp32", "tf32", "bf16"] = "fp32",
) -> None:
    """Train and evaluate what has no record yet; a stopped suite goes on where it was, runs included.

    Args:
        name: suite of `flowpolicy.configs.suites`: d4rl-locomotion, d4rl-adroit, ogbench-manipulation,
            ogbench-navigation, robomimic-lowdim, robomimic-image, offline-rl, door-human, dispersion.
        data: folder of training files, named as they were published, .npz or .hdf5; what can be generated and is
            missing is generated.
        out: run folders go to OUT/TASK/ARM-seedS, with a log file beside each.
        records: where the evaluation records go; OUT/records unless given.
        arms: only these arms, in this order.
        tasks: only these tasks.
        seeds: these training seeds instead of the suite's, e.g. 3 4 to add two to a table of three.
        add: further arms, each NAME=PRESET FLAG ..., e.g. 'iql-greedy=iql --agent.alpha 10'. They stay with the
            records: later commands know them.
        peer: public implementations to train on the same files, played on the same plan: fql=PATH, a checkout of
            github.com/seohongpark/fql; fisher=PATH, one of github.com/ARC0127/Fisher-Decorator. Each is an arm
            NAME-official. Their code is run: name only what you would run yourself.
        peer_python: Python that has their packages; this one unless given. docs/benchmarks.md says how to make it.
        steps: updates of every run; those of the suite or of the presets unless given.
        jobs: runs side by side, one thread each; at most, elsewhere than on this machine. 1 here unless given; on Ray
            and SLURM as many as there is room for.
        batch_seeds: train all seeds of an arm together, in one process (flowpolicy train --seeds).
        on: where the runs are carried out: local, in processes of this machine; ray, the Ray cluster that this machine
            belongs to, or a new one on it alone; ray://HOST:PORT, a cluster elsewhere; slurm, as an array of jobs.
            docs/scale.md says what each needs.
        cpus_per_run: cores that Ray or SLURM gives to a run.
        gpus_per_run: GPUs that Ray or SLURM gives to a run, with --device cuda; on Ray several runs share one by a
            fraction, such as 0.25.
        partition: SLURM's partition; its default unless given.
        hours: that SLURM gives to a run; then it goes back into the queue, and on from its newest checkpoint.
        device: where to train: cpu or a CUDA device. Policies are played on the CPU.
        precision: of matrix products in training.

    """
    from flowpolicy.lab.suite_jobs import (
        find_suite,
        plan_jobs,
        require_budget,
        require_current,
        require_data,
        run_jobs,
        with_added,
    )

    home = records or out / "records"
    _require_gpus(device, gpus_per_run, on)
    place = _place(on, out, cpus_per_run, gpus_per_run, partition, hours, jobs)
    peers = _peers(peer, peer_python, on)
    suite = with_added(find_suite(name), home, add, peers)
    more: Words = () if device == "cpu" else ("--device", device)
    more += () if precision == "fp32" else ("--precision", precision)
    more += () if steps is None else ("--steps", str(steps))
    every = plan_jobs(suite, data, out, home, arms=arms, tasks=tasks, seeds=seeds, more=more, peers=peers)
    todo = [job for job in every if not job.record.exists()]
    with held_alone(out, "flowpolicy suite"):
        require_current(job for job in every if job.record.exists())
        if steps is not None:
            require_budget((job for job in every if job.record.exists()), steps)
        for task in dict.fromkeys(job.task for job in todo):
            require_data(suite, task, data)
        failed = run_jobs(todo, place, f"suite {name}", batch_seeds=batch_seeds)
    _print_table(name, suite, home)
    end_with_report([out, *([] if records is None else [records])], out / "report.html", name)
    if failed:
        raise TrainingError(
            f"{len(failed)} of {len(todo)} runs failed: {', '.join(map(str, failed))}",
            fix=f"read {failed[0].log}, then run the same command again: what is done is kept",
        )


def _place(on: str, out: Path, cpus: float, gpus: float, partition: str, hours: float, jobs: int | None) -> Place:
    """What ``--on`` names."""
    if on == "local":
        from flowpolicy.lab.suite_jobs import Here

        return Here(jobs or 1)
    if on == "slurm":
        from flowpolicy.lab.slurm_place import OnSlurm

        return OnSlurm(out, partition, hours, cpus, gpus, jobs)
    from flowpolicy.lab.ray_cluster import require_address
    from flowpolicy.lab.ray_place import OnRay

    return OnRay(require_address(on), out, cpus, gpus, jobs)


def _peers(given: Sequence[str], python: str, on: str) -> dict[str, Words]:
    """Peer -> the words that say where it lies."""
    if not given:
        if python:
            raise ConfigError("--peer-python without --peer", fix="add --peer NAME=PATH, or leave it out")
        return {}
    if on != "local":
        raise ConfigError(f"--peer with --on {on}: peers run on this machine", fix="leave --on or --peer out")
    from flowpolicy.lab.peer_run import find_checkout

    found = {each.name: each for each in (find_checkout(text, python) for text in given)}
    return {name: ("--peer", f"{name}={each.path}", "--peer-python", each.python) for name, each in found.items()}


def _require_gpus(device: str, gpus: float, on: str) -> None:
    if device == "cpu" and gpus:
        raise ConfigError(f"--gpus-per-run {gpus:g} for runs on the CPU", fix="add --device cuda, or leave it out")
    if device != "cpu" and on != "local" and not gpus:
        raise ConfigError(
            f"--device {device} with no GPU for a run: Ray and SLURM hide those that nobody asked for",
            fix="add --gpus-per-run 1, or a fraction on Ray",
        )


def table(
    name: Name,
    /,
    records: Path,
    reference: str = "",
    picture: Path | None = None,
    written_as: Annotated[Literal["text", "markdown", "latex", "csv"], tyro.conf.arg(name="format")] = "text",
    report: Path | None = None,
) -> None:
    """Scores per task with intervals, IQM and probability of improvement, beside what others have published.

    Args:
        name: suite of `flowpolicy.configs.suites`.
        records: folder with TASK/ARM-seedS.json.
        reference: arm that every other is compared with; the suite's unless given.
        picture: PNG to draw.
        written_as: what to print: text for the terminal, markdown, latex (booktabs), or csv, a row per arm and task.
        report: HTML file to write, with the table and every run, as `flowpolicy report` writes it.

    """
    from flowpolicy.lab.suite_jobs import find_suite, with_added

    _print_table(name, with_added(find_suite(name), records), records, reference, picture, written_as)
    if report is not None:
        write_and_tell([records], report, suite=name)


def _print_table(
    name: str,
    suite: Suite,
    records: Path,
    reference: str = "",
    picture: Path | None = None,
    written_as: str = "text",
) -> None:
    from flowpolicy.evaluate.sheets import as_csv, as_latex, as_markdown, as_rich
    from flowpolicy.evaluate.suite_table import draw_suite, load_records, suite_scores, suite_sheets
    from flowpolicy.lab.suite_jobs import published_scores

    found = load_records(records, suite.tasks, suite.arms, common=suite.common)
    published = published_scores(suite)
    reference = reference or suite.reference
    if reference not in suite.arms:
        raise ConfigError(f"the suite has no arm '{reference}'", expected=nearest(reference, suite.arms))
    if written_as == "csv":
        sys.stdout.write(as_csv(suite_scores(found, score=suite.score, published=published)))
    else:
        sheets = suite_sheets(name, found, reference, score=suite.score, published=published)
        if written_as == "text":
            for sheet in sheets:
                console().print(as_rich(sheet))
        else:
            sys.stdout.write((as_markdown if written_as == "markdown" else as_latex)(sheets))
    if picture:
        draw_suite(picture, found, reference, score=suite.score, published=published)
        if written_as == "text":
            sys.stdout.write(f"picture {picture}\n")
