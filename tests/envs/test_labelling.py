"""Candidates are executed from where the data stood, and the policy finishes."""

import functools

import h5py
import numpy as np
import pytest
import torch

from flowpolicy.core.errors import ConfigError, DataError
from flowpolicy.core.spec import Contract
from flowpolicy.data.robomimic import read_stored_state
from flowpolicy.envs import find_env
from flowpolicy.envs.demonstrators import make_demonstrations
from flowpolicy.envs.labelling import CandidateRunner, RestorableRobosuite, require_restorable
from flowpolicy.envs.toy import ToyConfig, expert_action
from flowpolicy.envs.worker import in_order


class Expert:
    """Goes left around the obstacle; one action per decision."""

    def __init__(self, *_):
        self.contract = Contract(ToyConfig().spec(), history=1, chunk=1, execute=1, nfe=1)
        self.evaluations = 0

    def act(self, obs, generator, nfe=None):
        action = expert_action(obs["position"][0, -1].numpy().astype(float), -1, 0.9)
        return torch.from_numpy(action).float()[None, None]


@pytest.fixture(scope="module")
def toy_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("toy") / "toy.hdf5"
    make_demonstrations("toy", path, episodes=4, quality="mixed")
    return path


@pytest.fixture
def runner(toy_file, monkeypatch):
    monkeypatch.setattr("flowpolicy.policy.Policy.load", Expert)
    return CandidateRunner(ToyConfig(), "checkpoint", toy_file)


def test_a_label_counts_from_the_stored_state(runner, toy_file):
    with h5py.File(toy_file) as file:
        states = file["data/demo_0/states"][()]
    step = 5
    history = {"position": states[step][None].astype(np.float32)}
    forward = np.array([expert_action(states[step], -1, 0.9)])
    away = np.tile([0.0, -1.0], (6, 1))
    labels = [runner.label("demo_0", step, history, chunk[None], 0, 2, [1.0]) for chunk in (forward, away)]
    assert labels[0].success.all() and labels[1].success.all()
    # Six steps away cost about twelve; completions differ by nothing here, the expert draws nothing.
    assert 8 < (labels[1].steps - labels[0].steps).min() < 14
    assert (labels[0].steps[0, 0] == labels[0].steps).all()


def test_the_horizon_counts_what_was_played_before(toy_file, monkeypatch):
    monkeypatch.setattr("flowpolicy.policy.Policy.load", Expert)
    runner = CandidateRunner(ToyConfig(horizon=12), "checkpoint", toy_file)
    stored = read_stored_state(toy_file, "demo_0", 5)
    label = runner.label(
        "demo_0", 5, {"position": stored.state[None].astype(np.float32)}, np.zeros((1, 3, 2)), 0, 1, [1.0]
    )
    assert not label.success.any() and label.steps.tolist() == [[7]]


def test_a_limit_ends_rollouts_that_would_have_succeeded_later(toy_file, runner):
    arguments = ("demo_0", 5, {"position": read_stored_state(toy_file, "demo_0", 5).state[None].astype(np.float32)})
    chunk = np.zeros((1, 1, 2))
    needed = runner.label(*arguments, chunk, 0, 1, [1.0]).steps.item()
    for limit, success in ((needed, True), (needed - 1, False)):
        limited = CandidateRunner(ToyConfig(), "checkpoint", toy_file, limit)
        label = limited.label(*arguments, chunk, 0, 1, [1.0])
        assert label.success.tolist() == [[success]] and label.steps.tolist() == [[limit]]


def test_stored_states_that_are_missing_say_so(toy_file, tmp_path, demonstrations):
    with pytest.raises(DataError, match="states is missing"):
        read_stored_state(demonstrations, "demo_0", 0)
    with pytest.raises(DataError, match="rows"):
        read_stored_state(toy_file, "demo_0", 10_000)


def test_environments_that_cannot_be_restored_are_named():
    require_restorable(find_env("lift"), "lift")
    with pytest.raises(ConfigError, match="--source critic"):
        require_restorable(find_env("cube-single"), "cube-single")


@pytest.mark.sim
@pytest.mark.slow
def test_a_restored_lift_continues_as_it_was_recorded(lift_file):
    """The rest of a demonstration, replayed from the middle of the grasp, ends where it ended."""
    path, _ = lift_file
    with h5py.File(path) as file:
        demo = file["data/demo_0"]
        states, actions = demo["states"][()], demo["actions"][()]
        hand, cube = demo["obs/robot0_eef_pos"][()], demo["obs/object"][:, :3]
    closing = int(np.argmax(actions[:, -1] > 0)) + 4
    config = find_env("lift")
    env = RestorableRobosuite(config.env_args(), config.obs_keys, config.horizon)
    for step in (closing, len(actions) // 3):
        obs = env.restore(read_stored_state(path, "demo_0", step))
        # Recorded poses are those at the start of the last 2 ms of the simulation, half a metre per second away.
        assert np.allclose(obs["robot0_eef_pos"], hand[step], atol=5e-3)
        assert np.allclose(obs["object"][:3], cube[step], atol=5e-3)
        outcomes = [env.step(action) for action in actions[step:]]
        assert outcomes[-1].success
        # Joint angles (time comes first); the last stored state is the one before the last action.
        assert np.abs(env.state()[1:8] - states[-1][1:8]).max() < 0.05
    env.close()


def test_labels_do_not_depend_on_the_number_of_workers(toy_file, debug_base):
    calls = []
    for row in range(4):
        stored = read_stored_state(toy_file, f"demo_{row}", 2)
        chunks = np.random.default_rng(row).uniform(-1, 1, size=(4, 8, 2))
        calls.append((f"demo_{row}", 2, {"position": stored.state[None].astype(np.float32)}, chunks, 0, 2, [1.0] * 4))
    create = functools.partial(CandidateRunner, ToyConfig(), debug_base, toy_file)
    alone, pair = (list(in_order(create, "label", calls, count)) for count in (0, 2))
    for one, other in zip(alone, pair, strict=True):
        assert np.array_equal(one.success, other.success) and np.array_equal(one.steps, other.steps)


def test_each_candidate_is_completed_at_its_own_scale_of_noise(toy_file, debug_base):
    """Two rollouts of the same chunk: they differ, unless they are completed without noise."""
    stored = read_stored_state(toy_file, "demo_0", 2)
    runner = CandidateRunner(ToyConfig(), debug_base, toy_file)
    ends, step = [], runner.env.step
    runner.env.step = lambda action: ends.append(step(action)) or ends[-1]
    runner.env.horizon = 20
    history = {"position": stored.state[None].astype(np.float32)}
    runner.label("demo_0", 2, history, np.zeros((2, 8, 2)), 0, 2, (0.0, 1.0))
    places = [tuple(end.obs["position"]) for end in ends]
    starts = [i + 1 for i, end in enumerate(ends) if end.truncated or end.success]
    assert len(starts) == 4
    calm, same, lively, other = (places[i:j] for i, j in zip([0, *starts], starts, strict=False))
    assert calm == same and lively != other


@pytest.fixture(scope="module")
def debug_base(tmp_path_factory, toy_file):
    import dataclasses

    from flowpolicy.configs.presets import PRESETS
    from flowpolicy.data.dataset import DataConfig
    from flowpolicy.train import Trainer

    experiment = dataclasses.replace(
        PRESETS["debug"][1], data=DataConfig(path=str(toy_file)), steps=2, tensorboard=False
    )
    return Trainer(experiment, tmp_path_factory.mktemp("base"), ToyConfig().spec()).train()
