"""LeRobot folders for tests, written with pyarrow and PyAV from the format's description, not by our own writer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

SIZE = (48, 64)
_BITS = 12


def numbered(number: int, camera: int = 0) -> np.ndarray:
    """A picture (48, 64, 3) that carries a number below 4096 in squares of 16 pixels, and its camera in a colour."""
    picture = np.zeros((*SIZE, 3), np.uint8)
    for bit in range(_BITS):
        row, column = divmod(bit, 4)
        picture[row * 16 : row * 16 + 16, column * 16 : column * 16 + 16] = 230 if number >> bit & 1 else 20
    picture[..., camera % 3] = np.minimum(255, picture[..., camera % 3].astype(int) + 20)
    return picture


def number_in(picture: np.ndarray) -> int:
    """The number that a picture carries."""
    cells = picture.astype(float).mean(2).reshape(3, 16, 4, 16).mean((1, 3)).reshape(-1)
    return int(sum(1 << bit for bit in range(_BITS) if cells[bit] > 128))


def write_video(path: Path, frames: Sequence[np.ndarray], fps: Any = 30, codec: str = "libx264", gop: int = 2) -> None:
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        options = {"libx264": {"crf": "18", "bf": "0"}}.get(codec, {})
        stream = container.add_stream(codec, rate=fps, options=options)
        stream.width, stream.height, stream.pix_fmt = frames[0].shape[1], frames[0].shape[0], "yuv420p"
        stream.codec_context.gop_size = gop
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def episode_rows(number: int, length: int, start: int, task: int, fps: float) -> dict[str, np.ndarray]:
    """Columns of an episode; every number tells its row."""
    step = np.arange(length)
    rows = start + step
    wave = np.sin(rows / 7.0)
    return {
        "observation.state": np.stack([wave, rows / 100.0, np.cos(rows / 5.0)], 1).astype(np.float32),
        "action": np.stack([np.roll(wave, -1), rows / 50.0], 1).astype(np.float32),
        "timestamp": (step / fps).astype(np.float32),
        "frame_index": step.astype(np.int64),
        "episode_index": np.full(length, number, np.int64),
        "index": rows.astype(np.int64),
        "task_index": np.full(length, task, np.int64),
    }


def as_table(columns: Mapping[str, Any]) -> Any:
    import pyarrow as pa

    arrays = {}
    for name, value in columns.items():
        if isinstance(value, np.ndarray) and value.ndim == 2:
            arrays[name] = pa.FixedSizeListArray.from_arrays(pa.array(value.reshape(-1)), value.shape[1])
        else:
            arrays[name] = pa.array(value)
    return pa.table(arrays)


FEATURES: dict[str, Any] = {
    "observation.state": {"dtype": "float32", "shape": [3], "names": ["x", "y", "z"]},
    "action": {"dtype": "float32", "shape": [2], "names": None},
    **{
        name: {"dtype": "float32" if name == "timestamp" else "int64", "shape": [1], "names": None}
        for name in ("timestamp", "frame_index", "episode_index", "index", "task_index")
    },
}


def write_folder(  # noqa: C901 - two versions of one format
    root: Path,
    version: str = "v3.0",
    lengths: Sequence[int] = (12, 9, 15, 10, 11),
    cameras: Sequence[str] = ("front",),
    fps: float = 30,
    tasks: Sequence[str] = ("lift the cube", "push the cube"),
    data_every: int = 2,
    video_every: Mapping[str, int] | int = 3,
    more: Mapping[str, Any] | None = None,
    features: Mapping[str, Any] | None = None,
    task_column: str = "task",
    rate: Any = None,
) -> Path:
    """A folder of one recording in some version.

    Args:
        data_every: episodes per data file (v3.0).
        video_every: episodes per video file, by camera (v3.0).
        more: columns beside the usual ones: name -> (episode number, rows) -> array; their features in ``features``.
        rate: of the videos, unless ``fps``.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    (root / "meta").mkdir(parents=True)
    starts = np.cumsum([0, *lengths]).tolist()
    every = video_every if isinstance(video_every, Mapping) else dict.fromkeys(cameras, video_every)
    stated = {**FEATURES, **(features or {})}
    for camera in cameras:
        stated[f"observation.images.{camera}"] = {
            "dtype": "video",
            "shape": [*SIZE, 3],
            "names": ["height", "width", "channels"],
            "info": {"video.codec": "h264", "video.pix_fmt": "yuv420p", "video.is_depth_map": False, "video.fps": fps},
        }
    info = {
        "codebase_version": version,
        "robot_type": "so101",
        "fps": fps,
        "features": stated,
        "chunks_size": 1000,
        "total_episodes": len(lengths),
        "total_frames": starts[-1],
        "total_tasks": len(tasks),
        "splits": {"train": f"0:{len(lengths) - 1}", "val": f"{len(lengths) - 1}:{len(lengths)}"},
    }
    tables = []
    for number, length in enumerate(lengths):
        rows = episode_rows(number, length, starts[number], number % len(tasks), fps)
        rows |= {name: make(number, length) for name, make in (more or {}).items()}
        tables.append(as_table(rows))

    def frames(camera: int, number: int) -> list[np.ndarray]:
        return [numbered(starts[number] + step, camera) for step in range(lengths[number])]

    if version == "v3.0":
        info |= {
            "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
            "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        }
        meta: dict[str, list[Any]] = {name: [] for name in ("episode_index", "tasks", "length")}
        for number, length in enumerate(lengths):
            meta["episode_index"].append(number)
            meta["tasks"].append([tasks[number % len(tasks)]])
            meta["length"].append(length)
            for name, value in (
                ("data/chunk_index", 0),
                ("data/file_index", number // data_every),
                ("dataset_from_index", starts[number]),
                ("dataset_to_index", starts[number] + length),
            ):
                meta.setdefault(name, []).append(value)
        for file in range(0, len(lengths), data_every):
            path = root / f"data/chunk-000/file-{file // data_every:03d}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            with pq.ParquetWriter(path, tables[0].schema) as writer:
                for table in tables[file : file + data_every]:
                    writer.write_table(table)
        for place, camera in enumerate(cameras):
            key, each = f"observation.images.{camera}", every[camera]
            for first in range(0, len(lengths), each):
                numbers = range(first, min(first + each, len(lengths)))
                write_video(
                    root / f"videos/{key}/chunk-000/file-{first // each:03d}.mp4",
                    [frame for number in numbers for frame in frames(place, number)],
                    rate or fps,
                )
                time = 0.0
                for number in numbers:
                    for name, value in (
                        ("chunk_index", 0),
                        ("file_index", first // each),
                        ("from_timestamp", time),
                        ("to_timestamp", time + lengths[number] / fps),
                    ):
                        meta.setdefault(f"videos/{key}/{name}", []).append(value)
                    time += lengths[number] / fps
        folder = root / "meta/episodes/chunk-000"
        folder.mkdir(parents=True)
        pq.write_table(pa.table(meta), folder / "file-000.parquet")
        pq.write_table(
            pa.table({"task_index": list(range(len(tasks))), task_column: list(tasks)}), root / "meta/tasks.parquet"
        )
    else:
        info |= {
            "total_chunks": 1,
            "total_videos": len(lengths) * len(cameras),
            "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
            "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        }
        for number, table in enumerate(tables):
            path = root / f"data/chunk-000/episode_{number:06d}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(table, path)
            for place, camera in enumerate(cameras):
                write_video(
                    root / f"videos/chunk-000/observation.images.{camera}/episode_{number:06d}.mp4",
                    frames(place, number),
                    rate or fps,
                )
        entries = [
            {"episode_index": number, "tasks": [tasks[number % len(tasks)]], "length": length}
            for number, length in enumerate(lengths)
        ]
        _lines(root / "meta/episodes.jsonl", entries)
        _lines(root / "meta/tasks.jsonl", [{"task_index": k, "task": text} for k, text in enumerate(tasks)])
    (root / "meta/info.json").write_text(json.dumps(info, indent=4))
    return root


def _lines(path: Path, values: Sequence[Any]) -> None:
    path.write_text("".join(json.dumps(value) + "\n" for value in values))


def edit_json(path: Path, change: Any) -> None:
    """Change an object of JSON in place."""
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def edit_table(path: Path, change: Any) -> None:
    """Change the columns of a parquet file, name -> list, in place."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.ParquetFile(path).read()
    columns = table.to_pydict()
    change(columns)
    types = {field.name: field.type for field in table.schema}
    arrays = {name: pa.array(value, types.get(name)) for name, value in columns.items()}
    pq.write_table(pa.table(arrays), path)
