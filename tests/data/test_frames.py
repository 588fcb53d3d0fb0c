"""Frames of a camera are converted once, whole or not at all, and any window of any of them is one read."""

import json
import multiprocessing
import os
import signal
import time

import numpy as np
import pytest

from flowpolicy.core.errors import DataError
from flowpolicy.core.streams import Crop
from flowpolicy.data import frame_conversion
from flowpolicy.data.frame_conversion import open_frames
from flowpolicy.data.frames import RawFrames, decode_jpeg, encode_jpeg, window

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
        if episode == self.fails and rows > 10:  # fewer: JPEGs of some frames, to know how large all will be
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


def kept(source, keep):
    """What a store of the frames gives back."""
    if keep == "raw":
        return source.frames
    found = np.empty_like(source.frames)
    for frame, into in zip(source.frames, found, strict=True):
        decode_jpeg(encode_jpeg(frame, frame_conversion.QUALITY), into)
    return found


@pytest.mark.parametrize("keep", ["raw", "jpeg"])
def test_an_interrupted_conversion_goes_on_and_shows_nothing_before(keep, tmp_path, monkeypatch):
    monkeypatch.setattr("flowpolicy.data.frame_conversion._JOURNAL_EVERY", 0)
    with pytest.raises(DataError, match="interrupted"):
        open_frames(tmp_path, Source(fails=0), tmp_path / "x", ["demo_0"], keep)
    [partial] = tmp_path.iterdir()
    assert partial.name.endswith(".partial")
    again = Source()
    store = open_frames(tmp_path, again, tmp_path / "x", again.names, keep)
    assert again.read[-1:] == [0] and len(again.read) == (1 if keep == "raw" else 4), "the others were done"
    np.testing.assert_array_equal(store.take(np.arange(10)), kept(again, keep))
    assert not partial.exists()


@pytest.mark.parametrize("keep", ["raw", "jpeg"])
def test_what_the_disk_lost_of_an_interrupted_conversion_is_made_again(keep, tmp_path, monkeypatch):
    monkeypatch.setattr("flowpolicy.data.frame_conversion._JOURNAL_EVERY", 0)
    with pytest.raises(DataError, match="interrupted"):
        open_frames(tmp_path, Source(fails=0), tmp_path / "x", ["demo_0"], keep)
    [frames] = tmp_path.glob("*.partial/frames.bin")
    os.truncate(frames, 100)
    source = Source()
    store = open_frames(tmp_path, source, tmp_path / "x", source.names, keep)
    np.testing.assert_array_equal(store.take(np.arange(10)), kept(source, keep))


class Slow(Source):
    """Episodes of two frames of one colour, some time apart."""

    def __init__(self, count=60):
        self.lengths, self.names, self.read = (2,) * count, tuple(map(str, range(count))), []

    def blocks(self, episode, rows):
        self.read.append(episode)
        time.sleep(0.01)
        yield np.full((2, *SIZE), 4 * episode, np.uint8)


def convert_slowly(root, keep):
    frame_conversion._JOURNAL_EVERY = 0
    open_frames(root, Slow(), root / "x", Slow().names, keep)


@pytest.mark.parametrize("keep", ["raw", "jpeg"])
def test_two_at_once_and_one_of_them_killed_make_one_store(keep, tmp_path):
    folder = tmp_path / ("front_image" if keep == "raw" else "front_image.jpeg")
    start = multiprocessing.get_context("fork").Process
    first, second = processes = [start(target=convert_slowly, args=(tmp_path, keep)) for _ in range(2)]
    for process in processes:
        process.start()
    while not list(tmp_path.glob("*.partial/journal.json")):
        assert first.is_alive() or second.is_alive()
        time.sleep(0.005)
    holder = (tmp_path / f"{folder.name}.partial" / ".lock").read_text()
    killed, other = (first, second) if f"process {first.pid}" in holder else (second, first)
    os.kill(killed.pid, signal.SIGKILL)
    for process in processes:
        process.join(60)
    assert (killed.exitcode, other.exitcode) == (-signal.SIGKILL, 0)
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    store = open_frames(tmp_path, source := Slow(), tmp_path / "x", Slow().names, keep)
    expected = 4 * np.arange(60).repeat(2)[:, None, None, None]
    np.testing.assert_array_equal(np.broadcast_to(expected, (120, *SIZE)), store.take(np.arange(120)))
    assert not source.read


@pytest.mark.parametrize("keep", ["raw", "jpeg"])
def test_no_room_is_told_before_anything_is_converted(keep, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    source = Source()
    with pytest.raises(DataError, match=r"frames of front_image take .* where 1e-06 GB are free"):
        open_frames(tmp_path, source, tmp_path / "x", source.names, keep)
    assert not list(tmp_path.glob("*.partial/frames.bin"))


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


@pytest.mark.parametrize("keep", ["raw", "jpeg"])
def test_a_store_of_another_file_or_without_its_seal_is_none(keep, tmp_path):
    source = Source()
    here, there = tmp_path / "a", tmp_path / "b"
    open_frames(here, source, tmp_path / "x", source.names, keep)
    here.rename(there)
    with pytest.raises(DataError, match="other frames"):
        open_frames(there, source, tmp_path / "x", source.names, keep)
    [seal] = there.glob("*/complete.json")
    seal.unlink()
    store = open_frames(there, source, tmp_path / "x", source.names, keep)
    np.testing.assert_array_equal(store.take(np.arange(10)), kept(source, keep))


def test_jpegs_are_near_the_pixels_and_a_flipped_bit_is_found(tmp_path):
    source = Source()
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    smooth = np.stack([20 * x + 10 * y, 30 * y, 255 - 30 * x], -1)
    source.frames = np.stack([smooth.clip(0, 255)] * 10).astype(np.uint8)
    store = open_frames(tmp_path, source, tmp_path / "x", source.names, "jpeg")
    difference = store.take(np.arange(10)).astype(int) - source.frames
    stated = json.loads((tmp_path / "front_image.jpeg" / "complete.json").read_text())
    error = np.square(difference).mean()
    assert stated["psnr_db"] == pytest.approx(10 * np.log10(255**2 / error), abs=0.01) and stated["psnr_db"] > 35
    frames = tmp_path / "front_image.jpeg" / "frames.bin"
    content = bytearray(frames.read_bytes())
    content[-30] ^= 1
    frames.write_bytes(content)
    with pytest.raises(DataError, match="damaged or ends at frame 2"):  # written last: the file is read backwards
        open_frames(tmp_path, source, tmp_path / "x", ["demo_0", "demo_1", "demo_2"], "jpeg").take(np.arange(10))
    places = tmp_path / "front_image.jpeg" / "places.bin"
    places.write_bytes(places.read_bytes()[:-1])
    with pytest.raises(DataError, match="places of 10 frames"):
        open_frames(tmp_path, source, tmp_path / "x", source.names, "jpeg")


def test_a_name_that_leaves_the_folder_is_refused(tmp_path):
    source = Source()
    source.key = ".."
    with pytest.raises(DataError, match=r"pictures called '\.\.'"):
        open_frames(tmp_path / "a", source, tmp_path / "x", source.names)


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
