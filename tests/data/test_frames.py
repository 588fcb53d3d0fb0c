"""Frames of a camera are converted once, whole or not at all, and any window of any of them is one read."""

import json

import numpy as np
import pytest

from flowpolicy.core.errors import DataError
from flowpolicy.core.streams import Crop
from flowpolicy.data.frames import RawFrames, open_frames, window

SIZE = (6, 8, 3)


class Source:
    """Episodes of random frames; fails at an episode when told so."""

    key = "front_image"
    size = SIZE

    def __init__(self, lengths=(3, 5, 2), fails=None):
        self.lengths, self.fails, self.read = tuple(lengths), fails, []
        self.names = tuple(f"demo_{number}" for number in range(len(lengths)))
        self.frames = np.random.default_rng(0).integers(0, 256, (sum(lengths), *SIZE), dtype=np.uint8)

    def reading_order(self):
        return range(len(self.lengths))[::-1]

    def blocks(self, episode, rows):
        if episode == self.fails:
            raise DataError("interrupted")
        self.read.append(episode)
        start = sum(self.lengths[:episode])
        yield from np.array_split(self.frames[start : start + self.lengths[episode]], 2)


def test_frames_come_back_by_row_and_in_the_order_of_the_selection(tmp_path):
    source = Source()
    every = open_frames(tmp_path, source, tmp_path / "x.hdf5", source.names)
    assert every.shape == (10, *SIZE)
    np.testing.assert_array_equal(every.take(np.array([9, 0, 0, 4])), source.frames[[9, 0, 0, 4]])
    some = open_frames(tmp_path, source, tmp_path / "x.hdf5", ["demo_2", "demo_0"])
    np.testing.assert_array_equal(some.take(np.arange(5)), source.frames[[8, 9, 0, 1, 2]])
    assert source.read == [2, 1, 0], "converted once, in the order of the file"


def test_an_interrupted_conversion_goes_on_and_shows_nothing_before(tmp_path, monkeypatch):
    monkeypatch.setattr("flowpolicy.data.frames._JOURNAL_EVERY", 0)
    with pytest.raises(DataError, match="interrupted"):
        open_frames(tmp_path, Source(fails=0), tmp_path / "x", ["demo_0"])
    assert not (tmp_path / "front_image").exists()
    again = Source()
    store = open_frames(tmp_path, again, tmp_path / "x", again.names)
    assert again.read == [0], "the others were done"
    np.testing.assert_array_equal(store.take(np.arange(10)), again.frames)
    assert not (tmp_path / "front_image.partial").exists()


def test_no_room_is_told_before_anything_is_converted(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    source = Source()
    with pytest.raises(DataError, match=r"frames of front_image take .* where 1e-06 GB are free"):
        open_frames(tmp_path, source, tmp_path / "x", source.names)
    assert not source.read


def test_a_store_that_was_damaged_is_refused(tmp_path):
    source = Source()
    open_frames(tmp_path, source, tmp_path / "x", source.names)
    frames = tmp_path / "front_image" / "frames.bin"
    frames.write_bytes(frames.read_bytes()[:-1])
    with pytest.raises(DataError, match="10 frames"):
        open_frames(tmp_path, source, tmp_path / "x", source.names)
    stated = tmp_path / "front_image" / "complete.json"
    stated.write_text(json.dumps(json.loads(stated.read_text()) | {"shape": [9, 6, 8, 3]}))
    with pytest.raises(DataError, match="other frames"):
        open_frames(tmp_path, source, tmp_path / "x", source.names)


@pytest.mark.parametrize("crop", [Crop(4, 5), Crop(6, 8, pad=2), Crop(6, 8)])
def test_a_window_is_what_padding_and_slicing_give(tmp_path, crop):
    source = Source()
    store = open_frames(tmp_path, source, tmp_path / "x", source.names)
    places = crop.places(*SIZE[:2])
    corners = np.stack([np.random.default_rng(1).integers(0, high, 10) for high in places], 1)
    padded = np.pad(source.frames, ((0, 0), (crop.pad,) * 2, (crop.pad,) * 2, (0, 0)), mode="edge")
    for row, (top, left) in enumerate(corners):
        expected = padded[row, top : top + crop.height, left : left + crop.width]
        np.testing.assert_array_equal(store.take(np.array([row]), crop, corners[row : row + 1])[0], expected)
    np.testing.assert_array_equal(window(source.frames[0], Crop(*SIZE[:2]), 0, 0), source.frames[0])


def test_a_huge_store_opens_without_memory(tmp_path):
    path, rows = tmp_path / "frames.bin", 1_000_000
    with path.open("wb") as stream:
        stream.truncate(rows * 84 * 84 * 3)  # holes: no block is used
    store = RawFrames(path, (rows, 84, 84, 3))
    assert store.take(np.array([rows - 1, 0])).sum() == 0
