"""From episodes in any format to a file in any format; what that file cannot hold is known before it is written."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np

from flowpolicy.core.errors import ConfigError, DataError, FlowPolicyError
from flowpolicy.core.spec import UNSTATED, Spec
from flowpolicy.data.episode_file import EpisodeFile
from flowpolicy.data.episode_writers import FOLDERS, WRITERS, FileHeader, infos_of, marks_of, minari_infos
from flowpolicy.data.robomimic import TERMINALS
from flowpolicy.data.stored_episode import DONES, INFOS, StoredEpisode

Written = Literal["robomimic", "d4rl", "minari", "ogbench", "lerobot"]
"""Formats that are written."""


@dataclasses.dataclass(frozen=True)
class FormatTraits:
    """What a format holds."""

    title: str
    read: bool = True
    write: bool = True
    names: bool = False
    """Several observations, each under its name."""
    pictures: bool = False
    success: bool = False
    """What a success is, or which episodes succeeded."""
    rewards: bool = True
    goals: str = ""
    """Where goals stand; empty where there is no place for them."""
    text: bool = False
    """Instructions."""
    states: bool = False
    """Simulator states and models."""
    contract: bool = False
    """Environment, robot and action convention."""
    filters: bool = False
    last: bool = False
    """The observation after the last action."""
    ends: bool = False
    """Whether an episode ended by itself or was cut off."""


FORMATS: dict[str, FormatTraits] = {
    "robomimic": FormatTraits(
        "RoboMimic HDF5",
        names=True,
        pictures=True,
        success=True,
        goals="observations",
        text=True,
        states=True,
        contract=True,
        filters=True,
        last=True,
        ends=True,
    ),
    "d4rl": FormatTraits("D4RL HDF5", goals="`infos/goal`", last=True, ends=True),
    "minari": FormatTraits("Minari", names=True, goals="observations", last=True, ends=True),
    "ogbench": FormatTraits("OGBench npz"),
    "lerobot": FormatTraits(
        "LeRobot",
        names=True,
        pictures=True,
        success=True,
        goals="observations",
        text=True,
        contract=True,
        filters=True,
        ends=True,
    ),
    "zarr": FormatTraits(
        "diffusion_policy zarr", write=False, names=True, pictures=True, rewards=False, goals="observations"
    ),
}
"""Every format by its name."""


@dataclasses.dataclass(frozen=True)
class EpisodeStream:
    """Episodes on their way from files to a file: they are read anew, one at a time, whenever they are asked for."""

    files: Sequence[EpisodeFile]
    """Where they come from."""
    episodes: Callable[[], Iterator[StoredEpisode]]
    """Reads them."""
    count: int
    """How many."""
    spec: Spec
    """What is said of their observations and actions."""
    env_args: dict[str, Any]
    """What is said of their environment."""

    @property
    def format(self) -> str:
        """Format of the first file."""
        return self.files[0].format


@dataclasses.dataclass
class Survey:
    """What the episodes of a stream hold, found by reading the numbers of all of them."""

    episodes: int = 0
    steps: int = 0
    numbers: int = 0
    """Bytes of numbers."""
    pictures: int = 0
    """Bytes of pictures."""
    shapes: dict[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
    """Column -> shape of a row and type, as in the first episode."""
    counts: dict[str, int] = dataclasses.field(default_factory=dict)
    """Fact -> number of episodes of which it holds."""
    named: dict[str, dict[str, None]] = dataclasses.field(default_factory=dict)
    """Fact -> names that belong to it, in order."""
    wide_rewards: bool = False
    """Whether some reward is no number of float32."""

    def add(self, episode: StoredEpisode) -> None:
        """Take note of an episode."""
        self._compare(episode)
        self.episodes += 1
        self.steps += episode.steps
        if episode.reward is not None and not self.wide_rewards:
            self.wide_rewards = bool((episode.reward.astype(np.float32) != episode.reward).any())
        arrays = [*episode.obs.values(), episode.action, episode.reward, episode.states, *episode.aside.values()]
        self.numbers += sum(_bytes(each) for each in arrays if each is not None) + 3 * episode.steps
        self.numbers += sum(_bytes(value) for value in episode.obs.values()) if episode.last_obs else 0
        self.pictures += sum(each.rows * int(np.prod(each.size)) for each in episode.pictures.values())
        facts: dict[str, Any] = {
            "success": episode.success is not None,
            "rewards": episode.reward is not None,
            "states": episode.states is not None or episode.model_xml is not None,
            "last": bool(episode.last_obs),
            "ended": bool(episode.terminated[-1]),
            "ended within": bool(episode.terminated[:-1].any()),
            "both marks": bool(episode.terminated[-1] and episode.cut_off),
            "text": bool(episode.text),
            "ogbench rewards": _ogbench_rewards(episode),
            "other dones": DONES in episode.aside and not np.array_equal(marks_of(episode), _ends(episode)),
        }
        for fact, holds in facts.items():
            self.counts[fact] = self.counts.get(fact, 0) + bool(holds)
        infos = set(infos_of(episode))
        minari = set(minari_infos(episode))
        rest = [place for place in episode.aside if place not in (DONES, TERMINALS)]
        for fact, names in (
            ("pictures", episode.pictures),
            ("filters", episode.filters),
            ("notes", episode.notes),
            ("no infos", [place for place in rest if place not in infos]),
            ("no minari infos", [place for place in rest if place not in minari]),
            ("infos", infos),
            ("initial states", [place for place in infos if place.startswith(INFOS + "initial_state/")]),
        ):
            self.named.setdefault(fact, {}).update(dict.fromkeys(names))

    def _compare(self, episode: StoredEpisode) -> None:
        columns: dict[str, Any] = {**episode.obs, "actions": episode.action}
        found = {name: (value.shape[1:], value.dtype) for name, value in columns.items()}
        found |= {name: (each.size, np.dtype(np.uint8)) for name, each in episode.pictures.items()}
        found |= {place: (episode.aside[place].shape[1:], episode.aside[place].dtype) for place in infos_of(episode)}
        if not self.episodes:
            self.shapes = found
        for name in sorted(found.keys() | self.shapes.keys()):
            if found.get(name) != self.shapes.get(name):
                raise DataError(
                    f"{episode.name}: {name} has {_said(found.get(name))}",
                    expected=f"{_said(self.shapes.get(name))}, as in the episodes before",
                    fix="leave the episode out: flowpolicy data edit FILE --drop NAME --out OUT",
                )


def _said(column: tuple[Any, ...] | None) -> str:
    return "nothing" if column is None else f"rows of {column[0]}, {column[1]}"


def _bytes(value: Any) -> int:
    return int(np.prod(value.shape)) * int(value.dtype.itemsize)


def _ends(episode: StoredEpisode) -> np.ndarray:
    """``dones`` as they would be written of an episode that has none."""
    return marks_of(dataclasses.replace(episode, aside={}))


def _ogbench_rewards(episode: StoredEpisode) -> bool:
    reward = episode.reward
    if reward is None:
        return False
    whole = bool((reward <= 0).all() and np.array_equal(reward, np.round(reward)))
    return whole and np.array_equal(reward == 0, episode.terminated)


def survey(stream: EpisodeStream, progress: Callable[[int], None] | None = None) -> Survey:
    """Read all numbers of a stream and note what there is.

    Raises:
        DataError: no episode, or one that has other columns than the first.

    """
    found = Survey()
    for episode in stream.episodes():
        found.add(episode)
        if progress is not None:
            progress(found.episodes)
    if not found.episodes:
        raise DataError("no episode is left", fix="choose other episodes")
    return found


def losses(stream: EpisodeStream, found: Survey, target: str) -> list[str]:
    """What a file in the format ``target`` would lack of a stream, and what would have to be made up, in sentences."""
    holds, counts, n = FORMATS[target], found.counts, found.episodes
    said: list[str] = []

    def lost(condition: object, sentence: str) -> None:
        if condition:
            said.append(sentence)

    def of(fact: str) -> str:
        return f"of {counts[fact]} of {n} episodes"

    keys = [key for key in found.shapes if key in _state_keys(stream)]
    names = found.named
    lost(
        not holds.names and keys and keys != ["state"],
        f"names of observations: {', '.join(keys)} become one vector, side by side in this order",
    )
    left_out = list(names["pictures"])[1 if target == "ogbench" and not keys else 0 :]
    lost(left_out and not holds.pictures, f"pictures: {', '.join(left_out)}")
    lost(
        names["pictures"] and target == "lerobot",
        f"pictures bit for bit: {', '.join(names['pictures'])} become video, at 35 dB or more",
    )
    wide = [name for name, column in found.shapes.items() if name in (*keys, "actions") and column[1] != np.float32]
    if found.wide_rewards:
        wide.append("rewards")
    lost(target == "lerobot" and wide, f"numbers beyond float32: {', '.join(wide)} are rounded")
    lost(counts["success"] and not holds.success, "what counts as success (rewards are kept)")
    unread = {name: why for file in stream.files for name, why in file.recording.unread.items()}
    unread = {name: why for name, why in unread.items() if name not in names["pictures"]}
    taken = target == "robomimic" and stream.format == "robomimic"
    lost(unread and not taken, f"observations that are not read: {_listed(f'{k} ({w})' for k, w in unread.items())}")
    lost(counts["states"] and not holds.states, f"simulator states and models {of('states')}")
    lost(_states_contract(stream) and not holds.contract, f"the contract: {_contract(stream)}")
    lost(names["filters"] and not holds.filters, f"filter keys: {_listed(names['filters'])}")
    lost(counts["text"] and not holds.text, f"instructions {of('text')}")
    lost(counts["last"] and not holds.last, f"the observation after the last action {of('last')}")
    lost(
        0 < counts["last"] < n and target == "d4rl",
        f"the observation after the last action {of('last')}: D4RL has it for all or for none",
    )
    lost(
        target == "minari" and counts["last"] < n,
        f"made up: the observation after the last action of {n - counts['last']} of {n} episodes, which Minari needs "
        "and the file does not have; the last one is repeated",
    )
    lost(
        target == "d4rl" and counts["ended within"],
        f"marks of the end within {counts['ended within']} of {n} episodes, which go on: D4RL would split them there",
    )
    lost(
        not holds.ends and target != "ogbench" and counts["ended"],
        f"whether an episode ended or was cut off: {counts['ended']} of {n} ended",
    )
    lost(
        counts["both marks"] and target not in ("d4rl", "minari"),
        f"that time ran out {of('both marks')} in the very step in which the task ended",
    )
    lost(
        target == "ogbench" and counts["rewards"] and counts["ogbench rewards"] < n,
        "rewards and ends: OGBench's are minus the number of unsolved sub-tasks, 0 exactly where the task is solved; "
        "`flowpolicy data label` adds them to data of its environments",
    )
    lost(
        target != "ogbench" and counts["rewards"] < n,
        f"made up: rewards of {n - counts['rewards']} of {n} episodes, which have none; zeros are written",
    )
    lost(counts["other dones"] and target != "robomimic", f"dones as RoboMimic marks them, {of('other dones')}")
    beside = {"robomimic": [], "minari": names["no minari infos"], "lerobot": [*names["infos"], *names["no infos"]]}
    rest = list(beside.get(target, names["no infos"]))
    if target == "ogbench":
        rest += list(names["initial states"])
    lost(rest, f"what lies beside the steps: {_listed(sorted(set(rest)))}")
    lost(names["notes"] and target not in ("robomimic", "minari"), f"attributes: {_listed(names['notes'])}")
    left = [place for file in stream.files for place in file.left_out]
    lost(left, f"what belongs to no episode: {_listed(left)}")
    return said


def _state_keys(stream: EpisodeStream) -> list[str]:
    return [key for key, each in stream.spec.observation.items() if each.kind == "state"]


def _states_contract(stream: EpisodeStream) -> bool:
    spec = stream.spec
    if stream.format == "ogbench":  # the name alone, which it holds itself
        return False
    return bool(stream.env_args) or spec.env_id != UNSTATED


def _contract(stream: EpisodeStream) -> str:
    spec = stream.spec
    said = {
        "environment": spec.env_id,
        "version": spec.env_version,
        "robot": spec.robot,
        "actions": spec.action.convention,
        "rate": f"{spec.action.rate_hz:g} Hz" if spec.action.rate_hz else UNSTATED,
    }
    return ", ".join(f"{name} {value}" for name, value in said.items() if value != UNSTATED) or "env_args"


def _listed(names: Any, shown: int = 6) -> str:
    every = list(names)
    return ", ".join(every[:shown]) + (f" and {len(every) - shown} more" if len(every) > shown else "")


def require_lossless(stream: EpisodeStream, found: Survey, target: str, *, lossy: bool) -> list[str]:
    """The :func:`losses`, accepted.

    Raises:
        DataError: there are some, and ``lossy`` is False; or nothing that could be observed would be left.

    """
    if target in ("d4rl", "minari") and not _state_keys(stream):
        raise DataError(
            f"{stream.files[0].path} holds nothing but pictures to observe, and {FORMATS[target].title} has none",
            fix="write another format: robomimic, lerobot or ogbench",
        )
    lost = losses(stream, found, target)
    if lost and not lossy:
        named = _listed(str(file.path) for file in stream.files)
        raise DataError(
            f"{named} cannot become {FORMATS[target].title} as it is; what would be left out, or made up:\n    "
            + "\n    ".join(lost),
            fix="go on all the same: --lossy",
        )
    return lost


def write_all(
    parts: Sequence[tuple[EpisodeStream, Path]],
    target: str,
    found: Sequence[Survey],
    *,
    command: str,
    lost: Sequence[Sequence[str]],
    fps: float = 0.0,
    instruction: str = "",
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write every stream to its file, each of which appears whole or not at all, when all of them are written.

    Args:
        parts: streams, and where each goes; what stands there is replaced.
        target: format to write.
        found: what :func:`survey` found in each.
        command: what was typed, for the provenance.
        lost: what each file lacks, for the provenance.
        fps: steps per second, for LeRobot, where the files do not say.
        instruction: what was to be done, for LeRobot, where the files do not say.
        progress: called with the number of written episodes.

    Raises:
        FlowPolicyError: not enough space on the disk.

    """
    _require_space([out for _, out in parts], target, found)
    done = 0
    with contextlib.ExitStack() as opened:
        for (stream, out), seen, lacking in zip(parts, found, lost, strict=True):
            header = FileHeader(
                spec=stream.spec,
                env_args=stream.env_args,
                provenance=provenance(stream, command, lacking),
                origin=stream.files[0].path if stream.format == target else None,
                rewards=seen.counts["ogbench rewards"] == seen.episodes,
                last=seen.counts["last"] == seen.episodes,
                fps=fps,
                instruction=instruction,
            )
            writer = opened.enter_context(WRITERS[target](out, header))
            for episode in stream.episodes():
                writer.add(episode)
                done += 1
                if progress is not None:
                    progress(done)


