"""What is captured is the update, its Python numbers as they were; and on a GPU it is equal to the update."""

import dataclasses

import pytest
import torch

from flowpolicy.agents.base.captured_update import WARM, CapturedUpdate
from flowpolicy.agents.base.company import Company
from flowpolicy.bench.batches import random_dataset
from flowpolicy.core.errors import ConfigError
from flowpolicy.core.seed import torch_generator
from flowpolicy.core.spec import ObservationSpec
from flowpolicy.data.transitions import TransitionSampler
from flowpolicy.data.windows import WindowSampler
from flowpolicy.flows.axes.registry import make as make_value

from ...conftest import unchecked
from ..every import flat, make

gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
DATA = random_dataset({"state": ObservationSpec((2,))}, 2, 600)


@pytest.fixture(autouse=True)
def fast():
    with unchecked():
        yield


class Rehearsal:
    """A capture on the CPU: computes nothing while it captures, and replays with the Python numbers of that moment."""

    def __init__(self, agents, generators):
        self.agents, self.generators, self.captures = agents, generators, 0

    def run(self, update):
        return update()

    def capture(self, update):
        self.captures += 1
        at = [agent.optimizer.updates for agent in self.agents]
        stored, streams = [*map(flat, self.agents)], [generator.get_state() for generator in self.generators]
        metrics = update()
        with torch.no_grad():
            for agent, kept in zip(self.agents, stored, strict=True):
                for file, tensors in agent.state_dict().items():
                    for name, value in tensors.items():
                        value.copy_(kept[f"{file}/{name}"])
        for generator, state in zip(self.generators, streams, strict=True):
            generator.set_state(state)

        def replay():
            for agent, updates in zip(self.agents, at, strict=True):
                agent.optimizer.updates = updates
            for own, found in zip(metrics, update(), strict=True):
                for name, value in found.items():
                    own[name].copy_(value)

        return replay, metrics


def capturing(agent, source, streams, recorder=None):
    def update():
        return [agent.update(source.draw(streams[0]), streams[1])]

    return CapturedUpdate([agent], source, update, streams, recorder)


def assembled(name, folder, device="cpu"):
    agent, _ = make(name, folder, device=device)
    sizes = (1, agent.config.chunk, 12, device)
    if agent.config.needs == "windows":
        source = WindowSampler(DATA, *sizes, previous=agent.config.previous, streams=agent.streams)
    else:
        source = TransitionSampler(DATA, *sizes, horizon=agent.config.horizon, streams=agent.streams)
    return agent, source, [torch_generator(0, name, device=device) for name in ("batches", "noise")]


@pytest.mark.parametrize("name", ["fql", "rebrac", "qc", "fisher", "mean_flow_q"])
def test_a_captured_update_is_the_update(name, tmp_path):
    plain, source, streams = assembled(name, tmp_path)
    losses = [float(plain.update(source.draw(streams[0]), streams[1])["loss"]) for _ in range(14)]
    agent, source, streams = assembled(name, tmp_path)
    recorder = Rehearsal([agent], streams)
    captured = capturing(agent, source, streams, recorder)
    found = [float(captured()[0]["loss"]) for _ in range(14)]
    assert found == losses and agent.updates == 14
    expected = flat(plain)
    assert all(torch.equal(value, expected[key]) for key, value in flat(agent).items())
    # A number that still changes is never captured: fisher's settles after a hundred updates.
    assert recorder.captures == {"rebrac": 2, "fisher": 0}.get(name, 1)
    assert captured._seen and max(captured._seen.values()) <= WARM


@pytest.mark.parametrize("name", ["iql", "dm1", "flow_bc_prefix", "mip", "regression"])
def test_averages_and_schedules_are_captured_too(name, tmp_path):
    """One graph for all updates, while learning rate and averaging change in every one; equal but for the averages'
    last bits, which are summed in another order."""
    plain, source, streams = assembled(name, tmp_path)
    agent, other, own = assembled(name, tmp_path)
    recorder = Rehearsal([agent], own)
    captured = capturing(agent, other, own, recorder)
    rates = set()
    for _ in range(10):
        metrics, found = plain.update(source.draw(streams[0]), streams[1]), captured()[0]
        assert float(found["loss"]) == float(metrics["loss"])
        rates.add(tuple(float(row.get("lr", 0)) for row in (metrics, found)))
    assert recorder.captures == 1 and all(one == same for one, same in rates) and (name == "iql" or len(rates) == 10)
    expected = flat(plain)
    for key, value in flat(agent).items():
        if key.startswith("ema/"):
            torch.testing.assert_close(value, expected[key], rtol=1e-6, atol=1e-7)
        else:
            assert torch.equal(value, expected[key]), key


