"""The page about a dataset, ``flowpolicy data view``, and what a report says of training data."""

from __future__ import annotations

import base64
import dataclasses
import itertools
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from flowpolicy.core import keys
from flowpolicy.core.errors import FlowPolicyError, MissingExtraError
from flowpolicy.core.spec import UNSTATED, Spec
from flowpolicy.data.dataset import DataConfig, Dataset, load_unchecked
from flowpolicy.data.dataset_checks import Finding, describe, diagnose
from flowpolicy.data.dataset_report import description_rows
from flowpolicy.data.episode_file import EpisodeFile, open_episodes
from flowpolicy.data.lerobot_checks import check_folder
from flowpolicy.data.picture_checks import check_pictures
from flowpolicy.data.stored_episode import StoredEpisode
from flowpolicy.data.thumbnails import area_mean
from flowpolicy.evaluate.video import require_imageio, write_film
from flowpolicy.report.blocks import (
    Block,
    Section,
    charts,
    column,
    facts,
    histogram,
    notes,
    pictures,
    table,
    tiles,
)
from flowpolicy.report.filmed import Traces
from flowpolicy.report.gathering import ReportedRun
from flowpolicy.report.page import write_page
from flowpolicy.report.rerun_file import require_rerun, write_rerun

SUMMED_UP = 500
"""Episodes of training data that a report reads, evenly spread."""
LARGEST = 2 << 30
"""Bytes of a training file beyond which a report does not read it."""
FRAMES = 600
"""Frames of a film: longer episodes are shown in larger steps."""
_STRIP, _STRIPS, _HEIGHT = 8, 3, 96
_TRACE_BYTES = 8_000_000
_FEWEST, _MOST = 48, 400  # points of a trace
_WIDTH = 640  # of a film, pixels
_RATE = 20.0  # steps per second where a file does not say
_DATASETS = 3


def training_data(runs: Mapping[str, ReportedRun], attachments: dict[str, bytes | str]) -> list[Block]:
    """What runs were trained on, as far as the files are still there: lengths, actions, pictures.

    Args:
        runs: by label.
        attachments: of the page; nothing is added so far.

    """
    blocks: list[Block] = []
    told: dict[str, str] = {}
    for run in runs.values():
        data = run.experiment.get("data") or {}
        if data.get("path"):
            told.setdefault(str(data["path"]), "" if run.contract is None else run.contract.dataset_sha256)
    for path, sha256 in itertools.islice(told.items(), _DATASETS):
        try:
            blocks += _summary(Path(path), sha256)
        except (FlowPolicyError, OSError) as error:
            what = error.what if isinstance(error, FlowPolicyError) else str(error)
            blocks.append(notes(f"The training data {path} are not shown: {what}."))
    if (more := len(told) - _DATASETS) > 0:
        blocks.append(notes(f"{more} further training files are not shown: flowpolicy data view FILE."))
    return blocks


def _summary(path: Path, sha256: str) -> list[Block]:
    if not path.exists():
        return [notes(f"The training data {path} are not here any more; flowpolicy data view FILE shows a dataset.")]
    if path.is_file() and path.stat().st_size > LARGEST:
        return [notes(f"The training data {path} are large: flowpolicy data view {path}.")]
    with open_episodes(path) as file:
        if sha256 not in (UNSTATED, "", file.sha256):
            return [notes(f"{path} is another file now than the one that was trained on: it is not shown.")]
        chosen = spread(SUMMED_UP, len(file.names))
        episodes = [file.recording.episode(index) for index in chosen]
        part = f", of which {len(chosen)} were read" if len(chosen) < len(file.names) else ""
        lengths = np.array(file.recording.lengths)
        return [
            facts({"file": f"{path}, {file.format}{part}"}),
            _counts(lengths),
            _histograms(file.spec, lengths, np.concatenate([one.action for one in episodes])),
            *_strips(file),
        ]


