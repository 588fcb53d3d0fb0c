"""Runs in company leave run folders like any other."""

import dataclasses
import shutil

import pytest
import torch

from flowpolicy.agents.offline.fql import FQL
from flowpolicy.core import checkpoint
from flowpolicy.core.errors import ConfigError
from flowpolicy.core.files import read_tensors
from flowpolicy.nets.critic import CriticConfig
from flowpolicy.nets.plain import Plain
from flowpolicy.policy import Policy
from flowpolicy.train.experiment import Experiment
from flowpolicy.train.run import Run
from flowpolicy.train.together import resume_together, train_together
from flowpolicy.train.training import train
from flowpolicy.train.verify import compare

from ..conftest import flowpolicy, unchecked

SMALL = FQL(net=Plain(width=8, depth=1), critic=CriticConfig(width=8, depth=1), flow_steps=2)
EXPERIMENT = Experiment(
    SMALL,
    "toy",
    steps=8,
    batch_size=8,
    checkpoint_every=4,
    keep_checkpoints=0,
    log_every=2,
    compile="off",
    tensorboard=False,
)


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """The toy's demonstrations, made by a run of one update."""
    folder = tmp_path_factory.mktemp("toy")
    with unchecked():
        run = train(dataclasses.replace(EXPERIMENT, steps=1), folder / "run", progress=False)
    return dataclasses.replace(EXPERIMENT, data=run.experiment.data)


@pytest.fixture(scope="module")
def together(toy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("together")
    with unchecked():
        runs = [folder / f"seed{seed}" for seed in range(2)]
        return train_together([dataclasses.replace(toy, seed=seed) for seed in range(2)], runs, progress=False)


def test_every_seed_is_a_run_as_it_would_be_alone(toy, together, tmp_path):
    with unchecked():
        alone = [train(dataclasses.replace(toy, seed=n), tmp_path / f"alone{n}", progress=False) for n in range(2)]
    for one, other in zip(together, alone, strict=True):
        assert one.experiment == other.experiment and one.steps == other.steps == (4, 8)
        assert one.contract == other.contract
        for name in ("weights", "training", "optim"):
            found, expected = (read_tensors(run.checkpoint / f"{name}.safetensors") for run in (one, other))
            assert found.keys() == expected.keys()
            for key, value in expected.items():
                torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-5)
        assert Policy.load(one.path).contract.chunk == 1 and (one.path / "curves.png").exists()


def cut(run, place, step):
    shutil.copytree(run.path, place)
    for folder in (place / "checkpoints").glob("step_*"):
        if int(folder.name.removeprefix("step_")) > step:
            shutil.rmtree(folder)
    (place / "checkpoints" / "LATEST").write_text(f"step_{step:08d}\n")
    return place


def test_a_company_resumes_bit_for_bit(together, tmp_path):
    with unchecked():
        places = [cut(run, tmp_path / run.path.name, 4) for run in together]
        for one, other in zip(resume_together(places, progress=False), together, strict=True):
            compare(one.checkpoint, other.checkpoint)


def test_one_that_is_behind_catches_up_and_one_alone_goes_on(together, tmp_path):
    with unchecked():
        behind = [cut(together[0], tmp_path / "a", 4), cut(together[1], tmp_path / "b", 8)]
        made = resume_together(behind, progress=False)
        alone = Run.load(cut(together[1], tmp_path / "c", 4)).resume(progress=False)
    for one, other in ((made[0], together[0]), (alone, together[1])):
        found, expected = (read_tensors(run.checkpoint / "weights.safetensors") for run in (one, other))
        assert one.step == 8
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-5)


def test_what_differs_in_more_than_the_seed_is_refused(toy, tmp_path):
    with pytest.raises(ConfigError, match="differ in more than the seed"):
        train_together([toy, dataclasses.replace(toy, batch_size=16)], [tmp_path / "a", tmp_path / "b"], progress=False)
    with pytest.raises(ConfigError, match="a folder of its own"):
        train_together([toy, toy], [tmp_path / "a", tmp_path / "a"], progress=False)
    assert checkpoint.newest(tmp_path / "a") == ""


def test_the_command_line_trains_and_resumes_seeds(toy, tmp_path):
    words = (
        "--data.path",
        toy.data.path,
        "--seeds",
        2,
        "--steps",
        2,
        "--batch-size",
        8,
        "--no-tensorboard",
        "--out",
        "run",
    )
    with unchecked():
        done = flowpolicy("train", "debug", *words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert [Run.load(tmp_path / f"run-seed{n}").experiment.seed for n in range(2)] == [0, 1]
        done = flowpolicy("resume", "run-seed0", "run-seed1", cwd=tmp_path)
        assert done.returncode == 0 and done.stdout.count("checkpoint ") == 2, done.stderr
