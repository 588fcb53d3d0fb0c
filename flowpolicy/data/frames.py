"""Pictures of a dataset: the frames of one camera in a file of their own, read frame by frame.

Either as they are, uint8 side by side, where any frame is one short read; or each as a JPEG, which takes a sixth of
the space and has to be decoded. Nothing is held in memory: the page cache of the operating system is the memory, so
that a million frames open at once and 200 GB cost no more per batch than 2.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from flowpolicy.core.errors import DataError
from flowpolicy.core.streams import Crop

PLACE = struct.Struct("<QII")
"""Where a JPEG lies among the others: first byte, number of bytes, CRC-32."""


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


class _FrameFile:
    """A file of frames; see :class:`FrameStore`.

    Args:
        path: the file.
        shape: (n, height, width, 3) of what it holds.
        size: bytes that it must have.
        order: (m,) number of the frame in the file for every row, where only some episodes were selected.

    Raises:
        DataError: the file is not as long as it must be.

    """

    def __init__(self, path: Path, shape: Sequence[int], size: int, order: NDArray[np.int64] | None) -> None:
        self.path, self._order = path, order
        self._rows, self.height, self.width, self.channels = shape
        self._bytes = self.height * self.width * self.channels
        self._file = _open_whole(path, size, f"{self._rows} frames")

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
        raise NotImplementedError

    def _ends_early(self, number: int) -> DataError:
        return DataError(f"{self.path} is damaged or ends at frame {number}", fix=f"delete {self.path.parent}")


class RawFrames(_FrameFile):
    """A file of frames side by side.

    Args:
        path: the file.
        shape: (n, height, width, 3) of what it holds.
        order: (m,) number of the frame in the file for every row, where only some episodes were selected.

    Raises:
        DataError: the file is not as long as it must be.

    """

    def __init__(self, path: Path, shape: Sequence[int], order: NDArray[np.int64] | None = None) -> None:
        rows, height, width, channels = shape
        super().__init__(path, shape, rows * height * width * channels, order)

    def _read(self, number: int, into: NDArray[np.uint8]) -> None:
        if os.preadv(self._file, [into.data], number * self._bytes) != self._bytes:
            raise self._ends_early(number)


class JpegFrames(_FrameFile):
    """A file of JPEGs one after the other, and a file of their :data:`PLACE` by row.

    Args:
        path: the file of JPEGs.
        places: the file of their places.
        shape: (n, height, width, 3) of what they hold.
        size: bytes of all JPEGs.
        order: (m,) number of the frame for every row, where only some episodes were selected.

    Raises:
        DataError: a file is not as long as it must be.

    """

    def __init__(
        self, path: Path, places: Path, shape: Sequence[int], size: int, order: NDArray[np.int64] | None = None
    ) -> None:
        super().__init__(path, shape, size, order)
        self._places = _open_whole(places, PLACE.size * shape[0], f"places of {shape[0]} frames")

    def __del__(self) -> None:
        super().__del__()
        if hasattr(self, "_places"):
            os.close(self._places)

    def _read(self, number: int, into: NDArray[np.uint8]) -> None:
        place = os.pread(self._places, PLACE.size, PLACE.size * number)
        if len(place) != PLACE.size:
            raise self._ends_early(number)
        start, size, checksum = PLACE.unpack(place)
        # What a flipped bit makes of a JPEG is often a picture too.
        data = os.pread(self._file, size, start)
        if zlib.crc32(data) != checksum:
            raise self._ends_early(number)
        decode_jpeg(data, into)


def encode_jpeg(frame: NDArray[np.uint8], quality: int) -> bytes:
    """One frame (height, width, 3) as a JPEG, its colours at full resolution."""
    import simplejpeg

    data: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(frame), quality, colorspace="RGB", colorsubsampling="444")
    return data


def decode_jpeg(data: bytes, into: NDArray[np.uint8]) -> None:
    """Write the picture of a JPEG into an array (height, width, 3) of its size."""
    import simplejpeg

    simplejpeg.decode_jpeg(data, colorspace="RGB", buffer=into)


def _open_whole(path: Path, size: int, holds: str) -> int:
    """Descriptor of a file that must have so many bytes."""
    # Read, not mapped: pages of a map count as memory of the process, and a damaged disk would end it by a signal.
    descriptor = os.open(path, os.O_RDONLY)
    found = os.fstat(descriptor).st_size
    if found != size:
        os.close(descriptor)
        raise DataError(f"{path} has {found} bytes", expected=f"{size}: {holds}", fix=f"delete {path.parent}")
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
    return descriptor


def window(frame: NDArray[np.uint8], crop: Crop, top: int, left: int) -> NDArray[np.uint8]:
    """The window of a frame (height, width, 3) whose corner is there; beyond the edge its outermost pixels repeat."""
    height, width = frame.shape[:2]
    if 0 <= top <= height - crop.height and 0 <= left <= width - crop.width:
        return frame[top : top + crop.height, left : left + crop.width]
    rows = np.arange(top, top + crop.height).clip(0, height - 1)
    return frame[rows[:, None], np.arange(left, left + crop.width).clip(0, width - 1)]