def _counts(lengths: NDArray[Any]) -> Block:
    return tiles(
        ("episodes", f"{len(lengths):,}", ""),
        ("steps", f"{int(lengths.sum()):,}", ""),
        ("median length", f"{int(np.median(lengths)):,}", f"from {lengths.min():,} to {lengths.max():,}"),
    )


def _histograms(spec: Spec, lengths: NDArray[Any], action: NDArray[Any]) -> Block:
    drawn = [histogram("length of episodes", lengths, x_label="steps", whole=True)]
    said = "" if spec.action.units == UNSTATED else spec.action.units
    for dim in range(min(action.shape[1], 32)):
        drawn.append(histogram(f"action {dim}", action[:, dim], explanation=said if dim == 0 else ""))
    return charts(*drawn)


def spread(count: int, of: int) -> list[int]:
    """So many different places, evenly spread from the first to the last."""
    places: list[int] = np.unique(np.linspace(0, of - 1, min(count, of)).round().astype(int)).tolist()
    return places


def _strips(file: EpisodeFile) -> list[Block]:
    rows = [
        (f"{episode.name}, {camera}", [_jpeg(frame) for frame in _some(episode, camera)])
        for index in spread(_STRIPS, len(file.names))
        for episode in [file.read(index)]
        for camera in episode.pictures
    ]
    caption = "What the cameras saw: first, middle and last episode, evenly spread steps."
    return [pictures(rows, caption)] if rows else []


def _some(episode: StoredEpisode, camera: str) -> list[NDArray[np.uint8]]:
    wanted, found, row = set(spread(_STRIP, episode.pictures[camera].rows)), [], 0
    for block in episode.pictures[camera].blocks():
        found += [frame for number, frame in enumerate(block, row) if number in wanted]
        row += len(block)
    return found


