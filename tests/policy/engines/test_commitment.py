"""Policies that continue committed actions, and those of the flow laboratory, by every engine."""

import numpy as np
import pytest
import torch

from flowpolicy.core.errors import ConfigError
from flowpolicy.core.seed import numpy_generator
from flowpolicy.flows.axes.flow_spec import Sampling
from flowpolicy.flows.axes.registry import make as value
from flowpolicy.policy import load_engine
from flowpolicy.policy.exporting import export
from flowpolicy.policy.graph import ActGraph

from .policies import CRITIC, SAMPLERS, commitment, decisions, distance, eager, make
from .test_engines import flat, needs_onnx, with_nfe

CONTINUING = ["map", "euler", "heun", "direct", "squashed"]
LABORATORY = {
    "euler": (3, {}),
    "midpoint": (4, {"solver": "midpoint"}),
    "ab2": (3, {"solver": "ab2", "schedule": "cosine"}),
    "ddim": (3, {"solver": "ddim", "interpolant": "trig"}),
    "data": (2, {"target": "data", "schedule": "power"}),
    "cfg": (4, {"guidance": "cfg"}),
    "map": (2, {"solver": "map"}),
}
"""Evaluations, and values of the axes."""


def laboratory(contract, name, net="mlp"):
    nfe, values = LABORATORY[name]
    sampling = Sampling(**{axis: value(axis, chosen) for axis, chosen in values.items()}, two_time=name == "map")
    return make(with_nfe(contract, nfe), net, "flow", flow=sampling)


class Graph:
    """A folded graph as an engine."""

    def __init__(self, policy, nfe):
        self.policy, self.graph = policy, ActGraph(policy, nfe)

    @torch.no_grad()
    def act(self, obs, noise, *committed):
        return self.graph(flat(self.policy, obs), *map(torch.from_numpy, (noise, *committed))).numpy()


@pytest.mark.parametrize("sampler", CONTINUING)
def test_the_folded_graph_continues(sampler, contract):
    policy = make(contract, "mlp", sampler, prefix=2)
    assert distance(policy, Graph(policy, SAMPLERS[sampler]), 3, nfe=SAMPLERS[sampler]) < 2e-5


@pytest.mark.parametrize("net", ["mlp", "plain"])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("sampler", CONTINUING)
def test_numpy_continues(sampler, batch, net, contract, tmp_path):
    policy = make(with_nfe(contract, SAMPLERS[sampler]), net, sampler, encoder=12 if batch == 1 else 0, prefix=3)
    policy.save(tmp_path)
    engine = load_engine(tmp_path, "numpy", batches=[batch])
    assert engine.prefix == 3
    assert distance(policy, engine, batch) < 2e-5


def test_numpy_continues_the_best_of_several(contract, tmp_path):
    policy = make(with_nfe(contract, 8), "mlp", "euler", candidates=4, critic=CRITIC, prefix=2)
    policy.save(tmp_path)
    assert distance(policy, load_engine(tmp_path, "numpy", batches=[2]), 2) < 2e-5


@pytest.mark.parametrize("name", ["numpy", "eager"])
def test_a_chunk_begins_with_what_is_committed_and_the_rest_depends_on_it(name, contract, tmp_path):
    policy = make(contract, prefix=2)
    policy.save(tmp_path)
    engine = load_engine(tmp_path, name, batches=[1, 4])
    obs, noise = next(decisions(policy, 3))
    action, length = commitment(policy, 3, numpy_generator(0, "c"))
    free, chunk = engine.act(obs, noise), engine.act(obs, noise, action, length)
    for row, count in enumerate(length):
        assert np.array_equal(chunk[row, :count], action[row, :count])
    changed = np.abs(chunk - free)[:, 2:].max((1, 2))
    assert (changed[length > 0] > 1e-3).all() and (changed[length == 0] < 1e-5).all()
    np.testing.assert_allclose(engine.act(obs, noise), eager(policy, obs, noise), atol=1e-5)


