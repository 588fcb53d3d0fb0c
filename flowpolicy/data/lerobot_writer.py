"""Write a LeRobot v3.0 folder, whole or not at all, from any dataset."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from flowpolicy.core import keys
from flowpolicy.core.errors import ConfigError, DataError
from flowpolicy.core.files import replacing_folder, require_free, write_json
from flowpolicy.core.progress import progress_bar
from flowpolicy.core.spec import INSTRUCTION, UNSTATED, spec_json
from flowpolicy.data.dataset import Dataset
from flowpolicy.data.lerobot_meta import INFO, OWN, is_lerobot, require_pyarrow
from flowpolicy.data.lerobot_pictures import require_av
from flowpolicy.data.robomimic import success_reward

VideoCodec = Literal["h264", "av1"]

_CODECS: dict[str, tuple[str, dict[str, str]]] = {
    "h264": ("libx264", {"crf": "16", "bf": "0", "preset": "medium", "forced-idr": "1"}),
    "av1": ("libsvtav1", {"crf": "18", "preset": "8"}),
}
_GOP = 2
_QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
_SEEN = 100  # frames of an episode that its statistics are of
_CHUNK = 1000  # files in a folder
_PER_PIXEL = 0.2  # bytes that a pixel of a video hardly exceeds


@dataclasses.dataclass(frozen=True)
class LeRobotOptions:
    """How a folder is written."""

    codec: VideoCodec = "h264"
    """Of the videos: h264, which everything plays, or av1, which is smaller and slower to write."""
    fps: float = 0.0
    """Rows per second; 0 takes the control rate of the dataset."""
    instruction: str = ""
    """What was to be done, for a dataset that has no instructions; the name of its environment unless given."""
    data_mb: float = 100.0
    """Megabytes from which on the next episode's rows begin a new file."""
    video_mb: float = 200.0
    """The same of videos."""


def write_lerobot(
    dataset: Dataset,
    folder: Path,
    options: LeRobotOptions = LeRobotOptions(),
    *,
    overwrite: bool = False,
    provenance: str = "",
    splits: Mapping[str, Sequence[int]] = {},
) -> None:
    """Write all episodes of a dataset, with the pictures that it was loaded with, as a LeRobot v3.0 folder.

    States lie side by side in ``observation.state``; which, and what they and the actions are, stands in
    ``meta/flowpolicy.json``, by which :mod:`flowpolicy.data.lerobot_recording` reads the same dataset again: numbers
    bit for bit, pictures as good as their codec. The folder appears under its name when all of it is written.

    Args:
        dataset: as :func:`flowpolicy.data.dataset.load_dataset` gives it.
        folder: what to write.
        options: how.
        overwrite: replace a LeRobot folder that stands there.
        provenance: where the episodes come from, JSON.
        splits: name -> numbers of episodes, as filter keys name them; 'train' is all of them unless given.

    Raises:
        FlowPolicyError: something stands at ``folder``, or the disk is full.
        ConfigError: the dataset does not say how many rows it has per second, and neither do the options.
        MissingExtraError: the extra 'lerobot' is not installed.

    """
    require_replaceable(folder, overwrite)
    if not (fps := options.fps or dataset.spec.action.rate_hz) > 0:
        raise ConfigError(
            f"{dataset.path} does not say how many steps it has per second", fix="name it: LeRobotOptions(fps=N)"
        )
    if dataset.spec.reward_shift or dataset.reward_scale != 1.0:
        raise ConfigError(
            f"{dataset.path} was loaded with other rewards than it holds", fix="load it without shift and scale"
        )
    require_pyarrow()
    if dataset.frames:
        require_av()
    _require_room(dataset, folder)
    with replacing_folder(folder) as partial:
        _Writing(dataset, partial, options, fps).write(provenance, splits)


def require_replaceable(folder: Path, overwrite: bool) -> None:
    """Refuse to write where something stands; with ``overwrite``, where something else than a LeRobot folder does."""
    require_free(folder, overwrite)
    if folder.exists() and not is_lerobot(folder) and not (folder.is_dir() and not any(folder.iterdir())):
        raise DataError(
            f"{folder} is no LeRobot folder, and is not replaced by one", fix="name a place where nothing stands"
        )


