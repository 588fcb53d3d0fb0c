"""The doctor on pictures: each fault put into sound ones is named, and sound ones pass."""

import json
import re

import h5py
import numpy as np
import pytest

from flowpolicy.core.errors import DataError
from flowpolicy.core.spec import ImageSpec, image_json
from flowpolicy.data.contact_sheet import draw_contact_sheet
from flowpolicy.data.hdf5_frames import pictures_of
from flowpolicy.data.picture_checks import check_pictures

KEY, SIZE, STEPS = "front_image", 16, 40
IMAGE = ImageSpec((SIZE, SIZE, 3), camera="front", mount="world")


def scene(position):
    """A bright blob above a grey floor: a picture with an above and a below."""
    y, x = np.mgrid[:SIZE, :SIZE]
    picture = np.where(y < SIZE // 2, 40.0, 120.0)[..., None].repeat(3, axis=2)
    picture[..., 0] += 100 * np.exp(-((x - 8 - 5 * position[0]) ** 2 + (y - 8 - 5 * position[1]) ** 2) / 6)
    return picture.astype(np.uint8)


@pytest.fixture
def sound(tmp_path):
    """Four episodes in which a point moves in bursts, and its pictures."""
    path, random = tmp_path / "seen.hdf5", np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps({"env_name": "front", "images": {KEY: image_json(IMAGE)}})
        for number in range(4):
            speed = 0.15 * (random.random((STEPS, 1)) ** 4 + 0.01)
            position = np.cumsum(speed * random.normal(size=(STEPS, 2)), axis=0)
            demo = data.create_group(f"demo_{number}")
            demo["actions"], demo["obs/point"] = np.zeros((STEPS, 2)), position
            demo["rewards"], demo["dones"] = np.zeros(STEPS), np.arange(STEPS) == STEPS - 1
            demo[f"obs/{KEY}"] = np.stack([scene(each) for each in position])
    return path


def redraw(path, images, episode, steps):
    with h5py.File(path) as file:
        return {KEY: np.stack([scene(file[f"data/{episode}/obs/point"][step]) for step in steps])}


def change(path, edit):
    with h5py.File(path, "r+") as file:
        for name in file["data"]:
            node = file[f"data/{name}/obs/{KEY}"]
            node[...] = edit(node[()])


def late(pictures, by=2):
    return np.concatenate([pictures[:1].repeat(by, axis=0), pictures[:-by]])


def test_sound_pictures_pass_and_say_what_they_are(sound, tmp_path):
    assert pictures_of(sound) == {KEY: IMAGE}
    for drawn in (None, redraw):
        (finding,) = check_pictures(sound, drawn)
        assert (finding.level, finding.check) == ("ok", f"pictures {KEY}")
        assert "160 frames of 4 of 4 episodes" in finding.message
    draw_contact_sheet(sound, tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("edit", "level", "words", "drawn"),
    [
        (lambda x: x * (np.arange(STEPS) != 7)[:, None, None, None], "error", "4 of 160 frames are black", None),
        (lambda x: np.full_like(x, 90), "error", "160 of 160 frames are of one colour", None),
        (lambda x: x[np.arange(STEPS) // 4 * 4], "error", "75%|7[0-9]% of the frames repeat", None),
        (lambda x: x[np.arange(STEPS) - (np.arange(STEPS) % 8 == 7)], "warning", "1[0-9]% of the frames repeat", None),
        (lambda x: x[:, ::-1], "error", "upside-down", redraw),
        (late, "warning", r"perhaps 2 step\(s\) late.*t - 2 best, by how they change", None),
        (late, "warning", r"^2 step\(s\) late: they fit the states of step t - 2 best", redraw),
        (lambda x: late(x[::-1])[::-1], "warning", r"^2 step\(s\) early", redraw),
    ],
)
def test_a_fault_is_named(sound, edit, level, words, drawn):
    change(sound, edit)
    findings = check_pictures(sound, drawn)
    (finding,) = [each for each in findings if re.search(words, each.message)]
    assert finding.level == level and finding.advice
    assert not any(each.level == "ok" for each in findings)


def test_pictures_that_are_none_are_an_error_of_the_file(sound):
    with h5py.File(sound, "r+") as file:
        del file[f"data/demo_0/obs/{KEY}"]
        file[f"data/demo_0/obs/{KEY}"] = np.zeros((STEPS, SIZE, SIZE, 3), np.float32)
    (finding,) = check_pictures(sound)
    assert finding.level == "error" and "pictures of float32" in finding.message
    with h5py.File(sound, "r+") as file:
        del file[f"data/demo_0/obs/{KEY}"]
        file[f"data/demo_0/obs/{KEY}"] = np.zeros((STEPS, SIZE, SIZE, 3), np.uint8)
        del file[f"data/demo_2/obs/{KEY}"]
    (finding,) = check_pictures(sound)
    assert finding.level == "error" and f"data/demo_2/obs/{KEY} is missing" in finding.message


def test_a_file_without_pictures_has_no_such_finding(robomimic_file, tmp_path):
    assert check_pictures(robomimic_file) == []
    with pytest.raises(DataError, match="holds no pictures"):
        draw_contact_sheet(robomimic_file, tmp_path / "sheet.png")
