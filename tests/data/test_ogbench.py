"""The OGBench reader on small files, right and wrong ones."""

import io

import numpy as np
import pytest

from flowpolicy.core.errors import DataError
from flowpolicy.data.dataset import DataConfig, load_dataset
from flowpolicy.data.dataset_checks import describe
from flowpolicy.data.ogbench import write_npz


def columns(**changed):
    """Two episodes of 4 and 3 rows; the first is solved in its row 2 and goes on, task 2 never is."""
    rewards = np.array([-1, -1, 0, -1, -1, -1, -1], dtype=np.float32)
    made = {
        "observations": np.arange(21, dtype=np.float32).reshape(7, 3),
        "actions": np.linspace(-1, 1, 14, dtype=np.float32).reshape(7, 2),
        "terminals": np.array([0, 0, 0, 1, 0, 0, 1], dtype=bool),
        "qpos": np.zeros((7, 2), dtype=np.float32),
        "rewards": rewards,
        "masks": (rewards != 0).astype(np.float32),
        "rewards_task1": rewards,
        "masks_task1": (rewards != 0).astype(np.float32),
        "rewards_task2": np.full(7, -2, dtype=np.float32),
        "masks_task2": np.ones(7, dtype=np.float32),
        "env_id": np.array("ogbench/pointmaze-medium-singletask-task1-v0"),
    }
    return {key: value for key, value in (made | changed).items() if value is not None}


@pytest.fixture
def write(tmp_path):
    def _write(**changed):
        path = tmp_path / "data.npz"
        write_npz(path, columns(**changed))
        return path

    return _write


def load(path, **fields):
    return load_dataset(DataConfig(path=str(path), **fields))


def test_every_row_is_kept_and_masks_are_not_terminals(write):
    dataset = load(write())
    assert dataset.lengths.tolist() == [4, 3]
    assert int(dataset.steps["terminal"].sum()) == 2
    assert dataset.steps["terminal"].nonzero().flatten().tolist() == [3, 6]
    assert dataset.steps["mask"].tolist() == [1, 1, 0, 1, 1, 1, 1]
    assert dataset.steps["reward"].tolist() == [-1, -1, 0, -1, -1, -1, -1]
    assert dataset.steps["obs", "state"].flatten().tolist() == list(range(21))
    assert dataset.spec.env_id == "ogbench/pointmaze-medium-singletask-task1-v0"


def test_the_filter_key_chooses_the_task(write):
    dataset = load(write(), filter_key="task2")
    assert dataset.steps["reward"].tolist() == [-2] * 7
    assert dataset.spec.env_id == "ogbench/pointmaze-medium-singletask-task2-v0"
    with pytest.raises(DataError, match="no rewards for 'task7'"):
        load(write(), filter_key="task7")


def test_a_description_names_format_and_tasks(write):
    found = describe(write())
    assert (found.format, found.episodes, found.filters) == ("ogbench", 2, {"task1": 2, "task2": 2})
    assert found.rewards == (-1, 0)


def test_an_official_file_without_rewards_says_how_to_add_them(write):
    labels = [name for name in columns() if name.startswith(("rewards", "masks"))]
    with pytest.raises(DataError, match=r"carry no rewards(.|\n)*flowpolicy data label"):
        load(write(**dict.fromkeys(labels)))


ONES = np.ones(7, dtype=np.float32)
BAD = {
    "positive rewards": ({"rewards": np.array([0, 0, 1, 0, 0, 0, 0.0])}, r"no OGBench task has the rewards \{0, 1\}"),
    "dense rewards": ({"rewards": -np.linspace(0, 1, 7)}, r"no OGBench task has the rewards"),
    "masks from terminals": (
        {"masks": 1.0 - columns()["terminals"]},
        r"masks and rewards contradict each other in 3 of 7 rows, first in row 2: mask 1, reward 0",
    ),
    "masks of other values": ({"masks": 0.5 * ONES}, r"masks holds 0\.5 in row 0"),
    "masks missing": ({"masks": None}, "masks is missing"),
    "a file that was cut": ({"terminals": np.zeros(7, dtype=bool)}, "the last row is not marked in terminals"),
    "terminals of other values": ({"terminals": 2 * ONES}, r"terminals holds 2\.0 in row 0"),
    "terminals of another length": ({"terminals": np.ones(6, dtype=bool)}, r"terminals has shape \(6,\)"),
    "observations of another length": ({"observations": np.zeros((6, 3))}, r"observations has shape \(6, 3\)"),
    "pictures of floats": ({"observations": np.zeros((7, 4, 4, 3))}, "holds pictures of float64"),
    "words": ({"actions": np.array([["a"]] * 7)}, "actions holds <U1"),
    "no step": ({"actions": np.zeros((0, 2))}, "actions holds no step"),
    "no actions": ({"actions": None}, "actions is missing"),
    "not a number": ({"actions": np.full((7, 2), np.nan)}, "actions holds NaN or infinity, first at step 0"),
}


@pytest.mark.parametrize("name", BAD)
def test_wrong_files_are_refused(write, name):
    changed, message = BAD[name]
    with pytest.raises(DataError, match=message):
        load(write(**changed))


def test_pickled_objects_are_never_loaded(tmp_path):
    path = tmp_path / "data.npz"
    np.savez(path, **columns(actions=np.array([[{}]] * 7, dtype=object)))
    with pytest.raises(DataError, match=r"actions cannot be read(.|\n)*never loaded"):
        load(path)


def test_truncated_and_damaged_files_are_refused(write):
    path = write()
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="truncated or damaged"):
        load(path)
    at = whole.index(b"observations.npy") + 60
    path.write_bytes(whole[:at] + b"\xff" * 20 + whole[at + 20 :])
    with pytest.raises(DataError, match="observations cannot be read"):
        load(path)


def test_equal_arrays_give_equal_bytes_and_an_unknown_observation_is_named(write, tmp_path):
    first = write().read_bytes()
    assert first == write().read_bytes()
    assert set(np.load(io.BytesIO(first)).files) == set(columns())
    with pytest.raises(DataError, match="observation eef does not exist"):
        load(write(), obs_keys=("eef",))
