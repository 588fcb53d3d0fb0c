"""Every preset trains, stores, loads as a policy and acts; every algorithm resumes bit for bit on every suite."""

import dataclasses
import shutil

import h5py
import numpy as np
import pytest
import torch

from flowpolicy.agents.groups.group_file import write_groups
from flowpolicy.agents.groups.making import Making
from flowpolicy.configs.presets import PRESETS
from flowpolicy.core import checkpoint
from flowpolicy.core.seed import numpy_generator, torch_generator
from flowpolicy.data.dataset import DataConfig
from flowpolicy.data.ogbench import write_npz
from flowpolicy.data.robomimic_writer import RecordedEpisode, RobomimicWriter
from flowpolicy.envs import find_env
from flowpolicy.envs.adroit import AdroitConfig
from flowpolicy.envs.d4rl_env import D4RLConfig
from flowpolicy.envs.ogbench_env import OGBenchConfig
from flowpolicy.evaluate.plan import make_plan
from flowpolicy.evaluate.report import make_evaluation
from flowpolicy.evaluate.rollout import rollout
from flowpolicy.policy import Policy
from flowpolicy.train import Trainer
from flowpolicy.train.group_sources import open_request
from flowpolicy.train.verify import compare

LENGTH = 40


def random_file(path, env, cameras=()):
    """Noise in the layout, shapes and conventions of the environment's data."""
    config, stream = find_env(env), numpy_generator(0, "random", env)
    spec = config.spec()

    def column(width):
        return stream.uniform(-1, 1, size=(LENGTH, width))

    if isinstance(config, AdroitConfig | D4RLConfig):
        with h5py.File(path, "w") as file:
            file["observations"], file["actions"] = column(*spec.observation["state"].shape), column(spec.action.size)
            file["rewards"] = column(1)[:, 0]
            file["terminals"] = np.zeros(LENGTH, dtype=bool)
            file["timeouts"] = np.arange(LENGTH) % 20 == 19
        return path
    if isinstance(config, OGBenchConfig):
        path, solved = path.with_suffix(".npz"), np.arange(LENGTH) % 7 == 3
        if config.visual:
            seen = stream.integers(0, 256, (LENGTH, *spec.images["pixels"].shape), dtype=np.uint8)
        else:
            seen = column(*spec.observation["state"].shape)
        columns = {"observations": seen, "actions": column(spec.action.size)}
        columns |= {"terminals": np.arange(LENGTH) % 20 == 19, "rewards": solved - 1.0, "masks": 1.0 - solved}
        write_npz(path, {**columns, "env_id": np.array(spec.env_id)})
        return path
    with RobomimicWriter(path, config.env_args()) as writer:
        for _ in range(3):
            obs = {name: column(*value.shape) for name, value in spec.observation.items()}
            shape = (LENGTH, 84, 84, 3)
            obs |= {f"{name}_image": stream.integers(0, 256, shape, dtype=np.uint8) for name in cameras}
            zeros = np.zeros(LENGTH)
            writer.add(RecordedEpisode(column(spec.action.size), zeros, zeros, obs, obs))
    return path


BASES = {
    "gdro-lift": "dm1-lift",
    "balance-lift": "flow-bc-lift",
    "gdro-can": "flow-bc-can",
    "gdro-cube-single": "flow-bc-cube-single",
}


def short(name, data):
    """The preset on noise, two updates long."""
    experiment = PRESETS[name][1]
    return dataclasses.replace(
        experiment,
        data=dataclasses.replace(experiment.data, path=str(data), filter_key=""),
        steps=2,
        checkpoint_every=1,
        batch_size=16,
        threads=1,
        compile=False,
        tensorboard=False,
    )


def post_training(name, data, folder):
    """A post-training preset with a base of two updates and groups of it."""
    base = short(BASES.get(name, "debug"), data)
    Trainer(base, folder / "base").train()
    asked = Making("returns", folder / "groups.hdf5", states=8, candidates=4, held_out_share=0.4, caution=0.0)
    request = open_request(folder / "base", asked)
    found = request.candidate_chunks()
    score = found.action.mean((2, 3))
    write_groups(asked.out, request.groups(found, score, request.fitted(found, score)))
    experiment = dataclasses.replace(short(name, data), data=DataConfig())
    return dataclasses.replace(experiment, base=str(folder / "base"), groups=str(folder / "groups.hdf5"))


RESUMED = {(type(preset.agent), type(find_env(preset.env))): name for name, (_, preset) in reversed(PRESETS.items())}
"""For every algorithm on every suite a preset; others differ in numbers that no checkpoint stores."""


@pytest.mark.parametrize("name", PRESETS)
def test_preset(name, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data = random_file(tmp_path / "data.hdf5", PRESETS[name][1].env, PRESETS[name][1].data.cameras)
    gdro = PRESETS[name][1].agent.needs == "groups"
    experiment = post_training(name, data, tmp_path) if gdro else short(name, data)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    resumed = name in RESUMED.values()
    trainer = Trainer(experiment if resumed else dataclasses.replace(experiment, steps=1), whole)
    trainer.train()
    if resumed:
        shutil.copytree(whole, broken)
        shutil.rmtree(broken / "checkpoints" / "step_00000002")
        (broken / "checkpoints" / "LATEST").write_text("step_00000001\n")
        Trainer(experiment, broken, resume=True).train()
        compare(checkpoint.resolve(whole), checkpoint.resolve(broken))
    experiment = trainer.experiment  # with what a base decides

    policy = Policy.load(whole)
    obs = {
        key: torch.zeros(1, policy.contract.history, *value.shape, dtype=getattr(torch, value.dtype))
        for key, value in policy.contract.spec.observation.items()
    }
    chunk = policy.act(obs, torch_generator(0))
    assert chunk.shape == (1, experiment.agent.chunk, policy.contract.spec.action.size)
    assert policy.evaluations == experiment.agent.nfe
    if name.startswith("dm1"):
        assert policy.evaluations == 1


@pytest.mark.sim
@pytest.mark.parametrize(
    "name", ["debug", "dm1-lift", "dm1-can", "dm1-door", "dm1-pusht", "dm1-pusht-image", "fql-visual-cube-single"]
)
def test_preset_in_its_environment(name, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    experiment = PRESETS[name][1]
    data = random_file(tmp_path / "data.hdf5", experiment.env, experiment.data.cameras)
    experiment = dataclasses.replace(
        experiment,
        data=dataclasses.replace(experiment.data, path=str(data)),
        steps=1,
        batch_size=16,
        threads=1,
        compile=False,
        tensorboard=False,
    )
    Trainer(experiment, tmp_path / "run").train()
    config = find_env(experiment.env, Policy.load(tmp_path / "run").contract.spec.images)
    short = (dataclasses.replace(config, horizon=6) if experiment.env != "door" else config).make(1)
    try:
        policy = Policy.load(tmp_path / "run")
        policy.contract = dataclasses.replace(policy.contract, spec=dataclasses.replace(short.spec))
        plan = make_plan(short.spec.env_id, 2, 0)
        evaluation = make_evaluation(plan, rollout(policy, short, plan))
    finally:
        short.close()
    assert evaluation.nfe == experiment.agent.nfe
    assert evaluation.success.n == 2
