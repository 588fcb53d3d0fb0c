"""Records in shared memory: a mailbox that keeps the newest one, and a ring that keeps the last ones.

Files in /dev/shm, mapped by every process of a session. Not ``multiprocessing.SharedMemory``: in Python 3.11 a process
that merely attached to one removes it when it exits, so that a crashing policy would take the bridge's memory with it
(docs/methods/franka-control.md#processes). One process writes, any number read; nobody ever waits.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowpolicy.core.errors import FlowPolicyError

Records = NDArray[Any]
"""Structured array of one of the types in :mod:`flowpolicy.real_robot.bridge.ring_records`."""


class SharedMemoryError(FlowPolicyError):
    """A shared file is missing or of another layout."""


class Ring:
    """The last records of one writer. Readers have cursors of their own and learn what they have lost.

    Args:
        path: file.
        dtype: type of a record.
        size: records that are kept.
        create: make the file, as the writer does.

    """

    def __init__(self, path: Path, dtype: np.dtype[Any], size: int, *, create: bool = False) -> None:
        self._size = size
        bytes_ = 16 + size * dtype.itemsize
        buffer = _map(path, bytes_, create)
        # Written before and after a record: equal while no record is under way.
        self._begun, self._done = np.frombuffer(buffer, np.uint64, 2)[:1], np.frombuffer(buffer, np.uint64, 2)[1:]
        self._slots = np.frombuffer(buffer, dtype, size, offset=16)

    @property
    def count(self) -> int:
        """Records written so far."""
        return int(self._done[0])

    def write(self, record: Records) -> None:
        """Append a record (0-d)."""
        count = self.count
        self._begun[0] = count + 1
        self._slots[count % self._size] = record
        self._done[0] = count + 1

    def read(self, cursor: int) -> tuple[Records, int, int]:
        """Records from number ``cursor`` on (at most the ring's size), the next cursor, and how many were lost."""
        end = self.count
        first = max(cursor, end - self._size + 1)
        records = self._slots[np.arange(first, end) % self._size]  # a copy
        # What the writer began to overwrite meanwhile is not whole.
        overwritten = max(0, int(self._begun[0]) - self._size - first)
        return records[overwritten:], end, first - cursor + min(overwritten, len(records))

    def latest(self) -> Records | None:
        """The newest record (0-d); None before the first."""
        for _ in range(100):
            count = self.count
            if count == 0:
                return None
            record = self._slots[(count - 1) % self._size].copy()
            if int(self._begun[0]) < count + self._size:
                return np.asarray(record)
        raise SharedMemoryError(
            "a record was overwritten a hundred times while it was read", fix="make the ring larger"
        )


def _map(path: Path, size: int, create: bool) -> mmap.mmap:
    if create:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as stream:
            # Now or never: where a page of a mapped file finds no memory, its writer dies by a signal, in motion.
            os.posix_fallocate(stream.fileno(), 0, size)
    try:
        with path.open("r+b") as stream:
            buffer = mmap.mmap(stream.fileno(), 0)
    except FileNotFoundError as error:
        raise no_session(path) from error
    if len(buffer) != size:
        raise SharedMemoryError(
            f"{path} has {len(buffer)} bytes", expected=f"{size}", fix="use one version of flowpolicy in all processes"
        )
    return buffer


def no_session(path: Path) -> SharedMemoryError:
    """What to raise where a file of a session is not there."""
    return SharedMemoryError(
        f"{path} does not exist", expected="a running robot session", fix="start it: flowpolicy robot run RUN"
    )
