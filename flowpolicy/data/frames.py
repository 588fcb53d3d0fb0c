"""Pictures of a dataset: uint8 frames of one camera in a file of their own, made once, read frame by frame.

A file with pictures is read through once, in its own order, and its frames are written side by side, uncompressed,
into the cache folder: any frame then is one short read, whereas the same frame in compressed HDF5 costs the
decompression of a chunk of them. Nothing is held in memory: the page cache of the operating system is the memory, so
that a million frames open at once and 200 GB cost no more per batch than 2.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from flowpolicy.core.errors import DataError, from_system
from flowpolicy.core.files import SPARE, held_alone, read_json, write_json
from flowpolicy.core.progress import progress_bar
from flowpolicy.core.streams import Crop

_COMPLETE, _FRAMES, _JOURNAL = "complete.json", "frames.bin", "journal.json"
_BLOCK = 64 << 20
"""Bytes that are converted at a time."""
_JOURNAL_EVERY = 512 << 20
"""Bytes between two entries of the journal that an interrupted conversion goes on from."""


@runtime_checkable
class FrameStore(Protocol):
    """Frames of one camera, in the order of the rows of a dataset."""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(n, height, width, 3)."""

    def take(
        self, rows: NDArray[np.int64], crop: Crop | None = None, corners: NDArray[np.int64] | None = None
    ) -> NDArray[np.uint8]:
        """Frames (m, h, w, 3) of the rows (m,), uint8, rows from the top down.

        Args:
            rows: numbers of frames.
            crop: take this window of each instead of all of it.
            corners: (m, 2) where it is, row and column among :meth:`Crop.places`.

        """


