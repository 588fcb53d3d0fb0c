"""A policy's own episodes become a file that critics and groups are made of."""

import dataclasses
import json

import h5py
import numpy as np
import pytest
import torch

from flowpolicy.configs.presets import PRESETS
from flowpolicy.core.seed import derive
from flowpolicy.data.dataset import DataConfig, load_dataset
from flowpolicy.envs.demonstrators import make_demonstrations
from flowpolicy.envs.policy_rollouts import PolicyRecorder, record_rollouts
from flowpolicy.envs.toy import ToyConfig, ToyEnv
from flowpolicy.evaluate.plan import make_plan
from flowpolicy.policy import Policy
from flowpolicy.train import Trainer


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Half trained, so that it succeeds and fails."""
    home = tmp_path_factory.mktemp("base")
    make_demonstrations("toy", home / "toy.hdf5", episodes=30, quality="mixed")
    data = DataConfig(path=str(home / "toy.hdf5"))
    experiment = dataclasses.replace(PRESETS["debug"][1], data=data, steps=120, tensorboard=False)
    return Trainer(experiment, home / "run", ToyConfig().spec()).train()


@pytest.mark.quick("toy")
def test_the_file_holds_what_happened(base, tmp_path):
    path = tmp_path / "rollouts.hdf5"
    successes = record_rollouts(ToyConfig(), base, path, 12, seed=4, workers=0, provenance={"policy": "base"})
    dataset = load_dataset(DataConfig(path=str(path)))
    assert ToyConfig().replay(dataset, 12) == [bool(r) for r in _last_rewards(path)]
    assert sum(_last_rewards(path)) == successes
    with h5py.File(path) as file:
        assert json.loads(file["data"].attrs["provenance"]) == {"policy": "base"}
        members = {key: len(file["mask"][key]) for key in file["mask"]}
        assert len(file["mask/valid"]) == 1 and len(file["mask/train"]) == 11
        assert members.get("successful", 0) == successes and members.get("failed", 0) == 12 - successes
        for demo in file["data"].values():
            assert demo["dones"][-1] == 1 and not demo["rewards"][:-1].any()
            assert np.array_equal(demo["obs/position"][1:], demo["next_obs/position"][:-1])


def test_an_episode_depends_on_its_seed_and_number_alone(base, tmp_path):
    for name, workers in (("here", 0), ("there", 2)):
        record_rollouts(ToyConfig(), base, tmp_path / name, 5, seed=1, noise_scale=(0.0, 1.0), workers=workers)
    assert (tmp_path / "here").read_bytes() == (tmp_path / "there").read_bytes()
    record_rollouts(ToyConfig(), base, tmp_path / "other", 5, seed=2, noise_scale=(0.0, 1.0), workers=0)
    assert (tmp_path / "other").read_bytes() != (tmp_path / "here").read_bytes()


def test_scales_of_noise_take_turns_and_no_state_is_that_of_an_evaluation(base):
    recorder = PolicyRecorder(ToyConfig(), base)
    calm, lively = (recorder.record(0, 3, scale).episode for scale in (0.0, 1.0))
    start = calm.obs["position"][0]
    assert np.array_equal(start, lively.obs["position"][0]) and not np.array_equal(calm.actions[0], lively.actions[0])
    policy = Policy.load(base)
    middle = policy.act_from({"position": torch.from_numpy(start[None, None])}, torch.zeros(1, 8, 2), 10)
    assert np.allclose(calm.actions[:8], middle[0].numpy()[: len(calm.actions)])
    planned = {tuple(ToyEnv(1).reset(index)["position"]) for index in make_plan("flowpolicy/Toy", 50, 0).indices}
    assert tuple(start) not in planned
    assert derive(0, "rollout", "flowpolicy/Toy", 3) != derive(0, "plan", "toy", 3)


def _last_rewards(path):
    with h5py.File(path) as file:
        return [float(file[f"data/demo_{i}/rewards"][-1]) for i in range(len(file["data"]))]