def _require_room(dataset: Dataset, folder: Path) -> None:
    there = next(place for place in folder.absolute().parents if place.exists())
    pixels = sum(math.prod(store.shape) // 3 for store in dataset.frames.values())
    columns = [*dataset.steps[keys.OBS].values(), dataset.steps[keys.ACTION]]
    needed = sum(column.numel() * 4 for column in columns) + dataset.steps.rows * 48 + int(_PER_PIXEL * pixels)
    if (free := shutil.disk_usage(there).free) < needed + (16 << 20):
        raise DataError(
            f"{folder} takes about {needed / 1e9:.3g} GB, and {there} has {free / 1e9:.3g} GB free",
            fix="free some space, or name a folder on another disk",
        )


class _Writing:
    """One folder on its way."""

    def __init__(self, dataset: Dataset, root: Path, options: LeRobotOptions, fps: float) -> None:
        self.dataset, self.root, self.options, self.fps = dataset, root, options, fps
        self.states = {
            key: math.prod(each.shape)
            for key, each in dataset.spec.observation.items()
            if each.kind == "state" and key != INSTRUCTION and not each.words
        }
        self.cameras = {f"observation.images.{key.removesuffix('_image')}": key for key in dataset.frames}
        self.texts = self._texts()
        self.success = success_reward(dataset.env_args) if dataset.env_args else None
        self.features = self._features()
        self.stats: dict[str, list[dict[str, Any]]] = {name: [] for name in self.features}
        self.histograms = {name: np.zeros((3, 256), np.int64) for name in self.cameras}
        self.seen = dict.fromkeys(self.cameras, 0)

    def write(self, provenance: str, splits: Mapping[str, Sequence[int]]) -> None:
        """Everything, episode by episode, and the meta files last."""
        episodes: list[dict[str, Any]] = []
        starts, lengths = self.dataset.starts.tolist(), self.dataset.lengths.tolist()
        with contextlib.ExitStack() as stack:
            rows = stack.enter_context(contextlib.closing(_Tables(self.root, self.options.data_mb)))
            videos = {
                name: stack.enter_context(contextlib.closing(_Videos(self.root, name, self.options, self.fps)))
                for name in self.cameras
            }
            shown = sum(math.prod(store.shape) for store in self.dataset.frames.values()) > 64 << 20
            move = stack.enter_context(progress_bar("write episodes", len(lengths), shown=shown))
            for number, (start, length) in enumerate(zip(starts, lengths, strict=True)):
                columns = self._columns(number, start, length)
                place = rows.add(self._table(columns))
                entry: dict[str, Any] = {
                    "episode_index": number,
                    "tasks": [self.texts[task] for task in dict.fromkeys(columns["task_index"].tolist())],
                    "length": length,
                    "data/chunk_index": place[0],
                    "data/file_index": place[1],
                    "dataset_from_index": start,
                    "dataset_to_index": start + length,
                }
                for name, key in self.cameras.items():
                    frames = self._frames(name, key, start, length)
                    (chunk, file), first = videos[name].add(frames)
                    entry |= {
                        f"videos/{name}/chunk_index": chunk,
                        f"videos/{name}/file_index": file,
                        f"videos/{name}/from_timestamp": first / self.fps,
                        f"videos/{name}/to_timestamp": (first + length) / self.fps,
                    }
                for name in self.features:
                    if name not in self.cameras:
                        self.stats[name].append(statistics_of(columns[name]))
                entry |= {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0}
                episodes.append(entry)
                move(number + 1)
        self._meta(episodes, provenance, splits, {name: each.pixel_format for name, each in videos.items()})

    def _texts(self) -> list[str]:
        if self.dataset.instructions and keys.TASK in self.dataset.steps:
            return list(self.dataset.instructions)
        known = self.dataset.spec.env_id
        return [self.options.instruction or (known if known != UNSTATED else "no instruction was recorded")]

    def _features(self) -> dict[str, dict[str, Any]]:
        def numbers(dtype: str, names: Sequence[str] | None = None, size: int = 1) -> dict[str, Any]:
            return {"dtype": dtype, "shape": [size], "names": None if names is None else list(names)}

        found: dict[str, dict[str, Any]] = {}
        if self.states:
            names = [key if n == 1 else f"{key}_{i}" for key, n in self.states.items() for i in range(n)]
            found["observation.state"] = numbers("float32", names, len(names))
        size = self.dataset.spec.action.size
        found["action"] = numbers("float32", [f"action_{i}" for i in range(size)], size)
        found["next.reward"] = numbers("float32")
        found |= {name: numbers("bool") for name in ("next.done", "next.terminated")}
        if self.success is not None:
            found["next.success"] = numbers("bool")
        for name, key in self.cameras.items():
            _, height, width, channels = self.dataset.frames[key].shape
            found[name] = {
                "dtype": "video",
                "shape": [height, width, channels],
                "names": ["height", "width", "channels"],
            }
        found["timestamp"] = numbers("float32")
        return found | {n: numbers("int64") for n in ("frame_index", "episode_index", "index", "task_index")}

    def _columns(self, number: int, start: int, length: int) -> dict[str, NDArray[Any]]:
        """Rows of an episode, all but its pictures."""
        steps, rows = self.dataset.steps, slice(start, start + length)
        step = np.arange(length)
        found: dict[str, NDArray[Any]] = {}
        if self.states:
            parts = [steps[keys.OBS][key][rows].reshape(length, -1).numpy() for key in self.states]
            found["observation.state"] = np.concatenate(parts, axis=1)
        reward = steps[keys.REWARD][rows].numpy()
        found |= {
            "action": steps[keys.ACTION][rows].numpy(),
            "next.reward": reward,
            "next.done": step == length - 1,
            "next.terminated": steps[keys.MASK][rows].numpy() == 0,
        }
        if self.success is not None:
            found["next.success"] = reward >= self.success
        task = np.zeros(length, np.int64)
        if self.dataset.instructions and keys.TASK in steps:
            task = np.maximum(steps[keys.TASK][rows].numpy(), 0)
        return found | {
            "timestamp": (step / self.fps).astype(np.float32),
            "frame_index": step,
            "episode_index": np.full(length, number),
            "index": start + step,
            "task_index": task,
        }

    def _table(self, columns: dict[str, NDArray[Any]]) -> Any:
        import pyarrow as pa

        arrays = {
            name: pa.FixedSizeListArray.from_arrays(pa.array(value.reshape(-1)), value.shape[1])
            if value.ndim == 2
            else pa.array(value)
            for name, value in columns.items()
        }
        return pa.table(arrays)

    def _frames(self, name: str, key: str, start: int, length: int) -> Iterator[NDArray[np.uint8]]:
        """Pictures of an episode, some of which are counted into its statistics."""
        counted = set(np.linspace(0, length - 1, min(_SEEN, length)).astype(int).tolist())
        counts = np.zeros((3, 256), np.int64)
        for step in range(length):
            frame = self.dataset.frames[key].take(np.array([start + step]))[0]
            if step in counted:
                for channel in range(3):
                    counts[channel] += np.bincount(frame[..., channel].reshape(-1), minlength=256)
            yield frame
        self.stats[name].append(statistics_of_pictures(counts, len(counted)))
        self.histograms[name] += counts
        self.seen[name] += len(counted)

    def _meta(
        self,
        episodes: list[dict[str, Any]],
        provenance: str,
        splits: Mapping[str, Sequence[int]],
        formats: dict[str, str],
    ) -> None:
        dataset, pq = self.dataset, require_pyarrow()
        for name, entry in self.features.items():
            if name in self.cameras:
                height, width, channels = entry["shape"]
                entry["info"] = {
                    "video.height": height,
                    "video.width": width,
                    "video.codec": self.options.codec,
                    "video.pix_fmt": formats[name],
                    "video.is_depth_map": False,
                    "video.fps": _plain(self.fps),
                    "video.channels": channels,
                    "has_audio": False,
                }
        write_json(
            self.root / INFO,
            {
                "codebase_version": "v3.0",
                "robot_type": dataset.spec.robot if dataset.spec.robot != UNSTATED else None,
                "total_episodes": len(episodes),
                "total_frames": dataset.steps.rows,
                "total_tasks": len(self.texts),
                "chunks_size": _CHUNK,
                "data_files_size_in_mb": _plain(self.options.data_mb),
                "video_files_size_in_mb": _plain(self.options.video_mb),
                "fps": _plain(self.fps),
                "splits": {"train": f"0:{len(episodes)}", **{name: spans_of(each) for name, each in splits.items()}},
                "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
                "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
                "features": self.features,
            },
        )
        for name, each in self.stats.items():
            for entry, stats in zip(episodes, each, strict=True):
                entry |= {f"stats/{name}/{stat}": value for stat, value in stats.items()}
        table = self.root / "meta/episodes/chunk-000/file-000.parquet"
        table.parent.mkdir(parents=True)
        pq.write_table(_as_table(episodes), table)
        pq.write_table(_task_table(self.texts), self.root / "meta/tasks.parquet")
        write_json(self.root / "meta/stats.json", self._all_stats())
        own = {
            "schema": 1,
            "spec": spec_json(dataset.spec),
            "parts": {"observation.state": [[key, width] for key, width in self.states.items()]} if self.states else {},
            "env_args": dataset.env_args,
            "source": {"name": dataset.path.name, "sha256": dataset.sha256, "filter_key": dataset.filter_key},
            "provenance": provenance,
        }
        write_json(self.root / OWN, own)

    def _all_stats(self) -> dict[str, Any]:
        """Statistics of everything, of numbers exactly."""
        found = {}
        for name in self.features:
            if name in self.cameras:
                found[name] = statistics_of_pictures(self.histograms[name], self.seen[name])
            else:
                found[name] = statistics_of(self._whole(name))
        return found

    def _whole(self, name: str) -> NDArray[Any]:
        starts, lengths = self.dataset.starts.tolist(), self.dataset.lengths.tolist()
        parts = [self._columns(k, start, n)[name] for k, (start, n) in enumerate(zip(starts, lengths, strict=True))]
        return np.concatenate(parts)


class _Tables:
    """Parquet files of rows, one row group per episode, a new file when one is full."""

    def __init__(self, root: Path, limit_mb: float) -> None:
        self.root, self.limit, self.number = root, limit_mb * 1e6, -1
        self._writer: Any = None
        self._file: Any = None

    def add(self, table: Any) -> tuple[int, int]:
        """Write an episode; returns chunk and file."""
        if self._writer is None or self._file.tell() >= self.limit:
            self.close()
            self.number += 1
            chunk, file = divmod(self.number, _CHUNK)
            path = self.root / f"data/chunk-{chunk:03d}/file-{file:03d}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("wb")
            self._writer = require_pyarrow().ParquetWriter(self._file, table.schema)
        self._writer.write_table(table, row_group_size=max(1, table.num_rows))
        chunk, file = divmod(self.number, _CHUNK)
        return chunk, file

    def close(self) -> None:
        """Write the footer of the last file."""
        if self._writer is not None:
            self._writer.close()
            self._file.close()
            self._writer = None


class _Videos:
    """Videos of one camera, a new file when one is full; every episode begins with a key frame."""

    def __init__(self, root: Path, name: str, options: LeRobotOptions, fps: float) -> None:
        self.root, self.name, self.options, self.number = root, name, options, -1
        self.rate = Fraction(fps).limit_denominator(100_000)
        self.pixel_format = ""
        self._container: Any = None
        self._frames = self._bytes = 0

    def add(self, frames: Iterator[NDArray[np.uint8]]) -> tuple[tuple[int, int], int]:
        """Write an episode; returns chunk and file, and the number of its first frame there."""
        av = require_av()
        if self._container is not None and self._bytes >= self.options.video_mb * 1e6:
            self.close()
        first: int | None = None
        for picture in frames:
            if self._container is None:
                self._begin(*picture.shape[:2])
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts, frame.time_base = self._frames, 1 / self.rate
            if first is None:
                first, frame.pict_type = self._frames, av.video.frame.PictureType.I
            self._mux(self._stream.encode(frame))
            self._frames += 1
        chunk, file = divmod(self.number, _CHUNK)
        return (chunk, file), first or 0

    def _begin(self, height: int, width: int) -> None:
        av = require_av()
        os.environ.setdefault("SVT_LOG", "1")  # the encoder of AV1 tells its settings otherwise
        self.number, self._frames, self._bytes = self.number + 1, 0, 0
        chunk, file = divmod(self.number, _CHUNK)
        path = self.root / f"videos/{self.name}/chunk-{chunk:03d}/file-{file:03d}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        codec, settings = _CODECS[self.options.codec]
        # Half the colours need pairs of pixels.
        self.pixel_format = "yuv420p" if height % 2 == width % 2 == 0 or self.options.codec == "av1" else "yuv444p"
        self._container = av.open(str(path), "w")
        self._stream = self._container.add_stream(codec, rate=self.rate, options=settings)
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, self.pixel_format
        self._stream.codec_context.gop_size = _GOP
        self._stream.codec_context.time_base = 1 / self.rate

    def close(self) -> None:
        """Finish the last file."""
        if self._container is not None:
            self._mux(self._stream.encode())
            self._container.close()
            self._container = None

    def _mux(self, packets: Sequence[Any]) -> None:
        self._bytes += sum(packet.size for packet in packets)
        self._container.mux(packets)


def statistics_of(column: NDArray[Any]) -> dict[str, Any]:
    """Statistics of the rows of a feature in float64, as lists: one number for each of its dimensions."""
    values = column.astype(np.float64).reshape(len(column), -1)
    found = {"min": values.min(0), "max": values.max(0), "mean": values.mean(0), "std": values.std(0)}
    found |= dict(zip(_QUANTILES, np.quantile(values, list(_QUANTILES.values()), axis=0), strict=True))
    return {name: value.tolist() for name, value in found.items()} | {"count": [len(column)]}


def statistics_of_pictures(counts: NDArray[np.int64], frames: int) -> dict[str, Any]:
    """Statistics of pixels from 0 to 1 by colour, [3][1][1], from how often each level occurs; exact in float64.

    Args:
        counts: (3, 256) how often each level occurs in each colour.
        frames: how many pictures were counted.

    """
    levels = np.arange(256) / 255.0
    total = np.maximum(counts.sum(1), 1)
    mean = counts @ levels / total
    found = {
        "min": np.array([levels[np.flatnonzero(each)[0]] if each.any() else 0.0 for each in counts]),
        "max": np.array([levels[np.flatnonzero(each)[-1]] if each.any() else 0.0 for each in counts]),
        "mean": mean,
        "std": np.sqrt((counts * (levels - mean[:, None]) ** 2).sum(1) / total),
    }
    below = counts.cumsum(1)
    for name, share in _QUANTILES.items():
        found[name] = levels[np.argmax(below >= share * total[:, None], axis=1)]
    return {name: value.reshape(3, 1, 1).tolist() for name, value in found.items()} | {"count": [frames]}


def spans_of(numbers: Sequence[int]) -> str:
    """Numbers of episodes in the format's words: '0:3,7:8' for 0, 1, 2 and 7."""
    known = set(numbers)
    every = sorted(known)
    begins = [n for n in every if n - 1 not in known]
    ends = [n + 1 for n in every if n + 1 not in known]
    return ",".join(f"{begin}:{end}" for begin, end in zip(begins, ends, strict=True))


def _as_table(rows: list[dict[str, Any]]) -> Any:
    import pyarrow as pa

    return pa.table({name: [row[name] for row in rows] for name in rows[0]})


def _task_table(texts: Sequence[str]) -> Any:
    """Numbers by text, the text as the index of a pandas table, which is how LeRobot looks it up."""
    import pyarrow as pa

    def column(name: str, kind: str, numpy: str) -> dict[str, Any]:
        return {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": numpy, "metadata": None}

    about = {
        "index_columns": ["task"],
        "column_indexes": [column("", "unicode", "object") | {"name": None, "field_name": None}],
        "columns": [column("task_index", "int64", "int64"), column("task", "unicode", "object")],
        "creator": {"library": "pyarrow", "version": pa.__version__},
        "pandas_version": "2.2.0",
    }
    table = pa.table({"task_index": pa.array(range(len(texts)), pa.int64()), "task": pa.array(texts, pa.string())})
    return table.replace_schema_metadata({b"pandas": json.dumps(about).encode()})


def _plain(number: float) -> float | int:
    """A whole number as one: LeRobot wants its rates so."""
    return int(number) if number == int(number) else number
