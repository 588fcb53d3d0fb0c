"""Every engine of a GPU against the policy on the CPU. None of this has met a GPU yet."""

import dataclasses
import threading

import pytest
import torch

from flowpolicy.core.errors import ConfigError
from flowpolicy.policy import load_engine
from flowpolicy.policy.engines import TOLERANCE

from .policies import CRITIC, NETS, SAMPLERS, decisions, distance, make

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
CHOICES = {"decorated": {"decorated": True}, "candidates": {"candidates": 4, "critic": CRITIC}, "prefix": {"prefix": 2}}


def saved(folder, contract, net, sampler, nfe, **choice):
    policy = make(dataclasses.replace(contract, nfe=nfe), net, sampler, **choice)
    policy.save(folder)
    return policy


@pytest.mark.parametrize("engine", ["cuda_graph", "eager"])
@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_it_computes_what_the_policy_does(engine, net, sampler, contract, tmp_path):
    policy = saved(tmp_path, contract, net, sampler, SAMPLERS[sampler])
    assert distance(policy, load_engine(tmp_path, engine, batches=[3], device="cuda"), 3) < TOLERANCE


@pytest.mark.parametrize("net", NETS)
def test_compiled_and_captured_it_does_too(net, contract, tmp_path):
    policy = saved(tmp_path, contract, net, "map", 1)
    assert distance(policy, load_engine(tmp_path, "compiled_graph", batches=[3], device="cuda"), 3) < TOLERANCE


@pytest.mark.parametrize("engine", ["onnx", "tensorrt"])
def test_an_export_runs_there_where_the_runtime_can(engine, contract, tmp_path):
    policy = saved(tmp_path, contract, "mlp", "euler", 3)
    try:
        loaded = load_engine(tmp_path, engine, batches=[2], device="cuda")
    except ConfigError as reason:
        pytest.skip(reason.what)
    assert distance(policy, loaded, 2) < TOLERANCE


@pytest.mark.parametrize("engine", ["cuda_graph", "eager"])
@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("sampler", ["map", "euler", "midpoint", "heun"])
@pytest.mark.parametrize("choice", CHOICES)
def test_it_decorates_chooses_and_continues(engine, net, sampler, choice, contract, tmp_path):
    options = CHOICES[choice]
    nfe = options.get("candidates", 1) * (SAMPLERS[sampler] + options.get("decorated", False))
    policy = saved(tmp_path, contract, net, sampler, nfe, **options)
    assert distance(policy, load_engine(tmp_path, engine, batches=[2], device="cuda"), 2) < TOLERANCE


def test_two_engines_and_two_batch_sizes_in_one_process(contract, tmp_path):
    nets = ("mlp", "transformer")
    policies = [saved(tmp_path / net, contract, net, "map", 1) for net in nets]
    engines = [load_engine(tmp_path / net, "cuda_graph", batches=[1, 4], device="cuda") for net in nets]
    for batch in (1, 4, 3, 1):
        for policy, engine in zip(policies, engines, strict=True):
            assert distance(policy, engine, batch) < TOLERANCE


def test_a_second_thread_acts(contract, tmp_path):
    policy = saved(tmp_path, contract, "mlp", "map", 1)
    engine, found = load_engine(tmp_path, "cuda_graph", device="cuda"), []
    thread = threading.Thread(target=lambda: found.append(distance(policy, engine, 1)))
    thread.start()
    thread.join()
    assert found[0] < TOLERANCE


def test_auto_takes_the_graph_and_answers_are_arrays_of_their_own(contract, tmp_path):
    policy = saved(tmp_path, contract, "mlp", "map", 1)
    engine = load_engine(tmp_path, device="cuda")
    assert engine.name == "cuda_graph" and set(engine.measured) == {"cuda_graph", "eager"}
    first, second = (engine.act(*decision) for decision in list(decisions(policy, 1, 2)))
    assert not (first == second).all()
