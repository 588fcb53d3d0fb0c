"""Every agent and every value of the laboratory on a simulated GPU: nothing meets on two devices, and nothing waits."""

import collections
import contextlib
import functools
import gc

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException

from flowpolicy.agents.base.captured_update import CapturedUpdate, obstacle
from flowpolicy.agents.cloning.flow import Flow
from flowpolicy.bench.batches import random_dataset
from flowpolicy.core.keys import ACTION, KNOWN, OBS, PREVIOUS, VALID
from flowpolicy.core.seed import torch_generator
from flowpolicy.core.spec import ActionSpec, Contract, ObservationSpec, Spec
from flowpolicy.data.normalize import Normalizer
from flowpolicy.data.transitions import TransitionSampler
from flowpolicy.data.windows import WindowSampler

from ..conftest import unchecked
from .cloning.test_flow import SMALL, covering_array, evaluations_for
from .every import EVERY, make, moved, update
from .simulated_gpu import CUDA, CudaGenerator, NoStops, on_the_gpu, simulated_gpu

STOPPED = (DataDependentOutputException, RuntimeError)
"""What a tensor without values raises where its value is asked for."""
OPTIONS = {"steps": 10, "seed": 0, "compile": False}
WAITS = {"gdro", "gdro_uniform", "trajectory_balance"}
"""Agents that assess their policy as they are made, which reads numbers."""


def devices(tensors):
    return collections.Counter(value.device.type for value in tensors)


@pytest.fixture(autouse=True)
def uncollected():
    """PyTorch 2.11 crashes where Python collects such tensors: they stay."""
    gc.disable()


class Number(int):
    """A count of a checkpoint: a tensor would have no value in there."""


def counted(state):
    """A stored state whose numbers of updates can be read."""
    return {
        file: {key: Number(value) if key.endswith("updates") else value for key, value in part.items()}
        for file, part in state.items()
    }


@pytest.mark.parametrize("name", [name for name in EVERY if name not in WAITS])
def test_an_agent_updates_resumes_and_acts_there(name, tmp_path):
    """Moments go where the parameters are, and the policy is there as a whole."""
    here, batches = make(name, tmp_path)
    update(here, batches, 2)
    stored, batch = counted(here.state_dict()), batches(torch_generator(1))
    with unchecked(), simulated_gpu():
        agent = here.config.build(here.contract, Normalizer({"state": 2}, 2), device=CUDA, **OPTIONS)
        generator = CudaGenerator()
        given = moved(batch, CUDA)
        for _ in range(2):
            with NoStops():
                agent.update(given, generator)
        agent.load_state_dict(stored)
        agent.update(moved(batch, CUDA), generator)
        state = {f"{file}/{key}": value for file, part in agent.state_dict().items() for key, value in part.items()}
        elsewhere = [key for key, value in state.items() if value.device != CUDA and not key.endswith("updates")]
        assert not elsewhere
        policy = agent.policy()
        assert set(devices([*policy.parameters(), *policy.buffers()])) == {"cuda"}
        obs = {"state": torch.zeros(3, policy.contract.history, 2, device=CUDA)}
        assert policy.act(obs, generator).device == CUDA


class Counting:
    """Takes updates and captures nothing, in a mode in which whatever a capture does not bear raises."""

    captures = 0

    def run(self, update):
        return update()

    def capture(self, update):
        self.captures += 1
        with NoStops():
            metrics = update()
        return lambda: None, metrics


@pytest.mark.parametrize("name", [name for name in EVERY if name not in WAITS])
def test_a_whole_update_can_be_captured_there(name, tmp_path):
    """Draw, gather, losses, optimisers and averages; of an agent that cannot, the sentence that says so."""
    here, _ = make(name, tmp_path)
    windows = here.config.needs == "windows"
    sizes, more = (1, here.config.chunk, 12), {"previous": here.config.previous} if windows else {}
    data = random_dataset({"state": ObservationSpec((2,))}, 2, 600)
    kind = WindowSampler if windows else functools.partial(TransitionSampler, horizon=here.config.horizon)
    source = kind(data, *sizes, streams=here.streams, **more)
    with unchecked(), simulated_gpu():
        source, normalizer = on_the_gpu(source), Normalizer({"state": 2}, 2)
        agent = here.config.build(here.contract, normalizer, device=CUDA, **OPTIONS)
        generator, recorder = CudaGenerator(), Counting()
        if reason := obstacle(agent, source):
            assert reason.endswith("takes its updates in a way of its own")
            return
        update = lambda: [agent.update(source.draw(generator), generator)]  # noqa: E731
        captured = CapturedUpdate([agent], source, update, [generator], recorder)
        for _ in range(9):
            metrics = captured()
        assert metrics[0]["loss"].device == CUDA and agent.updates == 9
        assert recorder.captures == 2 if name == "rebrac" else recorder.captures or max(agent.numbers()) > 0


def _named(chosen):
    return "-".join(value.name for value in chosen.values())


LABORATORY = {
    (value.axis, value.name): chosen
    for chosen in covering_array()[0]
    for value in chosen.values()
    if chosen.source.name != "student-t"  # whose gamma distribution no simulation knows
}
"""A valid spec for every other value that stands in one."""


@pytest.mark.parametrize("chosen", dict.fromkeys(LABORATORY.values()), ids=_named)
def test_a_value_of_the_laboratory_trains_and_acts_there(chosen):
    config = Flow(**SMALL, flow=chosen, nfe=evaluations_for(chosen))
    contract = Contract(Spec({"state": ObservationSpec((2,))}, ActionSpec(2)), 1, 2, 2, config.nfe)
    with unchecked(), simulated_gpu():
        agent = config.build(contract, Normalizer({"state": 2}, 2), device=CUDA, **OPTIONS)
        state, action = torch.zeros(16, 1, 2, device=CUDA), torch.zeros(16, 2, 2, device=CUDA)
        valid = torch.ones(16, 2, dtype=torch.bool, device=CUDA)
        batch = {OBS: {"state": state}, ACTION: action, VALID: valid, PREVIOUS: action.flip(0), KNOWN: valid}
        stops = contextlib.nullcontext() if not chosen.coupling.waits else pytest.raises(STOPPED)
        with stops, NoStops():
            agent.update(batch, CudaGenerator())
        stops = contextlib.nullcontext() if not chosen.guidance.waits else pytest.raises(STOPPED)
        with stops:
            chunk = agent.policy().act({"state": state[:3]}, CudaGenerator())
            assert chunk.device == CUDA
