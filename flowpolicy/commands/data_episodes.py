"""``flowpolicy data convert``, ``merge``, ``split``, ``filter`` and ``edit``: episodes in, episodes out."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from flowpolicy.commands.arguments import typed
from flowpolicy.core.errors import ConfigError
from flowpolicy.core.files import require_free
from flowpolicy.core.progress import Move, progress_bar
from flowpolicy.core.ranges import Finite, Natural, NonNegative, Seed

if TYPE_CHECKING:  # brings torch
    from flowpolicy.data.conversion import EpisodeStream, Survey

Format = Literal["robomimic", "d4rl", "minari", "ogbench", "lerobot"]


def convert(
    file: Annotated[Path, tyro.conf.Positional],
    out: Annotated[Path, tyro.conf.Positional],
    /,
    format: Format,  # noqa: A002
    lossy: bool = False,
    fps: NonNegative = 0.0,
    instruction: str = "",
    overwrite: bool = False,
) -> None:
    """Write a dataset in another format; numbers stay what they are, bit for bit.

    What the format cannot hold, and what it needs and the dataset does not have, is listed before anything is written.

    Args:
        file: dataset in any format, told by its content.
        out: file to write; a folder for minari and lerobot.
        format: of --out: robomimic, d4rl and ogbench are files, minari and lerobot folders.
        lossy: go on without what the format cannot hold.
        fps: lerobot: steps per second, where the dataset does not say.
        instruction: lerobot: what was to be done, where the dataset does not say.
        overwrite: replace what stands at OUT.

    """
    from flowpolicy.data.episode_edits import of_file
    from flowpolicy.data.episode_file import open_episodes

    _require_apart([file], [out], format, overwrite)
    with open_episodes(file) as source:
        _write([(of_file(source), out)], format, lossy, fps, instruction)


def merge(
    files: Annotated[tuple[Path, ...], tyro.conf.Positional],
    /,
    out: Path,
    lossy: bool = False,
    overwrite: bool = False,
) -> None:
    """Put the episodes of several datasets into one, which has the format of the first.

    Args:
        files: two or more datasets with the same observations, action convention, rate and environment.
        out: file to write; a folder for minari and lerobot.
        lossy: go on without what the format of the first cannot hold.
        overwrite: replace what stands at --out.

    """
    from flowpolicy.data.episode_edits import merged
    from flowpolicy.data.episode_file import open_episodes

    if len(files) < 2:
        raise ConfigError(f"flowpolicy data merge: {len(files)} files", expected="two or more datasets")
    with contextlib.ExitStack() as opened:
        sources = [opened.enter_context(open_episodes(file)) for file in files]
        _require_apart(files, [out], sources[0].format, overwrite)
        _write([(merged(sources), out)], sources[0].format, lossy)


def split(
    file: Annotated[Path, tyro.conf.Positional],
    /,
    out: tuple[Path, ...],
    shares: tuple[NonNegative, ...] = (0.9, 0.1),
    seed: Seed = 0,
    lossy: bool = False,
    overwrite: bool = False,
) -> None:
    """Share the episodes of a dataset out among several, by chance.

    Args:
        file: dataset in any format that is written.
        out: files to write, one for each share.
        shares: how much of the episodes each gets, e.g. 0.8 0.1 0.1.
        seed: same seed, same episodes.
        lossy: go on without what a copy cannot hold.
        overwrite: replace what stands at --out.

    """
    from flowpolicy.data.episode_edits import of_file, shares_of
    from flowpolicy.data.episode_file import open_episodes

    if len(out) != len(shares):
        raise ConfigError(
            f"--out names {len(out)} files for {len(shares)} --shares", expected="one file for each share"
        )
    with open_episodes(file) as source:
        _require_apart([file], out, source.format, overwrite)
        parts = shares_of(len(source.names), shares, seed)
        streams = [of_file(source, numbers) for numbers in parts]
        _write(list(zip(streams, out, strict=True)), source.format, lossy)


def filter(  # noqa: A001
    file: Annotated[Path, tyro.conf.Positional],
    /,
    out: Path,
    episodes: tuple[str, ...] = (),
    success: Literal["any", "yes", "no"] = "any",
    min_length: Natural = 0,
    max_length: Natural = 0,
    min_return: Finite | None = None,
    max_return: Finite | None = None,
    filter_key: str = "",
    operator: str = "",
    instruction: str = "",
    lossy: bool = False,
    overwrite: bool = False,
) -> None:
    """Write the episodes of a dataset that meet every condition to another one.

    Args:
        file: dataset in any format that is written.
        out: file to write; a folder for minari and lerobot.
        episodes: by name, or by number from 0.
        success: yes for those that succeeded, no for the others.
        min_length: least number of steps.
        max_length: largest number of steps; 0 for no limit.
        min_return: least sum of rewards.
        max_return: largest sum of rewards.
        filter_key: of a RoboMimic file, e.g. better.
        operator: who recorded it, where episodes have an attribute operator.
        instruction: the text of the task, in formats that store it.
        lossy: go on without what a copy cannot hold.
        overwrite: replace what stands at --out.

    """
    from flowpolicy.data.episode_edits import Selection, of_file, select
    from flowpolicy.data.episode_file import open_episodes

    which = Selection(
        episodes, success, min_length, max_length, min_return, max_return, filter_key, operator, instruction
    )
    if which.is_everything:
        raise ConfigError("flowpolicy data filter: no condition", fix="say which episodes, e.g. --success yes")
    with open_episodes(file) as source:
        _require_apart([file], [out], source.format, overwrite)
        with progress_bar("choose", len(source.names), shown=len(source.names) > _MANY) as move:
            numbers = select(source, which, move)
        sys.stdout.write(f"{len(numbers)} of {len(source.names)} episodes\n")
        _write([(of_file(source, numbers), out)], source.format, lossy)


def edit(
    file: Annotated[Path, tyro.conf.Positional],
    /,
    out: Path,
    drop: tuple[str, ...] = (),
    relabel: tuple[str, ...] = (),
    rename: tuple[str, ...] = (),
    trim_still: NonNegative | None = None,
    lossy: bool = False,
    overwrite: bool = False,
) -> None:
    """Write a dataset with changes to another place.

    Args:
        file: dataset in any format that is written.
        out: file to write; a folder for minari and lerobot.
        drop: episodes to leave out, by name or by number from 0.
        relabel: episodes that did or did not succeed, e.g. demo_3=failed demo_7=success: changes their rewards, their
            ends and the filter keys successful and failed.
        rename: observations, e.g. eef=robot0_eef_pos.
        trim_still: cut the rows at both ends of every episode in which no observation, action or reward differs by
            more than this from the outermost one, in the file's units; 0 cuts exact repetitions.
        lossy: go on without what a copy cannot hold.
        overwrite: replace what stands at --out.

    """
    from flowpolicy.data.episode_edits import Edits, edited
    from flowpolicy.data.episode_file import open_episodes

    edits = Edits(drop, _pairs(relabel, "--relabel"), _pairs(rename, "--rename"), trim_still)
    if edits == Edits():
        raise ConfigError("flowpolicy data edit: no change", fix="say which, e.g. --drop demo_3")
    with open_episodes(file) as source:
        _require_apart([file], [out], source.format, overwrite)
        _write([(edited(source, edits), out)], source.format, lossy)


_MANY = 100
"""Episodes from which on reading them is shown."""


def _pairs(words: Sequence[str], flag: str) -> dict[str, str]:
    """``a=b`` as a -> b."""
    found: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not (name and equals and value):
            raise ConfigError(f"{flag} {word}", expected="NAME=VALUE")
        if name in found:
            raise ConfigError(f"{flag} names '{name}' twice", expected="every name once")
        found[name] = value
    return found


def _require_apart(files: Sequence[Path], out: Sequence[Path], target: str, overwrite: bool) -> None:
    """Refuse to write over what is read, over each other, or over something else that stands there."""
    from flowpolicy.data.conversion import require_replaceable

    places = [path.resolve() for path in out]
    for path, place in zip(out, places, strict=True):
        for file in files:
            read = file.resolve()
            if place == read or read.is_relative_to(place) or (file.is_dir() and place.is_relative_to(read)):
                raise ConfigError(
                    f"{path} is what is read ({file})", fix="choose another place: nothing is changed in place"
                )
        if places.count(place) > 1:
            raise ConfigError(f"{path} is named twice", expected="every output once")
        require_free(path, overwrite)
        require_replaceable(path, target)


def _after(before: int, move: Move, done: int) -> None:
    move(before + done)


def _write(
    parts: Sequence[tuple[EpisodeStream, Path]], target: str, lossy: bool, fps: float = 0.0, instruction: str = ""
) -> None:
    """Look at all episodes, say what will be missing, and write every stream to its place."""
    from flowpolicy.commands.console import console
    from flowpolicy.data.conversion import require_lossless, survey, write_all
    from flowpolicy.data.dataset_report import print_rows

    total = sum(stream.count for stream, _ in parts)
    with progress_bar("look", total, shown=total > _MANY) as move:
        found: list[Survey] = []
        for stream, _ in parts:
            found.append(survey(stream, functools.partial(_after, sum(one.episodes for one in found), move)))
    lost = [require_lossless(stream, one, target, lossy=lossy) for (stream, _), one in zip(parts, found, strict=True)]
    if said := list(dict.fromkeys(sentence for sentences in lost for sentence in sentences)):
        made_up = "made up: "
        rows = [
            ("made up" if sentence.startswith(made_up) else "left out", sentence.removeprefix(made_up))
            for sentence in said
        ]
        print_rows(f"{', '.join(str(out) for _, out in parts)}: what differs", rows, console())
    with progress_bar("write", total, shown=total > _MANY) as move:
        write_all(parts, target, found, command=typed(), lost=lost, fps=fps, instruction=instruction, progress=move)
    for (_, out), one in zip(parts, found, strict=True):
        sys.stdout.write(f"wrote {out}: {one.episodes} episodes, {one.steps:,} steps\n")
