"""Rings in shared memory: order, losses, whole records under a racing writer, and a reader that dies."""

import subprocess
import sys

import numpy as np
import pytest

from flowpolicy.real_robot.bridge.shared_ring import Ring, SharedMemoryError

PAIR = np.dtype([("number", "i8"), ("square", "i8"), ("filling", "f8", 200)])


def record(number):
    made = np.zeros((), PAIR)
    made["number"], made["square"] = number, number**2
    return made


def test_readers_get_everything_once_and_learn_what_they_lost(tmp_path):
    ring = Ring(tmp_path / "ring", PAIR, 8, create=True)
    other = Ring(tmp_path / "ring", PAIR, 8)
    assert other.latest() is None
    for number in range(5):
        ring.write(record(number))
    records, cursor, lost = other.read(0)
    assert records["number"].tolist() == [0, 1, 2, 3, 4]
    assert (cursor, lost) == (5, 0)
    for number in range(5, 25):
        ring.write(record(number))
    records, cursor, lost = other.read(cursor)
    assert records["number"].tolist() == list(range(18, 25))
    assert (cursor, lost) == (25, 13)
    assert other.latest()["number"] == 24


def test_records_are_whole_while_another_process_writes(tmp_path):
    path = tmp_path / "ring"
    Ring(path, PAIR, 16, create=True)
    code = f"""
import numpy as np
from pathlib import Path
from flowpolicy.real_robot.bridge.shared_ring import Ring
dtype = np.dtype({PAIR.descr!r})
ring, made = Ring(Path({str(path)!r}), dtype, 16), np.zeros((), dtype)
for number in range(30000):
    made["number"], made["square"], made["filling"] = number, number**2, number
    ring.write(made)
"""
    writer = subprocess.Popen([sys.executable, "-c", code])
    ring, cursor, seen = Ring(path, PAIR, 16), 0, 0
    while writer.poll() is None or cursor < ring.count:
        records, cursor, _ = ring.read(cursor)
        seen += len(records)
        assert (records["square"] == records["number"] ** 2).all()
        assert (records["filling"] == records["number"][:, None]).all()
        assert (np.diff(records["number"]) == 1).all()
    assert writer.returncode == 0
    assert cursor == 30000
    assert seen > 0
    # The writer has ended, and its memory is still there.
    assert ring.latest()["number"] == 29999


def test_missing_and_foreign_files_are_refused(tmp_path):
    with pytest.raises(SharedMemoryError, match="does not exist"):
        Ring(tmp_path / "none", PAIR, 8)
    Ring(tmp_path / "ring", PAIR, 8, create=True)
    with pytest.raises(SharedMemoryError, match="bytes"):
        Ring(tmp_path / "ring", PAIR, 9)
