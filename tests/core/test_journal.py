"""Results of long work survive a kill, and never mix with those of other work."""

import errno
import json
import os

import pytest

from flowpolicy.core.errors import DataError, FlowPolicyError
from flowpolicy.core.journal import Journal

WORK = {"seed": 1, "rows": [3, 5]}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "folder" / "out.labels"


def test_results_are_there_when_it_is_opened_again(path):
    first = Journal(path, WORK)
    assert first.entries == [] and not path.exists()
    first.append([[True], [4]])
    first.append([[False], [9]])
    again = Journal(path, dict(reversed(WORK.items())))
    assert again.entries == [[[True], [4]], [[False], [9]]]
    again.append(7)
    assert Journal(path, WORK).entries == [[[True], [4]], [[False], [9]], 7]


def test_a_torn_line_is_dropped_wherever_it_was_torn(path):
    journal = Journal(path, WORK)
    for entry in ("a", "b"):
        journal.append(entry)
    whole = path.read_bytes()
    ends = [at + 1 for at, byte in enumerate(whole) if byte == ord("\n")]
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        torn = Journal(path, WORK)
        assert torn.entries == ["a", "b"][: max(0, sum(end <= size for end in ends) - 1)]
        torn.append("c")
        assert Journal(path, WORK).entries == [*torn.entries]
        assert [json.loads(line) for line in path.read_text().splitlines()] == [WORK, *torn.entries]


def test_results_of_other_work_are_refused_and_kept(path):
    Journal(path, WORK).append(1)
    before = path.read_bytes()
    with pytest.raises(DataError, match="other work"):
        Journal(path, {**WORK, "seed": 2})
    assert path.read_bytes() == before
    path.write_bytes(before + b"[1, \xff\n")
    with pytest.raises(DataError, match="damaged"):
        Journal(path, WORK)
    for foreign in (b"\x89HDF\n\xff\n", b"a note without a line's end"):
        path.write_bytes(foreign)
        with pytest.raises(DataError, match="delete"):
            Journal(path, WORK)


def test_a_full_disk_says_so_and_keeps_what_is_there(path, monkeypatch):
    journal = Journal(path, WORK)
    journal.append("a")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(FlowPolicyError, match="no space left"):
            journal.append("b")
    assert journal.entries == ["a"]
    journal.append("c")
    assert Journal(path, WORK).entries == ["a", "c"]
