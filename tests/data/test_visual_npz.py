"""OGBench's visual files: pictures are read frame by frame, and refused in one sentence where they are wrong."""

import dataclasses

import numpy as np
import pytest
import torch

from flowpolicy.core import keys
from flowpolicy.core.errors import DataError
from flowpolicy.data.conversion import losses, require_lossless, survey, write_all
from flowpolicy.data.dataset import DataConfig, load_dataset, load_unchecked
from flowpolicy.data.dataset_checks import describe, diagnose, failed
from flowpolicy.data.episode_edits import of_file
from flowpolicy.data.episode_file import open_episodes
from flowpolicy.data.ogbench import PIXELS, pixels_json, pixels_spec, write_npz
from flowpolicy.data.picture_checks import check_pictures
from flowpolicy.data.transitions import TransitionSampler
from flowpolicy.envs.ogbench_env import OGBenchConfig

ROWS = 30


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def visual(path, **changes):
    rng, solved = np.random.default_rng(0), np.arange(ROWS) % 7 == 3
    columns = {
        "observations": rng.integers(0, 256, (ROWS, 64, 64, 3), dtype=np.uint8),
        "actions": rng.uniform(-1, 1, (ROWS, 5)).astype(np.float32),
        "terminals": np.arange(ROWS) % 10 == 9,
        "rewards": solved - 1.0,
        "masks": 1.0 - solved,
        "env_id": np.array(OGBenchConfig("cube-single", visual=True).spec().env_id),
    }
    write_npz(path, columns | changes)
    return columns


def read(path, **options):
    return load_dataset(DataConfig(path=str(path), **options))


@pytest.mark.parametrize("options", [{}, {"obs_keys": ("pixels",)}, {"cameras": ("front_pixels",)}])
def test_pictures_are_the_only_observation_and_come_by_row(options, tmp_path):
    columns = visual(tmp_path / "visual.npz")
    dataset = read(tmp_path / "visual.npz", **options)
    assert dataset.spec.observation == {PIXELS: pixels_spec((64, 64, 3))} and not dataset.steps[keys.OBS].keys()
    np.testing.assert_array_equal(dataset.frames[PIXELS].take(np.arange(ROWS)), columns["observations"])
    batch = TransitionSampler(dataset, 3, 1, 4).at(torch.tensor([0, 12]))
    past = columns["observations"][[[0, 0, 0], [10, 11, 12]]]
    np.testing.assert_array_equal(batch[keys.OBS, PIXELS].numpy(), past)
    assert dataset.spec.differences(OGBenchConfig("cube-single", visual=True).spec()) == []


def test_pictures_that_were_drawn_otherwise_are_another_spec(tmp_path):
    fast = pixels_spec((64, 64, 3), "9.9")
    fast = dataclasses.replace(fast, render=dataclasses.replace(fast.render, shadows="off"))
    visual(tmp_path / "fast.npz", **pixels_json(fast))
    spec = read(tmp_path / "fast.npz").spec
    assert spec.images == {PIXELS: fast}
    lines = "\n".join(spec.differences(OGBenchConfig("cube-single", visual=True).spec()))
    assert "shadows" in lines and "9.9" in lines


@pytest.mark.parametrize(
    ("changes", "options", "said"),
    [
        ({"observations": np.zeros((ROWS, 64, 64, 3), np.float32)}, {}, "holds pictures of float32"),
        ({"observations": np.zeros((ROWS, 3, 64, 64), np.uint8)}, {}, "its colour channels come first"),
        ({"observations": np.zeros((ROWS, 64, 64, 9), np.uint8)}, {}, "no colour pictures"),
        ({"observations": np.zeros((ROWS - 1, 64, 64, 3), np.uint8)}, {}, "observations"),
        ({"images": np.array("{")}, {}, "does not say how pixels were drawn"),
        (pixels_json(pixels_spec((32, 32, 3))), {}, r"have the shape \(32, 32, 3\), and they have \(64, 64, 3\)"),
        ({}, {"obs_keys": ("state",)}, "the observation state does not exist"),
        ({}, {"cameras": ("agentview",)}, "no pictures of a camera 'agentview'"),
    ],
)
def test_wrong_pictures_are_one_clear_sentence(changes, options, said, tmp_path):
    visual(tmp_path / "visual.npz", **changes)
    with pytest.raises(DataError, match=said):
        read(tmp_path / "visual.npz", **options)


def test_a_visual_file_is_described(tmp_path):
    visual(tmp_path / "visual.npz")
    found = describe(tmp_path / "visual.npz")
    assert found.pictures == {PIXELS: pixels_spec((64, 64, 3))} and not found.observations
    dataset = load_unchecked(DataConfig(path=str(tmp_path / "visual.npz")))
    (finding,) = check_pictures(tmp_path / "visual.npz")
    assert not failed(diagnose(dataset)) and finding.check == f"pictures {PIXELS}"


@pytest.mark.parametrize("target", ["ogbench", "robomimic"])
def test_episodes_that_observe_nothing_but_pictures_keep_them(target, tmp_path):
    visual(tmp_path / "visual.npz")
    stored = np.load(tmp_path / "visual.npz")["observations"]
    with open_episodes(tmp_path / "visual.npz") as file:
        passing = of_file(file, [0])
        found = survey(passing)
        assert not any("pictures" in lost or "names" in lost for lost in losses(passing, found, target))
        write_all([(passing, tmp_path / "some")], target, [found], command="", lost=[[]])
        with pytest.raises(DataError, match="nothing but pictures"):
            require_lossless(passing, found, "d4rl", lossy=True)
    with open_episodes(tmp_path / "some") as file:
        one = file.read(0)
        (pictures,) = one.pictures.values()
        assert (np.concatenate(list(pictures.blocks())) == stored[: one.steps]).all() and not one.obs
    assert [each.level for each in check_pictures(tmp_path / "some")] == ["ok"]


def test_a_file_of_states_has_no_cameras(tmp_path):
    visual(tmp_path / "states.npz", observations=np.zeros((ROWS, 28), np.float32))
    with pytest.raises(DataError, match="no pictures of a camera 'front_pixels'"):
        read(tmp_path / "states.npz", cameras=("front_pixels",))


def test_visual_environments_have_names():
    for name in ("visual-cube-single", "ogbench/visual-cube-single-singletask-task2-v0", "visual-cube-single-play-v0"):
        assert OGBenchConfig.parse(name) == OGBenchConfig("cube-single", 2 * ("task2" in name), visual=True)
