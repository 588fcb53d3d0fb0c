"""Which episodes of which files, and what is changed of them on the way: streams for :mod:`.conversion` to write."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from flowpolicy.core.errors import ConfigError, DataError, nearest
from flowpolicy.core.spec import spec_json
from flowpolicy.data.conversion import FORMATS, EpisodeStream
from flowpolicy.data.episode_file import EpisodeFile
from flowpolicy.data.stored_episode import DONES, StoredEpisode

_ENDS = {"successful", "failed"}
"""Filter keys that say how an episode ended."""
Move = Callable[[int], None]


def of_file(file: EpisodeFile, numbers: Sequence[int] | None = None) -> EpisodeStream:
    """Episodes of a file by their numbers; all of them unless given."""
    chosen = range(len(file.names)) if numbers is None else numbers

    def episodes() -> Iterator[StoredEpisode]:
        for number in chosen:
            yield file.read(number)

    return EpisodeStream((file,), episodes, len(chosen), file.spec, dict(file.env_args))


def merged(files: Sequence[EpisodeFile]) -> EpisodeStream:
    """The episodes of several files, one file after the other.

    Raises:
        DataError: they say different things of observations, actions or environment, or two have the same content;
            names the first difference.

    """
    first, digests = files[0], [file.sha256 for file in files]
    for place, file in enumerate(files[1:], 1):
        if digests[place] in digests[:place]:
            same = files[digests.index(digests[place])]
            raise DataError(
                f"{same.path} and {file.path} have the same content: every episode would be there twice",
                fix="name every file once",
            )
        if difference := _difference(first, file):
            raise DataError(
                f"{first.path} and {file.path} cannot be one file: {difference}",
                fix="convert or edit one of them first (flowpolicy data edit FILE --rename OLD=NEW --out OUT)",
            )
    parts = [of_file(file) for file in files]

    def episodes() -> Iterator[StoredEpisode]:
        for part in parts:
            yield from part.episodes()

    return EpisodeStream(tuple(files), episodes, sum(part.count for part in parts), first.spec, dict(first.env_args))


def _difference(first: EpisodeFile, other: EpisodeFile) -> str:
    """The first thing of which two files say different things; empty where there is none."""
    mine, theirs = first.spec.observation, other.spec.observation
    for key in dict.fromkeys((*mine, *theirs)):
        if key not in theirs or key not in mine:
            return f"only {first.path if key in mine else other.path} has the observation {key}"
        if mine[key].shape != theirs[key].shape:
            return f"the observation {key} has the shape {mine[key].shape} in one and {theirs[key].shape} in the other"
    if first.spec.action.size != other.spec.action.size:
        return f"actions have {first.spec.action.size} dimensions in one and {other.spec.action.size} in the other"
    for what, read in (("spec", lambda file: spec_json(file.spec)), ("env_args", lambda file: file.env_args)):
        one, two = _flat(read(first)), _flat(read(other))
        for place in dict.fromkeys((*one, *two)):
            if one.get(place) != two.get(place):
                name = place.removeprefix(".") if what == "spec" else f"env_args{place}"
                return f"{name} is {_shown(one.get(place))} in one and {_shown(two.get(place))} in the other"
    return ""


def _flat(value: Any, place: str = "") -> dict[str, Any]:
    """Every leaf of nested objects by its path."""
    if isinstance(value, Mapping):
        return {k: v for key, inner in value.items() for k, v in _flat(inner, f"{place}.{key}").items()}
    return {place: value}


def _shown(value: Any) -> str:
    return "not stated" if value is None else str(value)[:80]


@dataclasses.dataclass(frozen=True)
class Selection:
    """Which episodes; every condition must hold."""

    episodes: tuple[str, ...] = ()
    """Names, or numbers from 0."""
    success: Literal["any", "yes", "no"] = "any"
    min_length: int = 0
    max_length: int = 0
    """0 for none."""
    min_return: float | None = None
    max_return: float | None = None
    filter_key: str = ""
    operator: str = ""
    instruction: str = ""

    @property
    def is_everything(self) -> bool:
        """Whether there is no condition."""
        return self == Selection()


def select(file: EpisodeFile, which: Selection, progress: Move | None = None) -> list[int]:
    """Numbers of the episodes that meet all conditions, in the file's order.

    Raises:
        DataError: the file does not store what a condition asks for, or no episode meets all.
        ConfigError: there is no such episode.

    """
    named = {_number(file, name) for name in which.episodes}
    found: list[int] = []
    told: dict[str, set[str]] = {"filter_key": set(), "operator": set(), "instruction": set()}
    for number, steps in enumerate(file.recording.lengths):
        if progress is not None:
            progress(number + 1)
        if which.episodes and number not in named:
            continue
        if steps < which.min_length or (which.max_length and steps > which.max_length):
            continue
        if _looks_inside(which):
            episode = file.read(number)
            told["filter_key"].update(episode.filters)
            told["operator"].update([str(episode.notes["operator"])] if "operator" in episode.notes else [])
            told["instruction"].update([episode.text] if episode.text else [])
            if not _meets(episode, which, file):
                continue
        found.append(number)
    for field, words in (("filter_key", "filter key"), ("operator", "operator"), ("instruction", "instruction")):
        wanted = getattr(which, field)
        if wanted and wanted not in told[field]:
            known = nearest(wanted, sorted(told[field])) if told[field] else f"the file stores no {words}"
            raise DataError(f"{file.path}: no episode has the {words} '{wanted}'", expected=known)
    if not found:
        raise DataError(f"{file.path}: no episode meets all conditions", fix="ask for less")
    return found


def _looks_inside(which: Selection) -> bool:
    return dataclasses.replace(which, episodes=(), min_length=0, max_length=0) != Selection()


def _meets(episode: StoredEpisode, which: Selection, file: EpisodeFile) -> bool:
    if which.success != "any" and episode.success is None:
        raise DataError(
            f"{file.path} does not say which episodes succeeded",
            expected="a RoboMimic file with env_args, or another format that stores success",
            fix="choose by --min-return",
        )
    if (which.min_return, which.max_return) != (None, None):
        if episode.reward is None:
            raise DataError(f"{file.path} has no rewards, so no returns", fix="choose by something else")
        total = float(np.sum(episode.reward, dtype=np.float64))
        if which.min_return is not None and total < which.min_return:
            return False
        if which.max_return is not None and total > which.max_return:
            return False
    return (
        (which.success == "any" or episode.success == (which.success == "yes"))
        and (not which.filter_key or which.filter_key in episode.filters)
        and (not which.operator or which.operator == str(episode.notes.get("operator", "")))
        and (not which.instruction or which.instruction == episode.text)
    )


def _number(file: EpisodeFile, name: str) -> int:
    number = file.number(name)
    if number < 0:
        raise ConfigError(
            f"{file.path} has no episode '{name}'",
            expected=f"{file.names[0]} to {file.names[-1]}, or 0 to {len(file.names) - 1}",
        )
    return number


def shares_of(count: int, shares: Sequence[float], seed: int) -> list[list[int]]:
    """Numbers from 0 to ``count`` - 1 in parts of such shares, drawn by chance; in order within a part.

    Raises:
        ConfigError: shares that are no parts of a whole, or so small that a part is empty.

    """
    if not shares or min(shares) <= 0 or sum(shares) > 1 + 1e-9:
        raise ConfigError(f"--shares {' '.join(map(str, shares))}", expected="positive shares that add up to at most 1")
    order = np.random.default_rng(seed).permutation(count)
    ends = np.round(np.cumsum([0.0, *shares]) * count).astype(int)
    parts = [sorted(order[start:end].tolist()) for start, end in itertools.pairwise(ends)]
    if empty := [share for share, part in zip(shares, parts, strict=True) if not part]:
        raise ConfigError(f"a share of {empty[0]:g} of {count} episodes is none", expected="one episode in every part")
    return parts


@dataclasses.dataclass(frozen=True)
class Edits:
    """What is changed."""

    drop: tuple[str, ...] = ()
    """Episodes to leave out."""
    relabel: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Episode -> 'success' or 'failed'."""
    rename: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Observation -> its new name."""
    trim_still: float | None = None
    """Cut what stands still at both ends: how far, in the units of the file, numbers may differ and stand still."""


def edited(file: EpisodeFile, edits: Edits) -> EpisodeStream:
    """A file with changes.

    Raises:
        ConfigError: an episode or observation that is not there, or a name that cannot be given.
        DataError: the format does not hold what would be changed.

    """
    dropped = {_number(file, name) for name in edits.drop}
    labels = {_number(file, name): label for name, label in edits.relabel.items()}
    for label in labels.values():
        if label not in ("success", "failed"):
            raise ConfigError(f"--relabel NAME={label}", expected="NAME=success or NAME=failed")
    if labels and file.success_reward is None:
        raise DataError(
            f"{file.path} does not say what a success is, so no episode can be called one",
            expected="a RoboMimic file with env_args",
        )
    _require_names(file, edits.rename)
    kept = [number for number in range(len(file.names)) if number not in dropped]

    def episodes() -> Iterator[StoredEpisode]:
        for number in kept:
            episode = file.read(number)
            if number in labels:
                episode = _relabelled(episode, labels[number] == "success", file.success_reward or 1.0)
            if edits.trim_still is not None:
                episode = _trimmed(episode, edits.trim_still, file)
            yield _renamed(episode, edits.rename)

    spec = dataclasses.replace(file.spec, observation=_keys(file.spec.observation, edits.rename))
    env_args = dict(file.env_args)
    for said in ("images", "observation_units"):
        if isinstance(env_args.get(said), dict):
            env_args[said] = _keys(env_args[said], edits.rename)
    return EpisodeStream((file,), episodes, len(kept), spec, env_args)


def _require_names(file: EpisodeFile, rename: Mapping[str, str]) -> None:
    known = set(file.spec.observation)
    if rename and not FORMATS[file.format].names:
        raise DataError(
            f"{file.path}: {FORMATS[file.format].title} has one observation, without a name to change",
            fix="convert it first: flowpolicy data convert FILE OUT --format robomimic",
        )
    for old, new in rename.items():
        if old not in known:
            raise ConfigError(f"{file.path} has no observation '{old}'", expected=nearest(old, sorted(known)))
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", new):
            raise ConfigError(f"an observation cannot be called '{new}'", expected="letters, digits and _ . -")
    after = [rename.get(key, key) for key in file.spec.observation]
    if twice := [key for key in after if after.count(key) > 1]:
        raise ConfigError(f"two observations would be called '{twice[0]}'", fix="choose another name")


def _keys(named: Mapping[str, Any], rename: Mapping[str, str]) -> dict[str, Any]:
    return {rename.get(key, key): value for key, value in named.items()}


def _renamed(episode: StoredEpisode, rename: Mapping[str, str]) -> StoredEpisode:
    if not rename:
        return episode
    aside = {}
    for place, value in episode.aside.items():
        group, _, key = place.rpartition("/")
        aside[f"next_obs/{rename[key]}" if group == "next_obs" and key in rename else place] = value
    return dataclasses.replace(
        episode,
        obs=_keys(episode.obs, rename),
        last_obs=_keys(episode.last_obs, rename),
        pictures=_keys(episode.pictures, rename),
        aside=aside,
    )


def _relabelled(episode: StoredEpisode, success: bool, enough: float) -> StoredEpisode:
    """An episode that is a success, or is none: its rewards, its end and the filter keys that say so."""
    reward = np.zeros(episode.steps) if episode.reward is None else episode.reward.copy()
    ended = episode.terminated.copy()
    if success and not (reward >= enough).any():
        reward[-1], ended[-1] = enough + 1e-6, True
    if not success:
        ended &= reward < enough
        reward[reward >= enough] = 0
    filters = [key for key in episode.filters if key not in _ENDS]
    if len(filters) < len(episode.filters):
        filters.append("successful" if success else "failed")
    return dataclasses.replace(
        episode,
        reward=reward,
        terminated=ended,
        cut_off=episode.cut_off and not ended[-1],
        success=success,
        filters=tuple(filters),
        aside={place: value for place, value in episode.aside.items() if place != DONES},
    )


def _trimmed(episode: StoredEpisode, still: float, file: EpisodeFile) -> StoredEpisode:
    """An episode without the rows at both ends in which nothing moves; one of each is kept."""
    if not episode.obs:
        raise DataError(f"{file.path} has no observation that is a state", fix="leave --trim-still out")
    start = _first_other(episode, 0, range(1, episode.steps), still) - 1
    if start == episode.steps - 1:
        raise DataError(
            f"{file.path}: {episode.name} stands still from beginning to end",
            fix=f"leave it out with --drop {episode.name}, or choose a smaller --trim-still",
        )
    last = episode.steps - 1
    end = _first_other(episode, last, range(last - 1, -1, -1), still) + 2
    return episode.cut(start, min(end, episode.steps))


def _first_other(episode: StoredEpisode, row: int, rows: range, still: float) -> int:
    """The first of ``rows`` that differs from ``row``; what follows the last of them where none does."""
    columns: list[NDArray[Any]] = [*episode.obs.values(), episode.action]
    same = np.ones(len(rows), dtype=bool)
    place = np.arange(rows.start, rows.stop, rows.step)
    for column in columns:
        flat = column.reshape(len(column), -1)
        far = np.abs(flat[place].astype(np.float64) - flat[row].astype(np.float64))
        same &= (far <= still).all(axis=1)
    if episode.reward is not None:
        same &= episode.reward[place] == episode.reward[row]
    same &= episode.terminated[place] == episode.terminated[row]
    moved = np.flatnonzero(~same)
    return int(place[moved[0]]) if len(moved) else rows.stop