def _jpeg(frame: NDArray[np.uint8]) -> str:
    height, width = frame.shape[:2]
    if height > _HEIGHT:
        frame = area_mean(frame, round(width * _HEIGHT / height), _HEIGHT)
    data = simplejpeg.encode_jpeg(np.ascontiguousarray(frame), quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"


@dataclasses.dataclass(frozen=True)
class WrittenView:
    """A page about a dataset that was written."""

    path: Path
    size: int
    """Bytes."""
    films: int
    """Episodes that can be played."""
    left_out: tuple[str, ...]
    """What is not in it, in sentences; the page says so too."""


def write_dataset_view(
    path: Path, out: Path, *, films: int = 12, videos_mb: float = 32.0, command: str = "", rerun: Path | None = None
) -> WrittenView:
    """Write the page about a dataset in any format.

    Args:
        path: the dataset.
        out: the HTML file.
        films: episodes that can be played, where there are pictures: the first, what the doctor flags, others evenly
            spread.
        videos_mb: megabytes of their films at most.
        command: command line that asked.
        rerun: also write the episodes that can be played, or as many without pictures, to a file of rerun.

    Raises:
        DataError: the file cannot be read.
        MissingExtraError: the extra 'rerun' is asked for and not installed.

    """
    if rerun is not None:
        require_rerun()
    dataset = load_unchecked(DataConfig(path=str(path)))
    findings = diagnose(dataset) + check_pictures(path)
    if dataset.format == "lerobot":
        findings += check_folder(dataset)
    flags, about = _flags(findings), facts(dict(description_rows(describe(path))))
    attachments: dict[str, bytes | str] = {}
    with open_episodes(path) as file:
        shown = _shown(dataset.names, flags, films)
        filmed, left_out = _films(file, shown, int(videos_mb * 1e6), attachments)
        if rerun is not None:
            rate = file.spec.action.rate_hz or _RATE
            write_rerun(dataset, file, shown or [0], rate, rerun)
        strips = _strips(file)
        succeeds = file.success_reward
    left_out += _traces(dataset, flags, shown, attachments)
    lengths, action = dataset.lengths.numpy(), dataset.steps[keys.ACTION].numpy()
    episodes = _episode_rows(dataset, flags, filmed, attachments, succeeds)
    sections = [
        Section(
            "overview",
            "Overview",
            (_counts(lengths), *([notes(*left_out)] if left_out else []), about),
        ),
        Section("doctor", "What the doctor finds", (_findings(findings),)),
        Section("episodes", "Episodes", (episodes,)),
        Section("values", "Distributions", (_histograms(dataset.spec, lengths, action), _returns(dataset))),
        Section("pictures", "Pictures", tuple(strips)),
    ]
    env = dataset.spec.env_id if dataset.spec.env_id != UNSTATED else dataset.format
    subtitle = f"{env}, {len(lengths):,} episodes, {int(lengths.sum()):,} steps"
    size = write_page(out, path.name, subtitle, sections, attachments, command)
    return WrittenView(out, size, len(filmed), tuple(left_out))


def _flags(findings: Sequence[Finding]) -> dict[str, list[tuple[int, str]]]:
    """Episode -> steps that the doctor points at, and why."""
    found: dict[str, list[tuple[int, str]]] = {}
    for finding in findings:
        for name, step in finding.places:
            found.setdefault(name, []).append((step, finding.check))
    return {name: sorted(places) for name, places in found.items()}


def _shown(names: Sequence[str], flags: Mapping[str, Any], count: int) -> list[int]:
    """Episodes that can be played: the first, flagged ones up to half, others evenly spread."""
    flagged = [number for number, name in enumerate(names) if name in flags][: max(1, count // 2)]
    order = [0, *flagged, *spread(count, len(names))]
    return list(dict.fromkeys(order))[:count]


def _films(
    file: EpisodeFile, shown: Sequence[int], budget: int, attachments: dict[str, bytes | str]
) -> tuple[dict[int, str], list[str]]:
    """Episode -> name of its film, and what is left out."""
    made: dict[int, str] = {}
    if not shown or not file.read(shown[0]).pictures:
        return made, []
    try:
        require_imageio()
    except MissingExtraError as error:
        return made, [f"No episode can be played: {error.what}; pictures are shown as strips."]
    spent = 0
    with tempfile.TemporaryDirectory() as folder:
        for number in shown:
            film = Path(folder) / "film.mp4"
            _film(file.read(number), film, file.spec.action.rate_hz or _RATE)
            content = film.read_bytes()
            if spent + len(content) > budget:
                break
            spent += len(content)
            made[number] = f"film-{number}"
            attachments[made[number]] = content
    left = len(file.names) - len(made)
    said = f"{left:,} of {len(file.names):,} episodes have no film here: --films N chooses how many."
    if len(made) < len(shown):
        said = f"{left:,} of {len(file.names):,} episodes have no film: the page may hold {budget / 1e6:g} MB of them."
    return made, [said] if left else []


def _film(episode: StoredEpisode, path: Path, rate: float) -> None:
    """All cameras of an episode side by side."""
    every = max(1, math.ceil(episode.steps / FRAMES))
    films = [
        [frame for number, frame in enumerate(itertools.chain.from_iterable(each.blocks())) if number % every == 0]
        for each in episode.pictures.values()
    ]
    tallest = max(film[0].shape[0] for film in films)
    frames = []
    for moment in zip(*films, strict=False):
        whole = np.concatenate([np.pad(f, ((0, tallest - f.shape[0]), (0, 0), (0, 0))) for f in moment], axis=1)
        if whole.shape[1] > _WIDTH:
            whole = area_mean(whole, _WIDTH, round(whole.shape[0] * _WIDTH / whole.shape[1]))
        frames.append(np.pad(whole, ((0, whole.shape[0] % 2), (0, whole.shape[1] % 2), (0, 0)), mode="edge"))
    write_film(path, frames, rate / every)


def _traces(
    dataset: Dataset, flags: Mapping[str, list[tuple[int, str]]], shown: Sequence[int], attachments: dict[str, Any]
) -> list[str]:
    """Attach the traces of as many episodes as fit; what is left out."""
    names = dataset.names
    width = sum(col.flatten(1).shape[1] for col in (dataset.steps[keys.ACTION], *dataset.steps[keys.OBS].values()))
    each = 2.7 * (width + 1)  # bytes of a point: 16 bits a number in base64
    points = int(_TRACE_BYTES / each / len(names))
    chosen = list(range(len(names)))
    if points < _FEWEST:
        points = _FEWEST
        flagged = [number for number, name in enumerate(names) if name in flags]
        fit = max(1, int(_TRACE_BYTES / each / points))
        chosen = list(dict.fromkeys([*shown, *flagged[: fit // 2], *spread(fit, len(names))]))[:fit]
    rate = dataset.spec.action.rate_hz or _RATE
    for number in chosen:
        start = int(dataset.starts[number])
        rows = slice(start, start + int(dataset.lengths[number]))
        groups = {"action": dataset.steps[keys.ACTION][rows].numpy()}
        groups |= {key: col[rows].flatten(1).numpy() for key, col in dataset.steps[keys.OBS].items()}
        reward = dataset.steps[keys.REWARD][rows].numpy()[:, None]
        groups |= {"reward": reward} if np.ptp(np.nan_to_num(reward)) else {}
        traces = Traces(groups, rate, flags=tuple(flags.get(names[number], ())[:50]))
        attachments[f"trace-{number}"] = traces.to_json(min(_MOST, points))
    left = len(names) - len(chosen)
    return [f"{left:,} of {len(names):,} episodes have no traces here."] if left else []


def _episode_rows(
    dataset: Dataset,
    flags: Mapping[str, list[tuple[int, str]]],
    filmed: Mapping[int, str],
    attachments: Mapping[str, Any],
    succeeds: float | None,
) -> Block:
    reward = dataset.steps[keys.REWARD].numpy()
    starts, lengths = dataset.starts.tolist(), dataset.lengths.tolist()
    rows = []
    for number, (name, start, length) in enumerate(zip(dataset.names, starts, lengths, strict=True)):
        own = reward[start : start + length]
        total = float(own.sum())
        outcome = ""
        if succeeds is not None:
            outcome = "success" if bool((own >= succeeds).any()) else "failure"
        mine = flags.get(name, ())
        checks = ", ".join(dict.fromkeys(check for _, check in mine))
        cells = [name, outcome or None, length, float(f"{total:.6g}") if math.isfinite(total) else None, checks or None]
        trace = f"trace-{number}" if f"trace-{number}" in attachments else None
        rows.append({"cells": cells, "outcome": outcome, "film": filmed.get(number), "trace": trace})
    columns = [
        column("episode"),
        column("outcome", "verdict"),
        column("steps", "number"),
        column("return", "number", digits=2, help="sum of the rewards"),
        column("flagged", "verdict", help="by which checks of the doctor"),
    ]
    return {"type": "episodes", "columns": columns, "episodes": rows, "hint": ""}


def _findings(findings: Sequence[Finding]) -> Block:
    columns = [column("check"), column("result", "verdict"), column("finding"), column("what to do")]
    columns.append(column("jump", "jump", help="episode and step"))
    rows = [
        [one.check, one.level, one.message, one.advice or None, [list(place) for place in one.places[:12]] or None]
        for one in findings
    ]
    order = {"error": 0, "warning": 1, "note": 2, "ok": 3}
    return table(columns, sorted(rows, key=lambda row: order[str(row[1])]))


def _returns(dataset: Dataset) -> Block:
    reward, starts = dataset.steps[keys.REWARD].numpy(), dataset.starts.tolist()
    totals = [reward[s : s + n].sum() for s, n in zip(starts, dataset.lengths.tolist(), strict=True)]
    drawn = [histogram("return of episodes", np.array(totals), explanation="Sum of the rewards.")]
    for name, col in dataset.steps[keys.OBS].items():
        flat = col.flatten(1)
        for dim in range(min(flat.shape[1], 4 if len(dataset.steps[keys.OBS]) > 3 else 12)):
            drawn.append(histogram(f"{name}[{dim}]", flat[:, dim].numpy()))
    return charts(*drawn[:40])
