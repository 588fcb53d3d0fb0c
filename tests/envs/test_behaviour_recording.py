"""Behaviours of every kind are recorded as they act, and what is recorded can be read, trained on and replayed."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from flowpolicy.core.errors import ActionError, ConfigError, DataError
from flowpolicy.core.spec import ActionSpec, ObservationSpec, Spec
from flowpolicy.data.dataset import DataConfig, load_dataset, load_unchecked
from flowpolicy.data.dataset_checks import diagnose
from flowpolicy.envs import find_env
from flowpolicy.envs.behaviour_recording import BehaviourRequest, format_of, record_behaviours, recordable
from flowpolicy.envs.behaviours import BehaviourSource, NetworkBehaviour
from flowpolicy.envs.toy import ToyConfig

SPEC = Spec({"a": ObservationSpec((2,)), "b": ObservationSpec((1,))}, ActionSpec(2), env_id="test/Env")
STREAM = np.random.default_rng(0)
NETWORK = {
    "w0": STREAM.standard_normal((5, 3)),
    "b0": STREAM.standard_normal(5),
    "w1": STREAM.standard_normal((2, 5)),
    "b1": STREAM.standard_normal(2),
    "in_shift": STREAM.standard_normal(3),
    "in_scale": np.array([0.5, 1.0, 2.0]),
    "log_std": np.array([-1.0, -2.0]),
    "nonlinearity": np.array("relu"),
    "squash": np.array(True),
}
OBS = {"a": np.array([0.3, -0.2]), "b": np.array([1.5])}


def saved(path, **changes):
    values = {name: value for name, value in (NETWORK | changes).items() if value is not None}
    np.savez(path, **values)
    return path


def test_a_network_acts_by_its_numbers(tmp_path):
    behaviour = NetworkBehaviour(saved(tmp_path / "n.npz"), SPEC, noise_scale=0.0)
    behaviour.begin(0)
    x = (np.array([0.3, -0.2, 1.5]) - NETWORK["in_shift"]) / NETWORK["in_scale"]
    hidden = np.maximum(NETWORK["w0"] @ x + NETWORK["b0"], 0)
    mean = NETWORK["w1"] @ hidden + NETWORK["b1"]
    np.testing.assert_allclose(behaviour.act(OBS), np.tanh(mean), rtol=1e-5)
    noisy = NetworkBehaviour(tmp_path / "n.npz", SPEC, noise_scale=0.5)
    noisy.begin(7)
    draw = np.random.default_rng(7).standard_normal(2)
    np.testing.assert_allclose(noisy.act(OBS), np.tanh(mean + 0.5 * np.exp([-1.0, -2.0]) * draw), rtol=1e-5)


def test_actions_are_scaled_and_the_deviation_may_depend_on_the_last_layer(tmp_path):
    scaled = {"out_scale": np.array([0.5, 2.0]), "out_shift": np.array([0.1, 0.0]), "squash": np.array(False)}
    more = {"w_log_std": STREAM.standard_normal((2, 5)), "b_log_std": np.zeros(2), "log_std": None}
    path = saved(tmp_path / "n.npz", **scaled, **more, nonlinearity=np.array("tanh"))
    behaviour = NetworkBehaviour(path, SPEC)
    behaviour.begin(3)
    x = (np.array([0.3, -0.2, 1.5]) - NETWORK["in_shift"]) / NETWORK["in_scale"]
    hidden = np.tanh(NETWORK["w0"] @ x + NETWORK["b0"])
    mean = (NETWORK["w1"] @ hidden + NETWORK["b1"]) * scaled["out_scale"] + scaled["out_shift"]
    deviation = np.exp(np.clip(more["w_log_std"] @ hidden, -20, 2))
    wanted = np.clip(mean + deviation * np.random.default_rng(3).standard_normal(2), -1, 1)
    np.testing.assert_allclose(behaviour.act(OBS), wanted, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"w0": STREAM.standard_normal((5, 4))}, "w0 takes 4 numbers after 3"),
        ({"w1": STREAM.standard_normal((3, 5)), "b1": np.zeros(3)}, "gives 3 numbers"),
        ({"b1": None}, "w1 and b1 are missing or make no layer"),
        ({"w0": np.full((5, 3), np.nan)}, "w0 holds NaN"),
        ({"in_scale": None}, "one of in_shift and in_scale"),
        ({"log_std": np.zeros(3)}, "log_std has the shape"),
        ({"log_std": None}, "holds no noise"),
        ({"nonlinearity": np.array("selu")}, "nonlinearity is 'selu'"),
        ({"w0": np.array([{"run": "me"}], dtype=object)}, "no npz of numbers"),
    ],
)
def test_numbers_that_make_no_network_are_refused(changes, message, tmp_path):
    with pytest.raises(DataError, match=message):
        NetworkBehaviour(saved(tmp_path / "n.npz", **changes), SPEC)


def test_files_that_are_none_are_refused(tmp_path):
    (tmp_path / "text.npz").write_text("w0")
    for name in ("text.npz", "absent.npz"):
        with pytest.raises(DataError, match=name):
            NetworkBehaviour(tmp_path / name, SPEC)


FUNCTIONS = """
import numpy as np

def up(obs, generator):
    return np.array([0.3, 1.0]) + 0.1 * generator.standard_normal(2)

def wide(obs, generator):
    return np.zeros(3)

def words(obs, generator):
    return "left"

def swing(obs, generator):
    return 0.4 * generator.standard_normal(3)

number = 3
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "flowpolicy_test_acting.py").write_text(FUNCTIONS)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def source(name):
    return BehaviourSource(Path(f"flowpolicy_test_acting:{name}"))


