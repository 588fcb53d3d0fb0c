from pathlib import Path

import h5py
import numpy as np
import pytest

from flowpolicy.core.errors import DataError
from flowpolicy.data.d4rl import initial_states
from flowpolicy.data.dataset import DataConfig, load_dataset

DOOR = Path("/work/shared/data/adroit_door_human.hdf5")


def load(path, **fields):
    return load_dataset(DataConfig(path=str(path), **fields))


def test_episodes_end_at_terminals_and_timeouts(d4rl_file):
    dataset = load(d4rl_file)
    assert dataset.lengths.tolist() == [4, 3, 3]
    assert dataset.steps["mask"].tolist() == [1, 1, 1, 0, 1, 1, 1, 1, 1, 1]
    assert dataset.steps["terminal"].nonzero().flatten().tolist() == [3, 6, 9]
    assert dataset.steps["obs", "state"].flatten().tolist() == list(range(30))


def test_without_timeouts_episodes_end_at_terminals_and_a_warning_says_so(d4rl_file):
    with h5py.File(d4rl_file, "a") as file:
        del file["timeouts"]
    with pytest.warns(UserWarning, match="no timeouts"):
        dataset = load(d4rl_file)
    assert dataset.lengths.tolist() == [4, 6]


def test_initial_states_are_the_first_rows(d4rl_file):
    np.testing.assert_array_equal(initial_states(d4rl_file)["qpos"][:, 0], [0, 16, 28])


def test_stored_initial_states_take_precedence(d4rl_file):
    with h5py.File(d4rl_file, "a") as file:
        file["infos/initial_state/qpos"] = np.full((3, 4), 7.0)
    np.testing.assert_array_equal(initial_states(d4rl_file)["qpos"], np.full((3, 4), 7.0))


def test_initial_states_must_fit_the_episodes(d4rl_file):
    with h5py.File(d4rl_file, "a") as file:
        file["infos/initial_state/qpos"] = np.zeros((2, 4))
    with pytest.raises(DataError, match="infos/initial_state/qpos has shape"):
        initial_states(d4rl_file)


def test_missing_infos_are_named(d4rl_file):
    with h5py.File(d4rl_file, "a") as file:
        del file["infos"]
    with pytest.raises(DataError, match="infos is missing"):
        initial_states(d4rl_file)


@pytest.mark.skipif(not DOOR.exists(), reason="the door demonstrations are not on this machine")
def test_door_demonstrations():
    dataset = load(DOOR)
    assert len(dataset.lengths) == 25 and dataset.steps.batch_size[0] == 6729
    assert dataset.spec.action.size == 28 and dataset.spec.observation["state"].shape == (39,)
    assert {k: v.shape for k, v in initial_states(DOOR).items()} == {
        "door_body_pos": (25, 3),
        "qpos": (25, 30),
        "qvel": (25, 30),
    }
