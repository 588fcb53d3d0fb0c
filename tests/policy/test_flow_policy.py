"""A policy of the flow laboratory: stored, loaded, counted, guided, and with a fitted solver."""

import dataclasses

import pytest
import torch

from flowpolicy.core.errors import CheckpointError, ConfigError
from flowpolicy.core.seed import torch_generator
from flowpolicy.flows.axes.flow_spec import Sampling
from flowpolicy.flows.axes.registry import make
from flowpolicy.nets.mlp import MLP
from flowpolicy.policy import Policy
from flowpolicy.policy.fitted_solver import fitted
from flowpolicy.policy.samplers import FlowSampler

from .test_policy import make as make_policy
from .test_policy import observe, store

NET = MLP(width=16, depth=2)


def policy_with(contract, **values):
    two_time = values.get("solver") == "map"
    made = {axis: make(axis, v) if isinstance(v, str) else v for axis, v in values.items()}
    sampling = Sampling(**made, two_time=two_time)
    return make_policy(contract, "flow", NET, flow=sampling)


def policy_sampling(policy):
    return policy.config.sampler.flow.sampling


@pytest.mark.parametrize(
    ("values", "nfe"),
    [
        ({}, 3),
        ({"solver": "map"}, 2),
        ({"source": "student-t", "schedule": "cosine"}, 4),
        ({"source": "mixed"}, 4),
        ({"guidance": "cfg"}, 6),
        ({"guidance": "rcfg", "solver": "ab2"}, 5),
        ({"interpolant": "trig", "target": "data", "solver": "ddim"}, 3),
        ({"solver": "sde"}, 4),
        ({"solver": "heun"}, 5),
        ({"interpolant": "bridge"}, 3),
        ({"source": "warm-start"}, 3),
        ({"guidance": "gradient"}, 3),
        ({"guidance": make("guidance", "gradient", jacobian="vjp")}, 3),
        ({"guidance": "trajectory-blend"}, 3),
        ({"guidance": make("guidance", "projection", goal="sum a[:, 0] = 4")}, 3),
        ({"guidance": make("guidance", "projection", goal="sum a[:, 0] = 4", samples=3)}, 6),
        ({"guidance": "best-of-n"}, 16),
        ({"guidance": make("guidance", "noise-opt", jacobian="gauss-newton")}, 10),
        ({"guidance": "noise-opt", "solver": "map"}, 5),
    ],
)
def test_a_loaded_policy_acts_like_the_stored_one_and_counts_its_evaluations(values, nfe, contract, tmp_path):
    policy = policy_with(contract, **values)
    store(policy, tmp_path)
    calls = []
    policy.actor.net.register_forward_hook(lambda *_: calls.append(1))
    obs = observe(contract)
    chunk = policy.act(obs, torch_generator(1), nfe)
    assert torch.equal(Policy.load(tmp_path).act(obs, torch_generator(1), nfe), chunk)
    candidates = policy.config.sampler.candidates
    assert policy.evaluations == candidates * len(calls) == nfe
    assert chunk.shape == (3, contract.chunk, 2)


def test_plain_values_are_the_euler_policy_bit_for_bit(contract):
    obs = observe(contract)
    plain, flow = make_policy(contract, "euler", NET), policy_with(contract)
    flow.actor.load_state_dict(plain.actor.state_dict())
    assert torch.equal(plain.act(obs, torch_generator(0), 7), flow.act(obs, torch_generator(0), 7))


def test_guidance_of_one_is_none_and_the_null_condition_is_asked(contract):
    obs = observe(contract)
    guided = policy_with(contract, guidance="cfg")
    config = guided.config
    one = dataclasses.replace(policy_sampling(guided), guidance=make("guidance", "cfg", scale=1.0))
    guided.config = dataclasses.replace(config, sampler=FlowSampler(one))
    plain = policy_with(contract)
    plain.actor.load_state_dict({k: v for k, v in guided.actor.state_dict().items() if k != "null"})
    chunk = plain.act(obs, torch_generator(0), 4)
    torch.testing.assert_close(guided.act(obs, torch_generator(0), 8), chunk, atol=1e-5, rtol=0)
    guided.config = config
    before = guided.act(obs, torch_generator(0), 8)
    guided.actor.null.add_(1.0)
    assert not torch.equal(before, guided.act(obs, torch_generator(0), 8))
    with pytest.raises(ConfigError, match="nfe=5"):
        guided.act(obs, torch_generator(0), 5)


def test_what_draws_on_the_way_needs_a_generator(contract):
    for values in ({"solver": "sde"}, {"source": make("source", "mixed", acting="uniform")}):
        policy = policy_with(contract, **values)
        noise = torch.randn(3, contract.chunk, 2, generator=torch_generator(0))
        with pytest.raises(ConfigError, match="generator"):
            policy.act_from(observe(contract), noise, 4)


@pytest.mark.parametrize("method", ["olss", "boss"])
def test_a_fitted_policy_belongs_to_its_weights_and_olss_beats_euler(method, contract, tmp_path):
    policy = make_policy(contract, "euler", NET)
    obs = observe(contract, rows=256)
    better = fitted(policy, obs, 4, method, torch_generator(0))
    seen = policy.streams(observe(contract, rows=200, seed=5))
    noise = torch.randn(200, contract.chunk, 2, generator=torch_generator(3))
    exact, euler, own = policy.carry(seen, noise, 64), policy.carry(seen, noise, 4), better.carry(seen, noise, 4)
    if method == "olss":
        assert float((own - exact).square().mean()) < float((euler - exact).square().mean())
    else:
        sampling = policy_sampling(better)
        assert len(sampling.schedule.nodes) == 5 and sampling.solver.name == "euler"
    assert better.contract.nfe == 4
    with pytest.raises(ConfigError, match="flowpolicy fit"):
        better.carry(seen, noise, 5)

    store(better, tmp_path / "right")
    assert torch.equal(Policy.load(tmp_path / "right").carry(seen, noise, 4), own)
    next(better.actor.parameters()).add_(1e-3)
    store(better, tmp_path / "stale")
    with pytest.raises(CheckpointError, match="fitted on other weights"):
        Policy.load(tmp_path / "stale")


def test_what_follows_no_velocity_cannot_be_fitted(contract):
    with pytest.raises(ConfigError, match="follows no flow"):
        fitted(make_policy(contract, "direct", NET), observe(contract), 4, "olss", torch_generator(0))
