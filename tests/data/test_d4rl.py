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


@pytest.mark.parametrize("limit", [0, 2048])
def test_a_reward_shift_is_added_and_stated(d4rl_file, limit, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with h5py.File(d4rl_file, "a") as file:
        file["rewards"][...] = np.arange(10) == 3
    plain, shifted = (load(d4rl_file, reward_shift=shift, memory_limit_mb=limit) for shift in (0.0, -1.0))
    assert shifted.steps["reward"].tolist() == [-1, -1, -1, 0, -1, -1, -1, -1, -1, -1]
    assert plain.steps["reward"].tolist() == [0, 0, 0, 1, 0, 0, 0, 0, 0, 0]
    assert plain.spec.differences(shifted.spec) == ["reward_shift: 0.0 against -1.0"]


@pytest.mark.parametrize("limit", [0, 2048])
def test_rewards_are_scaled_by_a_number_or_so_that_returns_span_a_thousand(d4rl_file, limit, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    rewards = np.arange(10) - 2.0
    with h5py.File(d4rl_file, "a") as file:
        file["rewards"][...] = rewards
    plain, tenth, ranged = (
        load(d4rl_file, reward_scale=scale, memory_limit_mb=limit) for scale in (1.0, 0.1, "return_range")
    )
    returns = [part.sum().item() for part in plain.steps["reward"][:].split(plain.lengths.tolist())]
    factor = 1000 / (max(returns) - min(returns))
    assert (plain.reward_scale, tenth.reward_scale) == (1.0, 0.1) and ranged.reward_scale == pytest.approx(factor)
    np.testing.assert_allclose(plain.steps["reward"][:], rewards)
    np.testing.assert_allclose(tenth.steps["reward"][:], 0.1 * rewards, rtol=1e-6)
    np.testing.assert_allclose(ranged.steps["reward"][:], factor * rewards, rtol=1e-6)
    again = load(d4rl_file, reward_scale="return_range", memory_limit_mb=limit)  # from the cache, where there is one
    assert again.reward_scale == ranged.reward_scale and again.memory_mapped == (limit == 0)
    scaled = [part.sum().item() for part in ranged.steps["reward"][:].split(plain.lengths.tolist())]
    assert max(scaled) - min(scaled) == pytest.approx(1000)
    shifted = load(d4rl_file, reward_shift=2.0, reward_scale=0.5)  # the shift comes first
    np.testing.assert_allclose(shifted.steps["reward"][:], 0.5 * (rewards + 2))


def test_equal_returns_have_no_scale(d4rl_file):
    with h5py.File(d4rl_file, "a") as file:
        file["rewards"][...] = 0.0
    with pytest.raises(DataError, match="from 0 to 0, which gives rewards no scale") as error:
        load(d4rl_file, reward_scale="return_range")
    assert "--data.reward-scale 1" in str(error.value)


def test_a_reward_shift_that_no_convention_explains_is_refused(d4rl_file):
    with pytest.raises(DataError, match="rewards holds 2 in episode_0, but a reward shift of -1"):
        load(d4rl_file, reward_shift=-1.0)


@pytest.mark.skipif(not DOOR.exists(), reason="the door demonstrations are not on this machine")
def test_door_demonstrations():
    dataset = load(DOOR)
    assert len(dataset.lengths) == 25 and dataset.steps.rows == 6729
    assert dataset.spec.action.size == 28 and dataset.spec.observation["state"].shape == (39,)
    assert {k: v.shape for k, v in initial_states(DOOR).items()} == {
        "door_body_pos": (25, 3),
        "qpos": (25, 30),
        "qvel": (25, 30),
    }
