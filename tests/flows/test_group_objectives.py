"""GDRO's mathematics against its closed forms."""

import itertools

import pytest
import torch

from flowpolicy.core.errors import ConfigError
from flowpolicy.core.seed import torch_generator
from flowpolicy.flows import group_objectives as groups

from .gaussian import F64, tensor
from .preferences import gradient, order_of, plackett_luce

OBJECTIVES = ("plackett_luce", "top_one", "regression", "dpo", "dgpo")
REWARDS = tensor(0.9, 0.1, 0.4, 0.7)[None]


def test_the_minimiser_is_the_scaled_reward():
    scores = REWARDS / 0.5 + 3
    assert float(plackett_luce(scores, REWARDS, 0.5)) == pytest.approx(2.87328804, abs=1e-8)
    assert gradient(lambda s: plackett_luce(s, REWARDS, 0.5), scores).abs().max() < 1e-12


@pytest.mark.parametrize("temperature", [0.05, 0.5, 3.0])
def test_equal_scores_give_log_factorial(temperature):
    assert float(plackett_luce(torch.zeros(1, 4, dtype=F64), REWARDS, temperature)) == pytest.approx(
        3.17805383, abs=1e-8
    )


def test_shift_and_permutation_of_the_scores():
    scores = tensor(0.3, -1.0, 2.0, 0.1)[None]
    whole = gradient(lambda s: plackett_luce(s, REWARDS, 0.5), scores)
    assert abs(float(whole.sum())) < 1e-12
    shifted = plackett_luce(scores + 7, REWARDS, 0.5) - plackett_luce(scores, REWARDS, 0.5)
    assert abs(float(shifted)) < 1e-12
    for permutation in itertools.permutations(range(4)):
        index = list(permutation)
        moved = gradient(lambda s, i=index: plackett_luce(s, REWARDS[:, i], 0.5), scores[:, index])
        assert torch.allclose(moved, whole[:, index], atol=1e-12)


def test_two_candidates_are_dpo_as_the_temperature_vanishes():
    scores, rewards = tensor(0.3, -0.2)[None], tensor(1.0, 0.0)[None]
    assert float(plackett_luce(scores, rewards, 1e-9)) == pytest.approx(0.47407698, abs=1e-8)
    assert float(plackett_luce(scores, rewards, 1.0)) == pytest.approx(0.60854770, abs=1e-8)
    dpo = groups.group_loss("dpo", scores, scores, rewards, 1.0, order_of(rewards))
    assert float(dpo) == pytest.approx(0.47407698, abs=1e-8)


def test_three_candidates():
    scores, rewards = tensor(2.0, 0.0, -1.0)[None], tensor(1.0, 0.5, 0.0)[None]
    assert float(plackett_luce(scores, rewards, 0.5)) == pytest.approx(1.51159779, abs=1e-8)
    assert float(groups.top_one(scores, rewards, 0.5)) == pytest.approx(0.92939468, abs=1e-8)
    assert float(plackett_luce(scores, rewards, 1e-9)) == pytest.approx(0.48310771, abs=1e-8)
    expected = tensor(0.17855378, -0.13053327, -0.04802051)[None]
    assert torch.allclose(gradient(lambda s: plackett_luce(s, rewards, 0.5), scores), expected, atol=1e-8)


def test_the_reference_scores_zero_everywhere():
    errors = torch.rand(5, 4, 3, generator=torch_generator(0)).double()
    scores = groups.log_ratio(errors, errors, groups.time_weight(torch.rand(5, 4).double()))
    assert torch.equal(scores, torch.zeros(5, 3, dtype=F64))


def test_ties_are_ordered_anew_at_random():
    scores, rewards = tensor(1.0, 0.0, -1.0)[None], tensor(1.0, 1.0, 0.0)[None]
    first, second = (
        float(plackett_luce(scores, rewards, 0.5, torch.tensor([order]))) for order in ([0, 1, 2], [1, 0, 2])
    )
    assert first == pytest.approx(1.43513898, abs=1e-8)
    assert second == pytest.approx(1.36800823, abs=1e-8)
    many = rewards.expand(20_000, 3)
    tie = torch.rand(many.shape, generator=torch_generator(3), dtype=F64)
    orders = groups.ranking(many + 4e-7 * tensor(0.0, 1.0, 0.0), tie)
    assert (orders[:, 2] == 2).all()
    assert float((orders[:, 0] == 0).double().mean()) == pytest.approx(0.5, abs=0.02)
    mean = float(plackett_luce(scores.expand(20_000, 3), many, 0.5, orders).mean())
    assert mean == pytest.approx(1.40157360, abs=5e-4)


def test_ranking_is_from_best_to_worst_whatever_the_tie_breaker():
    tie = torch.rand(1, 4, generator=torch_generator(1)).double()
    assert groups.ranking(REWARDS, tie).tolist() == [[0, 3, 2, 1]]


def test_an_indifferent_group_has_no_weight_and_no_gradient():
    rewards = torch.full((1, 4), 0.3, dtype=F64)
    assert float(groups.spread_gate(rewards, 1.0)) == 0.0
    assert gradient(lambda s: plackett_luce(s, rewards, 0.5), torch.full((1, 4), 2.0, dtype=F64)).abs().max() < 1e-12