def provenance(stream: EpisodeStream, command: str, lost: Sequence[str] = ()) -> dict[str, Any]:
    """Where the episodes of a stream come from, JSON values."""
    sources = []
    for file in stream.files:
        one: dict[str, Any] = {"path": str(file.path), "sha256": file.sha256, "format": file.format}
        if file.recording.provenance:
            one["provenance"] = file.recording.provenance
        sources.append(one)
    said: dict[str, Any] = {"command": command, "flowpolicy": _version(), "sources": sources}
    return said | ({"lost": list(lost)} if lost else {})


def _version() -> str:
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version("flowpolicy")
    return UNSTATED


def _require_space(outs: Sequence[Path], target: str, found: Sequence[Survey]) -> None:
    """Refuse a disk on which the finished files do not fit."""
    needed = sum(one.numbers + (one.pictures if FORMATS[target].pictures else 0) for one in found)
    needed *= 2 if target in ("ogbench", "lerobot") else 1  # the columns, and the archive of them
    place = next(folder for folder in outs[0].absolute().parents if folder.exists())
    free = shutil.disk_usage(place).free
    if needed * 1.02 > free:
        raise FlowPolicyError(
            f"{', '.join(map(str, outs))} needs {needed / 1e9:.3g} GB, and {free / 1e9:.3g} GB are free",
            fix="free some space, or write to another disk",
        )


def require_replaceable(out: Path, target: str) -> None:
    """Refuse a place where a file of a format cannot be written without harm to something else.

    Raises:
        ConfigError: a format that is not written; or a folder that is no data set of this format stands where one is
            to be written, or the reverse.

    """
    if target not in WRITERS:
        raise ConfigError(
            f"{FORMATS[target].title} is not written",
            fix=f"convert the data first: flowpolicy data convert FILE OUT --format {next(iter(WRITERS))}",
        )
    if not out.exists():
        return
    marker = {"minari": "data/main_data.hdf5", "lerobot": "meta/info.json"}.get(target, "")
    if target in FOLDERS and not (out.is_dir() and (out / marker).is_file()):
        raise ConfigError(
            f"{out} is no data set of {FORMATS[target].title} and would be removed",
            fix="choose another place, or move away what stands there",
        )
    if target not in FOLDERS and out.is_dir():
        raise ConfigError(f"{out} is a folder", expected=f"a file: {FORMATS[target].title} is one")
