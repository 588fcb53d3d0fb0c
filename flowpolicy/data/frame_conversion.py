"""The frames of a dataset file are converted once into files of their own, in the file's order, whole or not at all."""

from __future__ import annotations

import math
import os
import shutil
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from flowpolicy.core.errors import DataError, from_system
from flowpolicy.core.files import SPARE, flush, held_alone, read_json, write_json
from flowpolicy.core.progress import progress_bar
from flowpolicy.data.frames import PLACE, FrameStore, JpegFrames, RawFrames, decode_jpeg, encode_jpeg

FrameKeeping = Literal["auto", "raw", "jpeg"]
"""How frames are kept: every pixel; as JPEG; or the one up to :data:`RAW_LIMIT` and the other beyond."""
RAW_LIMIT = 16 << 30
"""Bytes of one camera's pixels up to which 'auto' keeps all of them."""
QUALITY = 95
"""Of the JPEGs, whose colours are at full resolution: about a sixth of the pixels, 44 dB on pictures of Lift."""

_COMPLETE, _FRAMES, _PLACES, _JOURNAL = "complete.json", "frames.bin", "places.bin", "journal.json"
_BLOCK = 64 << 20
"""Bytes that are converted at a time."""
_JOURNAL_EVERY = 512 << 20
"""Bytes of pixels between two entries of the journal that an interrupted conversion goes on from."""
_LOOKED_AT = 10  # episodes, and frames of each, that tell how large JPEGs become and how far they are from the pixels


@runtime_checkable
class FrameSource(Protocol):
    """The frames of one camera in a dataset file, episode by episode."""

    key: str
    """Name of the observation."""
    size: tuple[int, int, int]
    """(height, width, 3)."""
    names: tuple[str, ...]
    """All episodes of the file."""
    lengths: tuple[int, ...]
    """Frames of each."""

    def reading_order(self) -> Sequence[int]:
        """Numbers of the episodes in the order in which the file holds them."""

    def blocks(self, episode: int, rows: int) -> Iterator[NDArray[np.uint8]]:
        """The frames of an episode in blocks of about so many; DataError where they cannot be read."""


def open_frames(
    root: Path, source: FrameSource, path: Path, wanted: Sequence[str], keep: FrameKeeping = "raw"
) -> FrameStore:
    """The frames of one camera of a file, for the episodes ``wanted``, one after the other.

    They are converted where that was not done before; a conversion that was interrupted goes on, and one that another
    process has begun is waited for.

    Args:
        root: cache folder of this file, named by its hash.
        source: what to convert.
        path: the dataset file, for errors.
        wanted: names of the episodes, in the order of the dataset.
        keep: every pixel, or JPEGs.

    Raises:
        DataError: the file cannot be read, or the disk has no room.

    """
    shape = (sum(source.lengths), *source.size)
    jpeg = is_jpeg(source, keep)
    folder = root / (f"{source.key}.jpeg" if jpeg else source.key)
    if folder.parent != root or folder.name in ("..", ".", ""):
        raise DataError(f"{path} holds pictures called '{source.key}'", expected="a name that can be one of a folder")
    episodes = list(map(list, zip(source.names, source.lengths, strict=True)))
    stated: dict[str, Any] = {"file": root.name, "shape": list(shape), "episodes": episodes}
    stated |= {"quality": QUALITY} if jpeg else {}
    try:
        if not (folder / _COMPLETE).exists():
            _convert(folder, source, path, stated, _JpegWriter if jpeg else _RawWriter)
        found = {"file": root.name, **read_json(folder / _COMPLETE)}  # of before: nothing said of its file
        if {name: found.get(name) for name in stated} != stated:
            raise DataError(f"{folder} holds other frames than {path}", fix=f"delete {folder}")
        order = _order(source, wanted)
        if jpeg:
            return JpegFrames(folder / _FRAMES, folder / _PLACES, shape, found["bytes"], order)
        return RawFrames(folder / _FRAMES, shape, order)
    except OSError as error:
        told = from_system(error)
        raise DataError(
            f"{path}: the frames of {source.key} cannot be kept in {folder}: {told.what if told else error}",
            fix=f"delete {folder}, or name another cache folder in XDG_CACHE_HOME",
        ) from error


