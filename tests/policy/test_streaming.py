"""Streaming and reuse against what they must equal."""

import numpy as np
import pytest
import torch

from flowpolicy.core.errors import ConfigError
from flowpolicy.core.seed import numpy_generator, torch_generator
from flowpolicy.flows.solvers import integrate, jump
from flowpolicy.policy.reuse import Skipping
from flowpolicy.policy.similarity import SimilarityFilter
from flowpolicy.policy.stream import StreamBatch
from flowpolicy.policy.warm_start import WarmStart

from .test_policy import make, observe


def ticks(contract, count):
    noise = torch.randn(count, 1, contract.chunk, 2, generator=torch_generator(3))
    return [observe(contract, rows=1, seed=i) for i in range(count)], noise


@pytest.mark.parametrize("sampler", ["euler", "map"])
def test_a_stream_that_keeps_its_observations_equals_one_chunk_after_the_other(sampler, contract):
    policy, (obs, noise) = make(contract, sampler), ticks(contract, 7)
    stream = StreamBatch(policy, 4, refresh=False)
    found = [stream.tick(obs[i], noise[i]) for i in range(7)]
    assert found[:3] == [None] * 3
    assert policy.evaluations == 7, "four chunks need 4 + 4 - 1 calls"
    for i in range(4):
        assert torch.allclose(found[3 + i], policy.act_from(obs[i], noise[i], 4), atol=1e-5)


def test_a_refreshed_stream_takes_every_step_with_the_newest_observation(contract):
    policy, (obs, noise) = make(contract, "euler"), ticks(contract, 3)
    stream = StreamBatch(policy, 3)
    found = [stream.tick(obs[i], noise[i]) for i in range(3)][2]
    x = noise[0]
    for i in range(3):
        time = torch.tensor([i / 3])
        x = x + policy.evaluate(x, time, time, policy.condition(obs[i])) / 3
    assert torch.allclose(found, policy.normalizer.unaction(x.clamp(-1, 1)), atol=1e-5)
    stream.reset()
    assert stream.tick(obs[0], noise[0]) is None


@pytest.mark.parametrize(("sampler", "steps"), [("euler", 1), ("direct", 4), ("one_step", 4), ("heun", 4)])
def test_what_cannot_be_streamed_is_refused(sampler, steps, contract):
    with pytest.raises(ConfigError, match="stream"):
        StreamBatch(make(contract, sampler), steps)


def test_skips_come_as_often_as_their_probability_and_not_too_often_in_a_row():
    found = SimilarityFilter(2.0, most=10**9, random=numpy_generator(0))
    found.skip(np.zeros(3), left=5)
    near = np.array([0.6, 0.0, 0.0])
    assert found.probability(near) == pytest.approx(0.7)
    assert found.probability(np.zeros(3)) == 1.0
    assert found.probability(np.full(3, 2.0)) == 0.0
    skips = 0
    for _ in range(20_000):
        skips += found.skip(near, 5)
        found._last = np.zeros(3)
    assert skips / 2e4 == pytest.approx(0.7, abs=3 * (0.7 * 0.3 / 2e4) ** 0.5)
    bounded = SimilarityFilter(1.0, most=4)
    pattern = [bounded.skip(np.zeros(2), left=9) for _ in range(11)]
    assert pattern == [False, True, True, True, True, False, True, True, True, True, False]


def test_a_robot_skips_without_chance_and_never_with_too_few_actions_left():
    found = SimilarityFilter(1.0, min_left=2)
    found.skip(np.zeros(2), left=9)
    assert found.skip(np.array([0.49, 0.0]), left=2)
    assert not found.skip(np.array([0.0, 0.0]), left=1)
    assert not found.skip(np.array([0.51, 0.0]), left=9)
    found.reset()
    assert not found.skip(np.array([0.51, 0.0]), left=9)


def test_slow_drift_does_not_hide_behind_small_steps():
    found, skipped = SimilarityFilter(1.0, most=10**9), []
    for i in range(12):
        skipped.append(found.skip(np.array([0.15 * i]), left=9))
    assert skipped == [False, True, True, True] * 3


def test_the_start_follows_the_motion(contract):
    warm, base = WarmStart(make(contract, "euler"), kappa=2.0, t_max=0.6, smoothing=0.1), torch.zeros(4)
    assert warm.start(base) == 0.0
    assert warm.start(base) == pytest.approx(0.9 * 0.6)
    assert warm.start(base + 0.5) == pytest.approx(0.9 * 0.3 + 0.1 * 0.54)
    assert warm.start(base + 5.0) == 0.0
    for _ in range(30):
        last = warm.start(base + 5.0)
    assert last == pytest.approx(0.6, abs=1e-6)


