"""Every kind of bad file gives a DataError that names file and key; nothing is guessed."""

import h5py
import numpy as np
import pytest

from flowpolicy.core.errors import DataError
from flowpolicy.data.dataset import DataConfig, load_dataset, load_unchecked


def refuse(path, *words, **fields):
    with pytest.raises(DataError) as caught:
        load_dataset(DataConfig(path=str(path), **fields))
    for word in (str(path), *words):
        assert word in str(caught.value)


def edit(path, change):
    with h5py.File(path, "a") as file:
        change(file)
    return path


def replace(file, key, value):
    del file[key]
    file[key] = value


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.1, 0.5, 0.9, 0.999])
def test_truncated(robomimic_file, share):
    content = robomimic_file.read_bytes()
    robomimic_file.write_bytes(content[: int(share * len(content))])
    refuse(robomimic_file)


def test_missing(tmp_path):
    refuse(tmp_path / "none.hdf5", "is not a file")


def test_no_path():
    with pytest.raises(DataError, match=r"--data\.path"):
        load_dataset(DataConfig())


def test_folder(tmp_path):
    refuse(tmp_path, "is not a file")


def test_not_hdf5(tmp_path):
    path = tmp_path / "page.hdf5"
    path.write_text("<html>404</html>")
    refuse(path, "is not an HDF5 file")


def test_foreign_layout(tmp_path):
    path = tmp_path / "other.hdf5"
    edit(path, lambda file: file.create_group("weights"))
    refuse(path, "weights", "no known layout")


def test_no_episode(tmp_path):
    path = tmp_path / "empty.hdf5"
    edit(path, lambda file: file.create_group("data"))
    refuse(path, "data holds no episode")


@pytest.mark.parametrize("key", ["actions", "rewards", "dones", "obs/eef"])
def test_missing_key(robomimic_file, key):
    edit(robomimic_file, lambda file: file.__delitem__(f"data/demo_3/{key}"))
    refuse(robomimic_file, f"data/demo_3/{key}", "is missing")


def test_missing_observations(robomimic_file):
    edit(robomimic_file, lambda file: file.__delitem__("data/demo_3/obs"))
    refuse(robomimic_file, "data/demo_3 has no observations", "flowpolicy data observe")


@pytest.mark.parametrize(
    ("key", "shape"), [("rewards", (22,)), ("dones", (24,)), ("obs/eef", (22, 3)), ("rewards", (23, 1))]
)
def test_mismatched_lengths(robomimic_file, key, shape):
    edit(robomimic_file, lambda file: replace(file, f"data/demo_3/{key}", np.zeros(shape)))
    refuse(robomimic_file, f"data/demo_3/{key} has shape {shape}")


def test_num_samples_disagrees(robomimic_file):
    edit(robomimic_file, lambda file: file["data/demo_3"].attrs.__setitem__("num_samples", 5))
    refuse(robomimic_file, "data/demo_3/actions", "num_samples")


@pytest.mark.parametrize("shape", [(0, 7), (23, 6), (23,)])
def test_action_shape(robomimic_file, shape):
    edit(robomimic_file, lambda file: replace(file, "data/demo_3/actions", np.zeros(shape)))
    refuse(robomimic_file, f"data/demo_3/actions has shape {shape}")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("key", ["actions", "rewards", "obs/object"])
def test_not_finite(robomimic_file, key, value):
    edit(robomimic_file, lambda file: file[f"data/demo_3/{key}"].__setitem__(7, value))
    refuse(robomimic_file, f"data/demo_3/{key}", "first at step 7")
    assert load_unchecked(DataConfig(path=str(robomimic_file))).steps.rows == 306


def test_not_numbers(robomimic_file):
    edit(robomimic_file, lambda file: replace(file, "data/demo_3/obs/eef", np.array([b"x"] * 23)))
    refuse(robomimic_file, "data/demo_3/obs/eef holds")


def test_unknown_filter_key(robomimic_file):
    refuse(robomimic_file, "mask/trian", "did you mean 'train'?", filter_key="trian")


def test_empty_filter_key(robomimic_file):
    edit(robomimic_file, lambda file: file.create_dataset("mask/none", data=np.array([], dtype="S8")))
    refuse(robomimic_file, "mask/none selects no episode", filter_key="none")


def test_filter_names_a_missing_episode(robomimic_file):
    edit(robomimic_file, lambda file: file.__delitem__("data/demo_3"))
    refuse(robomimic_file, "mask/okay names demo_3", filter_key="okay")


def test_unknown_observation(robomimic_file):
    refuse(robomimic_file, "obs/objet", "did you mean 'object'?", obs_keys=("objet",))


def test_env_args_are_not_json(robomimic_file):
    edit(robomimic_file, lambda file: file["data"].attrs.__setitem__("env_args", "{"))
    refuse(robomimic_file, "env_args")


@pytest.mark.parametrize("key", ["observations", "actions", "rewards", "terminals"])
def test_d4rl_missing_key(d4rl_file, key):
    edit(d4rl_file, lambda file: file.__delitem__(key))
    refuse(d4rl_file, f"{key} is missing")


@pytest.mark.parametrize("key", ["observations", "rewards", "terminals", "timeouts"])
def test_d4rl_mismatched_lengths(d4rl_file, key):
    edit(d4rl_file, lambda file: replace(file, key, file[key][:9]))
    refuse(d4rl_file, f"{key} has shape")


def test_d4rl_not_finite(d4rl_file):
    edit(d4rl_file, lambda file: file["actions"].__setitem__((5, 0), np.nan))
    refuse(d4rl_file, "actions holds NaN", "step 1 of episode_1")


def test_d4rl_has_no_filter_keys(d4rl_file):
    refuse(d4rl_file, "filter key train", filter_key="train")