class RawFrames:
    """A file of frames side by side; see :class:`FrameStore`.

    Args:
        path: the file.
        shape: (n, height, width, 3) of what it holds.
        order: (m,) number of the frame in the file for every row, where only some episodes were selected.

    Raises:
        DataError: the file is not as long as it must be.

    """

    def __init__(self, path: Path, shape: Sequence[int], order: NDArray[np.int64] | None = None) -> None:
        self.path, self._order = path, order
        rows, self.height, self.width, self.channels = shape
        self._bytes = self.height * self.width * self.channels
        # Read, not mapped: pages of a map count as memory of the process, and a damaged disk would end it by a signal.
        self._file = os.open(path, os.O_RDONLY)
        found = os.fstat(self._file).st_size
        if found != rows * self._bytes:
            raise DataError(
                f"{path} has {found} bytes", expected=f"{rows * self._bytes}: {rows} frames", fix="delete its folder"
            )
        os.posix_fadvise(self._file, 0, 0, os.POSIX_FADV_RANDOM)
        self._rows = rows

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(n, height, width, 3)."""
        return (self._rows if self._order is None else len(self._order), self.height, self.width, self.channels)

    def take(
        self, rows: NDArray[np.int64], crop: Crop | None = None, corners: NDArray[np.int64] | None = None
    ) -> NDArray[np.uint8]:
        """Frames of the rows; see :meth:`FrameStore.take`."""
        numbers = (rows if self._order is None else self._order[rows]).tolist()
        if crop is None or corners is None:
            found = np.empty((len(numbers), self.height, self.width, self.channels), np.uint8)
            for place, number in enumerate(numbers):
                self._read(number, found[place])
            return found
        frame = np.empty((self.height, self.width, self.channels), np.uint8)
        found = np.empty((len(numbers), crop.height, crop.width, self.channels), np.uint8)
        for place, (number, (top, left)) in enumerate(zip(numbers, (corners - crop.pad).tolist(), strict=True)):
            self._read(number, frame)
            found[place] = window(frame, crop, top, left)
        return found

    def _read(self, number: int, into: NDArray[np.uint8]) -> None:
        if os.preadv(self._file, [into.data], number * self._bytes) != self._bytes:
            raise DataError(f"{self.path} ends before frame {number}", fix="delete its folder")


def window(frame: NDArray[np.uint8], crop: Crop, top: int, left: int) -> NDArray[np.uint8]:
    """The window of a frame (height, width, 3) whose corner is there; beyond the edge its outermost pixels repeat."""
    height, width = frame.shape[:2]
    if 0 <= top <= height - crop.height and 0 <= left <= width - crop.width:
        return frame[top : top + crop.height, left : left + crop.width]
    rows = np.arange(top, top + crop.height).clip(0, height - 1)
    return frame[rows[:, None], np.arange(left, left + crop.width).clip(0, width - 1)]


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


def open_frames(root: Path, source: FrameSource, path: Path, wanted: Sequence[str]) -> RawFrames:
    """The frames of one camera of a file, for the episodes ``wanted``, one after the other.

    They are converted where that was not done before; a conversion that was interrupted goes on, and one that another
    process has begun is waited for.

    Args:
        root: cache folder of this file, named by its hash.
        source: what to convert.
        path: the dataset file, for errors.
        wanted: names of the episodes, in the order of the dataset.

    Raises:
        DataError: the file cannot be read, or the disk has no room.

    """
    folder, shape = root / source.key, (sum(source.lengths), *source.size)
    stated = {"shape": list(shape), "episodes": list(map(list, zip(source.names, source.lengths, strict=True)))}
    try:
        if not (folder / _COMPLETE).exists():
            _convert(folder, source, path, shape, stated)
        if read_json(folder / _COMPLETE) != stated:
            raise DataError(f"{folder} holds other frames than {path}", fix=f"delete {folder}")
    except OSError as error:
        told = from_system(error)
        raise DataError(
            f"{path}: the frames of {source.key} cannot be kept in {folder}: {told.what if told else error}",
            fix="name another folder in XDG_CACHE_HOME",
        ) from error
    return RawFrames(folder / _FRAMES, shape, _order(source, wanted))


def _order(source: FrameSource, wanted: Sequence[str]) -> NDArray[np.int64] | None:
    """Frame of every row, or None where that is its number."""
    if tuple(wanted) == source.names:
        return None
    ends = np.cumsum(source.lengths)
    span = {
        name: (int(end) - steps, int(end)) for name, end, steps in zip(source.names, ends, source.lengths, strict=True)
    }
    return np.concatenate([np.arange(*span[name], dtype=np.int64) for name in wanted])


def _convert(folder: Path, source: FrameSource, path: Path, shape: Sequence[int], stated: dict[str, Any]) -> None:
    """Write the frames beside ``folder`` and rename them into place when they are whole."""
    partial = folder.with_name(f"{folder.name}.partial")
    partial.parent.mkdir(parents=True, exist_ok=True)
    with held_alone(partial, f"the conversion of {path}", wait=True):
        if (folder / _COMPLETE).exists():  # by another process meanwhile
            shutil.rmtree(partial, ignore_errors=True)
            return
        done = _journal(partial, stated)
        _reserve(partial / _FRAMES, math.prod(shape), path, source.key)
        _write(partial, source, done, stated)
        (partial / _JOURNAL).unlink()
        write_json(partial / _COMPLETE, stated)
        partial.rename(folder)


def _journal(partial: Path, stated: dict[str, Any]) -> set[int]:
    """Episodes that an interrupted conversion of the same frames has finished."""
    if not (partial / _JOURNAL).exists():
        return set()
    journal = read_json(partial / _JOURNAL)
    return set(journal["done"]) if journal.get("stated") == stated else set()


def _reserve(file: Path, size: int, path: Path, key: str) -> None:
    """Give the file all its blocks, so that a disk that is too full is told before hours of work."""
    held = file.stat().st_blocks * 512 if file.exists() else 0
    free = shutil.disk_usage(file.parent).free
    if size - held + SPARE > free:
        raise DataError(
            f"{path}: the frames of {key} take {size / 1e9:.3g} GB in {file.parent.parent}, where {free / 1e9:.3g} GB "
            "are free",
            fix="free some space, or name a folder on another disk in XDG_CACHE_HOME",
        )
    descriptor = os.open(file, os.O_CREAT | os.O_RDWR, 0o644)
    try:
        os.ftruncate(descriptor, size)
        os.posix_fallocate(descriptor, 0, max(1, size))
    finally:
        os.close(descriptor)


def _write(partial: Path, source: FrameSource, done: set[int], stated: dict[str, Any]) -> None:
    each = math.prod(source.size)
    starts = np.cumsum([0, *source.lengths]).tolist()
    total, rows = starts[-1], max(1, _BLOCK // each)
    descriptor, since = os.open(partial / _FRAMES, os.O_WRONLY), 0

    def enter() -> None:
        os.fsync(descriptor)  # what the journal says is on the disk
        write_json(partial / _JOURNAL, {"stated": stated, "done": sorted(done)})

    try:
        before = sum(source.lengths[episode] for episode in done)
        with progress_bar(f"frames of {source.key}", total, before, shown=total * each > _BLOCK) as move:
            finished = before
            for episode in (number for number in source.reading_order() if number not in done):
                place = starts[episode] * each
                for block in source.blocks(episode, rows):
                    place += _write_all(descriptor, block, place)
                done.add(episode)
                finished, since = finished + source.lengths[episode], since + source.lengths[episode] * each
                move(finished, "")
                if since > _JOURNAL_EVERY:
                    enter()
                    since = 0
        enter()
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, block: NDArray[np.uint8], place: int) -> int:
    view, written = np.ascontiguousarray(block).data.cast("B"), 0
    while written < len(view):
        written += os.pwrite(descriptor, view[written:], place + written)
    return written
