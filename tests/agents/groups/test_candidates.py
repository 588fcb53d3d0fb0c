"""States, candidates, neighbours and scores of groups."""

import dataclasses

import pytest
import torch

from flowpolicy.agents.cloning.flow_bc import FlowBC
from flowpolicy.agents.groups import candidates
from flowpolicy.core.errors import ConfigError, DataError
from flowpolicy.core.seed import torch_generator
from flowpolicy.core.spec import ActionSpec, Contract, ObservationSpec, Spec
from flowpolicy.data.dataset import DataConfig, load_dataset
from flowpolicy.data.normalize import Normalizer, NormalizerConfig
from flowpolicy.flows.axes.registry import make
from flowpolicy.nets.encoder import StateEncoder
from flowpolicy.nets.mlp import MLP


@pytest.fixture
def dataset(demonstrations):
    return load_dataset(DataConfig(path=str(demonstrations)))


@pytest.fixture
def policy(dataset):
    spec = Spec({k: ObservationSpec(v.shape) for k, v in dataset.spec.observation.items()}, ActionSpec(2))
    config = FlowBC(net=MLP(width=16, depth=1), encoder=StateEncoder(width=8), history=2, chunk=3, execute=3, nfe=2)
    normalizer = Normalizer.fit(dataset, NormalizerConfig())
    return config.build(Contract(spec, 2, 3, 3, 2), normalizer, steps=1, seed=0, compile=False).policy()


def test_states_have_a_whole_chunk_ahead_and_whole_episodes_are_held_out(dataset):
    rows, apart = candidates.choose_states(dataset, 4, 100, 0, 0.34)
    assert rows.tolist() == [*range(6), *range(9, 18), *range(21, 25)]  # episodes of 9, 12 and 7 rows
    assert apart.tolist().count(True) == 1 and len(apart) == 3
    some, _ = candidates.choose_states(dataset, 4, 12, 3, 0.34)
    assert len(set(some.tolist())) == 12 and set(some.tolist()) <= set(rows.tolist())
    assert torch.equal(some, candidates.choose_states(dataset, 4, 12, 3, 0.34)[0])
    early, _ = candidates.choose_states(dataset, 4, 100, 0, 0.34, span=(0.0, 0.25))
    assert early.tolist() == [*range(3), *range(9, 12), *range(21, 23)]  # steps below 2.25, 3 and 1.75
    late, _ = candidates.choose_states(dataset, 4, 100, 0, 0.34, span=(0.25, 1.0))
    assert sorted([*early.tolist(), *late.tolist()]) == rows.tolist()
    for wrong in ((0.3, 0.3), (-0.1, 0.5), (0.5, 1.5), (float("nan"), 1.0)):
        with pytest.raises(ConfigError, match="--span"):
            candidates.choose_states(dataset, 4, 9, 0, 0.34, span=wrong)
    with pytest.raises(DataError, match="--states"):
        candidates.choose_states(dataset, 4, 1, 0, 0.34)
    with pytest.raises(ConfigError, match="held-out-share"):
        candidates.choose_states(dataset, 4, 9, 0, 1.0)


def test_the_first_candidate_is_the_datas_and_the_others_the_policys(dataset, policy):
    rows = torch.tensor([0, 10, 22])
    found = candidates.policy_candidates(policy, dataset, rows, 5, seed=1)
    assert found.action.shape == (3, 5, 3, 2) and found.obs["state"].shape == (3, 2, 3)
    assert torch.equal(found.action[1, 0], dataset.steps["action"][10:13])
    assert torch.equal(found.obs["goal"][1, 1], dataset.steps["obs", "goal"][10])
    assert found.valid.all()
    assert len(found.action.flatten(2).unique(dim=1)[0]) == 5
    again = candidates.policy_candidates(policy, dataset, rows, 5, seed=1)
    assert torch.equal(found.action, again.action)
    assert not torch.equal(found.action[:, 1:], candidates.policy_candidates(policy, dataset, rows, 5, 2).action[:, 1:])


