"""From journals of raw records to RoboMimic HDF5, and one index file over all episodes of a folder.

An episode file holds ``data/demo_0`` with one row per period of the policy: the observation at its beginning and, as
``actions``, by how much the joints move until the next row by the decision that is in force, and the gripper's opening
there. The decision and not the reference: that also leads from each decision to the next, which nobody has to learn.
``ticks`` (250 Hz: measured, commanded, both clocks), ``decisions`` (inputs and outputs of the policy) and ``events``
lie beside it.

What a person teaches is written otherwise in two things. Its actions are the steps of what was *commanded*, which is
where the hand led; and while the person paused and the arm stood still there are no rows: before and after it is in
the same place.

Where ticks are missing the episode is cut: what follows becomes ``data/demo_1``, and so on. Rows made up for a gap
would teach to stand still in mid-motion, then to jump.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from flowpolicy.core.errors import DataError
from flowpolicy.core.files import unchanged_sha256
from flowpolicy.data.controllers import action_of
from flowpolicy.data.hdf5 import json_attribute, open_hdf5, require_group, written_whole
from flowpolicy.data.robomimic import EPISODES_SHA256
from flowpolicy.data.robomimic_writer import RecordedEpisode, RobomimicWriter
from flowpolicy.real_robot.arm.action_conventions import ActionConvention, convention_of, nearest_action
from flowpolicy.real_robot.arm.arm_model import ArmModel
from flowpolicy.real_robot.arm.envelope_limits import policy_limits
from flowpolicy.real_robot.arm.models import find_arm
from flowpolicy.real_robot.bridge.chunks import hermite
from flowpolicy.real_robot.bridge.ring_records import (
    DEVICE,
    EVENT,
    before_told,
    chunk_type,
    frame_type,
    tick_type,
    unpack_chunk,
)
from flowpolicy.real_robot.bridge.states import State
from flowpolicy.real_robot.drivers.driver_protocols import ActionChunk
from flowpolicy.real_robot.session.observations import observe_all

_SHORTEST = 3
"""Rows; a part with less is left out."""
INDEX = "demos.hdf5"
"""Trains a policy: links to every episode file of its folder."""
DROPPED = "dropped"
"""Folder, in that of the recordings, of episodes that nobody wants; they can be moved back."""
LABELS = ("success", "failure", "unlabelled")
"""What an episode may be called."""
_STILL = 1e-6
"""An arm whose joints are commanded to move slower stands still, rad/s."""
_GAP = 0.5
"""Ticks further apart than this share of a period are a gap: each row lies within a quarter of a period of its time."""
_NUMBERS = ("t_mono", "q", "dq", "q_ref", "q_cmd", "width", "width_ref", "task")
"""Columns of a tick that rows are made of."""
_COLUMNS = (
    "t_mono",
    "t_wall",
    "t_obs",
    "chunk",
    "state",
    "starved",
    "success_rate",
    "q_cmd",
    "q_ref",
    "tau",
    "tau_ext",
)


class NothingRecordedError(DataError):
    """The journals of an episode hold not one whole row."""


def finish_episode(folder: Path, number: int) -> Path:
    """Turn the journals of an episode into its file, and remove them. What was lost of it, :func:`told_gaps` says.

    ``meta.json`` beside the journals says: ``env_args``, ``keys`` (observations), ``arm`` (its name), ``tool`` (m),
    ``rate_hz`` and ``cameras`` (name -> height and width); where a policy was told what to do, ``instruction``.

    Raises:
        NothingRecordedError: the journals hold not one row.
        DataError: they cannot be read.

    """
    home = folder / f".episode_{number:04d}"
    try:
        meta = json.loads((home / "meta.json").read_text(encoding="utf-8"))
        raw = {
            name: _whole_records(home / name, dtype)
            for name, dtype in (_journals(meta) | camera_journals(meta)).items()
        }
    except (OSError, json.JSONDecodeError) as error:
        raise DataError(
            f"{home}: {error}", fix="the journals are kept: copy meta.json from another episode, then salvage again"
        ) from error
    parts, gaps = _parts(raw["ticks"], float(meta["rate_hz"]), taught="labels" in meta)
    if not parts:
        raise NothingRecordedError(f"{home} holds no whole period of a running arm")
    label = _label(number, raw["events"], taught="labels" in meta)
    success, wanted = label == "success", label != "discarded"
    if not wanted:
        (folder / DROPPED).mkdir(exist_ok=True)
    path = (folder if wanted else folder / DROPPED) / f"episode_{number:04d}.hdf5"
    with RobomimicWriter(path, meta["env_args"]) as writer:
        for place, rows in enumerate(parts):
            part = _episode(rows, raw, success and place == len(parts) - 1, meta)
            beside = _beside(raw, meta) | {"gaps": gaps} if place == 0 else {}
            told = {"lang": meta["instruction"]} if meta.get("instruction") else {}
            said = {**meta["labels"], "label": label} if "labels" in meta else told
            notes = {"ep_meta": json.dumps(said, sort_keys=True)} if said else {}
            part = dataclasses.replace(part, extra={**part.extra, **beside}, notes=notes)
            writer.add(part, [filter_key(label)])
    shutil.rmtree(home)
    return path


def write_index(folder: Path) -> Path:
    """(Re)write the file that shows all episodes of a folder as one RoboMimic file, without copying them.

    Raises:
        DataError: there is none, one is damaged, or they were not all recorded with the same robot.

    """
    path, episodes = folder / INDEX, sorted(folder.glob("episode_*.hdf5"))
    if not episodes:
        raise DataError(
            f"{folder} holds no episode", expected="episode_0001.hdf5, ...", fix="copy them to it, or record some"
        )
    members: dict[str, list[str]] = {}
    with written_whole(path) as file:
        data, total, number = file.create_group("data"), 0, 0
        stated = read_env_args(episodes[0])
        data.attrs["env_args"] = json.dumps(stated, indent=4)
        for episode in episodes:
            require_same_robot(episode, read_env_args(episode), stated, episodes[0].name)
            with open_hdf5(episode) as one:
                masks = {key: {bytes(name).decode() for name in one["mask"][key][()]} for key in one["mask"]}
                for part in range(len(one["data"])):
                    total += len(one["data"][f"demo_{part}"]["actions"])
                    for key, names in masks.items():
                        if f"demo_{part}" in names:
                            members.setdefault(key, []).append(f"demo_{number}")
                    data[f"demo_{number}"] = h5py.ExternalLink(episode.name, f"/data/demo_{part}")
                    number += 1
        data.attrs["total"] = total
        # The hash of the index stands for the content of the files that it links to.
        data.attrs[EPISODES_SHA256] = json.dumps({episode.name: unchanged_sha256(episode) for episode in episodes})
        for key, belonging in members.items():
            file.create_dataset(f"mask/{key}", data=np.array(belonging, dtype="S"), track_times=False)
    return path


def filter_key(label: str) -> str:
    """Under which filter key episodes of a label are found."""
    return {"success": "successful", "failure": "failed"}.get(label, "unlabelled")


def _label(number: int, events: NDArray[Any], *, taught: bool) -> str:
    """What an episode came to; without a word of it, as after a crash, nobody knows, and a policy's is a failure."""
    texts = [bytes(event["text"]).decode() for event in events if bytes(event["kind"]) == b"episode"]
    said = [text.partition(" ")[2] for text in texts if text.partition(" ")[0] == str(number)]
    return said[-1] if said else "unlabelled" if taught else "failure"


