"""A few hundred mutations of every format; ``python -m tests.fuzz FORMAT`` makes 100,000."""

import pytest

from .damage import FORMATS, findings

CORPUS = [
    *[("robomimic", number) for number in (236, 237, 293, 321, 322)],  # HDF5 raises KeyError, RuntimeError, OSError
    ("d4rl", 330),  # names that are bytes
    ("contract", 14),
    ("contract", 171),  # a tag that is a list
    *[("groups", number) for number in range(0, 200, 20)],
]
"""(format, number) of mutations of seed 0 that once ended in a traceback, and some of their kind."""


@pytest.mark.parametrize("name", FORMATS)
def test_damaged_files_are_read_or_refused_in_words(name, tmp_path):
    assert list(findings(name, 150, 1, tmp_path)) == []


@pytest.mark.parametrize(("name", "number"), CORPUS)
def test_what_once_went_wrong(name, number, tmp_path):
    assert list(findings(name, 1, 0, tmp_path, first=number)) == []
