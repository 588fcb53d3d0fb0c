"""Engines of a stored policy behind the server's interface."""

import dataclasses

import numpy as np
import pytest

from flowpolicy.agents.cloning.dm1 import DM1
from flowpolicy.configs.presets import PRESETS
from flowpolicy.core.errors import ConfigError, FlowPolicyError
from flowpolicy.data.dataset import DataConfig
from flowpolicy.envs import find_env
from flowpolicy.envs.demonstrators import make_demonstrations
from flowpolicy.nets.mlp import MLP
from flowpolicy.policy import Policy
from flowpolicy.serve.engines import load_engines
from flowpolicy.serve.model import Model
from flowpolicy.serve.protocol import ActRequest
from flowpolicy.train import Trainer
from tests.conftest import DEVICES


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs, without and with committed actions."""
    home = tmp_path_factory.mktemp("runs")
    make_demonstrations("toy", home / "toy.hdf5", episodes=4, seed=0, quality="expert", workers=1)
    for name, prefix in (("plain", 0), ("prefix", 2)):
        agent = DM1(net=MLP(width=16, depth=2), chunk=4, execute=2, prefix=prefix)
        experiment = dataclasses.replace(
            PRESETS["debug"][1],
            agent=agent,
            data=DataConfig(path=str(home / "toy.hdf5")),
            steps=3,
            batch_size=8,
            tensorboard=False,
        )
        Trainer(experiment, home / name, find_env("toy").spec()).train()
    return home


def chunk(run, name, rows=2, device="cpu"):
    engines, checkpoint = load_engines(run, (), 1, name, (1, 2), device=device)
    assert checkpoint == "step_00000003"
    model = Model.prepare(engines, checkpoint, (1, 2), rounds=2)
    contract = model.any_engine.contract
    obs = {
        key: np.full((contract.history, *spec.shape), 0.3, np.float32)
        for key, spec in contract.spec.observation.items()
    }
    requests = [
        ActRequest(id=number, obs=obs, budget_ms=1e3, seed=number, noise=None, prefix=None) for number in range(rows)
    ]
    return model.act(contract.nfe, requests)


@pytest.mark.parametrize("device", DEVICES)
def test_the_default_engine_of_a_device_serves_what_the_policy_does(runs, device):
    served = chunk(runs / "plain", "auto", device=device)
    np.testing.assert_allclose(served, chunk(runs / "plain", "eager"), atol=1e-4)


def test_the_numpy_engine_serves_what_the_policy_does(runs):
    eager, fast = chunk(runs / "plain", "eager"), chunk(runs / "plain", "numpy")
    np.testing.assert_allclose(fast, eager, atol=1e-4)
    assert np.ptp(eager, axis=0).max() > 1e-3, "the two requests have different noise"


def test_noise_is_of_the_law_that_the_policy_was_trained_with_and_what_needs_more_is_not_served(tmp_path):
    from flowpolicy.cli import main

    for source in ("student-t", "warm-start"):
        flags = ("--flow.source", source, "--steps", "2", "--no-compile", "--no-tensorboard")
        with pytest.raises(SystemExit):
            main(("train", "debug", *flags, "--out", str(tmp_path / source)))
    (engine,), _ = load_engines(tmp_path / "student-t", (), 1, "eager")
    model = Model.prepare([engine], "step", (1,), rounds=1)
    obs = {key: np.zeros(shape, np.float32) for key, shape in model.form.obs.items()}
    noise = Policy.load(tmp_path / "student-t").config.sampler.law.sample_numpy(
        model.form.noise, np.random.default_rng([3, 7])
    )
    assert not np.array_equal(noise, np.random.default_rng([3, 7]).standard_normal(noise.shape, dtype=np.float32))
    drawn, given = (model.act(engine.nfe, [ActRequest(7, 1e3, obs, seed=3, noise=n)]) for n in (None, noise))
    assert np.array_equal(drawn, given)
    with pytest.raises(ConfigError, match="engines and servers cannot run this policy"):
        load_engines(tmp_path / "warm-start", (), 1)


def test_every_engine_continues_committed_actions(runs):
    chunks = {}
    for name in ("eager", "numpy"):
        (engine,), _ = load_engines(runs / "prefix", (), 1, name, (1, 2))
        model = Model.prepare([engine], "step", (1, 2), rounds=2)
        obs = {key: np.full(shape, 0.2, np.float32) for key, shape in model.form.obs.items()}
        prefix = np.full((2, model.form.noise[2]), 0.1, np.float32)
        requests = [ActRequest(1, 1e3, obs, seed=0), ActRequest(2, 1e3, obs, seed=0, prefix=prefix)]
        chunks[name] = model.act(engine.nfe, requests)
        assert (engine.prefix, engine.name) == (2, name)
        assert np.array_equal(chunks[name][1, :2], prefix)
        assert not np.isclose(chunks[name][0, :2], prefix).any()
    np.testing.assert_allclose(chunks["numpy"], chunks["eager"], atol=1e-4)


def test_without_a_name_the_fastest_of_the_quick_ones_is_served(runs):
    (engine,), _ = load_engines(runs / "plain", (), 1)
    measured = engine.measured
    assert set(measured) == {"numpy", "eager"}
    assert measured[engine.name] == min(measured.values())


@pytest.mark.slow
def test_what_is_compiled_is_built_in_another_process(runs):
    pytest.importorskip("onnxscript")
    eager, fast = chunk(runs / "plain", "eager"), chunk(runs / "plain", "onnx")
    np.testing.assert_allclose(fast, eager, atol=1e-4)
    with pytest.raises(FlowPolicyError, match="could not be built"):
        load_engines(runs / "plain", (0,), 1, "onnx")
