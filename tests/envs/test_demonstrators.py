"""The generated files: success, diversity, reproducibility, and what RoboMimic expects in them."""

import contextlib
import dataclasses
import re

import h5py
import numpy as np
import pytest

from flowpolicy.core.errors import ConfigError, SimulatorError
from flowpolicy.data.dataset import DataConfig, load_dataset
from flowpolicy.envs import ENVS
from flowpolicy.envs.demonstrators import TASKS, make_demonstrations
from flowpolicy.envs.pick_demonstrator import OPERATORS, LiftDemonstrator, draw_style
from flowpolicy.envs.robosuite import RobosuiteEnv
from flowpolicy.envs.toy import expert_action


def content(path):
    """Every dataset and attribute of a file."""
    found = {}
    with h5py.File(path) as file:
        file.visititems(
            lambda name, node: found.update(
                {f"{name}@{key}": str(value) for key, value in node.attrs.items()}
                | ({name: node[()].tobytes()} if isinstance(node, h5py.Dataset) else {})
            )
        )
    return found


@pytest.mark.sim
def test_lift_same_seed_same_content_for_one_and_two_workers(lift_file, tmp_path):
    make_demonstrations("lift", tmp_path / "two.hdf5", episodes=3, seed=5, workers=2)
    assert content(lift_file[0]) == content(tmp_path / "two.hdf5")


@pytest.mark.sim
def test_the_content_does_not_tell_where_packages_are_installed(lift_file):
    with h5py.File(lift_file[0]) as file:
        xml = file["data/demo_0"].attrs["model_file"]
    paths = re.findall(r'file="([^"]*)"', xml)
    assert paths and all(path.startswith("robosuite/") for path in paths)


@pytest.mark.sim
def test_lift_demonstrations_replay_and_match_the_environment(lift_file):
    path, summary = lift_file
    dataset = load_dataset(DataConfig(path=str(path)))
    assert summary.successes == 3
    assert dataset.spec.differences(ENVS["lift"].spec()) == []
    assert ENVS["lift"].replay(dataset, 3) == [True] * 3
    assert dataset.steps["action"].abs().max() <= 1
    ends = dataset.starts + dataset.lengths - 1
    assert (dataset.steps["mask"][ends] == 0).all()
    assert (dataset.steps["reward"][ends] == 1).all()
    assert (dataset.steps["reward"][dataset.starts] == 0).all()


@pytest.mark.sim
def test_replayed_actions_pass_through_the_stored_states(lift_file):
    with h5py.File(lift_file[0]) as file, contextlib.closing(RobosuiteEnv.create(ENVS["lift"])) as env:
        demo = file["data/demo_1"]
        states, actions = demo["states"][()], demo["actions"][()]
        env.load(demo.attrs["model_file"], states[0])
        reached = [env.state()]
        for action in actions[:-1]:
            env.step(action)
            reached.append(env.state())
    # The model's XML has fewer digits than the simulator; a wrong controller state shows as 0.1 rad/s.
    np.testing.assert_allclose(reached, states, atol=1e-3)


@pytest.mark.sim
def test_evaluation_never_starts_where_a_demonstration_did(lift_file):
    dataset = load_dataset(DataConfig(path=str(lift_file[0])))
    with contextlib.closing(RobosuiteEnv.create(ENVS["lift"])) as env:
        planned = np.stack([env.reset(i)["object"] for i in range(20)])
    shown = dataset.steps["obs", "object"][dataset.starts].numpy()
    assert np.abs(planned[:, None] - shown[None]).max(axis=-1).min() > 1e-4


@pytest.mark.sim
def test_can_demonstration_ends_in_its_bin(can_file):
    path, summary = can_file
    dataset = load_dataset(DataConfig(path=str(path)))
    can = dataset.steps["obs", "object"][-1, 7:10]
    assert summary.successes == 1
    assert dataset.spec.differences(ENVS["can"].spec()) == []
    assert 0.1 < can[0] < 0.295
    assert 0.28 < can[1] < 0.525
    assert 0.8 < can[2] < 0.9


@pytest.mark.sim
def test_square_demonstration_ends_with_the_nut_around_its_peg(tmp_path):
    made = make_demonstrations("square", tmp_path / "square.hdf5", episodes=1, seed=1, workers=1)
    dataset = load_dataset(DataConfig(path=str(tmp_path / "square.hdf5")))
    nut = dataset.steps["obs", "object"][-1, 7:10].numpy()
    assert made.successes == 1
    assert dataset.spec.differences(ENVS["square"].spec()) == []
    assert np.abs(nut[:2] - [0.23, 0.10]).max() < 0.007  # the hole is 0.045 m wide, the peg 0.032
    assert nut[2] < 0.87
    assert ENVS["square"].replay(dataset, 1) == [True]