def is_jpeg(source: FrameSource, keep: FrameKeeping) -> bool:
    """Whether the frames of a source are kept as JPEG."""
    return keep == "jpeg" or (keep == "auto" and sum(source.lengths) * math.prod(source.size) > RAW_LIMIT)


def jpeg_remark(root: Path, source: FrameSource) -> str:
    """What was lost by keeping frames as JPEG, in a sentence that follows the name of the file."""
    about, pixels = read_json(root / f"{source.key}.jpeg" / _COMPLETE), sum(source.lengths) * math.prod(source.size)
    return (
        f"has {pixels / 1e9:.3g} GB of frames of {source.key}, more than {RAW_LIMIT / 1e9:.3g}: they are kept as JPEG "
        f"of quality {about['quality']}, {about['bytes'] / 1e9:.3g} GB, {about['psnr_db']:.1f} dB from the pixels; "
        "--data.frame-store raw keeps every pixel"
    )


def _order(source: FrameSource, wanted: Sequence[str]) -> NDArray[np.int64] | None:
    """Frame of every row, or None where that is its number."""
    if tuple(wanted) == source.names:
        return None
    ends = np.cumsum(source.lengths)
    span = {
        name: (int(end) - steps, int(end)) for name, end, steps in zip(source.names, ends, source.lengths, strict=True)
    }
    return np.concatenate([np.arange(*span[name], dtype=np.int64) for name in wanted])


class _RawWriter:
    """Writes pixels side by side, every frame at its row.

    Args:
        partial: folder to write to.
        source: what is converted.
        path: the dataset file, for errors.
        journal: what an interrupted conversion said last; empty where there was none.

    """

    def __init__(self, partial: Path, source: FrameSource, path: Path, journal: dict[str, Any]) -> None:
        size, file = sum(source.lengths) * math.prod(source.size), partial / _FRAMES
        self._each = math.prod(source.size)
        held = file.stat() if file.exists() else None
        self.resumes = held is not None and held.st_size == size
        _require_room(partial, size - (held.st_blocks * 512 if held else 0), size, path, source.key)
        self._file = os.open(file, os.O_CREAT | os.O_RDWR, 0o644)
        # All its blocks now, so that a disk that is too full is told before hours of work.
        os.ftruncate(self._file, size)
        os.posix_fallocate(self._file, 0, max(1, size))

    def write(self, row: int, block: NDArray[np.uint8]) -> None:
        _write_at(self._file, np.ascontiguousarray(block).data.cast("B"), row * self._each)

    def written(self) -> dict[str, Any]:
        """What the journal needs to go on, once it is on the disk."""
        os.fsync(self._file)
        return {}

    def facts(self) -> dict[str, Any]:
        """What the whole store says of itself beside what it holds."""
        return {}

    def close(self) -> None:
        os.close(self._file)


class _JpegWriter:
    """Appends one JPEG per frame, and writes its place at its row; see :class:`_RawWriter`."""

    def __init__(self, partial: Path, source: FrameSource, path: Path, journal: dict[str, Any]) -> None:
        rows, self._end = sum(source.lengths), int(journal.get("bytes", 0))
        frames, places = partial / _FRAMES, partial / _PLACES
        self.resumes = (
            frames.exists()
            and frames.stat().st_size >= self._end
            and places.exists()
            and places.stat().st_size == rows * PLACE.size
        )
        self._end *= self.resumes
        each, self._psnr = _looked_at(source)
        expected = int(1.1 * rows * each) + rows * PLACE.size
        _require_room(partial, expected - self._end, expected, path, source.key)
        self._frames, self._places = (os.open(file, os.O_CREAT | os.O_RDWR, 0o644) for file in (frames, places))
        os.ftruncate(self._frames, self._end)
        os.ftruncate(self._places, rows * PLACE.size)

    def write(self, row: int, block: NDArray[np.uint8]) -> None:
        places = bytearray()
        coded = [encode_jpeg(frame, QUALITY) for frame in block]
        start = self._end
        for data in coded:
            places += PLACE.pack(self._end, len(data), zlib.crc32(data))
            self._end += len(data)
        _write_at(self._frames, memoryview(b"".join(coded)), start)
        _write_at(self._places, memoryview(places), row * PLACE.size)

    def written(self) -> dict[str, Any]:
        for file in (self._frames, self._places):
            os.fsync(file)
        return {"bytes": self._end}

    def facts(self) -> dict[str, Any]:
        return {"bytes": self._end, "psnr_db": self._psnr}

    def close(self) -> None:
        for file in (self._frames, self._places):
            os.close(file)


