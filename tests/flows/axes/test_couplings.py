"""Selections, permutations and weights against brute force and closed forms."""

import itertools
import math

import pytest
import torch
from scipy import integrate, optimize, spatial, stats

from flowpolicy.core.errors import ConfigError, TrainingError
from flowpolicy.flows.axes.couplings import (
    ConditionalTransport,
    Gibbs,
    Independent,
    Nearest,
    Table,
)
from flowpolicy.flows.transport import assignment, weight_for_share


def random(seed=0):
    return torch.Generator().manual_seed(seed)


def drawing(shape, seed=0, dtype=torch.float32):
    generator = random(seed)
    return lambda: torch.randn(shape, generator=generator, dtype=dtype)


def batch(n=16, d=3, c=2, seed=5):
    generator = random(seed)
    return torch.randn(n, d, generator=generator), torch.randn(n, c, generator=generator)


def test_nearest_of_one_is_independent_bit_for_bit():
    data, cond = batch()
    noise = Independent().pair(drawing(data.shape), data, cond, 0.0).noise
    assert torch.equal(noise, drawing(data.shape)())
    assert torch.equal(Nearest(1).pair(drawing(data.shape), data, cond, 0.0).noise, noise)


def test_nearest_is_the_nearest_candidate_and_stops():
    data, cond = batch()
    draw = drawing(data.shape)
    candidates = torch.stack([draw() for _ in range(4)])
    noise = Nearest(4).pair(drawing(data.shape), data, cond, 0.1).noise
    for row in range(len(data)):
        distances = [(c[row] - data[row]).square().sum() for c in candidates]
        assert torch.equal(noise[row], candidates[int(torch.stack(distances).argmin()), row])
    late = Nearest(4, until=0.3).pair(drawing(data.shape), data, cond, 0.3).noise
    assert torch.equal(late, candidates[0])


def test_nearest_second_moment_in_one_dimension():
    """Density of the nearest of k to a: k p(x) (1 - F(|x - a|))^(k - 1), F the law of the distance to a."""
    a, k = 0.5, 4

    def density(x):
        r = abs(x - a)
        return k * stats.norm.pdf(x) * (1 - stats.norm.cdf(a + r) + stats.norm.cdf(a - r)) ** (k - 1)

    exact = integrate.quad(lambda x: x * x * density(x), -8, 8, limit=200)[0]
    data = torch.full((200_000, 1), a)
    noise = Nearest(k, until=1.0).pair(drawing(data.shape), data, data, 0.0).noise
    assert float(noise.square().mean()) == pytest.approx(exact, rel=0.02)


def test_conditional_transport_is_optimal():
    data, cond = batch(6)
    coupling = ConditionalTransport(weight=0.7)
    noise = coupling.pair(drawing(data.shape), data, cond, 0.0).noise
    start = drawing(data.shape)()
    scaled = (cond - cond.mean(0)) / cond.std(0, correction=0)

    def cost(order):
        moved = (start[list(order)] - data).square().sum() + 0.7 * (scaled[list(order)] - scaled).square().sum()
        return float(moved)

    best = min(itertools.permutations(range(6)), key=cost)
    assert torch.equal(noise, start[list(best)])


def test_conditional_transport_permutes_within_blocks():
    data, cond = batch(20)
    start = drawing(data.shape)()
    noise = ConditionalTransport(weight=0.1, block=8).pair(drawing(data.shape), data, cond, 0.0).noise
    for part in (slice(0, 8), slice(8, 16), slice(16, 20)):
        assert sorted(start[part].sum(1).tolist()) == sorted(noise[part].sum(1).tolist())
    assert not torch.equal(start, noise)
    stays = ConditionalTransport(weight=1e9).pair(drawing(data.shape), data, cond, 0.0).noise
    assert torch.equal(stays, start)


def test_a_found_weight_leaves_the_asked_share_of_cheaper_exchanges():
    generator = random(2)
    near, cond = torch.rand(40, 40, generator=generator), torch.rand(40, 2, generator=generator)
    apart = torch.cdist(cond, cond).square()
    weight = weight_for_share(near, apart, 0.05)
    cost = near + weight * apart
    share = float((cost < cost.diagonal().unsqueeze(1)).float().mean())
    assert share <= 0.05 and share == pytest.approx(0.05, abs=3 / 1600)
    assert weight_for_share(near, apart, 0.99) == 0.0


def test_assignment_of_a_known_matrix():
    assert assignment(torch.tensor([[4.0, 1.0, 3.0], [2.0, 0.0, 5.0], [3.0, 2.0, 2.0]])).tolist() == [1, 0, 2]


