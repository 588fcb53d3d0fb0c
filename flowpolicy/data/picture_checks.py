"""What is wrong with the pictures of a dataset: black, constant, repeated, upside-down, or of another moment."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowpolicy.core.errors import DataError, DataWarning
from flowpolicy.core.spec import ImageSpec
from flowpolicy.data.dataset_checks import Finding
from flowpolicy.data.episode_file import EpisodeFile, open_episodes
from flowpolicy.data.hdf5 import open_hdf5
from flowpolicy.data.hdf5_frames import pictures_of

Redraw = Callable[[Path, Mapping[str, ImageSpec], str, Sequence[int]], dict[str, NDArray[np.uint8]]]
"""Draws steps of an episode again from its stored states: file, pictures, episode, steps -> key -> (n, h, w, 3)."""

_EPISODES = 48
"""Episodes that are looked at, evenly spread: enough to tell a camera from a broken one, whatever the file's size."""
_BLACK = 8  # levels of 255
_REPEATED = 0.05  # share of frames; a real camera may drop a frame now and then
_LAGS = 3  # steps to either side
_REDRAWN = 3  # episodes
_LISTED = 3
_AT_ONCE = 16  # frames of a video in memory


@dataclasses.dataclass
class _Seen:
    """Tallies of one camera."""

    frames: int = 0
    black: list[str] = dataclasses.field(default_factory=list)
    constant: list[str] = dataclasses.field(default_factory=list)
    repeated: list[str] = dataclasses.field(default_factory=list)
    pairs: int = 0
    """Neighbouring frames between which the robot moved."""
    motion: list[tuple[NDArray[Any], NDArray[Any]]] = dataclasses.field(default_factory=list)
    """Per episode: change of the picture and speed of the states from each step to the next."""


def check_pictures(path: Path, redraw: Redraw | None = None) -> list[Finding]:
    """What is found of each camera of a dataset in any format; nothing where there are no pictures.

    Args:
        path: the dataset.
        redraw: draws stored states again, where a simulator is at hand: whether pictures are upside-down or late is
            then seen, and not guessed.

    """
    try:
        pictures_of(path)  # of what has the dimensions of pictures and is none, the reader takes no note
        with open_episodes(path) as file:
            return list(_check(file, redraw))
    except DataError as error:
        return [Finding("error", "pictures", error.what, error.fix)]


def _check(file: EpisodeFile, redraw: Redraw | None) -> Iterator[Finding]:
    """:func:`check_pictures` of some episodes, read in the order in which the file holds them."""
    names, images = file.names, file.spec.images
    rows = np.linspace(0, len(names) - 1, min(_EPISODES, len(names))).astype(int)
    chosen = {names[row]: int(row) for row in rows}
    redrawn = {}
    if redraw and images and file.format == "robomimic":
        redrawn = _redrawn(file.path, images, list(chosen), redraw)
    looked = f"{len(chosen)} of {len(names)} episodes"
    states = {name: list(file.recording.episode(row).obs.values()) for name, row in chosen.items()} if images else {}
    for key, source in file.pictures.items():
        seen, check = _Seen(), f"pictures {key}"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DataWarning)  # of what was mended, which is a finding of its own
                for number in source.reading_order():
                    if (name := source.names[number]) in chosen:
                        values = [value.astype(np.float64) for value in states[name]]
                        frames = (frame for block in source.blocks(number, _AT_ONCE) for frame in block)
                        _tally(frames, source.lengths[number], name, values, seen)
        except DataError as error:
            yield Finding("error", check, error.what, error.fix)
            continue
        wrong = list(_judge(check, seen, redrawn.get(key), looked))
        yield from wrong or [Finding("ok", check, f"{seen.frames} frames of {looked} looked at")]


def _tally(
    frames: Iterator[NDArray[np.uint8]], steps: int, name: str, states: Sequence[NDArray[Any]], seen: _Seen
) -> None:
    """Tally the frames of one episode, beside its states (steps, d)."""
    moved = np.linalg.norm(np.diff(np.concatenate([*states, np.zeros((steps, 1))], axis=1), axis=0), axis=1)
    changes, before = np.zeros(max(steps - 1, 0)), None
    for step, frame in enumerate(frames):
        seen.frames += 1
        low, high = int(frame.min()), int(frame.max())
        if high < _BLACK:
            seen.black.append(f"{name} step {step}")
        elif low == high:
            seen.constant.append(f"{name} step {step}")
        if before is not None:
            changes[step - 1] = np.abs(frame.astype(np.int16) - before).mean()
            if moved[step - 1] > 0:
                seen.pairs += 1
                if not changes[step - 1]:
                    seen.repeated.append(f"{name} step {step}")
        before = frame.astype(np.int16)
    if steps > 4 * _LAGS:
        seen.motion.append((changes, moved))


