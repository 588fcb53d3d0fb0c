"""diffusion_policy's zarr: numbers as they are stored, and metadata that would run or read something else refused."""

import itertools
import json
import random
import shutil
import warnings
import zipfile

import numpy as np
import pytest

import flowpolicy as fp
from flowpolicy.core.errors import DataError, FlowPolicyError
from flowpolicy.data.contact_sheet import draw_contact_sheet
from flowpolicy.data.conversion import survey, write_all
from flowpolicy.data.dataset import DataConfig, load_dataset, load_unchecked
from flowpolicy.data.dataset_checks import describe, diagnose
from flowpolicy.data.episode_edits import of_file
from flowpolicy.data.episode_file import open_episodes
from flowpolicy.data.picture_checks import check_pictures
from tests.data.test_lerobot_damage import changed_bytes, damage

zarr = pytest.importorskip("zarr", reason="the extra 'zarr'")

NUMBERS = np.random.default_rng(0)
ENDS = [5, 12, 15]
COLUMNS = {
    "action": NUMBERS.normal(size=(15, 2)).astype(np.float32),
    "state": NUMBERS.normal(size=(15, 5)),
    "keypoint": NUMBERS.normal(size=(15, 4, 2)).astype(np.float32),
    "img": NUMBERS.integers(0, 256, (15, 6, 8, 3)).astype(np.float32),
    "timestamp": np.arange(15.0),
}


@pytest.fixture(params=[2, 3])
def folder(tmp_path, request):
    path = tmp_path / "replay.zarr"
    write(path, request.param)
    return path


def write(path, version=2, columns=COLUMNS, ends=ENDS):
    group = zarr.open_group(path, mode="w", zarr_format=version)
    group.create_array("meta/episode_ends", data=np.array(ends))
    for name, value in columns.items():
        group.create_array(f"data/{name}", data=value, chunks=(4, *value.shape[1:]))


def load(path, **fields):
    return load_dataset(DataConfig(path=str(path), **fields))


@pytest.mark.filterwarnings("ignore")
def test_folders_and_zips_are_read(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for inner in ("", "replay.zarr/"):
        archive = tmp_path / f"{bool(inner)}.zarr.zip"
        with zipfile.ZipFile(archive, "w") as into:
            for file in folder.rglob("*"):
                if file.is_file():
                    into.write(file, inner + str(file.relative_to(folder)))
        for path in (folder, archive):
            found = load(path, cameras=("img",))
            assert found.lengths.tolist() == [5, 7, 3] and found.spec.action.convention == "unstated"
            assert set(found.spec.observation) == {"keypoint", "state", "img"}
            np.testing.assert_array_equal(found.steps["obs"]["state"], COLUMNS["state"].astype(np.float32))
            np.testing.assert_array_equal(found.steps["obs"]["keypoint"], COLUMNS["keypoint"].reshape(15, 8))
            np.testing.assert_array_equal(found.frames["img"].take(np.arange(15)), COLUMNS["img"])
            assert not found.steps["reward"].any() and found.steps["mask"].all()
            assert any("no rewards" in remark for remark in found.remarks) and "timestamp" in found.unread
    assert describe(folder).format == "zarr"


def test_it_becomes_robomimic_bit_for_bit(folder, tmp_path):
    with open_episodes(folder) as file:
        passing = of_file(file)
        found = survey(passing)
        write_all([(passing, tmp_path / "out")], "robomimic", [found], command="", lost=[[]])
    with open_episodes(tmp_path / "out") as file:
        for number, (start, end) in enumerate(itertools.pairwise([0, *ENDS])):
            one = file.read(number)
            np.testing.assert_array_equal(one.obs["state"], COLUMNS["state"][start:end])
            np.testing.assert_array_equal(one.action, COLUMNS["action"][start:end])
            np.testing.assert_array_equal(np.concatenate(list(one.pictures["img"].blocks())), COLUMNS["img"][start:end])


def edit(place, **fields):
    def change(path):
        file = path / place
        said = json.loads(file.read_text())
        file.write_text(json.dumps({**said, **fields}))

    return change


def array(name, value):
    return lambda path: zarr.open_group(path, mode="a", zarr_format=2).create_array(name, data=value, overwrite=True)


def remove(place):
    return lambda path: shutil.rmtree(path / place)


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (edit("data/state/.zarray", dtype="|O"), "objects are never decoded"),
        (edit("data/state/.zarray", filters=[{"id": "pickle"}]), "'pickle'"),
        (edit("data/state/.zarray", compressor={"id": "imagecodecs_jpegxl"}), "imagecodecs_jpegxl"),
        (edit("data/state/.zarray", compressor={"id": ["x"]}), "compressed by"),
        (edit("data/state/.zarray", chunks=[1 << 30, 5]), "at most 1 GiB"),
        (edit("data/state/.zarray", chunks=[0, 5]), "pieces of"),
        (edit("data/state/.zarray", shape=[-1, 5]), "the shape"),
        (edit("data/state/.zarray", shape=[1 << 39, 5]), "15 rows"),
        (edit("data/state/.zarray", zarr_format=9), "zarr format 9"),
        (lambda path: (path / "data/state/.zarray").write_text("{"), "no JSON"),
        (lambda path: (path / "data/state/.zarray").write_text(" " * (2 << 20)), "more than"),
        (lambda path: (path / "data/state/0.0").write_bytes(b"no blosc"), "cannot be read from row 0"),
        (array("meta/episode_ends", np.array([5, 5, 15])), "episode 1"),
        (array("meta/episode_ends", np.array([5, 12, 99])), "99 rows"),
        (array("meta/episode_ends", np.array([0.5])), "whole numbers"),
        (remove("meta/episode_ends"), "meta/episode_ends is missing"),
        (remove("data/action"), "data/action is missing"),
        (array("data/action", np.zeros((15, 2, 2))), "(steps, size)"),
    ],
)
def test_damage_and_traps_end_in_words(harm, told, tmp_path):
    path = tmp_path / "replay.zarr"
    write(path)
    harm(path)
    with pytest.raises(DataError) as error:
        load(path)
    assert told in str(error.value)


