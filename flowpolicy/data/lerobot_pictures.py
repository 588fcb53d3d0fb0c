"""Pictures of a LeRobot folder: videos that are decoded once, from the first frame to the last, and those in tables.

Which frame belongs to a row is counted in whole frames. The times that the table of episodes states say where an
episode begins in its file; every frame's own time is compared with what the table says of it, and the lengths of the
episodes of a file with the number of its frames. Where the two disagree, what is certain is taken and told.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowpolicy.core.errors import DataError, DataWarning, MissingExtraError
from flowpolicy.core.files import cache_root, tree_sha256
from flowpolicy.data.lerobot_meta import EpisodePlace, LeRobotFeature, LeRobotFolder, stream_name

_SKIP = 64
"""Frames that are decoded and thrown away before a jump to a key frame is worth its cost."""
_RATE = 0.05
"""Largest share by which the rate of a video may differ from the stated one, where its frames are as many as its rows:
29 for 29.97, which a converter made of it."""


class LeRobotFrames:
    """The pictures of one camera in the chosen episodes: a source of frames.

    Args:
        folder: the folder.
        feature: of the camera.
        episodes: the chosen ones, in order.

    Raises:
        DataError: it is no stream of colour pictures, or a file of it is missing.

    """

    def __init__(self, folder: LeRobotFolder, feature: LeRobotFeature, episodes: Sequence[EpisodePlace]) -> None:
        if feature.why_unread:
            raise folder.error(
                f"{feature.name} is {feature.why_unread}",
                expected="pictures of three colours",
                fix="leave this camera out: --data.cameras NAME ...",
            )
        self.key, self.size = stream_name(feature.name), feature.size
        self.names = tuple(episode.name for episode in episodes)
        self.lengths = tuple(episode.length for episode in episodes)
        self._folder, self._feature, self._episodes = folder, feature, episodes
        self._video = feature.dtype == "video"
        self._places = [episode.data for episode in episodes]
        if self._video:
            self._places = [find_video(folder, episode.videos[feature.name][0])[0] for episode in episodes]
        self._open: tuple[str, VideoFile | None] = ("", None)
        self._starts: dict[str, dict[int, int]] = {}

    @property
    def root(self) -> Path:
        """Cache folder of these frames: another one for other files and for other episodes of them."""
        content = tree_sha256(self._folder.root, self.files)
        starts = [episode.videos.get(self._feature.name, ("", 0.0))[1] for episode in self._episodes]
        of = [self._places, starts, self.names, self.lengths, self._feature.name, self._folder.fps]
        return cache_root() / "frames" / hashlib.sha256(f"{content} {json.dumps(of)}".encode()).hexdigest()

    @property
    def files(self) -> list[str]:
        """Paths of its files in the folder."""
        return sorted(set(self._places))

    def reading_order(self) -> Sequence[int]:
        """By file, and by the place in it."""
        starts = [episode.videos.get(self._feature.name, ("", 0.0))[1] for episode in self._episodes]
        return sorted(range(len(self.names)), key=lambda k: (self._places[k], starts[k], self._episodes[k].number))

    def blocks(self, episode: int, rows: int) -> Iterator[NDArray[np.uint8]]:
        """The frames of an episode in blocks; DataError, with episode and frame, where one is not there."""
        wanted = self._episodes[episode]
        frames = self._from_video(episode, wanted) if self._video else self._from_table(wanted)
        block: list[NDArray[np.uint8]] = []
        for frame in frames:
            block.append(frame)
            if len(block) == rows:
                yield np.stack(block)
                block = []
        if block:
            yield np.stack(block)

    def _from_video(self, number: int, wanted: EpisodePlace) -> Iterator[NDArray[np.uint8]]:
        name = self._places[number]
        if self._open[0] != name:
            if self._open[1] is not None:
                self._open[1].close()
            self._open = (name, None)
            self._open = (name, VideoFile(self._folder, name, self.size))
        video = self._open[1]
        assert video is not None
        if name not in self._starts:
            self._starts = {name: place_episodes(self._folder, self._feature, name, video)}
        if wanted.number not in self._starts[name]:  # the table says another file than the one that it is in
            self._places[number] = next(
                file for file, starts in self._folder.laid_out[self._feature.name].items() if wanted.number in starts
            )
            return self._from_video(number, wanted)
        return video.frames(self._starts[name][wanted.number], wanted.length, wanted.name)

    def _from_table(self, wanted: EpisodePlace) -> Iterator[NDArray[np.uint8]]:
        for step, value in enumerate(read_cells(self._folder, wanted, self._feature.name)):
            where = f"{wanted.data}: {self._feature.name} of {wanted.name}, frame {step},"
            yield _as_picture(self._folder, value, self._feature, where)


class VideoFile:
    """One video, decoded from wherever it is wanted; the frames of neighbouring episodes in one go.

    Args:
        folder: the folder.
        name: path in it.
        size: (height, width, 3) that the frames must have.

    Raises:
        DataError: it cannot be opened, or holds pictures of another size or no pictures.

    """

    def __init__(self, folder: LeRobotFolder, name: str, size: tuple[int, int, int]) -> None:
        self._av, self._folder, self.name, self.size = require_av(), folder, name, size
        path = folder.inside(name)
        self._container: Any = None
        if not path.is_file():
            raise folder.error(f"the video {name} is missing")
        try:
            self._container = self._av.open(str(path), metadata_errors="replace")
            if not self._container.streams.video:
                raise folder.error(f"{name} holds no pictures")
            self._stream = self._container.streams.video[0]
            self._stream.thread_type = "AUTO"
            packets = [packet for packet in self._container.demux(self._stream) if packet.pts is not None]
            self.pts = sorted(packet.pts for packet in packets if not packet.is_discard)
            self.codec = str(self._stream.codec_context.name)
        except (self._av.FFmpegError, OSError, ValueError, RuntimeError) as error:
            self.close()
            raise self._damaged("it cannot be opened", error) from error
        found = (self._stream.codec_context.height, self._stream.codec_context.width)
        if not self.pts or found != size[:2]:
            self.close()
            what = (
                f"has pictures of {found[0]} x {found[1]}" if self.pts else "is truncated or damaged: it has no frames"
            )
            raise folder.error(f"{name} {what}", expected=f"{size[0]} x {size[1]}, as meta/info.json says")
        base = float(self._stream.time_base or 0) or 1.0
        self.times: NDArray[np.float64] = (np.array(self.pts, dtype=np.float64) - self.pts[0]) * base
        """(n,) seconds from the first frame, in the order in which they are shown."""
        self._next = -1
        self._running: Iterator[Any] = iter(())

    def close(self) -> None:
        """Free the decoder."""
        if self._container is not None:
            self._container.close()
            self._container = None

    def frames(self, first: int, count: int, episode: str) -> Iterator[NDArray[np.uint8]]:
        """``count`` frames from number ``first`` on, (height, width, 3)."""
        numbers = {pts: number for number, pts in enumerate(self.pts)}
        step = 0
        try:
            if not 0 <= first - self._next <= _SKIP or self._next < 0:
                self._container.seek(self.pts[first], stream=self._stream)
                self._running, self._next = self._container.decode(self._stream), first
            for frame in self._running:
                number = numbers.get(frame.pts, -1)
                if number < first:
                    continue
                if number != first + step or frame.is_corrupt:
                    break
                yield frame.to_ndarray(format="rgb24")
                step += 1
                self._next = number + 1
                if step == count:
                    return
        except (self._av.FFmpegError, OSError, ValueError, RuntimeError) as error:
            self._next = -1
            raise self._damaged(f"{episode}, frame {step}, cannot be decoded", error) from error
        self._next = -1
        raise self._damaged(f"{episode}, frame {step}, is not there or damaged")

    def _damaged(self, what: str, error: Exception | None = None) -> DataError:
        why = f": {(str(error).splitlines() or [''])[0][:120]}" if error else ""
        return self._folder.error(
            f"{self.name} is truncated or damaged, {what}{why}",
            fix="copy or download the video again; or leave the episode out: --data.filter-key says which to use",
        )


def find_video(folder: LeRobotFolder, name: str) -> tuple[str, str]:
    """Path of a video in the folder, and what had to be mended in it.

    Raises:
        DataError: there is none.

    """
    if folder.exists(name):
        return name, ""
    head, _, rest = name.partition("/")
    other = f"video/{rest}" if head == "videos" else f"videos/{rest}"
    if rest and folder.exists(other):
        return other, f"holds its videos in {other.partition('/')[0]}/, and {name.partition('/')[0]}/ is stated"
    raise folder.error(f"the video {name} is missing")


def place_episodes(folder: LeRobotFolder, feature: LeRobotFeature, name: str, video: VideoFile) -> dict[int, int]:
    """Number of the first frame of every episode that is in a video; warns of what had to be mended.

    Raises:
        DataError: the file has fewer frames than its episodes have rows, or a frame has another time than its row.

    """
    if feature.name in folder.laid_out:
        return folder.laid_out[feature.name].get(name, {})
    there = [each for each in folder.episodes if find_in(folder, each, feature.name) == name]
    try:
        starts, told = _placed(folder, there, feature.name, name, video)
    except DataError as error:
        found = laid_out(folder, feature)
        if not found:
            raise
        folder.laid_out[feature.name], starts = found, found.get(name, {})
        told = [
            f"has a table that does not fit {name} ({error.what.removeprefix(f'{folder.root}: ')}): all its videos of "
            f"{feature.name} have a frame for every row, and are counted one after the other"
        ]
    for line in told:
        warnings.warn(f"{folder.root} {line}", DataWarning, stacklevel=2)
    return starts


def laid_out(folder: LeRobotFolder, feature: LeRobotFeature) -> dict[str, dict[int, int]]:
    """File -> number of an episode -> its first frame there, counted through all videos of a camera.

    Empty where they do not have a frame for every row, each at its time, or where a video ends within an episode.
    """
    stated = {find_in(folder, each, feature.name) for each in folder.episodes} - {""}
    files = set(stated)
    if folder.is_shared:
        files |= {str(path.relative_to(folder.root)) for n in stated for path in (folder.root / n).parent.glob("*.mp4")}
    found: dict[str, dict[int, int]] = {}
    left = list(folder.episodes)
    for name in sorted(files):
        video = VideoFile(folder, name, feature.size)
        video.close()
        frames = len(video.pts)
        rate, uniform = _rate_of(video.times)
        found[name], first = {}, 0
        while left and first + left[0].length <= frames:
            found[name][left[0].number] = first
            first += left.pop(0).length
        if first != frames or not uniform or abs(rate / folder.fps - 1) > _RATE:
            return {}
    return {} if left else found


def find_in(folder: LeRobotFolder, episode: EpisodePlace, feature: str) -> str:
    """Path of an episode's video; empty where it is missing."""
    try:
        return find_video(folder, episode.videos[feature][0])[0]
    except DataError:
        return ""


