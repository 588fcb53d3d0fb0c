"""Every engine returns what the eager policy returns, for every network and sampler that it takes."""

import dataclasses
import importlib.util

import numpy as np
import pytest
import torch

from flowpolicy.core.errors import ConfigError, FlowPolicyError
from flowpolicy.core.seed import numpy_generator
from flowpolicy.nets.critic import CriticConfig
from flowpolicy.policy import load_engine
from flowpolicy.policy.engines import ENGINES, TOLERANCE, cuda_graph
from flowpolicy.policy.exporting import export
from flowpolicy.policy.graph import ActGraph

from .policies import CRITIC, MLPS, NETS, SAMPLERS, decisions, distance, eager, make

needs_onnx = pytest.mark.skipif(
    importlib.util.find_spec("onnxruntime") is None or importlib.util.find_spec("onnxscript") is None,
    reason="the extra 'onnx' is not installed",
)
CHOICES = {
    "decorated": {"decorated": True},
    "candidates": {"candidates": 4, "critic": CRITIC},
    "both": {"candidates": 3, "critic": CriticConfig(width=16, depth=1, layer_norm=False), "decorated": True},
}


def with_nfe(contract, nfe):
    return dataclasses.replace(contract, nfe=nfe)


def flat(policy, obs):
    return torch.cat([torch.from_numpy(obs[key]).float().flatten(2) for key in policy.actor.keys], dim=-1)


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.quick("engine")
def test_the_folded_graph_is_the_policy(net, sampler, contract):
    policy = make(contract, net, sampler)
    nfe = SAMPLERS[sampler]
    graph = ActGraph(policy, nfe)
    before = {name: value.clone() for name, value in policy.state_dict().items()}

    class Engine:
        @staticmethod
        @torch.no_grad()
        def act(obs, noise, *committed):
            return graph(flat(policy, obs), *map(torch.from_numpy, (noise, *committed))).numpy()

    assert distance(policy, Engine, 3, nfe=nfe) < 2e-5
    assert all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("net", MLPS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_numpy_computes_what_the_policy_does(net, sampler, batch, contract, tmp_path):
    nfe = SAMPLERS[sampler]
    policy = make(with_nfe(contract, nfe), net, sampler, encoder=12 if batch == 1 else 0)
    policy.save(tmp_path)
    engine = load_engine(tmp_path, "numpy", batches=[batch])
    assert engine.nfe == nfe
    assert distance(policy, engine, batch) < 2e-5 < TOLERANCE


@pytest.mark.parametrize("choice", [*CHOICES, "committed"])
@pytest.mark.parametrize("name", [engine for engine in ENGINES if engine in ("eager", "numpy", "onnx")])
def test_actions_that_never_varied_come_back_exactly(name, choice, contract, tmp_path):
    if name == "onnx":
        pytest.importorskip("onnxruntime")
    options = CHOICES.get(choice, {"prefix": 2})
    nfe = options.get("candidates", 1) * (2 + options.get("decorated", False))
    policy = make(with_nfe(contract, nfe), "mlp", "euler", constant=True, **options)
    policy.save(tmp_path)
    engine = load_engine(tmp_path, name)
    assert distance(policy, engine, 1) < 2e-5
    obs, noise = next(decisions(policy, 1))
    free = engine.act(obs, noise)[..., 0]  # nothing is committed
    assert (free == policy.normalizer.action_scaling.offset[0].numpy()).all()


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("batch", [1, 2])
def test_numpy_decorates_and_chooses(choice, batch, contract, tmp_path):
    options = CHOICES[choice]
    nfe = options.get("candidates", 1) * (2 + options.get("decorated", False))
    policy = make(with_nfe(contract, nfe), "mlp", "euler", **options)
    policy.save(tmp_path)
    engine = load_engine(tmp_path, "numpy", batches=[batch])
    assert engine.candidates == options.get("candidates", 1)
    assert distance(policy, engine, batch) < 2e-5


@needs_onnx
@pytest.mark.slow
@pytest.mark.parametrize(
    ("net", "sampler", "choice"),
    [
        ("mlp", "map", {}),
        ("mlp", "midpoint", {}),
        ("mlp", "squashed", {}),
        ("mlp", "heun", {}),
        ("plain", "one_step", {}),
        ("transformer", "map", {}),
        ("mlp", "euler", CHOICES["both"]),
    ],
    ids=str,
)
def test_onnx_computes_what_the_policy_does(net, sampler, choice, contract, tmp_path):
    each = SAMPLERS[sampler] + choice.get("decorated", False)
    policy = make(with_nfe(contract, each * choice.get("candidates", 1)), net, sampler, **choice)
    batches = (1, 2) if choice else (2,)
    export(policy, "onnx", tmp_path / "model", batches=batches)
    engine = load_engine(tmp_path / "model")
    assert (engine.name, engine.batches) == ("onnx", batches)
    for batch in batches:
        assert distance(policy, engine, batch) < 2e-5


@pytest.mark.quick("engine")
def test_eager_engine_is_the_policy_bit_for_bit(contract, tmp_path):
    policy = make(contract)
    policy.save(tmp_path)
    assert distance(policy, load_engine(tmp_path, "eager", batches=[2]), 2) == 0.0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_cuda_graph_computes_what_the_policy_does(contract, tmp_path):
    policy = make(contract)
    policy.save(tmp_path)
    assert distance(policy, load_engine(tmp_path, "cuda_graph", batches=[2], device="cuda"), 2) < TOLERANCE


def test_the_same_seed_gives_the_same_noise_to_every_engine(contract, tmp_path):
    make(contract).save(tmp_path)
    draws = [load_engine(tmp_path, name).noise(2, numpy_generator(1, "n")) for name in ("numpy", "eager")]
    assert draws[0].shape == (2, contract.chunk, 2) and draws[0].dtype == np.float32
    assert np.array_equal(*draws)


def test_rows_between_two_prepared_sizes_are_padded(contract, tmp_path):
    policy = make(with_nfe(contract, 8), "mlp", "euler", **CHOICES["candidates"])
    policy.save(tmp_path)
    engine = load_engine(tmp_path, "numpy", batches=[1, 4])
    assert distance(policy, engine, 3) < 2e-5
    with pytest.raises(ConfigError, match="at most 4 rows"):
        engine.act({}, engine.noise(5, numpy_generator(0)))


def test_each_answer_is_an_array_of_its_own(contract, tmp_path):
    policy = make(contract)
    policy.save(tmp_path)
    engine = load_engine(tmp_path, "numpy")
    obs = {key: np.ones((1, contract.history, *spec.shape)) for key, spec in contract.spec.observation.items()}
    first = engine.act(obs, engine.noise(1, numpy_generator(0)))
    kept = first.copy()
    engine.act(obs, engine.noise(1, numpy_generator(1)))
    assert np.array_equal(first, kept)
    assert np.allclose(first, eager(policy, obs, engine.noise(1, numpy_generator(0))), atol=1e-5)


def test_wrong_observations_are_named(contract, tmp_path):
    make(contract).save(tmp_path)
    engine = load_engine(tmp_path, "numpy")
    noise = engine.noise(1, numpy_generator(0))
    obs = {key: np.zeros((1, contract.history, *spec.shape)) for key, spec in contract.spec.observation.items()}
    engine.act({**obs, "camera": np.zeros((1, 2, 5))}, noise)
    with pytest.raises(ConfigError, match="'goal' is missing"):
        engine.act({"state": obs["state"]}, noise)
    with pytest.raises(ConfigError, match=r"'goal' has shape \(1, 2, 1\)"):
        engine.act({**obs, "goal": np.zeros((1, 2, 1))}, noise)
    with pytest.raises(ConfigError, match="the noise has shape"):
        engine.act(obs, noise[:, :1])


def test_auto_measures_what_it_can_have_and_keeps_the_fastest(contract, tmp_path, monkeypatch):
    make(contract).save(tmp_path)
    monkeypatch.setattr("flowpolicy.policy.engines.ENGINES", ("numpy", "cuda_graph", "eager"))
    engine = load_engine(tmp_path)
    assert set(engine.measured) == {"numpy", "cuda_graph", "eager"}
    assert "CUDA device" in engine.measured["cuda_graph"]
    assert engine.measured[engine.name] == min(engine.measured["numpy"], engine.measured["eager"])


@pytest.mark.parametrize(
    ("net", "arguments", "message"),
    [
        ("mlp", {"engine": "nunpy"}, "did you mean 'numpy'"),
        ("mlp", {"engine": "numpy", "device": "cuda"}, "runs on the CPU"),
        ("mlp", {"engine": "numpy", "device": "cuda"}, "fix.*cuda_graph, or onnx"),
        ("mlp", {"engine": "aotinductor", "device": "cuda:1"}, "runs on the CPU"),
        ("mlp", {"engine": "cuda_graph"}, "runs on a CUDA device"),
        ("mlp", {"engine": "compiled_graph"}, "'compiled_graph' runs on a CUDA device"),
        ("mlp", {"engine": "tensorrt"}, "'tensorrt' runs on a CUDA device"),
        ("mlp", {"engine": "onnx", "device": "cuda"}, "needs ONNX Runtime's CUDAExecutionProvider, and the installed"),
        ("mlp", {"engine": "tensorrt", "device": "cuda"}, "needs ONNX Runtime's TensorrtExecutionProvider"),
        ("mlp", {"engine": "eager", "batches": [0]}, "at least 1"),
        ("mlp", {"engine": "eager", "threads": 0}, "at least 1"),
        ("mlp", {"engine": "numpy", "nfe": 0}, "nfe"),
    ],
)
def test_what_cannot_be_had_is_an_error_and_never_something_else(net, arguments, message, contract, tmp_path):
    make(contract, net).save(tmp_path)
    with pytest.raises(FlowPolicyError, match=message):
        load_engine(tmp_path, **arguments)


def test_the_table_of_engines_is_what_can_be_asked_for(contract, tmp_path):
    make(contract).save(tmp_path)
    with pytest.raises(ConfigError) as error:
        load_engine(tmp_path, "none")
    assert all(name in str(error.value) for name in ENGINES)


def test_inputs_travel_in_one_piece():
    given = [torch.randn(3, 5), torch.arange(7), torch.randn(2, 2, 2)]
    host = cuda_graph.packed(given, pinned=False)
    there = cuda_graph.views(host.memory.clone(), host.views)
    for view, value in zip((*host.views, *there), (*given, *given), strict=True):
        assert torch.equal(view, value) and view.dtype == value.dtype and view.is_contiguous()