def test_draws_that_depend_on_the_progress_are_captured_when_they_no_longer_do(tmp_path):
    """A student's noise is annealed over six of ten updates, and the graph holds what a draw reads of that."""
    agent, source, streams = assembled("annealed-reflow", tmp_path)
    plain, same, own = assembled("annealed-reflow", tmp_path)
    recorder = Rehearsal([agent], streams)
    captured = capturing(agent, source, streams, recorder)
    for _ in range(10):
        assert not recorder.captures
        assert float(captured()[0]["loss"]) == float(plain.update(same.draw(own[0]), own[1])["loss"])
    assert recorder.captures == 1


def test_what_was_stored_uncaptured_goes_on_captured_and_back(tmp_path):
    """A checkpoint holds no trace of how its updates were taken."""
    agent, source, streams = assembled("dm1", tmp_path)
    captured = capturing(agent, source, streams, Rehearsal([agent], streams))
    for _ in range(6):
        captured()
    again, other, own = assembled("dm1", tmp_path)
    again.load_state_dict({file: {k: v.clone() for k, v in part.items()} for file, part in agent.state_dict().items()})
    for stream, source_stream in zip(own, streams, strict=True):
        stream.set_state(source_stream.get_state())
    for _ in range(3):
        assert float(captured()[0]["loss"]) == float(again.update(other.draw(own[0]), own[1])["loss"])


def test_a_company_is_captured_as_one(tmp_path):
    def made():
        agents, source, pairs = [], None, []
        for seed in range(2):
            agents.append(make("rebrac", tmp_path, seed=seed)[0])
            source = source or TransitionSampler(DATA, 1, 1, 12, horizon=1, streams=agents[0].streams)
            pairs.append([torch_generator(seed, name) for name in ("batches", "noise")])
        company = Company(agents)
        return agents, source, pairs, lambda: company.update([source.draw(a) for a, _ in pairs], [b for _, b in pairs])

    plain, _, _, update = made()
    for _ in range(14):
        update()
    agents, source, pairs, update = made()
    streams = [stream for pair in pairs for stream in pair]
    recorder = Rehearsal(agents, streams)
    captured = CapturedUpdate(agents, source, update, streams, recorder)
    for _ in range(14):
        captured()
    assert recorder.captures == 2 and [agent.updates for agent in agents] == [14, 14]
    for one, other in zip(agents, plain, strict=True):
        expected = flat(other)
        assert all(torch.equal(value, expected[key]) for key, value in flat(one).items())


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=gpu) for name in ("fql", "iql", "rebrac", "qc", "mean_flow_q", "dm1", "mip")]
)
def test_on_a_gpu_it_equals_the_update(name, tmp_path):
    made = [assembled(name, tmp_path, "cuda") for _ in range(2)]
    plain, source, streams = made[0]
    for _ in range(20):
        plain.update(source.draw(streams[0]), streams[1])
    agent, source, streams = made[1]
    captured = capturing(agent, source, streams)
    for _ in range(20):
        metrics = captured()
    assert torch.isfinite(metrics[0]["loss"])
    expected = flat(plain)
    for key, value in flat(agent).items():
        torch.testing.assert_close(value, expected[key], rtol=1e-4, atol=1e-5)


def test_what_cannot_be_captured_is_refused(tmp_path):
    agent, source, streams = assembled("dm1", tmp_path)
    agent.spec = dataclasses.replace(agent.spec, coupling=make_value("coupling", "c2ot"))
    with pytest.raises(ConfigError, match="the assignment of its pairs is solved on the processor"):
        capturing(agent, source, streams)
    agent, source, streams = assembled("slimflow", tmp_path)
    with pytest.raises(ConfigError, match="SlimFlowAgent takes its updates in a way of its own"):
        capturing(agent, source, streams)
    agent, _, _ = assembled("fql", tmp_path)
    with pytest.raises(ConfigError, match="batches of a object are more than draws"):
        capturing(agent, object(), streams)
