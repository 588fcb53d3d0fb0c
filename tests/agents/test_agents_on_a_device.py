"""What every agent must do on a GPU; a few of them do it on the CPU too, so that the tests themselves are tested.

None of the tests marked 'gpu' has met a GPU yet.
"""

import pytest
import torch

from flowpolicy.agents.base.company import Company
from flowpolicy.core.devices import exactly, multiplying
from flowpolicy.core.seed import torch_generator

from ..conftest import unchecked
from .every import EVERY, GROUPS, flat, make, moved

gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
FEW = ("fql", "dm1")
PLACES = [*(pytest.param(name, "cpu") for name in FEW), *(pytest.param(name, "cuda", marks=gpu) for name in EVERY)]
WAITS = {*GROUPS, "slimflow"}
"""Agents that read numbers in some updates: assessments, and a guide that is taken up."""


@pytest.fixture(autouse=True)
def fast():
    with unchecked():
        yield


def streams(device):
    """Batches are drawn on the CPU and moved; the noise is drawn there."""
    return torch_generator(0, "draw"), torch_generator(0, "noise", device=device)


def updated(agent, batches, pair, times, device):
    return [agent.update(moved(batches(pair[0]), device), pair[1]) for _ in range(times)]


def copied(agent, device):
    files = agent.state_dict().items()
    return {file: {name: v.detach().to(device, copy=True) for name, v in part.items()} for file, part in files}


@pytest.mark.parametrize(("name", "device"), PLACES)
def test_the_loss_is_that_of_the_cpu(name, device, tmp_path):
    agent, batches = make(name, tmp_path, device=device)
    twin, _ = make(name, tmp_path)
    updated(agent, batches, streams(device), 2, device)
    twin.load_state_dict(copied(agent, "cpu"))
    given = agent.arguments(moved(batches(torch_generator(3)), device), torch_generator(4, device=device))
    here = moved(given, "cpu")
    there, expected = (part.loss(*each, **part.switches())[0] for part, each in ((agent, given), (twin, here)))
    torch.testing.assert_close(there.cpu(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "device"), PLACES)
def test_what_is_stored_goes_on_bit_for_bit(name, device, tmp_path):
    agent, batches = make(name, tmp_path, device=device)
    pair = streams(device)
    updated(agent, batches, pair, 2, device)
    stored, states = copied(agent, "cpu"), [stream.get_state() for stream in pair]
    updated(agent, batches, pair, 3, device)
    again, _ = make(name, tmp_path, seed=5, device=device)
    again.load_state_dict(stored)
    for stream, state in zip(pair, states, strict=True):
        stream.set_state(state)
    updated(again, batches, pair, 3, device)
    expected = flat(agent)
    assert all(torch.equal(value.cpu(), expected[key].cpu()) for key, value in flat(again).items())


@pytest.mark.parametrize(("name", "device"), PLACES)
def test_a_checkpoint_goes_elsewhere_and_back(name, device, tmp_path):
    agent, batches = make(name, tmp_path, device=device)
    updated(agent, batches, streams(device), 2, device)
    here, _ = make(name, tmp_path)
    here.load_state_dict(copied(agent, "cpu"))
    back, _ = make(name, tmp_path, device=device)
    back.load_state_dict(copied(here, "cpu"))
    expected = flat(agent)
    assert all(torch.equal(value.cpu(), expected[key].cpu()) for key, value in flat(back).items())
    updated(here, batches, streams("cpu"), 1, "cpu")
    updated(back, batches, streams(device), 1, device)


@pytest.mark.parametrize(("name", "device"), PLACES)
def test_the_policy_is_there_as_a_whole_and_acts(name, device, tmp_path):
    agent, _ = make(name, tmp_path, device=device)
    policy = agent.policy()
    places = {value.device.type for value in [*policy.parameters(), *policy.buffers()]}
    obs = {"state": torch.zeros(3, policy.contract.history, 2, device=device)}
    assert places == {policy.act(obs, torch_generator(0, device=device)).device.type} == {torch.device(device).type}


@pytest.mark.parametrize("name", [pytest.param(name, marks=gpu) for name in EVERY if name not in WAITS])
def test_an_update_does_not_wait_for_the_processor(name, tmp_path):
    agent, batches = make(name, tmp_path, device="cuda")
    pair = streams("cuda")
    updated(agent, batches, pair, 2, "cuda")
    batch = moved(batches(pair[0]), "cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        agent.update(batch, pair[1])
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=gpu)])
def test_a_company_is_as_each_alone(device, tmp_path):
    alone, together = ([make("fql", tmp_path, seed=seed, device=device)[0] for seed in range(2)] for _ in range(2))
    batches, company = make("fql", tmp_path)[1], Company(together)
    own, theirs = ([streams(device) for _ in range(2)] for _ in range(2))
    for _ in range(10):
        for agent, pair in zip(alone, own, strict=True):
            updated(agent, batches, pair, 1, device)
        company.update([moved(batches(draw), device) for draw, _ in theirs], [noise for _, noise in theirs])
    for one, other in zip(together, alone, strict=True):
        expected = flat(other)
        for key, value in flat(one).items():
            torch.testing.assert_close(value, expected[key], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=gpu)])
def test_products_are_rounded_as_asked_and_nowhere_else(device):
    a, b = (torch.randn(64, 64, generator=torch_generator(n)).to(device) for n in range(2))
    exact = a.double() @ b.double()

    def error():
        return float((torch.mm(a, b).double() - exact).abs().max() / exact.abs().max())

    with multiplying("bf16", device):
        assert error() > 1e-4
        with exactly(device):
            assert error() < 1e-5
    with multiplying("tf32", device):
        assert error() < 1e-2
    assert error() < 1e-5