def test_operators_take_either_grasp_from_their_side_and_rest():
    # A cube turned by 45 degrees below a hand at yaw 0: two of its four grasps are equally near, the others far.
    half = np.pi / 8
    obs = {
        "robot0_eef_pos": np.array([0.0, 0.0, 0.98]),
        "robot0_eef_quat": np.array([1.0, 0.0, 0.0, 0.0]),
        "robot0_gripper_qpos": np.array([0.04, -0.04]),
        "object": np.array([0.0, 0.0, 0.82, 0.0, 0.0, np.sin(half), np.cos(half), 0.0, 0.0, 0.0]),
    }
    turned, sides = [], {}
    for seed in range(20):
        for name in ("leftward", "rightward"):
            rng = np.random.default_rng(seed)
            style = dataclasses.replace(draw_style(OPERATORS[name], 40, rng), noise=0.0, pushes=(), pauses=((1, 2),))
            demonstrator = LiftDemonstrator(style, rng)
            moves = np.stack([demonstrator.act(obs) for _ in range(4)])
            turned.append(moves[0, 5] > 0)
            sides.setdefault(name, set()).add(float(np.sign(moves[0, 1])))
            np.testing.assert_array_equal(moves[[1, 2], :6], 0.0)
            assert np.abs(moves[3, :6]).max() > 0.1
    assert 8 <= sum(turned) <= 32
    assert sides == {"leftward": {1.0}, "rightward": {-1.0}}


def test_a_detour_ends_where_the_straight_way_does():
    rng = np.random.default_rng(0)
    style = dataclasses.replace(draw_style(OPERATORS["leftward"], 40, rng), bend=0.6)
    detour = LiftDemonstrator(style, rng).detour
    np.testing.assert_allclose(detour(np.array([0.3, 0.0])), [0.3, 0.18])
    np.testing.assert_allclose(detour(np.array([0.0, 0.04])), [0.0, 0.04])


@pytest.mark.sim
def test_multimodal_files_name_their_operators(tmp_path):
    make_demonstrations("lift", tmp_path / "lift", episodes=4, quality="multimodal", workers=1)
    with h5py.File(tmp_path / "lift") as file:
        assert {key: len(file["mask"][key]) for key in OPERATORS} == dict.fromkeys(OPERATORS, 1)
    with pytest.raises(ConfigError, match="toy has no multimodal"):
        make_demonstrations("toy", tmp_path / "x", episodes=4, quality="multimodal")


def test_a_worker_that_dies_while_recording_leaves_what_was_there(failing, tmp_path, monkeypatch):
    (tmp_path / "toy.hdf5").write_text("older")
    task = dataclasses.replace(TASKS["toy"], create=failing.DyingRecorder, in_process=False)
    monkeypatch.setitem(TASKS, "toy", task)
    with pytest.raises(SimulatorError, match="died"):
        make_demonstrations("toy", tmp_path / "toy.hdf5", episodes=9, workers=2)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("toy.hdf5", "older")]


def test_toy_content_depends_on_the_seed_alone(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        make_demonstrations("toy", tmp_path / name, episodes=12, seed=seed)
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert content(tmp_path / "a") != content(tmp_path / "c")


def test_mixed_files_have_equal_shares_and_label_failures(tmp_path):
    counts = []
    make_demonstrations("toy", tmp_path / "toy", episodes=60, quality="mixed", progress=counts.append)
    with h5py.File(tmp_path / "toy") as file:
        members = {key: set(file["mask"][key][()].tolist()) for key in file["mask"]}
        won = {name.encode() for name, demo in file["data"].items() if demo["rewards"][-1] == 1}
    assert [len(members[key]) for key in ("better", "okay", "worse")] == [20, 20, 20]
    assert len(members["valid"]) == 6
    assert members["train"] | members["valid"] == set().union(*(members[k] for k in ("better", "okay", "worse")))
    assert not members["train"] & members["valid"]
    assert members["successful"] == won
    assert counts == list(range(1, 61))
    lengths = {}
    for key in ("better", "worse"):
        dataset = load_dataset(DataConfig(path=str(tmp_path / "toy"), filter_key=key))
        lengths[key] = dataset.lengths.double().mean()
    assert lengths["worse"] > 1.3 * lengths["better"]


def test_the_toy_expert_goes_round_on_both_sides_and_replays(tmp_path):
    make_demonstrations("toy", tmp_path / "toy", episodes=40)
    dataset = load_dataset(DataConfig(path=str(tmp_path / "toy")))
    assert ENVS["toy"].replay(dataset, 40) == [True] * 40
    position = dataset.steps["obs", "position"].numpy()
    middle = position[np.abs(position[:, 1]) < 0.1, 0]
    assert middle.min() < -0.3
    assert middle.max() > 0.3


def test_the_toy_expert_aims_at_the_tangent_point():
    # From (0, -1) the tangent to a circle of radius r leaves the axis at asin(r): 0.45 aside per unit length.
    np.testing.assert_allclose(expert_action(np.array([0.0, -1.0]), 1, 1.0), [0.45, np.sqrt(1 - 0.45**2)], atol=1e-12)
    np.testing.assert_allclose(expert_action(np.array([0.0, -1.0]), -1, 1.0), [-0.45, np.sqrt(1 - 0.45**2)], atol=1e-12)
    np.testing.assert_allclose(expert_action(np.array([0.0, 0.95]), 1, 1.0), [0.0, 0.5], atol=1e-12)


def test_unknown_names_are_refused_with_a_suggestion(tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'lift'"):
        make_demonstrations("lifft", tmp_path / "x", episodes=1)
    with pytest.raises(ConfigError, match="did you mean 'mixed'"):
        make_demonstrations("toy", tmp_path / "x", episodes=1, quality="mix")
    with pytest.raises(ConfigError, match="0 episodes"):
        make_demonstrations("toy", tmp_path / "x", episodes=0)
    assert not (tmp_path / "x").exists()
