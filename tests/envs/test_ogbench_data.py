"""Generated OGBench files against the published properties of the official ones."""

import re

import numpy as np
import pytest

from flowpolicy.commands.data import run
from flowpolicy.core.errors import ConfigError
from flowpolicy.data.dataset import DataConfig, load_dataset
from flowpolicy.envs import ENVS, find_env
from flowpolicy.envs.ogbench_data import EPISODE_ROWS, RECORDERS, label_file, make_ogbench

pytestmark = pytest.mark.sim

OFFICIAL = {"observations", "actions", "terminals", "qpos", "qvel"}
ROWS = 60


@pytest.fixture(scope="module")
def maze_file(tmp_path_factory):
    """Two whole navigate episodes, and one for validation."""
    path = tmp_path_factory.mktemp("maze") / "maze.npz"
    make_ogbench("pointmaze-medium", path, episodes=2, seed=3, workers=1)
    return path


@pytest.fixture
def short(monkeypatch):
    """Episodes of ROWS rows, recorded in this process: what is compared is the format, not the content."""
    monkeypatch.setattr("flowpolicy.envs.ogbench_data.EPISODE_ROWS", ROWS)

    def record(name, seed, index):
        return RECORDERS[name]().record(seed, index)

    return record


def test_navigate_files_have_the_official_layout(maze_file):
    with np.load(maze_file, allow_pickle=False) as file:
        columns = dict(file)
    labels = {name for name in columns if name.startswith(("rewards", "masks"))} | {"env_id"}
    assert set(columns) - labels == OFFICIAL
    assert {name: columns[name].dtype for name in OFFICIAL} == {
        name: np.dtype(bool if name == "terminals" else np.float32) for name in OFFICIAL
    }
    assert {name: columns[name].shape[1:] for name in OFFICIAL} == {
        "observations": (2,), "actions": (2,), "terminals": (), "qpos": (2,), "qvel": (2,)
    }  # fmt: skip
    assert EPISODE_ROWS == 1001
    assert np.flatnonzero(columns["terminals"]).tolist() == [1000, 2001]
    assert np.abs(columns["actions"]).max() <= 1.0
    np.testing.assert_array_equal(columns["observations"], columns["qpos"])


def test_the_point_reaches_several_goals_and_stays_in_the_maze(maze_file):
    with np.load(maze_file) as file:
        path = file["observations"].reshape(2, 1001, 2)
    for episode in path:
        cells = {tuple(cell) for cell in np.round(episode / 4).astype(int).tolist()}
        assert len(cells) > 8
    assert path.min() > -2 and path.max() < 22


def test_ogbench_reads_the_file_and_labels_it_as_we_do(maze_file):
    import ogbench

    _, theirs, valid = ogbench.make_env_and_datasets(
        "pointmaze-medium-navigate-singletask-task3-v0", dataset_path=str(maze_file)
    )
    ours = load_dataset(DataConfig(path=str(maze_file), filter_key="task3"))
    going_on = ~ours.steps["terminal"]
    for name, column in (("rewards", "reward"), ("masks", "mask"), ("actions", "action")):
        np.testing.assert_array_equal(theirs[name], ours.steps[column][going_on].numpy())
    np.testing.assert_array_equal(theirs["observations"], ours.steps["obs", "state"][going_on].numpy())
    assert len(valid["rewards"]) == 1000
    assert ours.spec.differences(find_env("pointmaze-medium-task3").spec()) == []
    assert ours.spec.differences(ENVS["pointmaze-medium"].spec())[0].startswith("env_id")


def test_the_bytes_depend_on_the_seed_alone(maze_file, tmp_path):
    make_ogbench("pointmaze-medium", tmp_path / "two.npz", episodes=2, seed=3, workers=2)
    assert (tmp_path / "two.npz").read_bytes() == maze_file.read_bytes()
    assert (tmp_path / "two-val.npz").read_bytes() == maze_file.with_name("maze-val.npz").read_bytes()
    other = RECORDERS["pointmaze-medium"]().record(4, 0)["observations"]
    assert not np.array_equal(other, np.load(maze_file)["observations"][:1001])


def test_labelling_an_official_file_gives_the_same_bytes(maze_file, tmp_path):
    with np.load(maze_file) as file:
        np.savez(tmp_path / "official.npz", **{name: file[name] for name in file.files if name in OFFICIAL})
    label_file(tmp_path / "official.npz", "pointmaze-medium", tmp_path / "labelled.npz")
    labelled = np.load(tmp_path / "labelled.npz")
    whole = np.load(maze_file)
    assert set(labelled.files) == set(whole.files)
    for name in whole.files:
        np.testing.assert_array_equal(labelled[name], whole[name])


@pytest.mark.parametrize(
    ("name", "obs", "state"),
    [("cube-single", 28, 21), ("cube-double", 37, 28), ("scene", 40, 25), ("puzzle-3x3", 55, 23)],
)
def test_play_files_have_the_official_layout(short, name, obs, state):
    columns = short(name, 0, 0)
    buttons = {"button_states"} if name in ("scene", "puzzle-3x3") else set()
    assert set(columns) == OFFICIAL | buttons
    assert columns["observations"].shape == (ROWS, obs) and columns["actions"].shape == (ROWS, 5)
    assert columns["qpos"].shape == (ROWS, state)
    assert columns["terminals"].dtype == bool and np.flatnonzero(columns["terminals"]).tolist() == [ROWS - 1]
    assert all(columns[key].dtype == np.int64 for key in buttons)
    assert np.abs(columns["actions"]).max() <= 1.0
    again = short(name, 0, 0)
    for key, value in columns.items():
        np.testing.assert_array_equal(value, again[key])
    assert not np.array_equal(columns["qpos"], short(name, 0, 1)["qpos"])


def test_the_oracle_moves_the_cube(monkeypatch, tmp_path):
    monkeypatch.setattr("flowpolicy.envs.ogbench_data.EPISODE_ROWS", 250)
    cube = RECORDERS["cube-single"]().record(0, 0)["qpos"][:, 14:17]
    assert cube[:, 2].max() > 0.06
    assert np.linalg.norm(cube[-1] - cube[0]) > 0.05


def test_wrong_requests_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'cube-single'"):
        make_ogbench("cube-singel", tmp_path / "x.npz", 1)
    with pytest.raises(ConfigError, match="is no npz file"):
        make_ogbench("cube-single", tmp_path / "x.hdf5", 1)
    with pytest.raises(ConfigError, match="0 episodes"):
        make_ogbench("cube-single", tmp_path / "x.npz", 0)


def test_the_commands_make_label_and_refuse(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("flowpolicy.envs.ogbench_data.EPISODE_ROWS", ROWS)
    out = tmp_path / "made.npz"
    run(["make", "pointmaze-large", "--episodes", "1", "--workers", "1", "--out", str(out)])
    run(["label", str(out), "--env", "pointmaze-large", "--out", str(tmp_path / "labelled.npz")])
    run(["info", str(out)])
    assert "pointmaze-large-singletask-task1-v0" in capsys.readouterr().out
    run(["info", str(out), "--spread"])
    time = float(re.search(r"metric.time\s+│ (0\.\d+)", capsys.readouterr().out).group(1))
    assert 2 / 3 < time < 1  # actions in a box spread by less than 1, so that half of it blurs by less than 0.5
    with pytest.raises(ConfigError, match="--quality mixed does not exist for pointmaze-large"):
        run(["make", "pointmaze-large", "--quality", "mixed", "--out", str(out)])
    with pytest.raises(ConfigError, match="unknown OGBench environment"):
        run(["label", str(out), "--env", "pointmaze", "--out", str(out)])
