"""What is committed, and a policy that is guided to continue it."""

import numpy as np
import pytest
import torch

from flowpolicy.core.errors import ConfigError
from flowpolicy.core.seed import torch_generator
from flowpolicy.policy.committed import Committed
from flowpolicy.policy.queue import ChunkQueue

from .test_policy import make, observe


def chunk(first, rows=5):
    return np.arange(float(first), first + rows)[:, None]


def test_committed_is_what_was_executed_since_then_what_was_planned():
    queue = ChunkQueue(execute=3)
    assert queue.committed(0, 5, 4) is None
    queue.push(chunk(0))
    assert [queue.pop().item() for _ in range(3)] == [0, 1, 2]
    assert queue.empty
    bound = queue.committed(2, 5, 4)  # the observation was taken before action 1
    assert bound.action[0, :, 0].tolist() == [1, 2, 3, 4, 0]
    assert (bound.length.item(), bound.overlap.item()) == (2, 4)
    queue.push(chunk(1), skip=2)
    assert [queue.pop().item() for _ in range(3)] == [3, 4, 5]


def test_no_more_than_the_trained_prefix_is_committed():
    queue = ChunkQueue(execute=4)
    queue.push(chunk(0))
    for _ in range(4):
        queue.pop()
    bound = queue.committed(4, 5, 2)
    assert (bound.length.item(), bound.overlap.item()) == (2, 5)


def test_a_chunk_that_is_over_gives_its_last_row_once():
    queue = ChunkQueue(execute=3)
    queue.push(chunk(0), skip=9)
    assert queue.pop().item() == 4
    assert queue.empty
    with pytest.raises(IndexError):
        queue.pop()


def bound_to(contract, lengths, overlap=3):
    action = 0.2 * torch.randn(len(lengths), contract.chunk, 2, generator=torch_generator(7)) + 0.7
    return Committed(action, torch.tensor(lengths), torch.tensor([max(n, overlap) for n in lengths]))


@pytest.mark.parametrize(("sampler", "nfe"), [("euler", 5), ("midpoint", 4), ("heun", 4)])
def test_a_guided_policy_begins_with_what_is_committed_and_counts_its_evaluations(sampler, nfe, contract):
    policy = make(contract, sampler)
    guided, obs = policy.guided(), observe(contract)
    bound = bound_to(contract, [1, 2, 3])
    found = guided.act(obs, torch_generator(1), nfe, bound)
    assert guided.evaluations == nfe
    for row, length in enumerate((1, 2, 3)):
        assert torch.equal(found[row, :length], bound.action[row, :length])
    plain = policy.act(obs, torch_generator(1), nfe)
    assert torch.equal(guided.act(obs, torch_generator(1), nfe, None), plain)
    assert not torch.allclose(found[:, 3], plain[:, 3]), "the free actions ignore the guidance"


@pytest.mark.parametrize(("sampler", "kind"), [("map", "Flow"), ("direct", "Direct"), ("one_step", "OneStep")])
def test_a_policy_without_intermediate_states_cannot_be_guided(sampler, kind, contract):
    with pytest.raises(ConfigError, match=kind) as refusal:
        make(contract, sampler).guided()
    assert "--agent.prefix" in refusal.value.fix