def test_what_cannot_be_continued_is_refused(contract, tmp_path):
    make(contract, prefix=2).save(tmp_path)
    make(contract).save(tmp_path / "none")
    engine, none = load_engine(tmp_path, "numpy"), load_engine(tmp_path / "none", "numpy")
    obs, noise = next(decisions(make(contract), 1))
    action = np.zeros((1, contract.chunk, 2), np.float32)
    with pytest.raises(ConfigError, match=r"3 actions are committed .* continue 2"):
        engine.act(obs, noise, action, np.array([3]))
    with pytest.raises(ConfigError, match=r"1 actions are committed .* continue 0"):
        none.act(obs, noise, action, np.array([1]))


def test_an_export_for_numpy_takes_any_number_of_rows(contract, tmp_path):
    policy = make(with_nfe(contract, 8), "mlp", "euler", candidates=4, critic=CRITIC, prefix=2)
    export(policy, "numpy", tmp_path / "model")
    assert distance(policy, load_engine(tmp_path / "model", batches=[3]), 3) < 2e-5


@pytest.mark.parametrize("name", LABORATORY)
def test_the_folded_graph_samples_as_the_laboratory_does(name, contract):
    policy = laboratory(contract, name)
    if policy.actor.null is not None:
        policy.actor.null.data.copy_(torch.linspace(-1, 1, policy.actor.null.numel()))
    assert distance(policy, Graph(policy, LABORATORY[name][0]), 3) < 2e-5


@pytest.mark.parametrize(
    ("sampling", "reason"),
    [
        ({"solver": value("solver", "sde")}, "its solver 'sde' draws noise"),
        ({"source": value("source", "mixed", acting="uniform")}, "its source 'mixed' draws more"),
        ({"source": value("source", "warm-start")}, "continues its previous chunk"),
        ({"interpolant": value("interpolant", "bridge")}, "continues its previous chunk"),
    ],
)
def test_what_an_engine_cannot_sample_is_named(sampling, reason, contract, tmp_path):
    make(contract, sampler="flow", flow=Sampling(**sampling)).save(tmp_path)
    for name in ("numpy", "eager"):
        with pytest.raises(ConfigError, match=reason):
            load_engine(tmp_path, name)


@pytest.mark.parametrize(
    ("sampling", "nfe", "kurtosis"),
    [
        ({"source": value("source", "laplace")}, 3, 6.0),
        ({"source": value("source", "student-t", dof=12.0)}, 3, 3 + 6 / (12 - 4)),
        ({"source": value("source", "mixed")}, 3, 3.0),
        ({"source": value("source", "mixed", acting="one", shown=True)}, 3, 3.0),
    ],
)
def test_engines_draw_the_noise_of_the_source(sampling, nfe, kurtosis, contract, tmp_path):
    """Fourth moments of the noise that engines draw, in closed form; and the chunks that they make of it."""
    policy = make(with_nfe(contract, nfe), sampler="flow", flow=Sampling(**sampling))
    policy.save(tmp_path)
    for name in ("numpy", "eager"):
        engine = load_engine(tmp_path, name, batches=[2])
        assert distance(policy, engine, 2) < 2e-5
        noise = engine.noise(60_000, np.random.default_rng(0)).astype(np.float64)
        variance = np.square(noise).mean()
        assert np.mean(noise**4) / variance**2 == pytest.approx(kurtosis, rel=0.05)
    drawn = policy.noise(60_000, torch.Generator().manual_seed(0)).double()
    assert float(drawn.square().mean()) == pytest.approx(variance, rel=0.02)


def test_the_eager_engine_runs_the_laboratory(contract, tmp_path):
    policy = laboratory(contract, "cfg")
    policy.save(tmp_path)
    assert distance(policy, load_engine(tmp_path, "eager", batches=[2]), 2) == 0.0


@needs_onnx
@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "net"),
    [("prefix", "mlp"), ("prefix", "unet"), ("ab2", "mlp"), ("ddim", "transformer"), ("cfg", "mlp"), ("map", "mlp")],
)
def test_onnx_continues_and_samples(kind, net, contract, tmp_path):
    policy = make(contract, net, prefix=2) if kind == "prefix" else laboratory(contract, kind, net)
    export(policy, "onnx", tmp_path / "model", batches=[2])
    assert distance(policy, load_engine(tmp_path / "model"), 2) < 2e-5
