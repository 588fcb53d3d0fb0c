"""Samplers by a word, for tests that go through all of them."""

from flowpolicy.flows.axes.flow_spec import Sampling
from flowpolicy.flows.axes.registry import make
from flowpolicy.policy.samplers import (
    MAP,
    Decorated,
    Direct,
    FlowSampler,
    Mip,
    OneStep,
    Prefixed,
    best_of_candidates,
)

PLAIN = {"map": MAP, "direct": Direct(), "squashed": Direct(squashed=True), "one_step": OneStep(), "mip": Mip()}


def sampler(name, candidates=1, critic=None, decorated=False, prefix=0, flow=None):
    """A sampler, and what wraps it."""
    if name == "flow":
        inner = FlowSampler(flow)
    else:
        inner = PLAIN.get(name) or FlowSampler(Sampling(solver=make("solver", name)))
    inner = Prefixed(inner, prefix) if prefix else inner
    inner = Decorated(inner) if decorated else inner
    return best_of_candidates(inner, candidates, critic) if critic else inner
