"""From journals of raw records to RoboMimic HDF5, and one index file over all episodes of a folder.

An episode file holds ``data/demo_0`` with one row per period of the policy: the observation at its beginning and, as
``actions``, by how much the joints move until the next row by the decision that is in force, and the gripper's opening
there. The decision and not the reference: that also leads from each decision to the next, which nobody has to learn.
``ticks`` (250 Hz: measured, commanded, both clocks), ``decisions`` (inputs and outputs of the policy) and ``events``
lie beside it.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from flowpolicy.core.errors import DataError
from flowpolicy.core.files import replacing, sha256
from flowpolicy.data.robomimic_writer import Episode, RobomimicWriter
from flowpolicy.real_robot.chunks import hermite
from flowpolicy.real_robot.observations import observe_all
from flowpolicy.real_robot.protocols import ActionChunk
from flowpolicy.real_robot.records import CHUNK, EVENT, TICK, frame_type, unpack_chunk
from flowpolicy.real_robot.states import State

JOURNALS = {"ticks": TICK, "chunks": CHUNK, "events": EVENT}
INDEX = "demos.hdf5"
"""Trains a policy: links to every episode file of its folder."""
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


def finish_episode(folder: Path, number: int) -> Path:
    """Turn the journals of an episode into its file, and remove them.

    ``meta.json`` beside the journals says: ``env_args``, ``keys`` (observations), ``tool`` (m), ``rate_hz`` and
    ``cameras`` (name -> height and width).

    Raises:
        DataError: the journals hold not one row.

    """
    home = folder / f".episode_{number:04d}"
    try:
        meta = json.loads((home / "meta.json").read_text(encoding="utf-8"))
        raw = {name: _whole_records(home / name, dtype) for name, dtype in (JOURNALS | camera_journals(meta)).items()}
    except (OSError, json.JSONDecodeError) as error:
        raise DataError(f"{home}: {error}") from error
    ticks, rate = raw["ticks"], float(meta["rate_hz"])
    rows = _row_ticks(ticks, rate)
    if len(rows) < 3:
        raise DataError(f"{home} holds no whole period of a running arm")
    success = any(bytes(e["text"]).decode() == f"{number} success" for e in raw["events"])
    path = folder / f"episode_{number:04d}.hdf5"
    with RobomimicWriter(path, meta["env_args"]) as writer:
        writer.add(_episode(rows, raw, success, meta), ["successful"] if success else ["failed"])
    shutil.rmtree(home)
    return path


def write_index(folder: Path) -> Path:
    """(Re)write the file that shows all episodes of a folder as one RoboMimic file, without copying them."""
    path, episodes = folder / INDEX, sorted(folder.glob("episode_*.hdf5"))
    members: dict[str, list[str]] = {}
    with h5py.File(path.name, "w", driver="core", backing_store=False) as file:
        data, total = file.create_group("data"), 0
        for number, episode in enumerate(episodes):
            with h5py.File(episode, "r") as one:
                data.attrs["env_args"] = one["data"].attrs["env_args"]
                total += int(one["data"].attrs["total"])
                for key in one["mask"]:
                    members.setdefault(key, []).append(f"demo_{number}")
            data[f"demo_{number}"] = h5py.ExternalLink(episode.name, "/data/demo_0")
        data.attrs["total"] = total
        # The hash of the index stands for the content of the files that it links to.
        data.attrs["episodes_sha256"] = json.dumps({episode.name: sha256(episode) for episode in episodes})
        for key, names in members.items():
            file.create_dataset(f"mask/{key}", data=np.array(names, dtype="S"), track_times=False)
        file.flush()
        with replacing(path) as temporary:
            temporary.write_bytes(file.id.get_file_image())
    return path


def camera_journals(meta: dict[str, Any]) -> dict[str, np.dtype[Any]]:
    """Journals of the cameras of a session, by the names of their rings."""
    return {f"camera_{name}": frame_type(*size) for name, size in meta.get("cameras", {}).items()}


def _pictures(name: str, rows: NDArray[Any], raw: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """For every row the newest picture that was exposed before it, and when each picture of the episode was taken."""
    frames = raw[f"camera_{name}"]
    if not len(frames):
        return {}
    # A picture can be used from when it was seen on; before the first one there is only the first.
    newest = np.clip(np.searchsorted(frames["t_seen"], rows["t_mono"], side="right") - 1, 0, None)
    times = {f"cameras/{name}/{field}": frames[field] for field in ("seq", "t_mono", "t_device", "t_seen")}
    return {f"obs/{name}_image": frames["rgb"][newest], f"cameras/{name}/row": newest, **times}


def _whole_records(path: Path, dtype: np.dtype[Any]) -> NDArray[Any]:
    raw = path.read_bytes()
    return np.frombuffer(raw[: len(raw) // dtype.itemsize * dtype.itemsize], dtype)


def _row_ticks(ticks: NDArray[Any], rate: float) -> NDArray[Any]:
    """The ticks nearest to the beginnings of the periods, of the first stretch of a running arm."""
    running = np.nonzero(ticks["state"] == State.RUNNING)[0]
    if not len(running):
        return ticks[:0]
    stretch = ticks[running[0] :]
    stopped = np.nonzero(stretch["state"] != State.RUNNING)[0]
    stretch = stretch[: stopped[0]] if len(stopped) else stretch
    times = stretch["t_mono"]
    wanted = np.arange(times[0], times[-1] + 1e-6, 1.0 / rate)
    after = np.clip(np.searchsorted(times, wanted), 1, len(times) - 1) if len(times) > 1 else np.zeros(1, int)
    nearest = np.where(wanted - times[after - 1] < times[after] - wanted, after - 1, after)
    return np.asarray(stretch[nearest])


def _episode(rows: NDArray[Any], raw: dict[str, NDArray[Any]], success: bool, meta: dict[str, Any]) -> Episode:
    now, later = rows[:-1], rows[1:]
    steps = len(now)
    ends = np.arange(steps) == steps - 1
    obs = {key: observe_all(rows, key, float(meta["tool"])).astype(np.float32) for key in meta["keys"]}
    chunks, events = raw["chunks"], raw["events"]
    return Episode(
        actions=np.concatenate([_steps(now, later, raw["chunks"]), later["width_ref"][:, None]], axis=1),
        rewards=(ends & success).astype(np.float64),
        dones=ends.astype(np.int64),
        obs={key: value[:-1] for key, value in obs.items()},
        next_obs={key: value[1:] for key, value in obs.items()},
        extra={
            **{f"robot/{name}": now[name] for name in _COLUMNS},
            **{path: value for name in meta.get("cameras", {}) for path, value in _pictures(name, now, raw).items()},
            "ticks": raw["ticks"],
            "decisions": chunks[chunks["rows"] > 0],
            "events": events,
        },
    )


def _steps(now: NDArray[Any], later: NDArray[Any], chunks: NDArray[Any]) -> NDArray[np.float64]:
    """(n, 7) rad: what the decision in force at each row says about the period that follows."""
    decided = {int(record["seq"]): unpack_chunk(record) for record in chunks[chunks["rows"] > 0]}
    steps = later["q_ref"] - now["q_ref"]  # of a decision that was made before the recording began
    for row, (begin, end) in enumerate(zip(now, later, strict=True)):
        if (chunk := decided.get(int(begin["chunk"]))) is not None:
            steps[row] = _asked(chunk, float(end["t_mono"])) - _asked(chunk, float(begin["t_mono"]))
    return np.asarray(steps)


def _asked(chunk: ActionChunk, t: float) -> NDArray[np.float64]:
    """(7,) rad: where a decision wants the arm at ``t`` s; in the period before its first row on the way there."""
    if t < chunk.t0 and len(chunk.q) > 1:
        return np.asarray(chunk.q[0] + (t - chunk.t0) / chunk.dt * (chunk.q[1] - chunk.q[0]))
    return hermite(chunk, t)[0]