def test_pieces_that_are_not_there_are_told(tmp_path):
    path = tmp_path / "replay.zarr"
    write(path)
    (path / "data/state/1.0").unlink()
    with pytest.warns(UserWarning, match="lacks 1 of 4 pieces of data/state"):
        load(path)


def test_pictures_that_are_none_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "replay.zarr"
    write(path, columns={**COLUMNS, "img": COLUMNS["img"] / 255})
    with pytest.raises(DataError, match="no whole numbers from 0 to 255 in row 0"):
        load(path, cameras=("img",))


@pytest.mark.filterwarnings("ignore")
def test_a_run_knows_its_folder_again_and_another_one(folder, tmp_path):
    small = {"chunk": 2, "execute": 2}
    experiment = fp.presets["debug"].with_(data=str(folder), env="recorded", steps=1, agent=small, tensorboard=False)
    run = fp.train(experiment, tmp_path / "run", progress=False)
    assert len(run.dataset().lengths) == len(ENDS)
    write(tmp_path / "other.zarr", columns={**COLUMNS, "action": -COLUMNS["action"]})
    with pytest.raises(DataError, match="SHA-256"):
        run.data(tmp_path / "other.zarr")
    with pytest.raises(DataError, match="is not there"):
        run.data(tmp_path / "nowhere.zarr")


def try_all(count, root, seed=0):
    """What went wrong in so many folders with one damaged file, of which the doctor is asked too."""
    wrong, rng = [], random.Random(seed)
    for version in (2, 3):
        write(root / str(version), version)
    files = [path for path in sorted(root.rglob("*")) if path.is_file()]
    for turn in range(count):
        # A piece is damaged as seldom as its like: what is said of the arrays is what misleads.
        path = rng.choice([each for each in files if (each.name[0] == "." or each.suffix == ".json") == (turn % 4 > 0)])
        whole = path.read_bytes()
        path.write_bytes(damage(whole, f"{path.name}.json", rng) if turn % 4 else changed_bytes(whole, rng))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                folder = root / path.relative_to(root).parts[0]
                diagnose(load_unchecked(DataConfig(path=str(folder))))
                check_pictures(folder)
        except FlowPolicyError as error:
            if not str(error).strip() or "\n\n" in str(error):
                wrong.append(f"{turn} {path}: {error!r}")
        except Exception as error:  # which is what is looked for
            wrong.append(f"{turn} {path}: {type(error).__name__}: {error}"[:300])
        path.write_bytes(whole)
    return wrong


def test_damaged_folders_are_read_or_refused_in_words(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert not try_all(25, tmp_path / "sets")


def test_the_doctor_looks_at_its_pictures(folder, tmp_path):
    (finding,) = check_pictures(folder)
    assert (finding.level, finding.check) == ("ok", "pictures img")
    draw_contact_sheet(folder, tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").read_bytes()[:4] == b"\x89PNG"
    pieces = (path for path in sorted((folder / "data/img").rglob("*")) if path.is_file() and path.name[0] != ".")
    piece = next(path for path in pieces if path.suffix != ".json")
    piece.write_bytes(piece.read_bytes()[:20])
    (finding,) = check_pictures(folder)
    assert finding.level == "error" and "data/img cannot be read from row" in finding.message
