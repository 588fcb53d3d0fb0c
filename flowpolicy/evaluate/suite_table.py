"""Several arms on several tasks, each from several training seeds: table, aggregates and picture.

A run's score on a task is its rate of success. Aggregates follow Agarwal et al. 2021, "Deep RL at the edge of the
statistical precipice" (arXiv 2108.13264): the interquartile mean over all runs and tasks, and a bootstrap that draws
runs within each task.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from rich.table import Table

from flowpolicy.core.errors import EvaluationError
from flowpolicy.core.spec import SIMULATORS
from flowpolicy.evaluate.report import Evaluation, load_evaluation
from flowpolicy.evaluate.statistics import Interval, hierarchical_difference, hierarchical_mean, interquartile_mean
from flowpolicy.evaluate.tables import percent

Records = dict[str, dict[str, list[Evaluation]]]
"""Arm -> task -> one evaluation per training seed."""


def load_records(folder: Path, tasks: Iterable[str], arms: Iterable[str]) -> Records:
    """Read FOLDER/TASK/ARM-seedS.json.

    Raises:
        EvaluationError: none there, or two of one task that were not made alike (plan, noise, data, updates, batch
            size), or two of one arm that differ in more than their seed, or in less.

    """
    tasks = tuple(tasks)
    found: Records = {}
    for arm in arms:
        for task in tasks:
            files = sorted((folder / task).glob(f"{arm}-seed[0-9]*.json"))
            if files:
                evaluations = {path: load_evaluation(path) for path in files}
                _require_seeds(evaluations)
                found.setdefault(arm, {})[task] = list(evaluations.values())
    if not found:
        raise EvaluationError(
            f"{folder} holds no records of this suite", expected="TASK/ARM-seedS.json", fix="flowpolicy suite run"
        )
    for task in tasks:
        _require_alike(task, [e for by_task in found.values() for e in by_task.get(task, [])])
    return found


def _require_seeds(evaluations: Mapping[Path, Evaluation]) -> None:
    """Refuse the records of an arm on a task unless each is of the seed in its name and they are alike in the rest."""
    first, *_ = evaluations
    options = {path: dict(_flat(e.training["experiment"])) for path, e in evaluations.items()}
    for path, chosen in options.items():
        if str(chosen.get("seed", named := path.stem.rpartition("-seed")[2])) != named:
            raise EvaluationError(
                f"{path} is of the training seed {chosen['seed']}", expected=f"seed {named}", fix="move it away"
            )
        # An older record lacks the options that have come since.
        common = sorted(chosen.keys() & options[first].keys() - {"seed", "data.path"})
        if differing := [name for name in common if name not in _ASIDE and chosen[name] != options[first][name]]:
            lines = (f"{name} is {options[first][name]} and {chosen[name]}" for name in differing)
            raise EvaluationError(
                f"{first} and {path} differ in more than the seed: {', '.join(lines)}",
                expected="one arm, trained with the same options from several seeds",
                fix="move the odd one away and run the suite again",
            )


_ASIDE = ("compile", "threads", "device", "tensorboard", "wandb", "log_every", "checkpoint_every", "keep_checkpoints")
"""Options of an experiment that decide nothing about the policy."""


def _flat(value: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Names with dots -> values of nested options."""
    for name, inner in value.items():
        if isinstance(inner, Mapping):
            yield from _flat(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", inner


def _budget(e: Evaluation) -> dict[str, object]:
    """What all records of a task have in common."""
    return {
        "plan": e.plan.digest[:12],
        "noise scale": e.noise_scale,
        "data": e.training["dataset_sha256"][:12],
        "updates": e.step,
        "rows per update": e.training["experiment"]["batch_size"],
    }


def _require_alike(task: str, evaluations: list[Evaluation]) -> None:
    for e in evaluations[1:]:
        first, other = _budget(evaluations[0]), _budget(e)
        if differing := [f"{key} {first[key]} and {other[key]}" for key in first if first[key] != other[key]]:
            raise EvaluationError(
                f"records of {task} were not made alike: {evaluations[0].run} and {e.run} have {', '.join(differing)}",
                expected="one plan, one file and one budget for all arms",
                fix="move the odd one away and run the suite again",
            )


def outcomes(evaluations: list[Evaluation]) -> np.ndarray:
    """(seeds, episodes) successes, 0 or 1."""
    return np.array([[episode.success for episode in e.episodes] for e in evaluations], dtype=np.float64)


def aggregate(by_task: Mapping[str, list[Evaluation]]) -> Interval:
    """Interquartile mean of the success rate over runs and tasks."""
    return interquartile_mean([outcomes(runs).mean(axis=1) for runs in by_task.values()])


def suite_table(name: str, records: Records, reference: str) -> list[Table]:
    """Success per task with its interval, the IQM, and the difference to the arm ``reference`` per task."""
    tasks = list(dict.fromkeys(task for by_task in records.values() for task in by_task))
    title = f"{name}: success in per cent, mean over training seeds [95 % over seeds and episodes]"
    caption = "\n".join(f"{task}: {line}" for task in tasks for line in _protocol(records, task))
    success = Table("arm", "NFE", "seeds", *tasks, "IQM [95 %]", "ms per update", title=title, caption=caption)
    for arm, by_task in records.items():
        runs = [e for task in tasks for e in by_task.get(task, [])]
        nfe, seeds = (
            "/".join(str(v) for v in sorted(set(values)))
            for values in ([e.nfe for e in runs], [len(v) for v in by_task.values()])
        )
        cost = np.median([1e3 * e.training["seconds"] / e.step for e in runs])
        cells = [percent(hierarchical_mean(outcomes(by_task[t]))) if t in by_task else "-" for t in tasks]
        # An aggregate over some of the tasks, or with more weight on one of them, would not be comparable with others.
        counts = {len(by_task.get(task, ())) for task in tasks}
        total = percent(aggregate(by_task)) if len(counts) == 1 else "-"
        if counts == {1}:
            total = f"{100 * aggregate(by_task).mean:.1f} % (one seed)"
        success.add_row(arm, nfe, seeds, *cells, total, f"{cost:.1f}")
    if reference not in records or len(records) == 1:
        return [success]
    against = Table("arm", *tasks, title=f"success minus that of {reference}, in points [95 %]; * does not hold zero")
    for arm, by_task in records.items():
        if arm != reference:
            cells = [_difference(by_task.get(t), records[reference].get(t)) for t in tasks]
            against.add_row(arm, *cells)
    return [success, against]


def _protocol(records: Records, task: str) -> list[str]:
    """What the records of a task have in common, and the simulators if they do not have those in common."""
    runs = [e for by_task in records.values() for e in by_task.get(task, [])]
    same = _budget(runs[0])
    lines = [
        f"{len(runs[0].episodes)} episodes a run (plan {same['plan']}), {same['updates']:,} updates of "
        f"{same['rows per update']} rows, data {same['data']}"
    ]
    used = {name: sorted({e.versions.get(name, "absent") for e in runs}) for name in SIMULATORS}
    if differing := [f"{name} {', '.join(versions)}" for name, versions in used.items() if len(versions) > 1]:
        lines.append(f"not the same simulator in all runs: {'; '.join(differing)}")
    return lines


def _difference(runs: list[Evaluation] | None, others: list[Evaluation] | None) -> str:
    if not runs or not others:
        return "-"
    d = hierarchical_difference(outcomes(runs), outcomes(others))
    mark = " *" if d.low > 0 or d.high < 0 else ""
    return f"{100 * d.mean:+.1f} [{100 * d.low:+.1f}, {100 * d.high:+.1f}]{mark}"


def draw_suite(path: Path, records: Records, reference: str) -> None:
    """One panel per task, a row per arm: interval, mean, and every training seed as a dot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    tasks = list(dict.fromkeys(task for by_task in records.values() for task in by_task))
    arms = list(records)
    figure = Figure(figsize=(2 + 3.5 * len(tasks), 1.2 + 0.32 * len(arms)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(tasks), sharey=True, squeeze=False)[0]
    for task, axis in zip(tasks, axes, strict=True):
        for row, arm in enumerate(arms):
            if task not in records[arm]:
                continue
            values = outcomes(records[arm][task])
            interval = hierarchical_mean(values)
            color = "C1" if arm == reference else "C0"
            axis.plot([100 * interval.low, 100 * interval.high], [row, row], color=color, linewidth=3, alpha=0.4)
            axis.plot(100 * values.mean(axis=1), [row] * len(values), ".", color="0.4", markersize=5)
            axis.plot(100 * interval.mean, row, "o", color=color)
        run = next(by_task[task][0] for by_task in records.values() if task in by_task)
        title = f"{task}\n{len(run.episodes)} episodes a run, {run.step:,} updates"
        axis.set(title=title, xlabel="success, %", xlim=(-3, 103), yticks=range(len(arms)), yticklabels=arms)
        axis.grid(axis="x", alpha=0.3)
    axes[0].invert_yaxis()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
