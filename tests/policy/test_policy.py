"""A policy is pure, strict about its files, and honest about its evaluations."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from flowpolicy.core import checkpoint
from flowpolicy.core.config import encode
from flowpolicy.core.errors import CheckpointError, ConfigError
from flowpolicy.core.files import read_json, write_json, write_tensors
from flowpolicy.core.seed import torch_generator
from flowpolicy.core.spec import save_contract
from flowpolicy.data.normalize import Normalizer
from flowpolicy.nets.critic import CriticConfig
from flowpolicy.nets.encoder import StateEncoder
from flowpolicy.nets.mlp import MLP
from flowpolicy.nets.plain import Plain
from flowpolicy.nets.transformer import Transformer
from flowpolicy.nets.unet import UNet
from flowpolicy.policy import Policy
from flowpolicy.policy.actor import KINDS, PolicyConfig
from flowpolicy.policy.queue import ChunkQueue
from flowpolicy.policy.samplers import MAP, BestOf, Decorated, Direct, Mip, OneStep, Prefixed

from .ways import sampler as named

NETS = [MLP(width=16, depth=2), UNet(), Transformer(), Plain(width=16, depth=2)]


def make(contract, sampler="map", net=NETS[0], **choice):
    torch.manual_seed(0)
    normalizer = Normalizer({k: v.shape[0] for k, v in contract.spec.observation.items()}, contract.spec.action.size)
    for value in normalizer.state_dict().values():
        value.copy_(torch.rand(value.shape) + 0.5)
    normalizer.action_scaling.limit.fill_(float("inf"))
    policy = Policy(PolicyConfig(net, StateEncoder(width=8), named(sampler, **choice)), contract, normalizer)
    for parameter in policy.actor.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return policy.eval().requires_grad_(False)


def store(policy, run, step=1):
    def write(folder):
        for name in ("weights", "ema"):
            write_tensors(folder / f"{name}.safetensors", policy.actor.state_dict())
        write_tensors(folder / "normalizer.safetensors", policy.normalizer.state_dict())
        write_json(folder / "config.json", {"policy": encode(policy.config, KINDS)})
        save_contract(folder / "contract.json", policy.contract)

    return checkpoint.publish(run, step, write)


def observe(contract, rows=3, seed=0):
    generator = torch_generator(seed, "obs")
    shapes = {k: v.shape for k, v in contract.spec.observation.items()}
    return {k: torch.randn(rows, contract.history, *s, generator=generator) for k, s in shapes.items()}


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("sampler", ["map", "euler", "midpoint", "heun", "direct", "squashed", "one_step"])
@pytest.mark.quick("policy")
def test_a_loaded_policy_acts_like_the_stored_one(sampler, net, contract, tmp_path):
    policy = make(contract, sampler, net)
    store(policy, tmp_path)
    nfe = 2 if sampler in ("midpoint", "heun") else 1
    obs = observe(contract)
    chunk = policy.act(obs, torch_generator(1), nfe)
    assert torch.equal(Policy.load(tmp_path).act(obs, torch_generator(1), nfe), chunk)
    assert chunk.shape == (3, contract.chunk, 2)


@pytest.mark.parametrize(("sampler", "nfe"), [("map", 1), ("map", 4), ("euler", 10), ("midpoint", 6), ("heun", 6)])
def test_evaluations_are_counted_where_the_network_is_called(sampler, nfe, contract):
    policy = make(contract, sampler)
    calls = []
    policy.actor.net.register_forward_hook(lambda *_: calls.append(1))
    policy.act(observe(contract), torch_generator(0), nfe)
    assert policy.evaluations == len(calls) == nfe


def choosing(contract, candidates=4):
    critic = CriticConfig(width=16, depth=2, held_out=1)
    return make(contract, "euler", candidates=candidates, critic=critic)


def test_a_loaded_policy_that_chooses_among_candidates_acts_like_the_stored_one(contract, tmp_path):
    policy = choosing(contract)
    store(policy, tmp_path)
    obs = observe(contract)
    chunk = policy.act(obs, torch_generator(1), nfe=8)
    assert torch.equal(Policy.load(tmp_path).act(obs, torch_generator(1), 8), chunk)
    assert chunk.shape == (3, contract.chunk, 2)


def test_every_candidate_counts(contract):
    policy = choosing(contract)
    rows = []
    policy.actor.net.register_forward_hook(lambda net, inputs, output: rows.append(len(inputs[0])))
    policy.act(observe(contract, rows=1), torch_generator(0), nfe=8)
    assert policy.evaluations == sum(rows) == 8


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: BestOf(MAP, CriticConfig(), 1), "the best of 1"),
        (lambda: BestOf(BestOf(MAP)), "makes 2 itself"),
        (lambda: Decorated(BestOf(MAP)), "chooses among chunks"),
        (lambda: Decorated(Prefixed(MAP, 2)), "continues a prefix"),
        (lambda: Prefixed(OneStep(), 2), "a OneStep policy"),
        (lambda: Prefixed(Mip(), 2), "a Mip policy"),
        (lambda: Prefixed(Direct(), 0), "0 committed actions"),
    ],
)
def test_samplers_that_cannot_be_wrapped_say_so(wrong, words):
    with pytest.raises(ConfigError, match=words):
        wrong()


def test_a_one_step_actor_follows_the_noise_and_a_deterministic_one_does_not(contract):
    obs = observe(contract)
    for sampler, follows in (("one_step", True), ("direct", False), ("squashed", False)):
        policy = make(contract, sampler)
        first, second = (policy.act(obs, torch_generator(seed), 1) for seed in (1, 2))
        assert policy.evaluations == 2
        assert torch.equal(first, second) != follows
        with pytest.raises(ConfigError, match="cannot act in 2"):
            policy.act(obs, torch_generator(0), nfe=2)


def test_an_impossible_number_of_evaluations_is_refused(contract):
    with pytest.raises(ConfigError, match="nfe=3"):
        make(contract, "midpoint").act(observe(contract), torch_generator(0), 3)


def test_acting_is_pure_and_stays_in_the_range_of_the_data(contract):
    policy = make(contract)
    state = torch.random.get_rng_state()
    obs = observe(contract)
    before = {k: v.clone() for k, v in obs.items()}
    first = policy.act(obs, torch_generator(5))
    assert torch.equal(first, policy.act(obs, torch_generator(5)))
    assert not torch.equal(first, policy.act(obs, torch_generator(6)))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(obs[k], before[k]) for k in obs)
    corner = policy.normalizer.unaction(torch.stack([-torch.ones(2), torch.ones(2)]))
    assert (first >= corner[0] - 1e-6).all() and (first <= corner[1] + 1e-6).all()


def test_extra_observations_are_ignored_and_a_missing_one_is_an_error(contract):
    policy = make(contract)
    obs = observe(contract)
    extra = policy.act({**obs, "camera": torch.zeros(3, 2, 5)}, torch_generator(0))
    assert torch.equal(extra, policy.act(obs, torch_generator(0)))
    with pytest.raises(ConfigError, match="'goal' is missing"):
        policy.act({"state": obs["state"]}, torch_generator(0))


def test_weights_that_do_not_fit_are_refused(contract, tmp_path):
    folder = store(make(contract), tmp_path)
    tensors = load_file(folder / "ema.safetensors")
    save_file(dict(list(tensors.items())[1:]), folder / "ema.safetensors")
    manifest = read_json(folder / "manifest.json")
    manifest["ema.safetensors"] = checkpoint.sha256(folder / "ema.safetensors")
    write_json(folder / "manifest.json", manifest)
    with pytest.raises(CheckpointError, match="does not fit the network"):
        Policy.load(tmp_path)


def test_an_unknown_network_is_refused(contract, tmp_path):
    folder = store(make(contract), tmp_path)
    config = read_json(folder / "config.json")
    config["policy"]["net"]["class"] = "resnet"
    write_json(folder / "config.json", config)
    manifest = read_json(folder / "manifest.json")
    manifest["config.json"] = checkpoint.sha256(folder / "config.json")
    write_json(folder / "manifest.json", manifest)
    with pytest.raises(Exception, match="unknown kind 'resnet'"):
        Policy.load(tmp_path)


@pytest.mark.quick("policy")
def test_queue_executes_the_first_actions_of_each_chunk():
    queue = ChunkQueue(execute=2)
    assert queue.empty
    queue.push(np.arange(8.0).reshape(4, 2))
    assert [queue.pop().tolist(), queue.pop().tolist()] == [[0.0, 1.0], [2.0, 3.0]]
    assert queue.empty
    with pytest.raises(IndexError):
        queue.pop()
    queue.push(np.zeros((4, 2)))
    queue.push(np.ones((4, 2)))
    assert queue.pop().tolist() == [1.0, 1.0]