def _looked_at(source: FrameSource) -> tuple[float, float]:
    """Mean bytes of a JPEG, and how far they are from the pixels (peak signal-to-noise ratio, dB; 99 for equal)."""
    sizes, squares = [], []
    for episode in np.linspace(0, len(source.lengths) - 1, min(_LOOKED_AT, len(source.lengths))).astype(int).tolist():
        for frame in next(iter(source.blocks(episode, _LOOKED_AT)))[:_LOOKED_AT]:
            data, again = encode_jpeg(frame, QUALITY), np.empty_like(frame)
            decode_jpeg(data, again)
            sizes.append(len(data))
            squares.append(float(np.square(frame.astype(np.float64) - again).mean()))
    error = float(np.mean(squares))
    return float(np.mean(sizes)), round(min(99.0, 10 * math.log10(255**2 / error)), 2) if error else 99.0


def _convert(
    folder: Path,
    source: FrameSource,
    path: Path,
    stated: dict[str, Any],
    writer: type[_RawWriter] | type[_JpegWriter],
) -> None:
    """Write the frames beside ``folder`` and rename them into place when they are whole."""
    partial = folder.with_name(f"{folder.name}.partial")
    partial.parent.mkdir(parents=True, exist_ok=True)
    with held_alone(partial, f"the conversion of {path}", wait=True):
        if (folder / _COMPLETE).exists():  # by another process meanwhile
            shutil.rmtree(partial, ignore_errors=True)
            return
        if folder.exists():  # somebody has taken what says that it is whole
            shutil.rmtree(folder)
        journal = _journal(partial, stated)
        into = writer(partial, source, path, journal)
        try:
            _write(partial, source, set(journal.get("done", ())) if into.resumes else set(), stated, into)
            write_json(partial / _COMPLETE, {**stated, **into.facts()})
        finally:
            into.close()
        partial.rename(folder)
        flush(folder.parent)
        (folder / _JOURNAL).unlink()


def _journal(partial: Path, stated: dict[str, Any]) -> dict[str, Any]:
    """What an interrupted conversion of the same frames said last."""
    if not (partial / _JOURNAL).exists():
        return {}
    journal: dict[str, Any] = read_json(partial / _JOURNAL)
    return journal if journal.get("stated") == stated else {}


def _require_room(partial: Path, needed: int, size: int, path: Path, key: str) -> None:
    free = shutil.disk_usage(partial).free
    if needed + SPARE > free:
        raise DataError(
            f"{path}: the frames of {key} take {size / 1e9:.3g} GB in {partial.parent.parent}, where {free / 1e9:.3g} "
            "GB are free",
            fix="free some space, keep them as JPEG (--data.frame-store jpeg), or name a folder on another disk in "
            "XDG_CACHE_HOME",
        )


def _write(
    partial: Path,
    source: FrameSource,
    done: set[int],
    stated: dict[str, Any],
    into: _RawWriter | _JpegWriter,
) -> None:
    each = math.prod(source.size)
    starts = np.cumsum([0, *source.lengths]).tolist()
    total, rows, since = starts[-1], max(1, _BLOCK // each), 0

    def enter() -> None:
        write_json(partial / _JOURNAL, {"stated": stated, "done": sorted(done), **into.written()})

    finished = sum(source.lengths[episode] for episode in done)
    with progress_bar(f"frames of {source.key}", total, finished, shown=total * each > _BLOCK) as move:
        for episode in (number for number in source.reading_order() if number not in done):
            row = starts[episode]
            for block in source.blocks(episode, rows):
                into.write(row, block)
                row += len(block)
            done.add(episode)
            finished, since = finished + source.lengths[episode], since + source.lengths[episode] * each
            move(finished, "")
            if since > _JOURNAL_EVERY:
                enter()
                since = 0
    enter()


def _write_at(descriptor: int, data: memoryview, place: int) -> None:
    written = 0
    while written < len(data):
        written += os.pwrite(descriptor, data[written:], place + written)