def _redrawn(
    path: Path, images: Mapping[str, ImageSpec], names: Sequence[str], redraw: Redraw
) -> dict[str, tuple[float, float, list[float]]]:
    """Key -> mean difference from what the states show, the same turned over, and by lag from -3 to 3 steps."""
    totals = {key: np.zeros(2 + 2 * _LAGS + 1) for key in images}
    counted = 0
    for name in [names[row] for row in np.linspace(0, len(names) - 1, min(_REDRAWN, len(names))).astype(int)]:
        with open_hdf5(path) as file:
            steps = len(file[f"data/{name}/actions"])
            inner = np.arange(_LAGS, steps - _LAGS, max(1, steps // 8))
            stored = {key: file[f"data/{name}/obs/{key}"][()].astype(np.int16) for key in images}
        if not len(inner):
            continue
        counted += 1
        drawn = redraw(path, images, name, inner.tolist())
        for key, pictures in drawn.items():
            whole = [np.abs(stored[key][inner + lag] - pictures).mean() for lag in range(-_LAGS, _LAGS + 1)]
            over = np.abs(stored[key][inner][:, ::-1] - pictures).mean()
            totals[key] += [whole[_LAGS], over, *whole]
    return {key: (float(t[0]), float(t[1]), (t[2:] / max(counted, 1)).tolist()) for key, t in totals.items() if counted}


def _judge(check: str, seen: _Seen, redrawn: tuple[float, float, list[float]] | None, looked: str) -> Iterator[Finding]:
    """Everything that is wrong with one camera."""
    for what, places in (("black", seen.black), ("of one colour", seen.constant)):
        if places:
            listed = ", ".join(places[:_LISTED])
            yield Finding(
                "error",
                check,
                f"{len(places)} of {seen.frames} frames are {what}: {listed} ({looked} looked at)",
                "the camera did not deliver, or nothing was drawn: remove these episodes",
            )
    if redrawn is not None and redrawn[1] < 0.5 * redrawn[0]:
        yield Finding(
            "error",
            check,
            f"upside-down: they differ by {redrawn[0]:.1f} levels from what the stored states show, and by "
            f"{redrawn[1]:.1f} when turned over",
            "write them with their rows from the top down: x[:, ::-1], as robosuite's own observations need",
        )
    if not (seen.black or seen.constant) and len(seen.repeated) > _REPEATED * seen.pairs:
        share = len(seen.repeated) / seen.pairs
        yield Finding(
            "error" if share > 0.5 else "warning",
            check,
            f"{share:.0%} of the frames repeat the one before although the robot moved: "
            f"{', '.join(seen.repeated[:_LISTED])} ({looked} looked at)",
            "the camera froze or is slower than the control rate; a policy learns to act on old pictures",
        )
    lag = _lag_redrawn(redrawn[2]) if redrawn else _lag_of_motion(seen.motion)
    if lag:
        when = f"{abs(lag)} step(s) {'late' if lag > 0 else 'early'}"
        message = f"{when}: they fit the states of step t {'-' if lag > 0 else '+'} {abs(lag)} best"
        advice = "shift them, or stamp frames when they are exposed, not when they arrive"
        yield Finding("warning", check, message if redrawn else f"perhaps {message}, by how they change", advice)


def _lag_redrawn(differences: Sequence[float]) -> int:
    """Which lag fits by far best; frame t + lag shows the state of step t."""
    best = int(np.argmin(differences))
    return best - _LAGS if differences[best] < 0.5 * differences[_LAGS] else 0


def _lag_of_motion(motion: Sequence[tuple[NDArray[Any], NDArray[Any]]]) -> int:
    """Which lag makes pictures change when the states do, over all episodes; 0 where none stands out."""
    scores = []
    for lag in range(-_LAGS, _LAGS + 1):
        pairs = [
            (change[_LAGS + lag : len(change) - _LAGS + lag], speed[_LAGS : len(speed) - _LAGS])
            for change, speed in motion
        ]
        both = np.concatenate([np.stack([a - a.mean(), b - b.mean()]) for a, b in pairs], axis=1) if pairs else None
        scores.append(0.0 if both is None or not both.std(1).all() else float(np.corrcoef(both)[0, 1]))
    best = int(np.argmax(scores))
    return best - _LAGS if scores[best] > 0.5 and scores[best] - scores[_LAGS] > 0.2 else 0