@pytest.mark.parametrize(("sampler", "nfe", "spent"), [("euler", 10, 5), ("midpoint", 8, 4), ("map", 1, 1)])
def test_a_warm_start_integrates_the_rest_of_the_way_with_its_share_of_evaluations(sampler, nfe, spent, contract):
    policy, (obs, noise) = make(contract, sampler), ticks(contract, 1)
    warm = WarmStart(policy, kappa=1.0, t_max=0.5, smoothing=0.0)
    previous = policy.act_from(obs[0], noise[0], nfe)
    policy.evaluations = 0
    assert torch.equal(warm.act(obs[0], noise[0], nfe, None), previous), "the first time it is the policy itself"
    assert policy.evaluations == nfe
    policy.evaluations = 0
    found = warm.act(obs[0], noise[0], nfe, previous)
    assert policy.evaluations == spent
    x = 0.5 * noise[0] + 0.5 * policy.normalizer.action(previous)
    cond = policy.condition(obs[0])
    if sampler == "map":
        x = x + 0.5 * policy.evaluate(x, torch.tensor([0.5]), torch.tensor([1.0]), cond)
    else:
        steps = spent if sampler == "euler" else spent // 2
        for i in range(steps):
            t, h = torch.tensor([0.5 + 0.5 * i / steps]), 0.5 / steps
            middle = x + h / 2 * policy.evaluate(x, t, t, cond)
            x = x + h * (policy.evaluate(middle, t + h / 2, t, cond) if sampler == "midpoint" else (middle - x) * 2 / h)
    assert torch.allclose(found, policy.normalizer.unaction(x.clamp(-1, 1)), atol=1e-5)


def test_solvers_that_start_late_are_exact_on_a_constant_velocity():
    x = torch.randn(3, 2, 2, generator=torch_generator(0))
    for solver in ("euler", "midpoint", "heun"):
        moved = integrate(lambda x, t: torch.ones_like(x), x, 3, solver, start=0.25)
        assert torch.allclose(moved, x + 0.75, atol=1e-6)
    assert torch.allclose(jump(lambda x, s, t: torch.ones_like(x), x, 3, start=0.25), x + 0.75, atol=1e-6)


@pytest.mark.parametrize("sampler", ["direct", "one_step", "squashed"])
def test_what_has_no_path_has_no_warm_start(sampler, contract):
    with pytest.raises(ConfigError, match="warm start"):
        WarmStart(make(contract, sampler), kappa=1.0)


def decided(decider, obs, seed=0, nfe=None, executed=2):
    generator = torch_generator(seed)
    return [decider.decide(one, generator, nfe, executed) for one in obs]


def test_a_skipping_episode_repeats_the_chunk_of_what_it_resembles(contract):
    policy = make(contract)
    first, other = observe(contract, rows=1, seed=0), observe(contract, rows=1, seed=9)
    a, b, c, d, e = decided(Skipping(policy, kappa=0.1, most=2), [first, first, first, first, other])
    assert torch.equal(a, b) and torch.equal(a, c)
    assert not torch.equal(a, d), "two skips in a row were allowed"
    assert policy.evaluations == 3
    assert torch.equal(a, policy.act(first, torch_generator(0)))
    assert not torch.equal(d, e)


def test_an_episode_of_warm_starts_continues_the_shifted_chunk(contract):
    policy, obs = make(contract, "euler"), [observe(contract, rows=1, seed=0)] * 2
    first, second = decided(WarmStart(policy, kappa=1.0, t_max=0.5, smoothing=0.0), obs, nfe=10)
    assert policy.evaluations == 10 + 5
    shifted = torch.cat([first[:, 2:], first[:, -1:], first[:, -1:]], dim=1)
    generator = torch_generator(0)
    noise = [torch.randn(1, contract.chunk, 2, generator=generator) for _ in range(2)]
    warm = WarmStart(policy, kappa=1.0, t_max=0.5, smoothing=0.0)
    assert torch.equal(warm.act(obs[0], noise[0], 10, None), first)
    assert torch.equal(warm.act(obs[1], noise[1], 10, shifted), second)


def test_an_episode_in_a_stream_asks_the_policy_until_the_first_chunk_is_done(contract):
    policy, obs = make(contract, "euler"), ticks(contract, 5)[0]
    chunks = decided(StreamBatch(policy, 3), obs)
    assert len(chunks) == 5 and all(torch.isfinite(chunk).all() for chunk in chunks)
    assert policy.evaluations == 2 * (1 + 3) + 3, "then one call per decision"
