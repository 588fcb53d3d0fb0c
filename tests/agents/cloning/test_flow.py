"""The agent of the flow laboratory: old agents as points on the axes, and every pair of values of every two axes."""

import dataclasses
import functools
import itertools
import random

import pytest
import torch

from flowpolicy.agents.cloning.dm1 import DM1
from flowpolicy.agents.cloning.flow import Flow, as_flow
from flowpolicy.agents.cloning.flow_bc import FlowBC
from flowpolicy.agents.cloning.regression import Regression
from flowpolicy.core.errors import ConfigError
from flowpolicy.core.keys import ACTION, KNOWN, OBS, PREVIOUS, VALID
from flowpolicy.core.seed import torch_generator
from flowpolicy.core.spec import ActionSpec, Contract, ObservationSpec, Spec
from flowpolicy.data.normalize import Normalizer
from flowpolicy.flows.axes.flow_spec import FlowSpec
from flowpolicy.flows.axes.refusals import conflicts
from flowpolicy.flows.axes.registry import AXES, VALUES, make
from flowpolicy.nets.encoder import StateEncoder
from flowpolicy.nets.mlp import MLP

from ...conftest import unchecked
from ..shared import check_agent

SMALL = {"net": MLP(width=16, depth=2), "encoder": StateEncoder(width=8), "chunk": 2, "execute": 2}


def value(axis, name):
    """A value with what it must be told."""
    return make(axis, name, **({"keys": ("state",)} if name == "compose" else {}))


def spec(**names):
    return FlowSpec(**{axis: value(axis, name) for axis, name in names.items()})


def trained(config, updates, seed=0, compile=False):
    """An agent after some updates on four-dimensional chunks that follow the observation, and its last metrics."""
    contract = Contract(Spec({"state": ObservationSpec((2,))}, ActionSpec(2)), 1, 2, 2, config.nfe)
    agent = config.build(contract, Normalizer({"state": 2}, 2), steps=updates, seed=seed, compile=compile)
    noise, draw, metrics = torch_generator(seed, "noise"), torch_generator(seed, "batch"), {}
    valid = torch.ones(16, 2, dtype=torch.bool)
    for _ in range(updates):
        state = torch.rand(16, 1, 2, generator=draw) * 2 - 1
        action = (state + 0.1 * torch.randn(16, 2, 2, generator=draw)).clamp(-1, 1)
        batch = {OBS: {"state": state}, ACTION: action, VALID: valid, PREVIOUS: action.flip(0), KNOWN: valid}
        metrics = agent.update(batch, noise)
    return agent, metrics


OBS_5 = {"state": torch.linspace(-1, 1, 10).reshape(5, 1, 2)}


def test_named_agents_are_points_on_the_axes():
    assert as_flow(FlowBC(**SMALL)) == Flow(**SMALL)
    assert as_flow(DM1(**SMALL)) == Flow(**SMALL, flow=DM1.flow, nfe=1, dispersive=DM1.dispersive)
    with pytest.raises(ConfigError, match="points on the axes"):
        as_flow(Regression(**SMALL))


SUITE = {
    "c2ot": spec(coupling="c2ot"),
    "mixed": spec(source="mixed"),
    "cfg": spec(guidance="cfg"),
    "lsd": spec(consistency="lsd", solver="map"),
    "psd-ab2": spec(consistency="psd", solver="ab2"),
    "gibbs-data": spec(coupling="gibbs", target="data", schedule="cosine"),
    "sde": spec(solver="sde"),
    "latent": spec(interpolant="latent"),
    "segment": spec(target="segment", solver="self"),
    "bridge": spec(interpolant="bridge"),
    "warm-start": spec(source="warm-start"),
    "best-of-n": spec(guidance="best-of-n", consistency="lsd", solver="map"),
    "compose": FlowSpec(guidance=make("guidance", "compose", keys=("state", "goal"))),
}