def next_number(folder: Path) -> int:
    """Number of the next episode of a folder; journals that could not be salvaged and dropped episodes keep theirs."""
    found = [*folder.glob("*episode_*"), *(folder / DROPPED).glob("episode_*")]
    return 1 + max((int(path.stem.rpartition("_")[2]) for path in found), default=0)


def read_labels(path: Path) -> dict[str, str]:
    """What is stored with an episode of a person; of others, whether it succeeded."""
    with open_hdf5(path) as file:
        data = require_group(file, "data", path)
        demo = data[next(iter(data))]
        about = json_attribute(demo, "ep_meta", path)
        if "label" not in about:
            about["label"] = "success" if "successful" in file.get("mask", {}) else "failure"
    return {key: str(value) for key, value in about.items()}


def read_env_args(path: Path) -> dict[str, Any]:
    """What an episode file or an index says of the robot that it was recorded with."""
    with open_hdf5(path) as file:
        return json_attribute(require_group(file, "data", path), "env_args", path)


def require_same_robot(path: Path, mine: dict[str, Any], theirs: dict[str, Any], where: str) -> None:
    """Raise :class:`DataError` unless two recordings state the same task, robot and observations.

    Args:
        path: named in the error.
        mine: its ``env_args``.
        theirs: the others'.
        where: which others.

    """
    keys = [key for key in {**mine, **theirs} if mine.get(key) != theirs.get(key)]
    if keys:
        lines = "".join(
            f"\n    {key}: {mine.get(key, 'unstated')} against {theirs.get(key, 'unstated')}" for key in keys
        )
        raise DataError(
            f"{path} was not recorded with the same robot as {where}:{lines}",
            expected="one folder per robot, tool and task: the same numbers would mean other things",
            fix="record into another folder; move away what does not belong here, then `flowpolicy robot salvage`",
        )