def _placed(
    folder: LeRobotFolder, there: Sequence[EpisodePlace], feature: str, name: str, video: VideoFile
) -> tuple[dict[int, int], list[str]]:
    """First frames by number of the episode, and what to tell."""
    frames, rows, told = len(video.pts), sum(each.length for each in there), []
    rate, uniform = _rate_of(video.times)
    other_rate = uniform and abs(rate / folder.fps - 1) > 1e-3 and frames > 2
    if other_rate and (abs(rate / folder.fps - 1) > _RATE or frames != rows):
        raise folder.error(
            f"{name} has {rate:.6g} frames per second, and meta/info.json says {folder.fps:g}",
            expected=f"{rows} frames, one for every row, at the rate that is stated",
            fix="correct fps in meta/info.json, or write the videos anew",
        )
    by_number = sorted(there, key=lambda each: each.number)
    counted = dict(zip([e.number for e in by_number], np.cumsum([0, *(e.length for e in by_number)]), strict=False))
    if other_rate:
        told.append(
            f"says {folder.fps:g} frames per second and {name} has {rate:.6g}: frames are counted, one for every row"
        )
        return {number: int(first) for number, first in counted.items()}, told
    timed, wrong = _by_time(folder, there, feature, video)
    if not wrong:
        if frames > rows:
            told.append(f"has {frames - rows} frames in {name} that belong to no row; they are left out")
        return timed, told
    if frames == rows and uniform:
        told.append(f"{wrong}: the frames of {name} are as many as its rows, and are counted")
        return {number: int(first) for number, first in counted.items()}, told
    raise folder.error(
        wrong[0].upper() + wrong[1:] if frames >= rows else f"{name} has {frames} frames for {rows} rows: {wrong}",
        expected="a frame for every row, at its time",
        fix="record or convert the episode again; or leave it out: --data.filter-key says which to use",
    )


