"""The episodes of a recording's folder: listed, dropped, labelled anew, shown."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from flowpolicy.core.errors import ConfigError, DataError
from flowpolicy.core.files import replacing
from flowpolicy.data.hdf5 import open_hdf5, require_group
from flowpolicy.evaluate.video import require_imageio
from flowpolicy.real_robot.session.episodes import (
    DROPPED,
    INDEX,
    LABELS,
    filter_key,
    read_env_args,
    read_labels,
    told_gaps,
    write_index,
)

_PIXELS = (960, 360)
"""Size of the traces in a film."""


@dataclasses.dataclass(frozen=True)
class DemoLine:
    """One episode of a folder."""

    number: int
    rows: int
    seconds: float
    labels: dict[str, str]
    """What is stored with it: label, task, device, operator, lang."""
    gaps: str
    """Where ticks are missing, in words; empty if nowhere."""

    def line(self) -> str:
        """For the console."""
        said = [self.labels.get(key, "") for key in ("task", "device", "operator")]
        return (
            f"{self.number:>5}  {self.labels.get('label', ''):<10}  {self.rows:>5} rows  {self.seconds:>6.1f} s  "
            f"{'  '.join(word for word in said if word)}{self.gaps and '  ' + self.gaps}"
        ).rstrip()


def list_demos(folder: Path) -> list[DemoLine]:
    """Every episode of a folder, in order.

    Raises:
        ConfigError: it is no folder of recordings.

    """
    found = []
    for path in _episodes(folder):
        with open_hdf5(path) as file:
            data = require_group(file, "data", path)
            parts = [data[name] for name in data]
            rows = sum(len(part["actions"]) for part in parts)
            seconds = sum(_length(part) for part in parts)
        found.append(DemoLine(_number(path), rows, seconds, read_labels(path), told_gaps(path)))
    return found


def drop_demos(folder: Path, numbers: Sequence[int]) -> list[Path]:
    """Take episodes out of a folder: they are moved to its folder ``dropped``, and the index is written anew."""
    paths = [_episode(folder, number) for number in _some(numbers, "drop")]
    (folder / DROPPED).mkdir(exist_ok=True)
    moved = [Path(shutil.move(path, folder / DROPPED / path.name)) for path in paths]
    _index(folder)
    return moved


def relabel_demos(folder: Path, numbers: Sequence[int], label: str) -> None:
    """Label episodes anew, and write the index anew; each file is replaced as a whole.

    Args:
        folder: of the recordings.
        numbers: of the episodes.
        label: one of :data:`LABELS`.

    Raises:
        ConfigError: there is no such episode or label.

    """
    if label not in LABELS:
        raise ConfigError(f"--label {label or 'is missing'}", expected=" or ".join(LABELS))
    for path in [_episode(folder, number) for number in _some(numbers, "relabel")]:
        with replacing(path) as temporary:
            shutil.copyfile(path, temporary)
            with h5py.File(temporary, "r+") as file:
                _relabel(file, label)
    _index(folder)


def _relabel(file: h5py.File, label: str) -> None:
    names = sorted(file["data"], key=lambda name: int(name.rpartition("_")[2]))
    for place, name in enumerate(names):
        demo = file["data"][name]
        rewards = np.zeros(len(demo["rewards"]))
        rewards[-1] = float(label == "success" and place == len(names) - 1)
        demo["rewards"][...] = rewards
        meta = json.loads(demo.attrs.get("ep_meta", "{}"))
        demo.attrs["ep_meta"] = json.dumps(meta | {"label": label})
    del file["mask"]
    file.create_dataset(f"mask/{filter_key(label)}", data=np.array(names, dtype="S"), track_times=False)


def show_demo(folder: Path, number: int, out: Path | None = None) -> Path:
    """Write an episode as a film: its pictures, and traces of actions and tool that a line runs through.

    Args:
        folder: of the recordings.
        number: of the episode.
        out: the film; episode_0003.mp4 beside the episode unless given.

    Raises:
        ConfigError: there is no such episode.
        MissingExtraError: the extra 'video' is not installed.

    """
    ffmpeg = require_imageio()
    path = _episode(folder, number)
    out = out or path.with_suffix(".mp4")
    if out.suffix != ".mp4":
        raise ConfigError(f"--out {out}", expected="a name that ends in .mp4")
    with open_hdf5(path) as file:
        data = require_group(file, "data", path)
        demo = data["demo_0"]
        actions, tool = demo["actions"][()], demo["obs"]["robot0_eef_pos"][()]
        pictures = {key: demo["obs"][key][()] for key in demo["obs"] if key.endswith("_image")}
        rate = float(read_env_args(path)["action_spec"]["rate_hz"])
    labels = read_labels(path)
    traces, left, right = _traces(
        actions, tool, rate, f"{path.name}: {labels.get('label', '')} {labels.get('lang', '')}"
    )
    with replacing(out) as temporary:
        writer = None
        for row in range(len(actions)):
            frame = traces.copy()
            column = round(left + (right - left) * row / max(len(actions) - 1, 1))
            frame[:, max(column - 1, 0) : column + 1] = (213, 94, 0)
            if pictures:
                frame = np.concatenate([_strip([images[row] for images in pictures.values()], frame.shape[1]), frame])
            if writer is None:
                writer = ffmpeg.write_frames(
                    str(temporary),
                    (frame.shape[1], frame.shape[0]),
                    fps=rate,
                    codec="libx264",
                    pix_fmt_out="yuv420p",
                    macro_block_size=2,
                    output_params=["-f", "mp4"],  # the temporary name has no .mp4 to tell the container from
                )
                writer.send(None)
            writer.send(np.ascontiguousarray(frame))
        if writer is not None:
            writer.close()
    return out


def _traces(
    actions: NDArray[Any], tool: NDArray[Any], rate: float, title: str
) -> tuple[NDArray[np.uint8], float, float]:
    """Picture of the traces, and the columns of their first and last row."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_PIXELS[0] / 100, _PIXELS[1] / 100), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    steps, opening, place = figure.subplots(3, 1, sharex=True, height_ratios=(2, 1, 2))
    t = np.arange(len(actions)) / rate
    for joint in range(actions.shape[1] - 1):
        steps.plot(t, 1e3 * actions[:, joint], lw=0.9, label=str(joint + 1))
    steps.set_ylabel("step, mrad")
    steps.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=7, title="joint", title_fontsize=7)
    opening.plot(t, 1e3 * actions[:, -1], color="0.2")
    opening.set_ylabel("hand, mm")
    for axis, name in enumerate("xyz"):
        place.plot(t, tool[:, axis], lw=0.9, label=name)
    place.set_ylabel("tool, m")
    place.set_xlabel("s")
    place.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=7)
    place.set_xlim(0.0, max(float(t[-1]), 1e-3))
    figure.suptitle(title.strip()[:110], fontsize=9)
    canvas.draw()
    image = np.asarray(canvas.buffer_rgba())[:, :, :3].copy()
    left, right = (float(place.transData.transform((x, 0.0))[0]) for x in (0.0, max(float(t[-1]), 1e-3)))
    return image, left, right


