"""PushT: gym-pusht's board behind the house's protocol, its demonstrator, and pictures drawn from stored states."""

import h5py
import numpy as np
import pytest

from flowpolicy.commands.data import make
from flowpolicy.core.errors import ConfigError, SimulatorError
from flowpolicy.data.dataset import DataConfig, load_dataset
from flowpolicy.envs import ENVS, find_env
from flowpolicy.envs.pusht import PushTConfig, PushTEnv
from flowpolicy.envs.pusht_demonstrator import PushPlanner, PushTRecorder, corners, move, pose_of, way_round

pytestmark = pytest.mark.sim


@pytest.fixture
def board():
    env = PushTEnv(PushTConfig(height=96, width=64))
    env.reset(0)
    return env


def moved(env, steps=30):
    rng = np.random.default_rng(0)
    for _ in range(steps):
        env.step(256 + rng.normal(0, 60, 2))
    return env


def test_a_planned_state_is_the_same_whatever_was_before_and_a_stored_one_goes_on_bit_for_bit(board):
    first = board.reset(3)
    again = moved(PushTEnv(PushTConfig())).reset(3)
    assert all(np.array_equal(first[key], again[key]) for key in first)
    assert not np.array_equal(board.reset(4)["agent_pos"], first["agent_pos"])
    state, target = moved(board).state(), np.array([200.0, 300.0])
    whole = [board.step(target) for _ in range(5)]
    board.put(state)
    np.testing.assert_array_equal(board.state(), state)
    for one, other in zip(whole, [board.step(target) for _ in range(5)], strict=True):
        assert one.reward == other.reward and all(np.array_equal(one.obs[key], other.obs[key]) for key in one.obs)
    with pytest.raises(SimulatorError, match="not of PushT"):
        board.put(state[:5])


def test_it_is_gym_pushts_own_environment(board):
    import gym_pusht  # noqa: F401  registers it
    import gymnasium

    own = gymnasium.make("gym_pusht/PushT-v0", obs_type="environment_state_agent_pos").unwrapped
    seen, _ = own.reset(seed=7)
    obs = board.reset_from(7)
    for _ in range(8):
        np.testing.assert_allclose(obs["environment_state"], seen["environment_state"], rtol=1e-6)
        np.testing.assert_allclose(obs["agent_pos"], seen["agent_pos"], rtol=1e-6)
        seen, reward, *_ = own.step(np.array([250.0, 260.0]))
        outcome = board.step(np.array([250.0, 260.0]))
        assert outcome.reward == pytest.approx(reward)
        obs = outcome.obs


def test_pictures_are_what_the_contract_says_and_show_the_pusher_where_it_is(board):
    spec = PushTConfig(height=96, width=64).spec()
    board.put(np.array([100.0, 400, 0, 0, 300, 100, 0, 0, 0, 0]))
    picture = board.look()["top_image"]
    assert picture.shape == spec.images["top_image"].shape and picture.dtype == np.uint8
    assert picture[int(400 / 512 * 96), int(100 / 512 * 64), 2] > 200, "the pusher is blue"
    assert tuple(picture[int(60 / 512 * 96), int(20 / 512 * 64)]) == (255, 255, 255)
    assert find_env("pusht", spec.images) == find_env("gym_pusht/PushT-v0", spec.images) == PushTConfig(300, 96, 64)
    with pytest.raises(ConfigError, match="no camera of PushT takes the pictures 'side_image'"):
        ENVS["pusht"].seeing({"side_image": spec.images["top_image"]})


def test_what_the_planner_tries_is_what_the_board_does(board):
    state, target = board.state(), np.array([300.0, 200.0])
    board.step(target)
    expected = board.state()
    board.put(state)
    move(board.sim_env, target)
    np.testing.assert_array_equal(board.state(), expected)
    # In its frame the T is what gym-pusht pushes.
    shapes = [board.sim_env.block.local_to_world(v) for s in board.sim_env.block.shapes for v in s.get_vertices()]
    ours = corners(pose_of(board))
    assert max(np.linalg.norm(ours - np.array(each), axis=1).min() for each in shapes) < 1e-3


def test_pushes_come_from_several_sides_of_the_same_board():
    pose, pusher = np.array([150.0, 300.0, 0.6]), np.array([400.0, 400.0])
    chosen = [PushPlanner(np.random.default_rng(seed)).choose(pose, pusher) for seed in range(6)]
    turned = [np.degrees(np.arctan2(push.towards[1], push.towards[0]) - pose[2]) % 360 for push in chosen]
    assert len({round(angle / 90) % 4 for angle in turned}) > 1
    for push in chosen:
        way = way_round(pose, pusher, push.start)
        np.testing.assert_array_equal(way[-1], push.start)


def test_demonstrations_with_pictures_succeed_replay_and_depend_on_seed_and_number_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "pusht.hdf5"
    make("pusht", path, episodes=2, cameras=("top",), size=(48,), workers=0)
    assert "2 of 2 attempts succeeded" in capsys.readouterr().out
    dataset = load_dataset(DataConfig(path=str(path), cameras=("top",)))
    assert dataset.spec.differences(PushTConfig(height=48, width=48).spec()) == []
    assert ENVS["pusht"].replay(dataset, 2) == [True, True]
    alone = PushTRecorder(PushTConfig()).record(0, 1, "better", keep_failures=False).episode
    with h5py.File(path) as file:
        state, picture = (file[f"data/demo_1/{key}"][20] for key in ("states", "obs/top_image"))
        np.testing.assert_array_equal(file["data/demo_1/actions"], alone.actions)
    env = PushTEnv(PushTConfig(height=48, width=48))
    env.put(state)
    np.testing.assert_array_equal(env.look()["top_image"], picture)
    with pytest.raises(ConfigError, match="top alone, fast"):
        make("pusht", tmp_path / "other.hdf5", episodes=1, cameras=("agentview",))