def told_gaps(path: Path) -> str:
    """What an episode lost where ticks are missing, in words; empty if nothing."""
    with open_hdf5(path) as file:
        data = require_group(file, "data", path)
        gaps = data["demo_0"]["gaps"][()] if "gaps" in data["demo_0"] else np.zeros((0, 2))
        if not len(gaps):
            return ""
        places = ", ".join(f"{length:.2f} s at {start:.2f} s" for start, length in gaps)
        return f"ticks are missing ({places}): cut there, {len(data)} demonstrations of it remain"


def _arm(meta: dict[str, Any]) -> ArmModel:
    """The arm of a recording; journals of before say nothing, and were an FR3's."""
    return find_arm(meta.get("arm", "fr3"))


def _convention(meta: dict[str, Any]) -> ActionConvention:
    """In which convention the actions of a recording are written: what its ``env_args`` come nearest to."""
    arm = _arm(meta)
    limits = policy_limits(arm, table=0.0, tool=float(meta["tool"]))
    return convention_of(nearest_action(action_of(meta["env_args"], 0), arm), limits)


def _journals(meta: dict[str, Any]) -> dict[str, np.dtype[Any]]:
    joints = _arm(meta).joints
    records = {"ticks": tick_type(joints), "chunks": _told(chunk_type(joints), meta), "events": EVENT}
    return records | ({"device": DEVICE} if meta.get("device") else {})


def _told(dtype: np.dtype[Any], meta: dict[str, Any]) -> np.dtype[Any]:
    """A record type as it was when the journals of an episode were begun."""
    return dtype if meta.get("told") else before_told(dtype)


def camera_journals(meta: dict[str, Any]) -> dict[str, np.dtype[Any]]:
    """Journals of the cameras of a session, by the names of their rings."""
    return {f"camera_{name}": _told(frame_type(*size), meta) for name, size in meta.get("cameras", {}).items()}


