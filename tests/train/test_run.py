"""A run folder as an object."""

import dataclasses
import os
import shutil

import pytest
import torch

from flowpolicy.configs.presets import PRESETS
from flowpolicy.core.errors import CheckpointError, ConfigError, DataError
from flowpolicy.data.dataset import DataConfig
from flowpolicy.envs import find_env
from flowpolicy.envs.demonstrators import make_demonstrations
from flowpolicy.nets.mlp import MLP
from flowpolicy.train import Trainer
from flowpolicy.train.kinds import KINDS, register_config
from flowpolicy.train.run import Run


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with checkpoints after 2 and 4 updates."""
    home = tmp_path_factory.mktemp("home")
    make_demonstrations("toy", home / "toy.hdf5", episodes=4, seed=0, quality="expert", workers=1)
    debug = PRESETS["debug"][1]
    experiment = dataclasses.replace(
        debug,
        agent=dataclasses.replace(debug.agent, net=MLP(width=8, depth=1)),
        data=DataConfig(path=str(home / "toy.hdf5")),
        steps=4,
        checkpoint_every=2,
        batch_size=8,
        tensorboard=False,
    )
    Trainer(experiment, home / "run", find_env("toy").spec()).train()
    return home / "run", experiment


def test_what_a_run_says_of_itself(trained):
    path, experiment = trained
    run = Run.load(str(path))
    assert (run.experiment, run.step, run.steps, run.is_newest) == (experiment, 4, (2, 4), True)
    assert run.contract.dataset_sha256 == run.dataset().sha256
    assert os.fspath(run) == str(path) and Run.load(run) == run
    assert repr(run) == f"<Run {path}: FlowBC for toy, update 4 of 4>"
    obs = run.observations(3, seed=0)
    assert obs.keys() == run.contract.spec.observation.keys()
    chunk = run.policy().act(obs, torch.Generator().manual_seed(0))
    assert chunk.shape == (3, run.contract.chunk, 2)


def test_another_checkpoint_of_it(trained):
    path, _ = trained
    earlier = Run.load(path).at(2)
    assert earlier.path == path and earlier.step == 2 and not earlier.is_newest
    assert os.fspath(earlier) == str(earlier.checkpoint) and Run.load(earlier) == earlier
    assert earlier.identity != Run.load(path).identity
    with pytest.raises(ConfigError, match=f"flowpolicy resume {path}"):
        earlier.resume()
    with pytest.raises(CheckpointError, match="one of 2, 4"):
        earlier.at(3)


def test_its_data_are_those_it_was_trained_on(trained, tmp_path):
    path, experiment = trained
    run, moved = Run.load(path), tmp_path / "moved.hdf5"
    shutil.copy(experiment.data.path, moved)
    assert run.data(moved) == dataclasses.replace(experiment.data, path=str(moved))
    moved.write_bytes(b"other")
    with pytest.raises(DataError, match="has changed since the run was trained"):
        run.dataset(moved)


def test_a_policy_alone_is_no_experiment(trained, tmp_path):
    Run.load(trained[0]).policy().save(tmp_path / "policy")
    alone = Run.load(tmp_path / "policy")
    assert alone.policy_config == Run.load(trained[0]).policy_config
    with pytest.raises(CheckpointError, match="holds no experiment"):
        _ = alone.experiment


@dataclasses.dataclass(frozen=True)
class Mine:
    """A config from elsewhere."""

    options: int = 1


def test_a_config_of_another_package_has_a_tag_of_its_own():
    try:
        assert register_config("mine")(Mine) is Mine and KINDS["mine"] is Mine
        with pytest.raises(ConfigError, match=r"'mine' is .*\.Mine already"):
            register_config("mine")(type("Other", (), {}))
    finally:
        del KINDS["mine"]
    with pytest.raises(ConfigError, match="dm1"):
        register_config("dm1")(Mine)