@pytest.mark.parametrize("name", SUITE)
def test_suite(name, demonstrations):
    """Learns, acts with the evaluations it says, is reproducible and resumes bit for bit."""
    chosen = SUITE[name]
    nfe = chosen.guidance.total(chosen.solver.usual)
    check_agent(
        Flow(net=MLP(width=16, depth=2), encoder=StateEncoder(width=8), chunk=4, execute=4, flow=chosen, nfe=nfe),
        demonstrations,
        compiled=False,  # every value is compared in test_compiled_losses.py
    )


def evaluations_for(chosen):
    """Few evaluations that the spec can spend."""
    usual = chosen.solver.usual
    return chosen.guidance.total(4 if usual == 10 else max(usual, 1 + chosen.guidance.intermediate))


def setting(chosen):
    return Flow(**SMALL, flow=chosen, nfe=evaluations_for(chosen)).setting(2)


REPAIRS = [("consistency", "lsd"), ("consistency", "meanflow"), ("solver", "map")]
REPAIRS += [("solver", "self"), ("target", "segment")]


def completed(pair, stream):
    """A valid spec that holds a pair of values, or None. Other axes keep their default or change it at random."""
    chosen = dataclasses.replace(FlowSpec(), **{axis: value(axis, name) for axis, name in pair})
    # Values that only work with a certain other one.
    for axis, name in REPAIRS:
        if conflicts(chosen, setting(chosen)) and axis not in dict(pair):
            repaired = dataclasses.replace(chosen, **{axis: make(axis, name)})
            chosen = repaired if not conflicts(repaired, setting(repaired)) else chosen
    if conflicts(chosen, setting(chosen)):
        return None
    for axis in stream.sample(AXES, len(AXES)):
        if axis not in dict(pair):
            moved = dataclasses.replace(chosen, **{axis: value(axis, stream.choice(list(VALUES[axis])))})
            chosen = moved if not conflicts(moved, setting(moved)) else chosen
    return chosen


def pairs_of(chosen):
    return set(itertools.combinations([(value.axis, value.name) for value in chosen.values()], 2))


@functools.cache
@unchecked()
def covering_array():
    """Valid specs that hold every pair of values that a valid spec can hold, and the pairs that none can."""
    stream = random.Random(0)
    wanted = [
        ((a, x), (b, y)) for a, b in itertools.combinations(AXES, 2) for x, y in itertools.product(VALUES[a], VALUES[b])
    ]
    stream.shuffle(wanted)
    covered, array, refused = set(), [], []
    for pair in wanted:
        if pair in covered:
            continue
        offers = [spec for spec in (completed(pair, stream) for _ in range(3)) if spec]
        if not offers:
            refused.append(pair)
            continue
        array.append(max(offers, key=lambda spec: len(pairs_of(spec) - covered)))
        covered |= pairs_of(array[-1])
    return array, refused


def test_what_the_array_leaves_is_refused_for_a_reason():
    array, refused = covering_array()
    for pair in refused:
        chosen = dataclasses.replace(FlowSpec(), **{axis: value(axis, name) for axis, name in pair})
        found = conflicts(chosen, setting(chosen))
        assert found and all(c.what and c.reason and c.instead for c in found)
    # Of values only those that need more than the axes (pairs, a fit, deterministic pairs) stand in no valid spec.
    held = {(value.axis, value.name) for chosen in array for value in chosen.values()}
    assert {(axis, name) for axis in AXES for name in VALUES[axis]} - held == {
        *(("coupling", "table"), ("solver", "olss"), ("schedule", "boss")),
        *(("loss", "adaptive"), ("loss", "pseudo-huber")),
    }


@pytest.mark.parametrize("part", range(8))
def test_every_possible_pair_trains_and_acts(part):
    for chosen in covering_array()[0][part::8]:
        config = Flow(**SMALL, flow=chosen, nfe=evaluations_for(chosen))
        names = " ".join(f"{value.axis}={value.name}" for value in chosen.values())
        agent, metrics = trained(config, 4)
        assert all(bool(torch.isfinite(value)) for value in metrics.values()), names
        policy = agent.policy()
        chunk = policy.act(OBS_5, torch_generator(0))
        assert chunk.shape == (5, 2, 2) and bool(torch.isfinite(chunk).all()), names
        assert policy.evaluations == config.nfe, names
        assert torch.equal(chunk, policy.act(OBS_5, torch_generator(0))), names
