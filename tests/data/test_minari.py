"""Files in Minari's HDF5 layout, and the library's own reading of the same file."""

import json
import sys

import h5py
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec

from flowpolicy.core.errors import DataError, MissingExtraError
from flowpolicy.data.dataset import DataConfig, load_dataset
from flowpolicy.data.minari import fetch_minari

LENGTHS = (3, 12)


def write(folder, *, grouped=False):
    """Two episodes of random numbers with metadata; the first terminates, the second is cut off."""
    random = np.random.default_rng(0)
    path = folder / "data" / "main_data.hdf5"
    path.parent.mkdir(parents=True)
    with h5py.File(path, "w") as file:
        for index, steps in enumerate(LENGTHS):
            group = file.create_group(f"episode_{index}")
            obs = random.normal(size=(steps + 1, 4))
            if grouped:
                group["observations/observation"] = obs
                group["observations/desired_goal"] = obs[:, :2]
            else:
                group["observations"] = obs
            group["actions"] = random.uniform(-1, 1, size=(steps, 2)).astype(np.float32)
            group["rewards"] = np.arange(steps, dtype=np.float64)
            group["terminations"] = np.arange(steps) == (steps - 1 if index == 0 else -1)
            group["truncations"] = np.arange(steps) == (steps - 1 if index == 1 else -1)
            group.attrs.update({"id": index, "total_steps": steps})
    env = EnvSpec("AdroitHandDoor-v1", "gymnasium_robotics.envs.adroit_hand.adroit_door:AdroitHandDoorEnv")
    space = {"type": "Box", "dtype": "float64", "low": [-10.0] * 4, "high": [10.0] * 4, "shape": [4]}
    action = {"type": "Box", "dtype": "float32", "low": [-1.0] * 2, "high": [1.0] * 2, "shape": [2]}
    metadata = {
        "env_spec": env.to_json(), "total_episodes": 2, "total_steps": 15, "data_format": "hdf5",
        "observation_space": json.dumps(space), "action_space": json.dumps(action),
        "dataset_id": "tiny-v0", "minari_version": "0.5.3",
    }  # fmt: skip
    path.with_name("metadata.json").write_text(json.dumps(metadata))
    return path


def load(path, **fields):
    return load_dataset(DataConfig(path=str(path), **fields))


def test_rows_masks_and_environment(tmp_path):
    path = write(tmp_path)
    dataset = load(path)
    with h5py.File(path) as file:
        first = file["episode_0/observations"][:-1].astype(np.float32)
    assert dataset.lengths.tolist() == list(LENGTHS)
    assert dataset.steps["mask"].tolist() == [1, 1, 0, *[1] * 12]
    assert dataset.steps["terminal"].nonzero().flatten().tolist() == [2, 14]
    assert dataset.steps["reward"].tolist() == [*range(3), *range(12)]
    np.testing.assert_array_equal(dataset.steps["obs", "state"][:3].numpy(), first)
    assert dataset.spec.env_id == "gymnasium-robotics/AdroitHandDoor-v1"


def test_groups_of_observations_keep_their_names(tmp_path):
    path = write(tmp_path, grouped=True)
    assert set(load(path).spec.observation) == {"observation", "desired_goal"}
    chosen = load(path, obs_keys=("desired_goal",))
    assert list(chosen.spec.observation) == ["desired_goal"]
    with pytest.raises(DataError, match="goal does not exist"):
        load(path, obs_keys=("goal",))


def test_wrong_files_are_refused(tmp_path):
    path = write(tmp_path)
    with pytest.raises(DataError, match="filter key better does not exist"):
        load(path, filter_key="better")
    with pytest.raises(DataError, match="observation goal does not exist"):
        load(path, obs_keys=("goal",))
    with h5py.File(path, "a") as file:
        del file["episode_1/rewards"]
        file["episode_1/rewards"] = np.zeros(5)
    with pytest.raises(DataError, match=r"episode_1/rewards has shape \(5,\)"):
        load(path)
    with h5py.File(path, "a") as file:
        del file["episode_1/actions"]
    with pytest.raises(DataError, match="episode_1/actions holds nothing"):
        load(path)


def test_the_library_reads_the_same_episodes(tmp_path, monkeypatch):
    minari = pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    path = write(tmp_path / "tiny-v0")
    assert fetch_minari("minari:tiny-v0") == path
    ours = load(path)
    episodes = list(minari.load_dataset("tiny-v0").iterate_episodes())
    for episode, first, length in zip(episodes, ours.starts.tolist(), ours.lengths.tolist(), strict=True):
        rows = slice(first, first + length)
        np.testing.assert_array_equal(episode.actions, ours.steps["action"][rows].numpy())
        np.testing.assert_array_equal(
            episode.observations[:-1].astype(np.float32), ours.steps["obs", "state"][rows].numpy()
        )
        np.testing.assert_array_equal(1.0 - episode.terminations, ours.steps["mask"][rows].numpy())


def test_what_the_library_cannot_give_names_the_place(tmp_path, monkeypatch):
    minari = pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))

    def refuse(name):
        raise ConnectionError("no network")

    monkeypatch.setattr(minari, "download_dataset", refuse)
    with pytest.raises(DataError, match=r"cannot download D4RL/door/human-v2: no network(.|\n)*D4RL/door/human-v2"):
        fetch_minari("minari:D4RL/door/human-v2")


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "minari", None)
    with pytest.raises(MissingExtraError, match=r"flowpolicy\[minari\]"):
        fetch_minari("tiny-v0")
