"""Several arms on several tasks, each from several training seeds: table, aggregates and picture.

A run's score on a task is its rate of success, or the mean of D4RL's normalised score. Aggregates follow Agarwal et al.
2021, "Deep RL at the edge of the statistical precipice" (arXiv 2108.13264): the interquartile mean over all runs and
tasks, the probability that a run of one arm beats one of another, and a bootstrap that draws runs within each task.
Numbers that others have published stand beside the measured ones, and are never mixed with them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from rich.table import Table

from flowpolicy.core.errors import EvaluationError
from flowpolicy.core.spec import SIMULATORS
from flowpolicy.envs import normalized_score
from flowpolicy.evaluate.report import Evaluation, load_evaluation
from flowpolicy.evaluate.sheets import Sheet, SuiteScore, as_rich, points
from flowpolicy.evaluate.statistics import (
    Interval,
    hierarchical_difference,
    hierarchical_mean,
    interquartile_mean,
    probability_of_improvement,
)

Records = dict[str, dict[str, list[Evaluation]]]
"""Arm -> task -> one evaluation per training seed."""
Published = Mapping[str, Mapping[str, tuple[float, str]]]
"""Task -> arm -> score that others have published, and its source."""
Score = Literal["success", "normalised"]
"""What is compared: the rate of success, or D4RL's normalised score."""

_ROWS = 4  # tasks that fit side by side; more become rows
_UNIT = {"success": " %", "normalised": ""}
_TITLE = {"success": "success in per cent", "normalised": "D4RL's normalised score"}


