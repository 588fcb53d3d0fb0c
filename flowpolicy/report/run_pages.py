"""The page about runs, records, suites and trials: ``flowpolicy report``."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flowpolicy.core.errors import FlowPolicyError
from flowpolicy.core.spec import UNSTATED
from flowpolicy.evaluate.curves import LOG_SPREAD, panel_order, read_curves, smooth
from flowpolicy.evaluate.report import Evaluation, compare
from flowpolicy.evaluate.sheets import Sheet, SuiteScore
from flowpolicy.evaluate.suite_table import flat_options
from flowpolicy.evaluate.tables import unlike, verdict, verdict_by_return
from flowpolicy.evaluate.traces import load_trace
from flowpolicy.evaluate.video import films_of
from flowpolicy.report import metric_words
from flowpolicy.report.blocks import (
    Block,
    ChartLine,
    Section,
    chart,
    charts,
    column,
    facts,
    histogram,
    interval,
    notes,
    table,
    tiles,
    words,
)
from flowpolicy.report.contract_words import contract_sentences
from flowpolicy.report.dataset_pages import training_data
from flowpolicy.report.filmed import Film, Traces, chosen_films, film_of
from flowpolicy.report.gathering import Gathered, PlayedRecord, gather
from flowpolicy.report.page import write_page

MOST_EPISODES = 20_000
"""Rows of the table of episodes; 2 MB."""
MOST_CURVES = 24
"""Runs in one chart: more lines cannot be told apart."""
_HISTOGRAMS, _FEWEST = 6, 5  # records with histograms, and values of each
EVERY_PAIR = 6
"""Records of one plan up to which every pair is compared; beyond, each is compared with the first."""


@dataclasses.dataclass(frozen=True)
class SuiteTables:
    """What a suite adds to a report."""

    name: str
    scores: Sequence[SuiteScore] = ()
    sheets: Sequence[Sheet] = ()
    per_cent: bool = True
    """Whether scores are rates of success."""


@dataclasses.dataclass(frozen=True)
class WrittenReport:
    """A report that was written."""

    path: Path
    size: int
    """Bytes."""
    left_out: tuple[str, ...]
    """What is not in it, in sentences; the page says so too."""


def write_report(
    paths: Sequence[Path], out: Path, *, videos_mb: float = 64.0, command: str = "", suites: Sequence[SuiteTables] = ()
) -> WrittenReport:
    """Write the page about runs, records, trials and suites.

    Args:
        paths: see :func:`flowpolicy.report.gathering.gather`.
        out: the HTML file.
        videos_mb: megabytes of videos that it holds at most.
        command: command line that asked.
        suites: tables of suites among ``paths``.

    Raises:
        ConfigError: a path holds nothing to show.
        EvaluationError: a record is damaged.

    """
    found = gather(paths)
    attachments: dict[str, bytes | str] = {}
    episodes, left_out = _episodes(found.records, int(videos_mb * 1e6), attachments)
    sections = [
        Section("results", "Results", tuple(_results(found))),
        *(Section(f"suite-{number}", f"Suite {one.name}", tuple(_suite(one))) for number, one in enumerate(suites)),
        Section("differences", "Paired differences", tuple(_differences(found.records)), _PAIRED),
        Section("card", "Success, evaluations, latency", tuple(_card(found)), _CARD),
        Section("episodes", "Episodes", tuple(episodes)),
        Section("training", "Training", tuple(_curves(found)), _TRAINING),
        *_options(found),
        Section("data", "Training data", tuple(training_data(found.runs, attachments))),
        Section("contract", "Contract", tuple(_contracts(found))),
        Section("provenance", "Provenance", tuple(_provenance(found.records))),
    ]
    title, subtitle = _titles(found, suites)
    size = write_page(out, title, subtitle, sections, attachments, command)
    return WrittenReport(out, size, tuple(left_out))


_PAIRED = "Two policies met the same initial states. The exact McNemar test over the pairs decides what is resolved."
_CARD = "A decision gives one chunk of actions. NFE counts the network evaluations that it takes."
_TRAINING = "Bold is smoothed, faint is as logged."


def _titles(found: Gathered, suites: Sequence[SuiteTables]) -> tuple[str, str]:
    names = [*(one.name for one in suites)] or list(dict.fromkeys([*found.runs, *(r.label for r in found.records)]))
    tasks = list(dict.fromkeys(record.evaluation.plan.env_id for record in found.records))
    title = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
    episodes = sum(len(record.evaluation.episodes) for record in found.records)
    counted = [(len(found.runs), "run"), (len(found.records), "evaluation"), (episodes, "episode")]
    said = [f"{count:,} {noun}{'s' * (count != 1)}" for count, noun in counted if count]
    return title, ", ".join([*tasks[:3], *said])


def _results(found: Gathered) -> list[Block]:
    records = found.records
    if not records:
        return [notes("No evaluation is there yet: flowpolicy eval RUN makes one.")]
    blocks: list[Block] = []
    if len({record.label for record in records}) == 1:
        blocks.append(_headline(min(records, key=_unusual).evaluation))
    score = "success" if any(record.evaluation.success for record in records) else "return"
    columns = [
        column("run"),
        column("task"),
        column("agent"),
        column("update", "number", help="gradient step of the checkpoint that acted"),
        column("NFE", "number", help="network evaluations per chunk"),
        column("played by", help="engine, noise scale and pictures, where they are not the usual"),
        column("episodes", "number"),
        column("success", "interval", digits=1, unit=" %", help="Wilson's 95 % interval"),
        column("return", "interval", digits=2, help="mean with its bootstrap 95 % interval"),
        column("normalised", "interval", digits=1, help="D4RL's normalised score, bootstrap 95 %"),
        column("p50, ms", "number", digits=2, help="median time of a decision at batch 1"),
        column("p99, ms", "number", digits=2, help="99th percentile of it"),
        column("training, min", "number", digits=1),
        column("parameters", "number"),
    ]
    rows = [_result(record) for record in records]
    if all(record.evaluation.success and _rewarded_once(record.evaluation) for record in records):
        rows = [[*row[:8], None, *row[9:]] for row in rows]  # the return says the same as the success
    blocks.append(table(columns, rows, caption=f"Every evaluation; {score} counts."))
    if older := [record for record in records if not record.current]:
        blocks.append(notes(f"{len(older)} of the evaluations are of older checkpoints: the column 'update' tells."))
    return blocks


def _unusual(record: PlayedRecord) -> tuple[bool, ...]:
    """In what a record is not what a run is judged by; the newest of those that are alike comes first."""
    e, contract = record.evaluation, None if record.run is None else record.run.contract
    other = contract is not None and e.nfe != contract.nfe
    return not record.current, e.noise_scale != 1, bool(e.mismatch), other


def _rewarded_once(e: Evaluation) -> bool:
    return all(episode.return_ == float(episode.success) for episode in e.episodes)


def _headline(e: Evaluation) -> Block:
    shown = []
    if e.success:
        low, high = (f"{100 * end:.1f}" for end in (e.success.low, e.success.high))
        shown.append(("success", f"{100 * e.success.mean:.1f} %", f"95 % interval {low} to {high}, n = {e.success.n}"))
    else:
        shown.append(("return", f"{e.return_.mean:.4g}", f"95 % interval {e.return_.low:.4g} to {e.return_.high:.4g}"))
    shown.append(("evaluations per chunk", str(e.nfe), f"chunks of {_chunk(e)} actions" if _chunk(e) else ""))
    if e.latency:
        shown.append(
            ("decision", f"{e.latency.p50_us / 1000:.3g} ms", f"99th percentile {e.latency.p99_us / 1000:.3g} ms")
        )
    if e.training:
        minutes = e.training.get("seconds", 0) / 60
        shown.append(("training", f"{minutes:.1f} min", f"{e.step:,} updates"))
        if count := e.training.get("parameters"):
            shown.append(("parameters", f"{count / 1e6:.2f} M", f"{count:,}"))
    return tiles(*shown)


def _chunk(e: Evaluation) -> int:
    agent = (e.training.get("experiment") or {}).get("agent") or {}
    return int(agent.get("chunk") or 0)


def _result(record: PlayedRecord) -> list[Any]:
    e, training = record.evaluation, record.evaluation.training
    agent = (training.get("experiment") or {}).get("agent") or {}
    return [
        record.label,
        e.plan.env_id,
        agent.get("class"),
        e.step or None,
        e.nfe,
        _way(e) or None,
        len(e.episodes),
        interval(e.success, 100),
        interval(e.return_),
        interval(e.normalized),
        e.latency and e.latency.p50_us / 1000,
        e.latency and e.latency.p99_us / 1000,
        training["seconds"] / 60 if "seconds" in training else None,
        training.get("parameters"),
    ]


def _way(e: Evaluation) -> str:
    parts = [e.engine, f"noise x {e.noise_scale:g}" if e.noise_scale != 1 else ""]
    parts += ["other pictures than in training"] if e.mismatch else []
    parts += [e.simulation] if e.simulation not in ("", "compiled") else []
    return ", ".join(part for part in parts if part)


def _named(record: PlayedRecord, among: Iterable[PlayedRecord]) -> str:
    """Label of a record, with what tells it from others of the same label."""
    same = [one for one in among if one.label == record.label]
    e = record.evaluation
    parts = [record.label]
    if len({one.evaluation.step for one in same}) > 1:
        parts.append(f"update {e.step:,}")
    if len({one.evaluation.nfe for one in same}) > 1:
        parts.append(f"NFE {e.nfe}")
    if len({_way(one.evaluation) for one in same}) > 1:
        parts.append(_way(e) or "as trained")
    if len({one.evaluation.plan.digest for one in same}) > 1:
        parts.append(f"plan {e.plan.digest[:6]}")
    return ", ".join(parts)


def _suite(suite: SuiteTables) -> list[Block]:
    unit = " %" if suite.per_cent else ""
    columns = [
        column("arm"),
        column("task"),
        column("score", "interval", digits=1, unit=unit, help="mean over training seeds, 95 % over seeds and episodes"),
        column("seeds", "number"),
        column("episodes a run", "number"),
        column("NFE", "number"),
        column("updates", "number"),
        column("rows an update", "number"),
        column("source"),
    ]
    rows = [
        [
            one.arm,
            one.task,
            None if one.score == "published" else [one.mean, one.low, one.high],
            one.seeds or None,
            one.episodes or None,
            one.nfe or None,
            one.updates or None,
            one.rows or None,
            f"published, not measured here: {one.mean:.1f} ({one.source})" if one.score == "published" else None,
        ]
        for one in suite.scores
    ]
    blocks = [table(columns, rows, caption="Every arm on every task")] if rows else []
    for sheet in suite.sheets:
        columns = [column(head, "text" if place == 0 else "code") for place, head in enumerate(sheet.head)]
        blocks.append(table(columns, sheet.rows, caption=sheet.title))
        blocks += [words(*sheet.notes)] if sheet.notes else []
    return blocks


def _differences(records: Sequence[PlayedRecord]) -> list[Block]:
    by_plan: dict[str, list[PlayedRecord]] = {}
    for record in records:
        by_plan.setdefault(record.evaluation.plan.digest, []).append(record)
    rows, remarks, scored = [], [], False
    for digest, group in by_plan.items():
        pairs = list(itertools.combinations(group, 2))
        if len(group) > EVERY_PAIR:
            pairs = [(one, group[0]) for one in group[1:]]
            remarks.append(f"{len(group)} records share the plan {digest[:12]}; each is compared with the first.")
        for a, b in pairs:
            found, success = compare(a.evaluation, b.evaluation), a.evaluation.success is not None
            scored |= success
            decided = verdict(found) if success else verdict_by_return(found)
            shown = found.difference if success else found.return_difference
            cells = [found.only_a, found.only_b, found.p_value] if success else [None, None, None]
            rows.append(
                [
                    _named(a, records),
                    _named(b, records),
                    interval(shown, 100 if success else 1),
                    *cells,
                    " ".join([decided, *unlike(a.evaluation, b.evaluation)]),
                ]
            )
    if not rows:
        return []
    unit = " points" if scored else ""
    columns = [
        column("A"),
        column("B"),
        column("A - B", "interval", digits=1, unit=unit, help="difference with its paired 95 % interval"),
        column("only A", "number", help="episodes in which A alone succeeded"),
        column("only B", "number", help="episodes in which B alone succeeded"),
        column("p", "number", digits=3, help="exact two-sided McNemar test"),
        column("verdict", "verdict"),
    ]
    return [table(columns, rows), *([notes(*remarks)] if remarks else [])]


def _card(found: Gathered) -> list[Block]:
    groups: dict[tuple[str, ...], dict[int, Evaluation]] = {}
    carded = [(label, e) for label, run in found.runs.items() for e in run.cards]
    played = [(record.label, record.evaluation) for record in found.records if record.current]
    for label, e in [*carded, *played]:
        if e.noise_scale == 1 and not e.mismatch and e.latency:
            alike = (
                label,
                e.plan.digest,
                e.checkpoint_sha256,
                e.engine,
            )  # engines differ in time, and draw other noise
            groups.setdefault(alike, {}).setdefault(e.nfe, e)
    if not groups:
        return []
    largest: dict[str, dict[int, Evaluation]] = {}
    for (label, *_), by_nfe in groups.items():
        if len(by_nfe) > len(largest.get(label, ())):
            largest[label] = dict(sorted(by_nfe.items()))
    rows = [
        [
            label,
            nfe,
            interval(e.success, 100),
            interval(e.return_),
            e.latency and e.latency.p50_us / 1000,
            e.latency and e.latency.p99_us / 1000,
            e.engine or "PyTorch",
        ]
        for label, by_nfe in largest.items()
        for nfe, e in by_nfe.items()
    ]
    columns = [
        column("run"),
        column("NFE", "number"),
        column("success", "interval", digits=1, unit=" %"),
        column("return", "interval", digits=2),
        column("p50, ms", "number", digits=2),
        column("p99, ms", "number", digits=2),
        column("engine"),
    ]
    several = {label: by_nfe for label, by_nfe in largest.items() if len(by_nfe) > 1}
    blocks: list[Block] = [table(columns, rows)] if several else []
    drawn = _over_nfe(several) if several else []
    for record in found.records[:_HISTOGRAMS]:
        drawn += _per_episode(record, _named(record, found.records))
    return [*blocks, charts(*drawn)] if drawn else blocks


def _over_nfe(several: dict[str, dict[int, Evaluation]]) -> list[Block]:
    success, latency = [], []
    for label, by_nfe in list(several.items())[:MOST_CURVES]:
        nfes = np.array(list(by_nfe), dtype=np.float64)
        scored = [e.success or e.return_ for e in by_nfe.values()]
        factor = 100 if all(e.success for e in by_nfe.values()) else 1
        mean, low, high = (factor * np.array([getattr(s, part) for s in scored]) for part in ("mean", "low", "high"))
        success.append(ChartLine(label, nfes, mean, low, high))
        times = np.array([e.latency.p50_us / 1000 if e.latency else math.nan for e in by_nfe.values()])
        latency.append(ChartLine(label, nfes, times))
    rated = all(e.success for by_nfe in several.values() for e in by_nfe.values())
    axis: dict[str, Any] = {"x_label": "network evaluations per chunk", "log_x": True, "points": True}
    name, to = ("success, %", 100.0) if rated else ("return", None)
    return [
        chart(name, success, explanation="The band is the 95 % interval.", from_zero=rated, to=to, **axis),
        chart("decision, ms", latency, explanation="Median time of a decision at batch 1.", from_zero=True, **axis),
    ]


def _per_episode(record: PlayedRecord, name: str) -> list[Block]:
    """How decision times and lengths are distributed over episodes."""
    played = record.evaluation.episodes
    means = [1e3 * one.policy_seconds / one.chunks for one in played if one.chunks and one.policy_seconds]
    steps = [one.success_step for one in played if one.success_step is not None]
    drawn = []
    if len(means) >= _FEWEST:
        about = "Mean over the decisions of an episode; the record keeps no single ones."
        drawn.append(histogram(f"latency, {name}", np.array(means), explanation=about, x_label="ms a decision"))
    if len(steps) >= _FEWEST:
        about = f"When an episode succeeded; {len(played) - len(steps)} never did."
        drawn.append(histogram(f"success, {name}", np.array(steps), explanation=about, x_label="step", whole=True))
    return drawn


def _episodes(
    records: Sequence[PlayedRecord], budget: int, attachments: dict[str, bytes | str]
) -> tuple[list[Block], list[str]]:
    """The episodes with their films and traces; and what is left out, in sentences."""
    left_out: list[str] = []
    rows: list[dict[str, Any]] = []
    films: list[tuple[Any, str, Film]] = []
    places: list[tuple[dict[str, Any], Path]] = []
    for number, record in enumerate(records):
        folder, name = record.films
        mine = films_of(folder, name)
        label = _named(record, records)
        for position, one in enumerate(record.evaluation.episodes):
            outcome = ("success" if one.success else "failure") if record.evaluation.success_defined else ""
            millis = 1e3 * one.policy_seconds / one.chunks if one.chunks and one.policy_seconds else None
            cells = [label, position, outcome or None, one.success_step, _short(one.return_), one.length, one.chunks]
            row: dict[str, Any] = {"cells": [*cells, _short(millis)], "outcome": outcome, "film": None, "trace": None}
            rows.append(row)
            if position in mine:
                films.append((number, outcome, film_of(mine[position])))
                places.append((row, mine[position]))
    if not rows:
        return [], []
    chosen = chosen_films(films, budget)
    for number, (row, path) in enumerate(places):
        if number in chosen:
            row["film"] = film = f"film-{number}"
            attachments[film] = films[number][2].read()
        if path.with_suffix(".json").is_file() and (number in chosen or len(attachments) < 2000):
            trace = load_trace(path.with_suffix(".json"))
            groups = {"action": trace.action, **trace.obs}
            groups |= {"reward": trace.reward[:, None]} if np.ptp(trace.reward) else {}
            row["trace"] = name = f"trace-{number}"
            attachments[name] = Traces(groups, trace.rate_hz or 20.0, trace.decisions).to_json()
    if missing := len(films) - len(chosen):
        megabytes = sum(film.size for _, _, film in films) / 1e6
        left_out.append(
            f"{missing} of {len(films)} videos are left out: all together they have {megabytes:.0f} MB, and this page "
            f"may hold {budget / 1e6:g} MB (--videos-mb)."
        )
    if len(rows) > MOST_EPISODES:
        left_out.append(f"{len(rows) - MOST_EPISODES:,} of {len(rows):,} episodes are left out of the table.")
        rows = sorted(rows, key=lambda row: row["film"] is None and row["trace"] is None)[:MOST_EPISODES]
    columns = [
        column("run"),
        column("episode", "number", help="position in the plan"),
        column("outcome", "verdict"),
        column("succeeded at step", "number"),
        column("return", "number", digits=2),
        column("steps", "number"),
        column("decisions", "number"),
        column("ms a decision", "number", digits=2),
    ]
    hint = "" if films else "No videos are there: flowpolicy eval RUN --video N records some, with traces."
    block = {"type": "episodes", "columns": columns, "episodes": rows, "hint": hint}
    return [block, *([notes(*left_out)] if left_out else [])], left_out


def _short(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.6g}")


def _curves(found: Gathered) -> list[Block]:
    by_metric: dict[str, list[ChartLine]] = {}
    logged, remarks = [(label, run.metrics) for label, run in found.runs.items() if run.metrics], []
    if len(logged) > MOST_CURVES:
        remarks.append(f"The curves of {len(logged) - MOST_CURVES} of {len(logged)} runs are left out.")
    for label, path in logged[:MOST_CURVES]:
        try:
            curves = read_curves(path)
        except FlowPolicyError as error:
            remarks.append(f"No curves of {label}: {error.what}.")
            continue
        step = curves.pop("step")
        for name, values in curves.items():
            kept = np.isfinite(values)
            if kept.any():
                drawn = smooth(values[kept]) if name != "lr" else values[kept]
                faint = values[kept] if len(logged) <= 3 and name != "lr" else None
                by_metric.setdefault(name, []).append(ChartLine(label, step[kept], drawn, faint=faint))
    panels = [
        chart(
            metric_words.title(name),
            lines,
            explanation=metric_words.meaning(name),
            x_label="update",
            log_y=_spreads(name, lines),
        )
        for name, lines in sorted(by_metric.items(), key=lambda item: (item[0].endswith("_ms"), panel_order(item[0])))
    ]
    return [*([charts(*panels)] if panels else []), *([notes(*remarks)] if remarks else [])]


def _spreads(name: str, lines: Sequence[ChartLine]) -> bool:
    values = np.concatenate([line.y for line in lines])
    scaled = "loss" in name or "norm" in name
    return scaled and bool(values.min() > 0) and bool(values.max() > LOG_SPREAD * values.min())


def _options(found: Gathered) -> list[Section]:
    options = {label: dict(flat_options(run.experiment)) for label, run in found.runs.items() if run.experiment}
    if len(options) < 2:
        return []
    names = list(dict.fromkeys(itertools.chain.from_iterable(options.values())))
    differing = [n for n in names if len({str(each.get(n, "")) for each in options.values()}) > 1]
    rows = [[label, *(str(each.get(name, "")) for name in differing)] for label, each in options.items()]
    if not differing:
        return []
    columns = [column("run"), *(column(name, "code") for name in differing)]
    return [Section("options", "Options that differ", (table(columns, rows),))]


def _contracts(found: Gathered) -> list[Block]:
    told: dict[tuple[str, ...], list[str]] = {}
    for label, run in found.runs.items():
        if (contract := run.contract) is not None:
            told.setdefault(tuple(contract_sentences(contract)), []).append(label)
    blocks: list[Block] = []
    for lines, labels in told.items():
        named = ", ".join(labels[:6]) + (f" and {len(labels) - 6} more" if len(labels) > 6 else "")
        blocks.append(words(*lines) | {"title": named if len(told) > 1 else ""})
    return blocks


def _provenance(records: Sequence[PlayedRecord]) -> list[Block]:
    if not records:
        return []
    columns = [
        column("run"),
        column("command", "code"),
        column("commit", "code"),
        column("checkpoint", "code", help="SHA-256 of its manifest, which holds the hash of every file"),
        column("weights", "code", help="SHA-256 of the averaged weights, which act"),
        column("data", "code", help="SHA-256 of the training data"),
        column("plan", "code", help="digest of initial states and seeds"),
        column("record", "code"),
    ]
    rows = [
        [
            _named(record, records),
            e.command or None,
            _abbreviated(e.commit, 10),
            _abbreviated(e.checkpoint_sha256, 16),
            _abbreviated(e.weights_sha256, 16),
            _abbreviated(e.training.get("dataset_sha256", ""), 16),
            e.plan.digest[:16],
            str(record.path),
        ]
        for record in records
        for e in [record.evaluation]
    ]
    versions: dict[str, list[str]] = {}
    for record in records:
        for name, version in record.evaluation.versions.items():
            if version not in versions.setdefault(name, []):
                versions[name].append(version)
    said = ", ".join(f"{name} {' and '.join(each)}" for name, each in versions.items())
    return [table(columns, rows), facts({"versions": said})]


def _abbreviated(value: str, digits: int) -> str | None:
    if not value or value == UNSTATED:
        return None
    return value[:digits] + ("-dirty" if value.endswith("-dirty") else "")