def test_candidates_reach_from_the_middle_of_the_law_to_all_of_it(dataset, policy):
    rows = torch.tensor([0, 10, 22])
    found, again = (
        candidates.policy_candidates(policy, dataset, rows, 5, seed, noise_scale=(0.0, 1.0)) for seed in (1, 2)
    )
    ladder, other = found.action, again.action
    assert found.noise_scales == pytest.approx((1, 0, 1 / 3, 2 / 3, 1))
    for completion, scales in (("own", found.noise_scales), (0.5, (0.5,) * 5)):
        calls = candidates.state_calls(dataset, found, 7, 2, completion)
        assert [call[1] for call in calls] == [0, 1, 1] and [call[4:] for call in calls] == [(7, 2, scales)] * 3
    assert torch.equal(ladder[:, 1], other[:, 1]) and not torch.equal(ladder[:, 2], other[:, 2])
    assert torch.equal(ladder[:, 4], candidates.policy_candidates(policy, dataset, rows, 5, 1).action[:, 4])
    assert torch.equal(ladder[:, 1], policy.act_from(found.obs, torch.zeros(3, 3, 2), 2))


def test_neighbours_come_from_different_episodes_the_own_first(dataset, policy):
    rows = torch.tensor([2, 11])
    found = candidates.neighbour_candidates(policy, dataset, rows, 3)
    assert found.neighbours[:, 0].tolist() == [2, 11]
    episodes = dataset.steps["episode"][found.neighbours]
    assert [sorted(row) for row in episodes.tolist()] == [[0, 1, 2]] * 2
    other = int(found.neighbours[0, 1])
    assert torch.equal(found.action[0, 1], dataset.steps["action"][other : other + 3])
    with pytest.raises(ConfigError, match="3 episodes"):
        candidates.neighbour_candidates(policy, dataset, rows, 4)


def test_neighbours_are_the_nearest(dataset, policy):
    """Make one row of another episode a copy of the anchor's observations: it must be found."""
    for name in ("state", "goal"):
        column = dataset.steps["obs", name]
        column[12:14] = column[3:5]
    found = candidates.neighbour_candidates(policy, dataset, torch.tensor([4]), 2)
    assert found.neighbours.tolist() == [[4, 13]]


def test_neighbours_of_many_states_are_those_of_each_alone(dataset, policy, monkeypatch):
    rows = torch.tensor([0, 2, 5, 10, 13, 22])
    alone = torch.cat([candidates.neighbour_candidates(policy, dataset, row, 3).neighbours for row in rows.split(1)])
    monkeypatch.setattr(candidates, "_BLOCK", 4)
    assert torch.equal(candidates.neighbour_candidates(policy, dataset, rows, 3).neighbours, alone)
    sampler = candidates._windows(policy, dataset)
    features = candidates._features(policy, sampler, torch.arange(28))
    for row, found in zip(rows.tolist(), alone.tolist(), strict=True):
        distance = (features - features[row]).norm(dim=1)
        for first, last in ((0, 7), (9, 19), (21, 26)):  # rows with a whole chunk of 3 in episodes of 9, 12 and 7
            [inside] = [other for other in found if first <= other < last]
            assert inside == row or distance[inside] == distance[first:last].min()


def test_returns_to_go_stop_at_the_end_of_their_episode(dataset):
    dataset.steps["reward"][:] = 0.0
    dataset.steps["reward"][8] = 1.0  # last row of the first episode
    dataset.steps["reward"][11] = 2.0
    found = candidates.returns_to_go(dataset, 0.5)
    assert found[:9].tolist() == pytest.approx([0.5**i for i in range(8, -1, -1)])
    assert found[9:13].tolist() == pytest.approx([0.5, 1.0, 2.0, 0.0])


def test_success_outweighs_time():
    success = torch.tensor([[[True, True], [True, False], [False, False]]])
    steps = torch.tensor([[[10, 30], [40, 40], [40, 40]]])
    scores = candidates.simulator_scores(success, steps, torch.tensor([40]))
    assert scores.tolist()[0] == pytest.approx([1 - 0.1 * 0.5, 0.5 - 0.1, -0.1])


def test_candidates_start_from_the_noise_that_the_policy_was_trained_with(dataset, policy):
    sampler, rows = policy.config.sampler, torch.tensor([0, 10, 22])
    laplace = dataclasses.replace(sampler.sampling, source=make("source", "laplace"))
    policy.config = dataclasses.replace(policy.config, sampler=dataclasses.replace(sampler, sampling=laplace))
    found = candidates.policy_candidates(policy, dataset, rows, 2, seed=1)
    noise = policy.noise(3, torch_generator(1, "groups", "candidates"))
    assert torch.equal(found.action[:, 1], policy.act_from(found.obs, noise, 2))
    assert not torch.equal(noise, torch.randn(noise.shape, generator=torch_generator(1, "groups", "candidates")))
