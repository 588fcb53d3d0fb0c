from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from flowpolicy.core.errors import DataError
from flowpolicy.core.spec import UNSTATED
from flowpolicy.data.controllers import action_of
from flowpolicy.data.dataset import DataConfig, load_dataset
from flowpolicy.data.robomimic import read_initial_state
from flowpolicy.data.robomimic_writer import RecordedEpisode, RobomimicWriter

from .conftest import ENV_ARGS


def load(path, **fields):
    return load_dataset(DataConfig(path=str(path), **fields))


def test_reading_returns_what_was_written(robomimic_file, episodes):
    dataset = load(robomimic_file)
    row = 0
    for index, episode in enumerate(episodes):
        steps = dataset.steps.at(slice(row, row + len(episode.actions)))
        np.testing.assert_array_equal(steps["action"], episode.actions.astype(np.float32))
        np.testing.assert_array_equal(steps["reward"], episode.rewards.astype(np.float32))
        for name, value in episode.obs.items():
            np.testing.assert_array_equal(steps["obs", name], value.astype(np.float32))
        assert steps["episode"].tolist() == [index] * steps.rows
        assert steps["terminal"].tolist() == [False] * (steps.rows - 1) + [True]
        row += steps.rows
    assert row == dataset.steps.rows == 306
    assert dataset.starts.tolist()[:3] == [0, 20, 41]


def test_episodes_are_in_numerical_order(robomimic_file):
    assert load(robomimic_file).names == tuple(f"demo_{i}" for i in range(12))


def test_mask_is_zero_only_where_the_task_succeeded(robomimic_file):
    dataset = load(robomimic_file)
    last = dataset.steps["mask"][dataset.steps["terminal"]]
    assert last.tolist() == [1.0, 0.0] * 6  # only odd episodes succeed; the others are cut off
    assert dataset.steps["mask"].sum() == 306 - 6


def test_filter_and_observation_keys_select(robomimic_file):
    dataset = load(robomimic_file, filter_key="okay", obs_keys=("object",))
    assert dataset.names == tuple(f"demo_{i}" for i in range(1, 12, 2))
    assert list(dataset.steps["obs"].keys()) == ["object"] == list(dataset.spec.observation)
    assert dataset.filter_key == "okay"


def test_spec_comes_from_the_file(robomimic_file):
    spec = load(robomimic_file).spec
    assert {k: v.shape for k, v in spec.observation.items()} == {"eef": (3,), "object": (5,)}
    assert (spec.env_id, spec.env_version) == ("robosuite/Lift", "1.5.2")
    action = spec.action
    assert (action.size, action.convention, action.frame, action.rate_hz) == (7, "delta", "base", 20.0)
    assert (action.rotation, action.low, action.high) == ("axis-angle", -1.0, 1.0)
    assert "0.05 m" in action.units and "0.5 rad" in action.units


@pytest.mark.parametrize(("delta", "convention"), [(True, "delta"), (False, "absolute")])
def test_controller_of_robosuite_before_1_5(delta, convention):
    config = {"type": "OSC_POSE", "control_delta": delta, "input_max": 1, "output_max": [0.05] * 3 + [0.5] * 3}
    spec = action_of({"env_kwargs": {"control_freq": 20, "controller_configs": config}}, 7)
    assert (spec.convention, spec.frame, spec.rate_hz) == (convention, "world", 20.0)


def test_what_the_file_does_not_say_stays_unstated():
    spec = action_of({}, 4)
    assert {spec.convention, spec.frame, spec.units, spec.rotation, spec.gripper} == {UNSTATED}
    assert spec.rate_hz == 0.0


def test_equal_episodes_give_equal_bytes(tmp_path, episodes):
    for name in ("a.hdf5", "b.hdf5"):
        with RobomimicWriter(tmp_path / name, ENV_ARGS) as writer:
            for episode in episodes:
                writer.add(episode, filters=("train",))
    assert (tmp_path / "a.hdf5").read_bytes() == (tmp_path / "b.hdf5").read_bytes()


def test_layout_is_that_of_robomimic(robomimic_file):
    with h5py.File(robomimic_file) as file:
        assert file["data"].attrs["total"] == 306
        assert file["data/demo_2"].attrs["num_samples"] == 22
        assert set(file["data/demo_2"]) == {"actions", "rewards", "dones", "states", "obs", "next_obs"}
        assert file["mask/okay"][0] == b"demo_1"


def test_initial_state_for_replay(robomimic_file, episodes):
    state, xml = read_initial_state(robomimic_file, "demo_3")
    np.testing.assert_array_equal(state, episodes[3].states[0])
    assert xml == episodes[3].model_xml


def test_an_error_while_writing_leaves_the_old_file(robomimic_file, episodes):
    def interrupted():
        with RobomimicWriter(robomimic_file, ENV_ARGS) as writer:
            writer.add(episodes[0])
            raise KeyboardInterrupt

    before = robomimic_file.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert robomimic_file.read_bytes() == before
    assert list(robomimic_file.parent.iterdir()) == [robomimic_file]


def test_writer_refuses_columns_of_different_length(tmp_path):
    columns = {"actions": np.zeros((5, 2)), "dones": np.zeros(5), "obs": {"x": np.zeros((5, 1))}, "next_obs": {}}
    with (
        pytest.raises(DataError, match="data/demo_0/rewards has 4 rows"),
        RobomimicWriter(tmp_path / "x.hdf5", {}) as writer,
    ):
        writer.add(RecordedEpisode(rewards=np.zeros(4), **columns))
    assert not list(tmp_path.iterdir())


def test_scalar_observations_become_columns(tmp_path):
    path = Path(tmp_path / "scalar.hdf5")
    obs = {"gripper": np.arange(3.0), "image": np.zeros((3, 8, 8, 3), dtype=np.uint8)}
    with RobomimicWriter(path, {}) as writer:
        writer.add(RecordedEpisode(np.zeros((3, 2)), np.zeros(3), np.zeros(3), obs, obs))
    steps = load(path).steps
    assert list(steps["obs"].keys()) == ["gripper"]
    torch.testing.assert_close(steps["obs", "gripper"], torch.tensor([[0.0], [1.0], [2.0]]))