def _strip(pictures: list[NDArray[Any]], width: int) -> NDArray[np.uint8]:
    """Pictures side by side, as wide as the traces; each pixel of them repeated."""
    height = max(picture.shape[0] for picture in pictures)
    times = max(1, min(240 // height, width // sum(picture.shape[1] for picture in pictures)))
    high = times * height + (times * height) % 2
    canvas = np.full((high, width, 3), 255, dtype=np.uint8)
    at = 0
    for picture in pictures:
        large = picture.repeat(times, 0).repeat(times, 1)[:, : width - at]
        canvas[: large.shape[0], at : at + large.shape[1]] = large
        at += large.shape[1]
    return canvas


def _episodes(folder: Path) -> list[Path]:
    if not folder.is_dir() or not ((folder / INDEX).exists() or any(folder.glob("*episode_*"))):
        raise ConfigError(
            f"{folder} is no folder of recordings", expected="the folder that `flowpolicy robot record --out` wrote to"
        )
    return sorted(folder.glob("episode_*.hdf5"))


def _episode(folder: Path, number: int) -> Path:
    here = {_number(path): path for path in _episodes(folder)}
    if number not in here:
        known = ", ".join(map(str, sorted(here)[:8])) + (" ..." if len(here) > 8 else "")
        raise ConfigError(f"{folder} holds no episode {number}", expected=known or "no episodes are there")
    return here[number]


def _some(numbers: Sequence[int], what: str) -> list[int]:
    if not numbers:
        raise ConfigError(f"robot demos {what}: of which episode?", expected="numbers, as `list` shows them")
    return sorted(set(numbers))


def _index(folder: Path) -> None:
    """Write the index anew; without an episode there is none."""
    if any(folder.glob("episode_*.hdf5")):
        write_index(folder)
    else:
        (folder / INDEX).unlink(missing_ok=True)


def _number(path: Path) -> int:
    tail = path.stem.rpartition("_")[2]
    if not tail.isdigit():
        raise DataError(f"{path} is no episode of a recording", fix="move it away")
    return int(tail)


def _length(part: h5py.Group) -> float:
    times = part["robot/t_mono"][()] if "robot/t_mono" in part else np.zeros(0)
    return float(np.median(np.diff(times)) * len(times)) if len(times) > 1 else 0.0