def test_the_gate_opens_with_the_spread():
    rewards = tensor(-1.0, 1.0)[None] * tensor(0.05, 0.2, 1.0, 5.0)[:, None]
    assert torch.allclose(groups.spread_gate(rewards, 1.0), tensor(0.0, 0.2, 1.0, 1.0))
    assert torch.allclose(groups.spread_gate(rewards, 0.5), tensor(0.1, 0.4, 1.0, 1.0))


def test_times_are_stratified_and_the_weight_is_capped():
    t = groups.stratified_times(500, 4, torch_generator(0))
    assert torch.equal((t * 4).floor(), torch.arange(4.0).expand(500, 4))
    assert float(t.mean()) == pytest.approx(0.5, abs=0.01)
    inside = groups.stratified_times(500, 2, torch_generator(0), 0.02, 0.98)
    assert 0.02 <= float(inside.min()) < 0.03 and 0.97 < float(inside.max()) < 0.98
    assert groups.time_weight(tensor(0.0, 0.5, 0.9, 0.999, 1.0)).tolist() == pytest.approx([0, 1, 9, 49, 49])
    assert groups.time_weight(tensor(0.0, 0.999), "uniform").tolist() == [1, 1]


def test_scores_are_bent_to_the_limit():
    large = torch.full((1, 1, 1), 1e4, dtype=F64)
    assert float(groups.log_ratio(large, 0 * large, torch.ones(1, 1, dtype=F64), limit=20.0)) == pytest.approx(-20)
    small = torch.full((1, 1, 1), 0.1, dtype=F64)
    assert float(groups.log_ratio(small, 0 * small, torch.ones(1, 1, dtype=F64), 2.0, 20.0)) == pytest.approx(
        -0.2, rel=1e-4
    )


def test_the_scale_is_that_of_the_deviations_and_ignores_outliers():
    rewards = 100 + 0.4 * torch.randn(20_000, 8, generator=torch_generator(0), dtype=F64)
    expected = 0.4 * (7 / 8) ** 0.5  # deviations from the mean of eight
    assert groups.global_scale(rewards) == pytest.approx(expected, rel=0.02)
    assert groups.global_scale(rewards, "deviation") == pytest.approx(expected, rel=0.01)
    rewards[:200, 0] += 1e6
    assert groups.global_scale(rewards) == pytest.approx(expected, rel=0.1)
    assert groups.global_scale(rewards, "none") == 1.0
    success = torch.zeros(100, 8, dtype=F64)
    success[::4, 0] = 1
    with pytest.raises(ConfigError, match=r"--agent\.scale deviation"):
        groups.global_scale(success)
    assert groups.global_scale(success, "deviation") == pytest.approx((7 / 64 / 4) ** 0.5)


def test_advantages_are_free_of_the_state_and_clipped():
    found = groups.advantages(REWARDS + 50, 0.1)
    assert torch.allclose(found, groups.advantages(REWARDS, 0.1))
    assert found.tolist()[0] == pytest.approx([3.0, -3.0, -1.25, 1.75])


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_no_objective_sees_a_constant_of_the_state(objective):
    scores, errors = tensor(0.3, -1.0, 2.0, 0.1)[None], tensor(1.0, 2.0, 0.5, 0.7)[None]

    def loss(rewards):
        return float(groups.group_loss(objective, scores, errors, rewards, 0.7, order_of(rewards)))

    assert loss(REWARDS + 5) == pytest.approx(loss(REWARDS), abs=1e-12)


@pytest.mark.parametrize("objective", ["plackett_luce", "top_one"])
def test_equal_rewards_leave_the_reference_alone(objective):
    rewards = torch.zeros(1, 4, dtype=F64)
    loss = lambda s: groups.group_loss(objective, s, s, rewards, 0.5, order_of(rewards))  # noqa: E731
    assert gradient(loss, torch.zeros(1, 4, dtype=F64)).abs().max() < 1e-12


def test_dgpo_pulls_good_candidates_and_pushes_bad_ones():
    errors = torch.ones(1, 4, dtype=F64, requires_grad=True)
    zeros = torch.zeros(1, 4, dtype=F64)
    loss = groups.group_loss("dgpo", zeros, errors, REWARDS, 1.0, order_of(REWARDS))
    slope = torch.autograd.grad(loss.sum(), errors)[0]
    centred = REWARDS - REWARDS.mean()
    assert torch.allclose(slope, 0.5 * centred / centred.square().mean().sqrt() / 4)
    tied = groups.group_loss("dgpo", zeros, errors, torch.ones(1, 4, dtype=F64), 1.0, order_of(REWARDS))
    assert float(tied.detach()) == 0.0


def test_regression_weighs_errors_by_the_softened_targets():
    errors = tensor(1.0, 2.0, 3.0, 4.0)[None]
    expected = (torch.softmax(REWARDS / 0.3, 1) * errors).sum()
    found = groups.group_loss("regression", errors, errors, REWARDS, 0.3, order_of(REWARDS))
    assert float(found) == pytest.approx(float(expected))


def test_a_tilted_choice_has_the_frequencies_of_the_targets():
    targets = groups.softened_targets(REWARDS, 0.4)
    uniform = (torch.arange(10_000, dtype=F64) + 0.5) / 10_000
    found = torch.bincount(groups.tilted_choice(targets.expand(10_000, 4), uniform), minlength=4) / 10_000
    assert torch.allclose(found.double(), targets[0], atol=2e-4)
    assert groups.tilted_choice(targets, tensor(1.0)).tolist() == [3]