def _by_time(
    folder: LeRobotFolder, there: Sequence[EpisodePlace], feature: str, video: VideoFile
) -> tuple[dict[int, int], str]:
    """First frames by the times of the table, and the first thing that contradicts them, with episode and frame."""
    found: dict[int, int] = {}
    half, end, last = 0.5 / folder.fps, 0, ""
    for each in sorted(there, key=lambda each: (each.videos[feature][1], each.number)):
        start = each.videos[feature][1]
        first = int(np.searchsorted(video.times, start - half))
        stated = start + np.arange(each.length) / folder.fps
        shown = video.times[first : first + each.length]
        off = np.flatnonzero(np.abs(shown - stated[: len(shown)]) >= half)
        if off.size:
            step = int(off[0])
            return found, (
                f"{each.name}, frame {step}, of {feature} is shown at {shown[step]:.4f} s and stated for "
                f"{stated[step]:.4f} s"
            )
        if len(shown) < each.length:
            return found, f"{each.name}, frame {len(shown)}, of {feature} is not there: the video ends before"
        if first < end:
            return found, f"{each.name} begins in {feature} at {start:.4f} s, where {last} has not ended"
        found[each.number], end, last = first, first + each.length, each.name
    return found, ""


def _rate_of(times: NDArray[np.float64]) -> tuple[float, bool]:
    """Frames per second of a video, and whether every frame comes at its time of that rate."""
    if len(times) < 2 or times[-1] <= 0:
        return 0.0, len(times) == 1
    each = times[-1] / (len(times) - 1)
    return 1.0 / each, bool((np.abs(times - np.arange(len(times)) * each) < 0.5 * each).all())