def test_gibbs_moments_of_two_gaussians():
    """Weighing N(0,1) x N(0,s^2) by exp(-(x-y)^2 / 2e) gives the precision [[1+1/e, -1/e], [-1/e, 1/s^2+1/e]]."""
    s, e, n = 0.5, 1.5, 400_000
    data = s * torch.randn(n, 1, generator=random(9), dtype=torch.float64)
    noise, weight = Gibbs(e).pair(drawing(data.shape, dtype=torch.float64), data, data, 0.0)
    precision = torch.tensor([[1 + 1 / e, -1 / e], [-1 / e, 1 / s**2 + 1 / e]], dtype=torch.float64)
    exact = torch.linalg.inv(precision)
    pairs = torch.cat([noise, data], dim=1)
    measured = (weight.unsqueeze(1) * pairs).T @ pairs / n
    torch.testing.assert_close(measured, exact, atol=6e-3, rtol=0)
    assert float(weight.mean()) == pytest.approx(1)


def test_hot_weights_are_one_and_cold_ones_are_refused():
    data, cond = batch(64)
    weight = Gibbs(1e6).pair(drawing(data.shape), data, cond, 0.0).weight
    torch.testing.assert_close(weight, torch.ones(64), atol=1e-4, rtol=0)
    with pytest.raises(TrainingError, match="temperature"):
        Gibbs(0.01).pair(drawing(data.shape), data, cond, 0.0)


def test_annealed_pairs_keep_their_variance():
    noise = torch.randn(100_000, 1, generator=random(1), dtype=torch.float64)
    table = Table(anneal=0.5)
    for progress, b in ((0.0, 1.0), (0.2, 0.6), (0.5, 0.0), (0.9, 0.0)):
        moved = table.blend(noise, progress, random())
        assert float(moved.var()) == pytest.approx(1, rel=0.02)
        correlation = float(torch.corrcoef(torch.stack([noise.flatten(), moved.flatten()]))[0, 1])
        assert correlation == pytest.approx(math.sqrt(1 - b * b), abs=0.01)
    assert torch.equal(table.blend(noise, 0.5, random()), noise)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Nearest(0),
        lambda: Nearest(until=2.0),
        lambda: ConditionalTransport(weight=-1.0),
        lambda: ConditionalTransport(block=0),
        lambda: Gibbs(0.0),
        lambda: Table(anneal=1.5),
    ],
)
def test_impossible_options_are_refused(wrong):
    with pytest.raises(ConfigError):
        wrong()


@pytest.mark.parametrize("size", [1, 19, 100])
def test_conditional_transport_pairs_observations_of_any_size(size):
    """The found weight lowers the cost of transport, and keeps those that exchange their noise near each other."""
    generator = random(3)
    data, cond = 0.4 * torch.randn(256, 16, generator=generator), torch.randn(256, size, generator=generator)
    noise = drawing(data.shape)()
    paired = ConditionalTransport().pair(lambda: noise, data, cond, 0.0).noise
    assert float((paired - data).square().sum()) < 0.9 * float((noise - data).square().sum())
    source = torch.cdist(paired, noise).argmin(1)
    mismatch = (cond[source] - cond).square().sum(1).mean()
    typical = torch.cdist(cond, cond).square().mean()
    assert float(mismatch) < float(typical) / 3


def test_conditional_transport_is_scipys_assignment_at_its_stated_cost():
    generator = random(4)
    noise, data = torch.randn(2, 24, 8, generator=generator, dtype=torch.float64)
    cond = torch.randn(24, 19, generator=generator, dtype=torch.float64)
    scaled = ((cond - cond.mean(0)) / cond.std(0, correction=0)).numpy()
    cost = spatial.distance.cdist(data, noise, "sqeuclidean") + 0.05 * spatial.distance.cdist(
        scaled, scaled, "sqeuclidean"
    )
    best = optimize.linear_sum_assignment(cost)[1]
    paired = ConditionalTransport(weight=0.05).pair(lambda: noise, data, cond, 0.0).noise
    assert torch.equal(paired, noise[best])
    assert list(best) != list(range(24))


def test_a_weight_that_pairs_nothing_is_told():
    data, cond = batch(64, 8, 19)
    with pytest.warns(UserWarning, match="independent pairs .observations of 19 numbers, weight 10"):
        ConditionalTransport(weight=10.0).pair(drawing(data.shape), data, cond, 0.0)
