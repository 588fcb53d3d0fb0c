"""Agents that take their updates together come out as they would alone."""

import dataclasses
from pathlib import Path

import pytest
import torch

from flowpolicy.agents.base import compiled_loss
from flowpolicy.agents.base.company import Company
from flowpolicy.agents.offline.fql import FQLAgent
from flowpolicy.core.errors import ConfigError, TrainingError
from flowpolicy.core.seed import torch_generator

from ...conftest import unchecked
from ..every import OFFLINE, flat, make
from ..uninstrumented import uninstrumented

TOGETHER = ["fql", "iql", "ifql", "rebrac", "qc", "mean_flow_q", "fisher", "dm1", "flow_bc_prefix", "mip"]


def streams(seed):
    return torch_generator(seed, "batches"), torch_generator(seed, "noise")


def alone(agents, batches, updates):
    for seed, agent in enumerate(agents):
        draw, noise = streams(seed)
        for _ in range(updates):
            agent.update(batches(draw), noise)
    return [flat(agent) for agent in agents]


def in_company(agents, batches, updates):
    company, own, metrics = Company(agents), [streams(seed) for seed in range(len(agents))], []
    for _ in range(updates):
        metrics = company.update([batches(draw) for draw, _ in own], [noise for _, noise in own])
    return [flat(agent) for agent in agents], metrics


def same(found, expected, tolerance=1e-5):
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            scale = float(other[name].float().abs().max().clamp(min=1))
            assert float((one[name].float() - other[name].float()).abs().nan_to_num(0).max()) <= tolerance * scale, name


@pytest.mark.parametrize("name", TOGETHER)
def test_seeds_in_company_equal_seeds_alone(name, tmp_path):
    """Fifty updates, with targets, averages and moments."""
    with unchecked():
        first, second = ([make(name, tmp_path, seed=seed) for seed in range(3)] for _ in range(2))
        batches = first[0][1]
        expected = alone([agent for agent, _ in first], batches, 50)
        found, metrics = in_company([agent for agent, _ in second], batches, 50)
    same(found, expected)
    assert len(metrics) == 3 and all(value.numel() == 1 for value in metrics[0].values())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fql", "dm1"])
def test_losses_of_a_company_are_compiled_as_one(name, monkeypatch):
    """Into one graph, in which the numbers that differ are tensors; without the type-checking import hook."""
    monkeypatch.setattr(compiled_loss, "BACKEND", "aot_eager")

    def trained(compile):
        template, batches = make(name, Path("nowhere"))
        configs = [template.config, dataclasses.replace(template.config, **({"alpha": 30.0} if name == "fql" else {}))]
        options = {"steps": 10, "compile": False}
        agents = [c.build(template.contract, template.normalizer, seed=n, **options) for n, c in enumerate(configs)]
        company, noise = Company(agents, compile=compile), [torch_generator(n) for n in range(2)]
        for _ in range(4):
            company.update([batches(stream) for stream in noise], noise)
        return [flat(agent) for agent in agents]

    with uninstrumented():
        for one, other in zip(trained(True), trained(False), strict=True):
            for key, value in one.items():
                torch.testing.assert_close(value, other[key], rtol=1e-4, atol=1e-5)


def test_a_number_that_decides_the_course_of_a_loss_may_not_differ(tmp_path):
    template, batches = make("fql", tmp_path)

    class Branching(FQLAgent):
        def losses(self, *arguments, **switches):
            return super().losses(*arguments, **switches) if self.config.alpha > 5 else ({}, {})

    configs = [dataclasses.replace(template.config, alpha=alpha) for alpha in (10.0, 30.0)]
    agents = [Branching(c, template.contract, template.normalizer, steps=9, seed=0, compile=False) for c in configs]
    with pytest.raises(ConfigError, match=r"--agent\.alpha cannot differ in one company"):
        Company(agents).update([batches(torch_generator(0))] * 2, [torch_generator(1), torch_generator(2)])


def test_numbers_of_losses_and_optimisers_may_differ(tmp_path):
    """A sweep: each as alone with its own numbers."""
    configs = [
        dataclasses.replace(OFFLINE["fql"], alpha=alpha, discount=discount, tau=tau)
        for alpha, discount, tau in ((1.0, 0.9, 0.1), (30.0, 0.99, 0.005))
    ]
    slow = dataclasses.replace(configs[1].critic_optimizer, lr=1e-4, clip=0.5)
    configs[1] = dataclasses.replace(configs[1], critic_optimizer=slow)
    template, batches = make("fql", tmp_path)
    options = {"steps": 10, "compile": False}

    def built():
        parts = enumerate(configs)
        return [c.build(template.contract, template.normalizer, seed=seed, **options) for seed, c in parts]

    with unchecked():
        expected = alone(built(), batches, 10)
        found, _ = in_company(built(), batches, 10)
    same(found, expected)
    assert any(not torch.equal(value, expected[1][name]) for name, value in expected[0].items())


def test_what_cannot_be_done_together_is_refused(tmp_path):
    template, batches = make("fql", tmp_path)

    def built(config, seed=0):
        return config.build(template.contract, template.normalizer, steps=10, seed=seed, compile=False)

    with pytest.raises(ConfigError, match=r"--agent\.flow_steps differs: 2, 3"):
        Company([built(OFFLINE["fql"]), built(dataclasses.replace(OFFLINE["fql"], flow_steps=3))])
    with pytest.raises(ConfigError, match="takes its updates in a way of its own"):
        Company([make("slimflow", tmp_path)[0]])
    ahead = built(OFFLINE["fql"])
    ahead.update(batches(torch_generator(0)), torch_generator(1))
    with pytest.raises(ConfigError, match="different numbers of updates"):
        Company([ahead, built(OFFLINE["fql"])])


def test_a_loss_that_reads_something_else_is_refused(tmp_path):
    agents = [make("fql", tmp_path, seed=seed) for seed in range(2)]
    batches, pair = agents[0][1], [agent for agent, _ in agents]
    pair[1].loss = lambda *given, loss=pair[1].loss, **switches: (3 * loss(*given, **switches)[0], {})
    company = Company(pair)
    with pytest.raises(TrainingError, match=r"the loss of FQLAgent is \S+ in company and \S+ alone"):
        company.update([batches(torch_generator(seed)) for seed in range(2)], [torch_generator(2), torch_generator(3)])


def test_agents_in_company_are_stored_and_taken_up_again(tmp_path):
    """A company that is formed again from what its agents stored goes on bit for bit."""
    with unchecked():
        agents = [make("fql", tmp_path, seed=seed)[0] for seed in range(2)]
        batches = make("fql", tmp_path)[1]
        own, company = [streams(seed) for seed in range(2)], Company(agents)

        def go(company, times):
            for _ in range(times):
                company.update([batches(draw) for draw, _ in own], [noise for _, noise in own])

        go(company, 3)
        stored = [{f: {k: v.clone() for k, v in t.items()} for f, t in a.state_dict().items()} for a in agents]
        states = [[stream.get_state() for stream in pair] for pair in own]
        go(company, 3)
        expected = [flat(agent) for agent in agents]
        again = [make("fql", tmp_path, seed=9)[0] for _ in range(2)]
        for agent, state in zip(again, stored, strict=True):
            agent.load_state_dict(state)
        for pair, state in zip(own, states, strict=True):
            for stream, value in zip(pair, state, strict=True):
                stream.set_state(value)
        go(Company(again), 3)
    for one, other in zip(again, expected, strict=True):
        assert all(torch.equal(value, other[name]) for name, value in flat(one).items())
