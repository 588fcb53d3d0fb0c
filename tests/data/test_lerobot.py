"""LeRobot folders: v2.0, v2.1 and v3.0 of one recording are one dataset, and every frame belongs to its row."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from flowpolicy.configs.presets import PRESETS
from flowpolicy.core import keys
from flowpolicy.core.errors import ConfigError
from flowpolicy.data.dataset import DataConfig, Dataset, load_dataset
from flowpolicy.data.lerobot_checks import guess_kind, guess_way
from flowpolicy.policy.session import Session
from flowpolicy.train.training import train
from tests.data.lerobot_folder import number_in, write_folder

pytest.importorskip("pyarrow")
pytest.importorskip("av")

CAMERAS = ("front", "wrist", "top")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def load(path: Path, **more) -> Dataset:
    return load_dataset(DataConfig(str(path), **{"cameras": CAMERAS, **more}))


def numbers(dataset: Dataset, key: str) -> list[int]:
    return [number_in(frame) for frame in dataset.frames[key].take(np.arange(dataset.steps.rows))]


def require_same_steps(a: Dataset, b: Dataset) -> None:
    assert a.steps.keys() == b.steps.keys()
    for key in a.steps:
        if key != keys.OBS:
            assert torch.equal(a.steps[key], b.steps[key]), key
    assert all(torch.equal(a.steps[keys.OBS][key], b.steps[keys.OBS][key]) for key in a.steps[keys.OBS])
    assert torch.equal(a.lengths, b.lengths)


@pytest.mark.filterwarnings("ignore::flowpolicy.core.errors.DataWarning")
def test_every_version_of_a_recording_gives_the_same_dataset(tmp_path):
    every = {"front": 3, "wrist": 2, "top": 5}  # videos begin new files at other episodes than the data, and each other
    found = {
        v: load(write_folder(tmp_path / v, v, cameras=CAMERAS, video_every=every)) for v in ("v2.0", "v2.1", "v3.0")
    }
    for dataset in found.values():
        for key in ("front_image", "wrist_image", "top_image"):
            assert numbers(dataset, key) == list(range(dataset.steps.rows))
        require_same_steps(dataset, found["v3.0"])
        assert dataset.spec == found["v3.0"].spec
        assert dataset.instructions == ("lift the cube", "push the cube")


@pytest.mark.filterwarnings("ignore::flowpolicy.core.errors.DataWarning")
def test_chosen_episodes_keep_their_rows_and_open_nothing_else(tmp_path):
    folder = write_folder(tmp_path / "set", cameras=CAMERAS)
    (folder / "data/chunk-000/file-000.parquet").write_bytes(b"")  # of episodes 0 and 1
    (folder / "videos/observation.images.front/chunk-000/file-000.mp4").unlink()  # of episodes 0 to 2
    dataset = load(folder, filter_key="3:5", cameras=("front",))
    assert dataset.names == ("episode_000003", "episode_000004")
    assert numbers(dataset, "front_image") == list(range(36, 57))
    assert torch.equal(dataset.steps[keys.OBS]["state"][:, 1], torch.arange(36, 57) / 100)
    assert load(folder, filter_key="val", cameras=()).names == ("episode_000004",)


def test_the_action_convention_is_said_by_the_user_or_unstated(tmp_path):
    folder = write_folder(tmp_path / "set", cameras=())
    said = load(folder, cameras=(), action_convention="joint-absolute").spec.action
    assert (said.convention, said.frame, said.rate_hz) == ("absolute", "joints", 30)
    assert load(folder, cameras=()).spec.action.convention == "unstated"
    assert dataclasses.replace(said, convention="unstated", frame="unstated") == load(folder, cameras=()).spec.action


def test_the_doctor_guesses_what_an_action_is_and_says_why(tmp_path):
    folder = write_folder(tmp_path / "set", cameras=())
    dataset = load(folder, cameras=(), obs_keys=("state",))
    way, why = guess_way(dataset)
    assert (way, why[:16]) == ("absolute", "2 of 2 dimension")
    state = dataset.steps[keys.OBS]["state"]
    dataset.steps[keys.ACTION] = torch.roll(state, -1, 0)[:, :1] - state[:, :1]
    assert guess_way(dataset)[0] == "delta"
    assert guess_kind(("shoulder_pan.pos", "elbow_flex.pos"), ())[0] == "joint"
    assert guess_kind((), ("x", "y", "z", "yaw"))[0] == "pose"
    assert guess_kind(("action_0",), ()) == ("", "whether of joints or of a pose no name says")


@pytest.mark.filterwarnings("ignore")
def test_a_policy_follows_the_instructions_that_it_knows_and_refuses_others(tmp_path):
    folder = write_folder(tmp_path / "set", cameras=())
    experiment = PRESETS["debug"][1].with_(env="recorded", data=folder, steps=2, agent={"chunk": 4, "execute": 2})
    policy = train(experiment, tmp_path / "run", progress=False).policy()
    assert policy.contract.spec.observation["instruction"].words == ("lift the cube", "push the cube")
    scaling = policy.normalizer.observation("instruction")
    assert scaling.offset.tolist() == [0, 0] and scaling.scale.tolist() == [1, 1]
    state = {"state": np.zeros(3, np.float32)}
    first, second = (Session(policy, instruction=text).act(state) for text in ("lift the cube", "push the cube"))
    assert not np.array_equal(first, second)
    with pytest.raises(ConfigError, match="knows no instruction 'lift the cup'"):
        Session(policy, instruction="lift the cup")
    with pytest.raises(ConfigError, match="follows 2 instructions, and none is given"):
        Session(policy).act(state)
    with pytest.raises(ConfigError, match="is no instruction"):
        Session(policy).act(state | {"instruction": np.full(2, 0.5, np.float32)})