def read_cells(folder: LeRobotFolder, episode: EpisodePlace, column: str) -> Iterator[Any]:
    """The values of one column in the rows of an episode, a block of rows at a time."""
    file = folder.open_parquet(episode.data)
    with folder.reading(episode.data):
        names = file.schema_arrow.names
        if column not in names:
            raise folder.error(f"{episode.data} has no column {column}", expected=", ".join(names)[:200])
        mine = "episode_index" in names
        left = episode.length
        for group in range(file.metadata.num_row_groups):
            if mine and not _may_hold(file, group, names, episode.number):
                continue
            wanted = [column, "episode_index"] if mine else [column]
            for batch in file.iter_batches(64, row_groups=[group], columns=wanted):
                rows = range(batch.num_rows)
                if mine:
                    rows = np.flatnonzero(batch.column("episode_index").to_numpy() == episode.number).tolist()
                cells = batch.column(column)
                for row in rows[:left]:
                    yield cells[row]
                left -= len(rows[:left])
                if not left:
                    return
    raise folder.error(
        f"{episode.data} holds {episode.length - left} pictures of {episode.name} in {column}",
        expected=f"{episode.length}, one for every row",
    )


def _may_hold(file: Any, group: int, names: Sequence[str], episode: int) -> bool:
    part = file.metadata.row_group(group)
    for column in range(part.num_columns):
        if part.column(column).path_in_schema == "episode_index":
            stats = part.column(column).statistics
            return stats is None or not stats.has_min_max or stats.min <= episode <= stats.max
    return True


def _as_picture(folder: LeRobotFolder, cell: Any, feature: LeRobotFeature, where: str) -> NDArray[np.uint8]:
    """(height, width, 3) of what a table holds for one picture."""
    if feature.dtype == "uint8":
        numbers = _numbers_in(cell)
        if numbers.size != math.prod(feature.shape) or not ((numbers >= 0) & (numbers <= 255)).all():
            raise folder.error(f"{where} is no picture of shape {feature.shape} with numbers from 0 to 255")
        picture = numbers.astype(np.uint8).reshape(feature.shape)
        return picture.transpose(1, 2, 0) if feature.channels_first else picture
    value = cell.as_py()
    content = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(content, bytes) or not content:
        raise folder.error(
            f"{where} holds no picture"
            + (", but the path of a file" if isinstance(value, dict) and value.get("path") else ""),
            expected="the bytes of a PNG or JPEG file",
            fix="write the dataset with its pictures in it (embed_images)",
        )
    return decode_picture(folder, content, feature.size, where)


def decode_picture(folder: LeRobotFolder, content: bytes, size: tuple[int, int, int], where: str) -> NDArray[np.uint8]:
    """Decode a PNG or JPEG of the stated size and of three colours; its size is looked at before its pixels."""
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            picture = Image.open(io.BytesIO(content), formats=("PNG", "JPEG", "WEBP", "TIFF", "BMP"))
            if picture.size != (size[1], size[0]):
                raise folder.error(
                    f"{where} is {picture.size[1]} x {picture.size[0]}",
                    expected=f"{size[0]} x {size[1]}, as meta/info.json says",
                )
            if picture.mode not in ("RGB", "P"):
                raise folder.error(
                    f"{where} is of the kind {picture.mode}",
                    expected="three colours",
                    fix="grey pictures, depth and transparency are not read: leave this camera out",
                )
            return np.asarray(picture.convert("RGB"))
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise folder.error(f"{where} cannot be decoded: {(str(error).splitlines() or [''])[0][:120]}") from error


def _numbers_in(cell: Any) -> NDArray[Any]:
    """All numbers of a list of lists; none where it holds something else."""
    import pyarrow as pa

    values = getattr(cell, "values", None)
    while values is not None and pa.types.is_nested(values.type) and hasattr(values, "flatten"):
        values = values.flatten()
    if values is None or not pa.types.is_integer(values.type) or values.null_count:
        return np.empty(0)
    return np.asarray(values.to_numpy(zero_copy_only=False))


def require_av() -> Any:
    """The module ``av``.

    Raises:
        MissingExtraError: the extra 'lerobot' is not installed.

    """
    try:
        import av
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "av", "lerobot") from error
    return av
