"""Generated Maze2D files: D4RL's layout, reproducible, and a controller that arrives."""

import h5py
import numpy as np
import pytest

from flowpolicy.core.errors import ConfigError
from flowpolicy.data.dataset import DataConfig, load_dataset
from flowpolicy.envs.maze2d_data import cells_to_go, make_maze2d, waypoint


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("maze2d") / "umaze.hdf5"
    make_maze2d("maze2d-umaze", path, episodes=4, seed=2, workers=1)
    return path


def test_the_next_cell_lies_on_a_shortest_path():
    free = [(1, 1), (1, 2), (1, 3), (2, 3), (3, 3), (3, 2), (3, 1)]
    distances = cells_to_go(free, (1, 1))
    assert distances == {(1, 1): 0, (1, 2): 1, (1, 3): 2, (2, 3): 3, (3, 3): 4, (3, 2): 5, (3, 1): 6}
    target = np.array([1.05, 0.95])
    assert waypoint(np.array([3.2, 1.1]), target, distances).tolist() == [3, 2]
    assert waypoint(np.array([2.4, 2.9]), target, distances).tolist() == [1, 3]
    assert waypoint(np.array([1.1, 1.2]), target, distances) is target


@pytest.mark.sim
def test_the_file_has_d4rls_layout(file):
    dataset = load_dataset(DataConfig(path=str(file)))
    assert dataset.lengths.tolist() == [300] * 4
    assert dataset.steps["mask"].min() == 1
    assert dataset.steps["action"].abs().max() <= 1
    state, reward = dataset.steps["obs", "state"].numpy(), dataset.steps["reward"].numpy()
    np.testing.assert_array_equal(reward, np.linalg.norm(state[:, :2] - [1, 1], axis=1) <= 0.5)
    assert state[:, :2].min() > 0.4 and state[:, :2].max() < 3.6
    with h5py.File(file) as raw:
        assert set(raw) == {"observations", "actions", "rewards", "terminals", "timeouts", "infos"}
        assert raw["observations"].shape == (1200, 4) and raw["observations"].dtype == np.float32


@pytest.mark.sim
def test_the_controller_reaches_its_goals(file):
    with h5py.File(file) as raw:
        goals = raw["infos/goal"][()]
    changes = (np.abs(np.diff(goals, axis=0)).max(axis=1) > 1e-6).sum() - 3
    assert changes >= 8  # of 1200 steps; crossing the whole maze takes about 150


@pytest.mark.sim
def test_the_bytes_depend_on_the_seed_alone(file, tmp_path):
    make_maze2d("maze2d-umaze", tmp_path / "umaze.hdf5", episodes=4, seed=2, workers=2)
    assert (tmp_path / "umaze.hdf5").read_bytes() == file.read_bytes()


def test_wrong_requests_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'maze2d-umaze'"):
        make_maze2d("maze2d-umase", tmp_path / "x", 1)
    with pytest.raises(ConfigError, match="0 episodes"):
        make_maze2d("maze2d-umaze", tmp_path / "x", 0)