def load_records(folder: Path, tasks: Iterable[str], arms: Iterable[str], *, common: bool = True) -> Records:
    """Read FOLDER/TASK/ARM-seedS.json.

    Args:
        folder: of the records.
        tasks: which to read.
        arms: likewise.
        common: all arms of a task must have one budget of updates and rows.

    Raises:
        EvaluationError: none there, or two of one task that were not made alike (plan, noise, data, budget), or two of
            one arm that differ in more than their seed, or in less.

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
        _require_alike(task, [e for by_task in found.values() for e in by_task.get(task, [])], common)
    return found


def _require_seeds(evaluations: Mapping[Path, Evaluation]) -> None:
    """Refuse the records of an arm on a task unless each is of the seed in its name and they are alike in the rest."""
    first, *_ = evaluations
    options = {path: dict(flat_options(e.training["experiment"])) for path, e in evaluations.items()}
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


def flat_options(value: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Names with dots -> values of nested options."""
    for name, inner in value.items():
        if isinstance(inner, Mapping):
            yield from flat_options(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", inner


def _budget(e: Evaluation, common: bool = True) -> dict[str, object]:
    """What all records of a task have in common."""
    spent = {"updates": e.step, "rows per update": e.training["experiment"]["batch_size"]}
    return {
        "plan": e.plan.digest[:12],
        "noise scale": e.noise_scale,
        "data": e.training["dataset_sha256"][:12],
        **(spent if common else {}),
    }


def _require_alike(task: str, evaluations: list[Evaluation], common: bool) -> None:
    for e in evaluations[1:]:
        first, other = _budget(evaluations[0], common), _budget(e, common)
        if differing := [f"{key} {first[key]} and {other[key]}" for key in first if first[key] != other[key]]:
            raise EvaluationError(
                f"records of {task} were not made alike: {evaluations[0].run} and {e.run} have {', '.join(differing)}",
                expected="one plan, one file and one budget for all arms" if common else "one plan and one file",
                fix="move the odd one away and run the suite again",
            )


def outcomes(evaluations: list[Evaluation], score: Score = "success") -> np.ndarray:
    """(seeds, episodes) successes, 0 or 1, or normalised scores over 100.

    Raises:
        EvaluationError: the environment has no such score.

    """
    env_id = evaluations[0].plan.env_id
    if score == "success":
        return np.array([[episode.success for episode in e.episodes] for e in evaluations], dtype=np.float64)
    normalised = normalized_score(env_id)
    if normalised is None:
        raise EvaluationError(f"{env_id} has no normalised score", expected="a suite that is scored by success")
    return np.array([[normalised(e.return_) / 100 for e in each.episodes] for each in evaluations], dtype=np.float64)


def aggregate(by_task: Mapping[str, list[Evaluation]], score: Score = "success") -> Interval:
    """Interquartile mean of the score over runs and tasks."""
    return interquartile_mean([outcomes(runs, score).mean(axis=1) for runs in by_task.values()])


def suite_table(
    name: str, records: Records, reference: str, *, score: Score = "success", published: Published | None = None
) -> list[Table]:
    """:func:`suite_sheets` for the terminal."""
    return [as_rich(sheet) for sheet in suite_sheets(name, records, reference, score=score, published=published)]


def suite_sheets(
    name: str, records: Records, reference: str, *, score: Score = "success", published: Published | None = None
) -> list[Sheet]:
    """Score per task with its interval, IQM, probability of improvement and cost, and differences to an arm.

    Args:
        name: of the suite.
        records: what was measured.
        reference: arm that every other is compared with.
        score: what is compared.
        published: what others have published, by task and arm.

    """
    tasks = list(dict.fromkeys(task for by_task in records.values() for task in by_task))
    known = {task: dict((published or {}).get(task, {})) for task in tasks}
    sources = list(dict.fromkeys(source for scores in known.values() for _, source in scores.values()))
    title = f"{name}: {_TITLE[score]}, mean over training seeds [95 % over seeds and episodes]"
    notes = [f"{task}: {line}" for task in tasks for line in _protocol(records, task)]
    notes += [f"published ({_letter(sources, source)}), not measured here: {source}" for source in sources]
    head = ("arm", "NFE", "seeds", *tasks, "IQM [95 %]", f"P(better than {reference})", "updates x rows")
    rows = []
    for arm in [*records, *_others(known, records)]:
        if arm in records:
            rows.append(_measured(arm, records, tasks, reference, score))
        told = [_told(known[task].get(arm), sources) for task in tasks]
        if any(told):
            rows.append((f"{arm}, published", "", "", *(each or "-" for each in told), "", "", "", ""))
    sheet = Sheet(title, (*head, "ms per update"), tuple(rows), tuple(notes))
    sheets = [sheet, *_against(records, tasks, reference, score)]
    return [each.turned() for each in sheets] if len(tasks) > _ROWS else sheets


def suite_scores(records: Records, *, score: Score = "success", published: Published | None = None) -> list[SuiteScore]:
    """Every number of a table for programs, those that others have published among them."""
    found = []
    for arm, by_task in records.items():
        for task, runs in by_task.items():
            interval = hierarchical_mean(outcomes(runs, score))
            found.append(
                SuiteScore(
                    arm,
                    task,
                    score,
                    100 * interval.mean,
                    100 * interval.low,
                    100 * interval.high,
                    len(runs),
                    len(runs[0].episodes),
                    runs[0].nfe,
                    runs[0].step,
                    runs[0].training["experiment"]["batch_size"],
                    float(np.median([e.training["seconds"] for e in runs])),
                )
            )
    tasks = dict.fromkeys(task for by_task in records.values() for task in by_task)
    for task in tasks:
        for arm, (value, source) in (published or {}).get(task, {}).items():
            found.append(SuiteScore(arm, task, "published", value, source=source))
    return found


def _measured(arm: str, records: Records, tasks: list[str], reference: str, score: Score) -> tuple[str, ...]:
    by_task, unit = records[arm], _UNIT[score]
    runs = [e for task in tasks for e in by_task.get(task, [])]
    nfe, seeds, spent = (
        "/".join(str(v) for v in dict.fromkeys(sorted(values)))
        for values in (
            [e.nfe for e in runs],
            [len(v) for v in by_task.values()],
            [f"{e.step:,} x {e.training['experiment']['batch_size']:,}" for e in runs],
        )
    )
    cost = np.median([1e3 * e.training["seconds"] / e.step for e in runs])
    cells = [points(hierarchical_mean(outcomes(by_task[t], score)), unit) if t in by_task else "-" for t in tasks]
    # An aggregate over some of the tasks, or with more weight on one of them, would not be comparable with others.
    counts = {len(by_task.get(task, ())) for task in tasks}
    total = points(aggregate(by_task, score), unit) if len(counts) == 1 else "-"
    if counts == {1}:
        total = f"{100 * aggregate(by_task, score).mean:.1f}{unit} (one seed)"
    better = _improvement(by_task, records.get(reference, {}), tasks, score) if arm != reference else "-"
    return arm, nfe, seeds, *cells, total, better, spent, f"{cost:.1f}"


def _improvement(
    runs: Mapping[str, list[Evaluation]], others: Mapping[str, list[Evaluation]], tasks: list[str], score: Score
) -> str:
    """Probability that a run of the arm beats one of the reference, over the tasks; a dash where tasks are missing."""
    if any(task not in each for each in (runs, others) for task in tasks):
        return "-"
    mine, theirs = ([outcomes(each[task], score).mean(axis=1) for task in tasks] for each in (runs, others))
    found = probability_of_improvement(mine, theirs)
    if any(len(each[task]) == 1 for each in (runs, others) for task in tasks):
        return f"{found.mean:.2f} (one seed)"
    return f"{found.mean:.2f} [{found.low:.2f}, {found.high:.2f}]"


def _against(records: Records, tasks: list[str], reference: str, score: Score) -> list[Sheet]:
    if reference not in records or len(records) == 1:
        return []
    title = f"{_TITLE[score].partition(' in ')[0]} minus that of {reference}, in points [95 %]; * does not hold zero"
    rows = [
        (arm, *(_difference(by_task.get(t), records[reference].get(t), score) for t in tasks))
        for arm, by_task in records.items()
        if arm != reference
    ]
    return [Sheet(title, ("arm", *tasks), tuple(rows))]


def _others(known: Published, records: Records) -> list[str]:
    """Methods that are published and not measured."""
    return list(dict.fromkeys(arm for scores in known.values() for arm in scores if arm not in records))


def _told(score: tuple[float, str] | None, sources: list[str]) -> str:
    return f"{score[0]:.1f} ({_letter(sources, score[1])})" if score else ""


def _letter(sources: list[str], source: str) -> str:
    return "abcdefghijklmnopqrstuvwxyz"[sources.index(source) % 26]


def _protocol(records: Records, task: str) -> list[str]:
    """What the records of a task have in common, and the simulators if they do not have those in common."""
    runs = [e for by_task in records.values() for e in by_task.get(task, [])]
    same, budgets = _budget(runs[0]), {(e.step, e.training["experiment"]["batch_size"]) for e in runs}
    spent = f"{same['updates']:,} updates of {same['rows per update']} rows, " if len(budgets) == 1 else ""
    lines = [f"{len(runs[0].episodes)} episodes a run (plan {same['plan']}), {spent}data {same['data']}"]
    used = {name: sorted({e.versions[name] for e in runs if name in e.versions}) for name in SIMULATORS}
    if differing := [f"{name} {', '.join(versions)}" for name, versions in used.items() if len(versions) > 1]:
        lines.append(f"not the same simulator in all runs: {'; '.join(differing)}")
    return lines


def _difference(runs: list[Evaluation] | None, others: list[Evaluation] | None, score: Score) -> str:
    if not runs or not others:
        return "-"
    d = hierarchical_difference(outcomes(runs, score), outcomes(others, score))
    mark = " *" if d.low > 0 or d.high < 0 else ""
    return f"{100 * d.mean:+.1f} [{100 * d.low:+.1f}, {100 * d.high:+.1f}]{mark}"


def draw_suite(
    path: Path, records: Records, reference: str, *, score: Score = "success", published: Published | None = None
) -> None:
    """One panel per task, a row per arm: interval, mean, a dot per training seed, published numbers as diamonds."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    tasks = list(dict.fromkeys(task for by_task in records.values() for task in by_task))
    arms = list(records)
    across = min(len(tasks), _ROWS)
    down = -(-len(tasks) // across)
    figure = Figure(figsize=(2 + 3.5 * across, down * (1.2 + 0.32 * len(arms))), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(down, across, sharey=True, squeeze=False).flatten()
    for empty in panels[len(tasks) :]:
        empty.set_visible(False)
    for task, axis in zip(tasks, panels, strict=False):
        for row, arm in enumerate(arms):
            if theirs := (published or {}).get(task, {}).get(arm):
                axis.plot(theirs[0], row, "D", markerfacecolor="none", color="0.2", markersize=6)
            if task not in records[arm]:
                continue
            values = outcomes(records[arm][task], score)
            interval = hierarchical_mean(values)
            color = "C1" if arm == reference else "C0"
            axis.plot([100 * interval.low, 100 * interval.high], [row, row], color=color, linewidth=3, alpha=0.4)
            axis.plot(100 * values.mean(axis=1), [row] * len(values), ".", color="0.4", markersize=5)
            axis.plot(100 * interval.mean, row, "o", color=color)
        runs = [run for by_task in records.values() for run in by_task.get(task, ())]
        steps = sorted({run.step for run in runs})
        updates = f"{steps[0]:,}" if len(steps) == 1 else f"{steps[0]:,} to {steps[-1]:,}"
        title = f"{task}\n{len(runs[0].episodes)} episodes a run, {updates} updates"
        axis.set(title=title, yticks=range(len(arms)), yticklabels=arms)
        axis.set_xlabel("success, %" if score == "success" else "normalised score")
        if score == "success":
            axis.set_xlim(-3, 103)
        axis.grid(axis="x", alpha=0.3)
    panels[0].invert_yaxis()
    if any(arm in (published or {}).get(task, {}) for task in tasks for arm in arms):
        # Unlike free text, a label of the figure has room kept for it.
        figure.supxlabel("diamonds: published by others, not measured here", x=0.995, ha="right", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
