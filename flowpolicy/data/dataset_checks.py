"""What is in a dataset file and what is wrong with it. Pure functions; ``dataset_report.py`` prints their results."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from flowpolicy.core import keys
from flowpolicy.core.errors import DataError
from flowpolicy.core.spec import UNSTATED, ActionSpec, ImageSpec, Spec
from flowpolicy.data.dataset import DataConfig, Dataset, open_recording, require_layout, sha256_of
from flowpolicy.data.hdf5_frames import pictures_of
from flowpolicy.data.normalize import moments, near_constant
from flowpolicy.data.robomimic import states_success, success_reward

Level = Literal["ok", "note", "warning", "error"]

Replay = Callable[[Dataset, int], list[bool]]
"""Replays the first n episodes in a simulator; whether each one succeeded, or earned its return where that counts."""

# Iglewicz and Hoaglin (1993), "How to Detect and Handle Outliers": modified z-scores above 3.5.
_LENGTH_Z = 3.5
# Differences of human actions have heavy tails: 3.5 would flag every brisk movement.
_JUMP_Z = 20.0
_REPEATED = 3  # rows, which an arm at rest may repeat without a jump after them
_UNIT, _FIRST = 1e-3, 1000  # deviation of a length from 1; rows that rule most columns out
# A dimension with fewer values (an open/close gripper) is a switch, and switches may jump.
_SWITCH_VALUES = 8
_LISTED = 5
_PLACES = 100


@dataclasses.dataclass(frozen=True)
class Description:
    """Facts about a dataset file."""

    path: Path
    format: str
    """'robomimic', 'd4rl', 'minari', 'ogbench' or 'lerobot'."""
    episodes: int
    steps: int
    lengths: tuple[int, int, int]
    """Smallest, median and largest episode length."""
    env_id: str
    env_version: str
    action: ActionSpec
    observations: dict[str, tuple[tuple[int, ...], float, float]]
    """name -> shape of one step, smallest and largest finite value."""
    action_range: tuple[float, float]
    rewards: tuple[float, ...]
    """Distinct rewards, ascending."""
    success: float | None
    """Share of episodes that reach the reward of success; None where the format does not define one."""
    filters: dict[str, int]
    """Filter key -> number of episodes."""
    size: int
    """Bytes of the file."""
    sha256: str
    robot: str
    """Which arm, as the file states it."""
    tool: str
    provenance: str = ""
    """JSON that says where the episodes come from, in files that `flowpolicy data rollouts` wrote."""
    unread: dict[str, str] = dataclasses.field(default_factory=dict)
    """Observations that are not read, and why."""
    remarks: tuple[str, ...] = ()
    """What contradicts itself in the file, or had to be assumed to read it."""
    pictures: dict[str, ImageSpec] = dataclasses.field(default_factory=dict)
    """Pictures that can be read, by observation."""
    instructions: tuple[str, ...] = ()
    """Texts that rows follow."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """The result of one check."""

    level: Level
    check: str
    message: str
    """What was found and what it means."""
    advice: str = ""
    """What to do about it."""
    places: tuple[tuple[str, int], ...] = ()
    """Episode and step of what was found, the first hundred, where it can be pointed at."""


def describe(path: Path | str) -> Description:
    """Describe a file, NaN or not.

    Raises:
        DataError: the file cannot be read or its structure is inconsistent.

    """
    path, config = Path(path), DataConfig(path=str(path))
    spans: dict[str, tuple[float, float]] = {}
    rewards: set[float] = set()
    succeeded = 0
    pictures: dict[str, ImageSpec] = {}
    with contextlib.suppress(DataError):  # pictures of another kind are not read, and why is said there
        pictures = pictures_of(path)
    # Episode by episode: describing a file needs neither memory nor a cache of its size.
    with open_recording(config) as recording:
        spec, lengths = recording.spec, torch.tensor(recording.lengths)
        for index in range(len(recording.names)):
            episode = recording.episode(index)
            require_layout(episode, recording, index, path)
            for name, column in {**episode.obs, "": episode.action}.items():
                low, high = _span(torch.from_numpy(column))
                before = spans.get(name, (math.nan, math.nan))
                spans[name] = (float(np.fmin(before[0], low)), float(np.fmax(before[1], high)))
            finite = episode.reward[np.isfinite(episode.reward)]
            rewards.update(np.unique(finite).tolist())
            succeeded += states_success(recording.env_args) and bool(
                (finite >= success_reward(recording.env_args)).any()
            )
        return Description(
            path=path,
            format=recording.format,
            episodes=len(lengths),
            steps=int(lengths.sum()),
            lengths=(int(lengths.min()), int(lengths.median()), int(lengths.max())),
            env_id=spec.env_id,
            env_version=spec.env_version,
            robot=spec.robot,
            tool=spec.tool,
            action=spec.action,
            observations={name: (each.shape, *spans[name]) for name, each in spec.observation.items() if name in spans},
            action_range=spans[""],
            rewards=tuple(sorted(rewards)),
            success=succeeded / len(lengths) if states_success(recording.env_args) else None,
            filters=recording.filters,
            size=int(getattr(recording, "size", path.stat().st_size)),
            sha256=sha256_of(recording, path),
            provenance=recording.provenance,
            unread={name: why for name, why in recording.unread.items() if name not in pictures},
            remarks=recording.remarks,
            pictures=pictures | spec.images,
            instructions=getattr(recording, "instructions", ()),
        )


def diagnose(
    dataset: Dataset, replay: Replay | None = None, episodes: int = 10, env: Spec | None = None
) -> list[Finding]:
    """Check a dataset loaded with :func:`~flowpolicy.data.dataset.load_unchecked`.

    Args:
        dataset: what to check.
        replay: replays episodes in the dataset's environment, or None to skip that check.
        episodes: how many to replay.
        env: spec of the environment that the dataset is said to be of, or None to skip that check.

    Returns:
        One finding per check. A file with a finding of level 'error' should not be trained on.

    """
    findings = [
        _check_statements(dataset),
        _check_finite(dataset),
        _check_constant(dataset),
        _check_range(dataset),
        _check_lengths(dataset),
        _check_rewards(dataset),
        _check_duplicates(dataset),
        _check_jumps(dataset),
        _check_gaps(dataset),
        _check_quaternions(dataset),
    ]
    findings += [_check_environment(dataset, env)] if env else []
    success = env is None or env.defines_success
    return [*findings, _check_replay(dataset, replay, episodes, success)] if replay else findings


def failed(findings: Iterable[Finding]) -> bool:
    """Whether a command that shows these findings should exit with an error."""
    return any(finding.level == "error" for finding in findings)


def _check_statements(dataset: Dataset) -> Finding:
    unread = [f"{name} is not read ({why})" for name, why in dataset.unread.items()]
    if dataset.remarks:
        return Finding(
            "warning",
            "statements",
            f"the file {'; it '.join(dataset.remarks)}" + "".join(f"; {line}" for line in unread),
            "correct what the file says of itself; borders of episodes that nothing marks cannot be found again",
        )
    if unread:
        return Finding("note", "statements", "; ".join(unread), "choose observations with --data.obs-keys")
    return Finding("ok", "statements", "what the file says of itself is so")


def _check_finite(dataset: Dataset) -> Finding:
    places, rows = [], []
    for name, column in _columns(dataset).items():
        broken = (~torch.isfinite(column)).any(dim=1).nonzero().flatten()
        places += [f"{name} at {_place(dataset, int(row))}" for row in broken]
        rows += broken[:_PLACES].tolist()
    if not places:
        return Finding("ok", "finite", "every value is finite")
    return Finding(
        "error",
        "finite",
        f"NaN or infinity in {len(places)} places: {_list(places)}; one such value destroys a network",
        "remove or repair these episodes; training refuses the file until then",
        _places(dataset, sorted(set(rows))),
    )


def _check_constant(dataset: Dataset) -> Finding:
    constant = []
    for name, column in _columns(dataset).items():
        dims = near_constant(*moments(_finite(column))).nonzero().flatten().tolist()
        constant += [f"{name}[{dim}]" for dim in dims]
    if not constant:
        return Finding("ok", "constant dimensions", "every dimension varies")
    return Finding(
        "warning",
        "constant dimensions",
        f"{len(constant)} dimensions are constant or nearly so: {', '.join(constant)}; they carry no information: "
        "policies leave such observations out, and such actions are always the constant",
        "check the sensor or the task; leave such observations out with --data.obs-keys",
    )


def _check_range(dataset: Dataset) -> Finding:
    spec = dataset.spec.action
    action = dataset.steps[keys.ACTION]
    if dataset.format == "lerobot" and spec.convention == UNSTATED:
        low, high = _span(action)
        return Finding("ok", "action range", f"from {low:.4g} to {high:.4g}; what is accepted the folder does not say")
    outside = ((action < spec.low - 1e-6) | (action > spec.high + 1e-6)).any(dim=1).double().mean()
    if outside == 0:
        return Finding("ok", "action range", f"every action lies in [{spec.low:g}, {spec.high:g}]")
    return Finding(
        "warning",
        "action range",
        f"{float(outside):.1%} of the actions leave [{spec.low:g}, {spec.high:g}]; an environment clips them, so "
        "the file does not hold what was executed",
        "clip when recording, or check the units of the actions",
    )


def _check_lengths(dataset: Dataset) -> Finding:
    outliers = (_robust_z(dataset.lengths.float()).abs() > _LENGTH_Z).nonzero().flatten().tolist()
    if not outliers:
        return Finding("ok", "episode lengths", "no outlier")
    named = [f"{dataset.names[i]} ({int(dataset.lengths[i])})" for i in outliers]
    return Finding(
        "warning",
        "episode lengths",
        f"unusually short or long ({len(outliers)}) against a median of {int(dataset.lengths.median())} "
        f"steps: {_list(named)}",
        "look at them: aborted recordings and pauses teach the policy to stop",
        tuple((dataset.names[i], 0) for i in outliers[:_PLACES]),
    )


def _check_rewards(dataset: Dataset) -> Finding:
    values = _rewards(dataset)
    shown = ", ".join(f"{v:g}" for v in values) if len(values) <= _LISTED else f"{len(values)} distinct values"
    if len(values) < 2:
        return Finding(
            "warning",
            "rewards",
            f"the only reward is {shown or 'NaN'}: the file does not say which episodes succeed",
            "imitation can be trained; anything that uses rewards cannot",
        )
    return Finding("ok", "rewards", shown if len(values) <= _LISTED else f"{shown}, {values[0]:g} to {values[-1]:g}")


def _check_duplicates(dataset: Dataset) -> Finding:
    seen: dict[bytes, str] = {}
    pairs = []
    starts, lengths = dataset.starts.tolist(), dataset.lengths.tolist()
    columns = list(_columns(dataset).values())
    for name, start, steps in zip(dataset.names, starts, lengths, strict=True):
        digest = hashlib.sha256()
        for column in columns:
            digest.update(column[start : start + steps].numpy().tobytes())
        first = seen.setdefault(digest.digest(), name)
        if first != name:
            pairs.append((name, first))
    if not pairs:
        return Finding("ok", "duplicates", "no episode occurs twice")
    named = _list([f"{name} = {first}" for name, first in pairs])
    message = f"repeats of another episode ({len(pairs)}): {named}; they count twice and leak into validation"
    return Finding("warning", "duplicates", message, "remove them", tuple((name, 0) for name, _ in pairs[:_PLACES]))


def _check_jumps(dataset: Dataset) -> Finding:
    action = dataset.steps[keys.ACTION]
    continuous = [d for d in range(action.shape[1]) if action[:, d].unique().numel() > _SWITCH_VALUES]
    inside = (dataset.steps[keys.EPISODE].diff() == 0).nonzero().flatten()
    if not continuous or inside.numel() < 2:
        return Finding("ok", "action jumps", "no continuous dimension to check")
    size = action[:, continuous].diff(dim=0).norm(dim=1)[inside].nan_to_num()
    z = _robust_z(size)
    jumps = int((z > _JUMP_Z).sum())
    if jumps == 0:
        return Finding("ok", "action jumps", "no jump between consecutive actions")
    worst = _place(dataset, int(inside[z.argmax()]) + 1)
    return Finding(
        "warning",
        "action jumps",
        f"{jumps} of {len(inside)} steps jump by more than {_JUMP_Z:g} robust deviations, the largest to {worst}",
        "look for dropped frames, lost tracking or episodes that were joined; filter if they are none of the task",
        _places(dataset, (inside[z.argsort(descending=True)[:jumps]] + 1).tolist()),
    )


def _check_gaps(dataset: Dataset) -> Finding:
    """Rows that repeat the one before, then a jump as far as if they had moved: samples were missing, and made up."""
    within = dataset.steps[keys.EPISODE].diff() == 0
    moved = torch.zeros(len(within))
    for column in dataset.steps[keys.OBS].values():
        moved += column.diff(dim=0).nan_to_num().square().sum(1)
    moved = moved.sqrt() * within
    usual = float(moved[moved > 0].median()) if (moved > 0).any() else 0.0
    steps = (moved > 0).nonzero().flatten()
    still = torch.cat([steps[:1], steps.diff() - 1])  # steps without motion before each one with some
    still = torch.minimum(still, steps - dataset.starts[dataset.steps[keys.EPISODE][steps]])
    found = ((still >= _REPEATED) & (moved[steps] > 0.5 * (still + 1) * usual)).nonzero().flatten()
    if not len(found):
        return Finding("ok", "gaps", "no rows that repeat, then jump")
    longest = found[still[found].argmax()]
    rows = int(still[longest])
    return Finding(
        "warning",
        "gaps",
        f"{len(found)} times rows repeat the one before, then jump: {rows} of them from "
        f"{_place(dataset, int(steps[longest]) - rows + 1)}; samples were missing there, and rows that fill in teach "
        "to stand still, then to jump",
        "cut the episode there, or leave it out; recordings of `flowpolicy robot` are cut",
        _places(dataset, (steps[found] - still[found] + 1).tolist()),
    )


def _check_quaternions(dataset: Dataset) -> Finding:
    """Four neighbouring numbers of length one whose sign changes from row to row: one rotation with two values."""
    within = dataset.steps[keys.EPISODE].diff() == 0
    flips, places = [], []
    for name, column in dataset.steps[keys.OBS].items():
        for dim in range(column.shape[1] - 3):
            part = column[:, dim : dim + 4]
            if not (_unit(part[:_FIRST]) and _unit(part)):
                continue
            rows = (((part[1:] * part[:-1]).sum(1) < -0.5) & within).nonzero().flatten().tolist()
            places += [row + 1 for row in rows]
            if rows:
                flips.append(f"{name}[{dim}:{dim + 4}] {len(rows)} times, first at {_place(dataset, rows[0] + 1)}")
    if not flips:
        return Finding("ok", "quaternions", "no sign that changes from row to row")
    return Finding(
        "warning",
        "quaternions",
        f"a quaternion changes its sign from one row to the next: {_list(flips)}; one rotation then has two values, "
        "and a network learns the mean of both",
        "keep the sign that is nearest to the row before, in the file and where the policy runs",
        _places(dataset, places),
    )


def _unit(rows: Float[Tensor, "n 4"]) -> bool:
    return bool(((rows.norm(dim=1) - 1.0).abs() < _UNIT).all())


def doubtful_start(dataset: Dataset, env: Spec) -> str:
    """Why the first observations are hardly of an environment whose episodes all begin alike; empty if they may be."""
    states = [key for key, each in dataset.spec.observation.items() if each.kind == "state"]
    if not states:
        return ""
    first = dataset.steps[keys.OBS][states[0]][dataset.starts].median(0).values
    begins = [round(value, 2) for value in first[: len(env.start)].tolist()]
    if all(abs(mine - theirs) <= 0.2 for mine, theirs in zip(begins, env.start, strict=False)):
        return ""
    return f"episodes begin at {begins}, and those of {env.env_id} at {list(env.start)}: is it of another environment?"


def _check_environment(dataset: Dataset, env: Spec) -> Finding:
    """What the file says, against what the environment is: all that can be compared where nothing can be replayed."""
    observed = {key: each for key, each in env.observation.items() if key in dataset.spec.observation}
    lines = dataclasses.replace(env, observation=observed or env.observation).differences(
        dataclasses.replace(dataset.spec, observation={k: dataset.spec.observation[k] for k in observed})
    )
    if doubt := doubtful_start(dataset, env):
        lines.append(doubt)
    if not lines:
        return Finding("ok", "environment", f"what the file says agrees with {env.env_id}")
    return Finding(
        "error" if any(line.startswith(("env_id", "observation", "action.size")) for line in lines) else "warning",
        "environment",
        f"{env.env_id} against the file: {_list(lines)}",
        "name the right --env; training refuses what differs, or says what it accepts (--data.accept)",
    )


def _check_replay(dataset: Dataset, replay: Replay, episodes: int, success: bool) -> Finding:
    try:
        outcomes = replay(dataset, min(episodes, len(dataset.names)))
    except DataError as error:
        return Finding("note", "replay", f"not possible: {error.what}", error.fix)
    share = sum(outcomes) / len(outcomes)
    what = "succeed when their actions are replayed open-loop"
    if not success:
        what = "earn the return that the file says, to 1 %, when they are replayed from its states"
    message = f"{sum(outcomes)} of {len(outcomes)} episodes {what}"
    if share >= 0.9:
        return Finding("ok", "replay", message)
    if not success:
        advice = "the file is of another simulator, or version of it: scores that are measured here compare roughly"
        return Finding("warning", "replay", message, advice)
    advice = "unless the file holds failures on purpose: check simulator version, controller and control rate"
    return Finding("warning" if share > 0 else "error", "replay", message, advice)


def _columns(dataset: Dataset) -> dict[str, Float[Tensor, "n d"]]:
    """Actions, rewards and observations as matrices."""
    reward = dataset.steps[keys.REWARD][:, None]
    observations = {f"{keys.OBS}/{name}": column for name, column in dataset.steps[keys.OBS].items()}
    return {keys.ACTION: dataset.steps[keys.ACTION], keys.REWARD: reward, **observations}


def _finite(column: Float[Tensor, "n d"]) -> Float[Tensor, "m d"]:
    return column[torch.isfinite(column).all(dim=1)]


def _rewards(dataset: Dataset) -> list[float]:
    return _finite(dataset.steps[keys.REWARD][:, None]).unique().tolist()


def _span(column: Float[Tensor, "n d"]) -> tuple[float, float]:
    finite = _finite(column)
    return (float(finite.min()), float(finite.max())) if finite.numel() else (float("nan"), float("nan"))


def _robust_z(values: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Modified z-score: 0.6745 (x - median) / MAD, with the mean absolute deviation where the MAD is 0."""
    deviation = values - values.median()
    mad = deviation.abs().median()
    scale = mad / 0.6745 if mad > 0 else deviation.abs().mean() * 1.253314
    return deviation / scale if scale > 0 else torch.zeros_like(values)


def _place(dataset: Dataset, row: int) -> str:
    episode = int(dataset.steps[keys.EPISODE][row])
    return f"{dataset.names[episode]} step {row - int(dataset.starts[episode])}"


def _places(dataset: Dataset, rows: list[int]) -> tuple[tuple[str, int], ...]:
    """Episode and step of the first rows."""
    episodes = [int(dataset.steps[keys.EPISODE][row]) for row in rows[:_PLACES]]
    return tuple(
        (dataset.names[e], row - int(dataset.starts[e])) for e, row in zip(episodes, rows[:_PLACES], strict=True)
    )


def _list(items: list[str]) -> str:
    return ", ".join(items[:_LISTED]) + (f" and {len(items) - _LISTED} more" if len(items) > _LISTED else "")