def test_the_same_seed_gives_the_same_file_whatever_the_workers(here):
    asked = BehaviourRequest((source("up"), source("up")), steps=70, seed=3)
    for name, workers in (("one", 0), ("two", 2)):
        done = record_behaviours(ToyConfig(), asked, here / f"{name}.hdf5", "d4rl", workers=workers)
        assert sum(steps for _, _, steps in done) == 70
    assert (here / "one.hdf5").read_bytes() == (here / "two.hdf5").read_bytes()
    dataset = load_dataset(DataConfig(path=str(here / "one.hdf5")))
    assert dataset.steps.rows == 70
    with h5py.File(here / "one.hdf5") as file:
        ends = np.flatnonzero(file["terminals"][()] | file["timeouts"][()])
        assert 34 in ends and ends[-1] == 69  # half of the steps each, whatever lengths episodes have
        assert not np.array_equal(file["observations"][0], file["observations"][35])
        first = file["next_observations"][:-1][~np.isin(np.arange(69), ends)]
        np.testing.assert_array_equal(first, file["observations"][1:][~np.isin(np.arange(69), ends)])


def test_robomimic_files_hold_states_and_say_what_succeeded(here):
    done = record_behaviours(
        ToyConfig(), BehaviourRequest((source("up"),), episodes=6), here / "r.hdf5", "robomimic", workers=0
    )
    dataset = load_dataset(DataConfig(path=str(here / "r.hdf5")))
    assert len(dataset.lengths) == 6 and dataset.lengths.tolist() == [steps for _, _, steps in done]
    kept = (
        load_dataset(DataConfig(path=str(here / "r.hdf5"), filter_key="successful")) if any(d[1] for d in done) else ()
    )
    assert len(kept and kept.lengths) == sum(success for _, success, _ in done)
    assert find_env("toy").replay(dataset, 6) == [success for _, success, _ in done]


@pytest.mark.parametrize(("name", "message"), [("wide", r"shape \(3,\)"), ("words", "gave no action")])
def test_what_is_no_action_is_refused_and_nothing_is_written(name, message, here):
    with pytest.raises(ActionError, match=message):
        record_behaviours(
            ToyConfig(), BehaviourRequest((source(name),), episodes=1), here / "x.hdf5", "d4rl", workers=0
        )
    assert not (here / "x.hdf5").exists()


def test_functions_that_are_none_are_refused(here):
    for name in ("number", "absent"):
        with pytest.raises(ConfigError, match=name):
            source(name).load(ToyConfig().spec(), 1.0)
    with pytest.raises(ConfigError, match="cannot be imported"):
        BehaviourSource(Path("flowpolicy_no_such_module:f")).load(ToyConfig().spec(), 1.0)
    with pytest.raises(ConfigError, match=r"--noise-scale 0\.5 with the function"):
        source("up").load(ToyConfig().spec(), 0.5)
    with pytest.raises(ConfigError, match="nothing is recorded in franka-reach"):
        recordable(find_env("franka-reach"), "franka-reach")
    assert [format_of(find_env(name)) for name in ("hopper", "cube-single", "lift")] == ["d4rl", "ogbench", "robomimic"]


@pytest.mark.sim
def test_locomotion_files_are_replayed_from_their_states(here):
    hopper, path = find_env("hopper"), here / "h.hdf5"
    record_behaviours(hopper, BehaviourRequest((source("swing"),), steps=120), path, "d4rl", workers=0)
    (replay,) = (f for f in diagnose(load_unchecked(DataConfig(path=str(path))), hopper.replay, 5, hopper.spec())
                 if f.check == "replay")  # fmt: skip
    assert replay.level == "ok" and "earn the return that the file says" in replay.message
    with h5py.File(path, "a") as file:
        file["rewards"][...] *= 1.1
    (replay,) = (f for f in diagnose(load_unchecked(DataConfig(path=str(path))), hopper.replay, 5, hopper.spec())
                 if f.check == "replay")  # fmt: skip
    assert replay.level == "warning" and replay.message.startswith("0 of 5")
    with h5py.File(path, "a") as file:
        del file["infos/qvel"]
    with pytest.raises(DataError, match="infos/qvel holds nothing per step"):
        hopper.replay(load_unchecked(DataConfig(path=str(path))), 1)


@pytest.mark.sim
def test_mazes_are_recorded_as_ogbench_and_antmaze_rewards_unshifted(here):
    (here / "flowpolicy_test_more.py").write_text(
        "def two(obs, g):\n    return g.uniform(-1, 1, 2)\n\ndef eight(obs, g):\n    return g.uniform(-1, 1, 8)\n"
    )
    maze = find_env("pointmaze-medium")
    asked = BehaviourRequest((BehaviourSource(Path("flowpolicy_test_more:two")),), steps=30)
    record_behaviours(maze, asked, here / "m.npz", "ogbench", workers=0)
    with np.load(here / "m.npz") as file:
        assert file["qpos"].shape[0] == 30 and file["terminals"][-1] and set(file["rewards"]) <= {-1.0, 0.0}
    assert load_dataset(DataConfig(path=str(here / "m.npz"))).steps.rows == 30
    asked = BehaviourRequest((BehaviourSource(Path("flowpolicy_test_more:eight")),), steps=5)
    record_behaviours(find_env("d4rl-antmaze-umaze"), asked, here / "a.hdf5", "d4rl", workers=0)
    with h5py.File(here / "a.hdf5") as file:
        assert set(file["rewards"][()]) == {0.0} and file["infos/qpos"].shape == (5, 15)