def _pictures(name: str, rows: NDArray[Any], raw: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """For every row the newest picture that was exposed before it, and its place among all of the episode."""
    frames = raw[f"camera_{name}"]
    if not len(frames):
        return {}
    # A picture can be used from when it was seen on; before the first one there is only the first.
    newest = np.clip(np.searchsorted(frames["t_seen"], rows["t_mono"], side="right") - 1, 0, None)
    return {f"obs/{name}_image": frames["rgb"][newest], f"cameras/{name}/row": newest}


def _beside(raw: dict[str, NDArray[Any]], meta: dict[str, Any]) -> dict[str, NDArray[Any]]:
    """What lies beside the rows of an episode, once for all of its parts; and when each picture was taken."""
    cameras = {name: raw[f"camera_{name}"] for name in meta.get("cameras", {})}
    return {
        "ticks": raw["ticks"],
        "decisions": raw["chunks"][raw["chunks"]["rows"] > 0],
        "events": raw["events"],
        **({"device": raw["device"]} if "device" in raw else {}),
        **{
            f"cameras/{name}/{field}": frames[field]
            for name, frames in cameras.items()
            if len(frames)
            for field in ("seq", "t_mono", "t_device", "t_seen")
        },
    }


def _whole_records(path: Path, dtype: np.dtype[Any]) -> NDArray[Any]:
    raw = path.read_bytes()
    return np.frombuffer(raw[: len(raw) // dtype.itemsize * dtype.itemsize], dtype)


def _parts(ticks: NDArray[Any], rate: float, *, taught: bool) -> tuple[list[NDArray[Any]], NDArray[np.float64]]:
    """Rows of the first stretch of a running arm, part by part between gaps; start and length (n, 2) s of these.

    Where a person taught, it goes on after pauses, and its time leaves them out.

    A tick that was torn, holds what is not a number or repeats a time is no tick; where the clock went back is a gap.
    """
    ticks = ticks[ticks["state"] != State.DISCONNECTED]  # zeros that were never written
    running = np.nonzero(ticks["state"] == State.RUNNING)[0]
    if not len(running):
        return [], np.zeros((0, 2))
    stretch = ticks[running[0] :]
    goes_on = stretch["state"] == State.RUNNING
    if taught:
        goes_on |= stretch["state"] == State.HOLD
    stopped = np.nonzero(~goes_on)[0]
    stretch = stretch[: stopped[0]] if len(stopped) else stretch
    if taught:  # a pause at the end is over with the last motion
        stretch = stretch[: np.nonzero(stretch["state"] == State.RUNNING)[0][-1] + 1]
    for name in _NUMBERS:
        stretch = stretch[np.isfinite(stretch[name].reshape(len(stretch), -1)).all(1)]
    stretch = stretch[np.diff(stretch["t_mono"], prepend=-np.inf) != 0.0]
    apart = np.diff(stretch["t_mono"])
    cuts = np.nonzero((apart < 0.0) | (apart > _GAP / rate))[0]
    gaps = np.stack([stretch["t_mono"][cuts] - stretch["t_mono"][:1], apart[cuts]], axis=1)
    rows = [_row_ticks(*_without_pauses(part), rate) for part in np.split(stretch, cuts + 1)]
    return [part for part in rows if len(part) >= _SHORTEST], gaps


def _without_pauses(stretch: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """The ticks in which the arm runs or comes to rest, and their times, s, as if there had been no others."""
    moving = (stretch["state"] == State.RUNNING) | (np.abs(stretch["dq_cmd"]).max(-1, initial=0.0) > _STILL)
    periods = np.diff(stretch["t_mono"], append=stretch["t_mono"][-1:])
    left_out = np.concatenate([[0.0], np.cumsum(np.where(moving, 0.0, periods))[:-1]])
    return stretch[moving], (stretch["t_mono"] - left_out)[moving]


def _row_ticks(stretch: NDArray[Any], times: NDArray[np.float64], rate: float) -> NDArray[Any]:
    """The ticks nearest to the beginnings of the periods, by their ``times`` (n,) s."""
    if not len(stretch):
        return stretch
    wanted = np.arange(times[0], times[-1] + 1e-6, 1.0 / rate)
    after = np.clip(np.searchsorted(times, wanted), 1, len(times) - 1) if len(times) > 1 else np.zeros(1, int)
    nearest = np.where(wanted - times[after - 1] < times[after] - wanted, after - 1, after)
    return np.asarray(stretch[nearest])


def _episode(rows: NDArray[Any], raw: dict[str, NDArray[Any]], success: bool, meta: dict[str, Any]) -> RecordedEpisode:
    now, later = rows[:-1], rows[1:]
    steps = len(now)
    ends = np.arange(steps) == steps - 1
    obs = {key: observe_all(rows, key, _arm(meta), float(meta["tool"])).astype(np.float32) for key in meta["keys"]}
    # In the convention's words: how far the decision in force leads from what is commanded.
    steps_led = _led(now, later, raw["chunks"], meta)
    return RecordedEpisode(
        actions=_convention(meta).actions(now["q_cmd"], steps_led, later["width_ref"], 1.0 / float(meta["rate_hz"])),
        rewards=(ends & success).astype(np.float64),
        dones=ends.astype(np.int64),
        obs={key: value[:-1] for key, value in obs.items()},
        next_obs={key: value[1:] for key, value in obs.items()},
        extra={
            **{f"robot/{name}": now[name] for name in _COLUMNS},
            **{path: value for name in meta.get("cameras", {}) for path, value in _pictures(name, now, raw).items()},
        },
    )


def _led(now: NDArray[Any], later: NDArray[Any], chunks: NDArray[Any], meta: dict[str, Any]) -> NDArray[np.float64]:
    """(r, n) rad: how far each row leads the arm."""
    if meta.get("actions") == "commanded":
        # Of exactly one period: rows are of the nearest ticks. Across a pause the arm stood still for the rest.
        lasted = (later["t_mono"] - now["t_mono"]) * float(meta["rate_hz"])
        share = np.where((lasted > 0.5) & (lasted < 1.5), lasted, 1.0)
        return np.asarray((later["q_cmd"] - now["q_cmd"]) / share[:, None])
    return _steps(now, later, chunks)


def _steps(now: NDArray[Any], later: NDArray[Any], chunks: NDArray[Any]) -> NDArray[np.float64]:
    """(r, n) rad: what the decision in force at each row says about the period that follows."""
    decided = {int(record["seq"]): unpack_chunk(record) for record in chunks[chunks["rows"] > 0]}
    steps = later["q_ref"] - now["q_ref"]  # of a decision that was made before the recording began
    for row, (begin, end) in enumerate(zip(now, later, strict=True)):
        if (chunk := decided.get(int(begin["chunk"]))) is not None:
            steps[row] = _asked(chunk, float(end["t_mono"])) - _asked(chunk, float(begin["t_mono"]))
    return np.asarray(steps)


def _asked(chunk: ActionChunk, t: float) -> NDArray[np.float64]:
    """(n,) rad: where a decision wants the arm at ``t`` s; in the period before its first row on the way there."""
    if t < chunk.t0 and len(chunk.q) > 1:
        return np.asarray(chunk.q[0] + (t - chunk.t0) / chunk.dt * (chunk.q[1] - chunk.q[0]))
    return hermite(chunk, t)[0]
