import math

import numpy as np
import pytest
from scipy import optimize, stats

from flowpolicy.core.errors import EvaluationError
from flowpolicy.evaluate.statistics import bootstrap_mean, compare_paired, mcnemar, tango, wilson

Z = 1.959963984540054


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        # Newcombe 1998, Stat. Med. 17:857, table I, method 3: 81/263, 15/148, 0/20, 1/29.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (8, 25, 0.1721, 0.5159),
        (95, 100, 0.8882, 0.9785),
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
    ],
)
@pytest.mark.quick("evaluate")
def test_wilson_against_published_numbers(successes, n, low, high):
    interval = wilson(successes, n)
    assert interval.mean == successes / n
    assert (round(interval.low, 4), round(interval.high, 4)) == (low, high)


def test_wilson_limits_are_the_rates_at_which_the_score_test_just_rejects():
    interval = wilson(37, 60)
    for p in (interval.low, interval.high):
        assert abs(37 / 60 - p) / math.sqrt(p * (1 - p) / 60) == pytest.approx(Z, rel=1e-9)


def test_wilson_ends_are_exactly_zero_and_one():
    assert wilson(0, 37).low == 0.0
    assert wilson(37, 37).high == 1.0
    assert wilson(0, 10).high == pytest.approx(Z**2 / (10 + Z**2))


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (3, 2), (-1, 5)])
def test_wilson_refuses_impossible_counts(successes, n):
    with pytest.raises(EvaluationError):
        wilson(successes, n)


def test_wilson_covers_95_percent_on_average_over_all_rates():
    n, rates = 50, np.linspace(0.02, 0.98, 193)
    limits = [wilson(k, n) for k in range(n + 1)]
    inside = np.array([[i.low <= p <= i.high for i in limits] for p in rates])
    coverage = (stats.binom.pmf(np.arange(n + 1), n, rates[:, None]) * inside).sum(axis=1)
    assert coverage.mean() == pytest.approx(0.95, abs=0.005)
    assert coverage.min() > 0.90


def test_bootstrap_of_a_large_normal_sample_is_the_textbook_interval():
    data = np.random.default_rng(1).normal(5.0, 2.0, 2000)
    interval = bootstrap_mean(data)
    half = Z * data.std() / math.sqrt(2000)
    assert interval.mean == pytest.approx(data.mean())
    assert interval.low == pytest.approx(data.mean() - half, abs=0.04 * half)
    assert interval.high == pytest.approx(data.mean() + half, abs=0.04 * half)


def test_bootstrap_leans_towards_the_tail_of_skewed_data():
    data = np.random.default_rng(2).exponential(1.0, 40)
    interval = bootstrap_mean(data)
    assert interval.high - interval.mean > 1.1 * (interval.mean - interval.low)


@pytest.mark.parametrize("values", [[3.0] * 10, [0.1] * 7, [2.5]])
@pytest.mark.filterwarnings("error")
def test_bootstrap_of_constant_data_has_no_width(values):
    interval = bootstrap_mean(values)
    assert (interval.mean, interval.low, interval.high) == (values[0],) * 3
    assert interval.n == len(values)


@pytest.mark.filterwarnings("error")
def test_bootstrap_of_one_rare_event_is_finite():
    interval = bootstrap_mean([0.0] * 99 + [1.0])
    assert 0.0 <= interval.low <= 0.01 < interval.high < 0.1


def test_bootstrap_is_repeatable_and_equivariant():
    data = np.random.default_rng(3).gamma(2.0, size=50)
    assert bootstrap_mean(data) == bootstrap_mean(data)
    assert bootstrap_mean(data, seed=1) != bootstrap_mean(data)
    plain, moved = bootstrap_mean(data), bootstrap_mean(10.0 + 3.0 * data)
    assert (moved.low, moved.high) == pytest.approx((10.0 + 3.0 * plain.low, 10.0 + 3.0 * plain.high))


def test_bootstrap_covers_the_mean_of_skewed_returns():
    generator = np.random.default_rng(4)
    hits = 0
    for _ in range(200):
        interval = bootstrap_mean(generator.gamma(1.0, size=60))
        hits += interval.low <= 1.0 <= interval.high
    assert 0.89 <= hits / 200 <= 0.99


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], [float("inf")]])
def test_bootstrap_refuses_what_has_no_mean(values):
    with pytest.raises(EvaluationError):
        bootstrap_mean(values)


def _profile_score(only_a, only_b, n, delta):
    """Tango's statistic from its definition: the nuisance rate by numerical maximum likelihood."""
    both = n - only_a - only_b

    def loss(q):
        terms = ((only_a, q + delta), (only_b, q), (both, 1 - 2 * q - delta))
        return -sum(k * math.log(max(p, 1e-300)) for k, p in terms if k)

    lowest, highest = max(0.0, -delta), (1 - delta) / 2
    q = optimize.minimize_scalar(loss, bounds=(lowest, highest), method="bounded", options={"xatol": 1e-13}).x
    return (only_a - only_b - n * delta) / math.sqrt(n * (2 * q + delta * (1 - delta)))


@pytest.mark.parametrize(("only_a", "only_b", "n"), [(12, 3, 50), (1, 9, 30), (7, 7, 20), (25, 10, 100)])
def test_tango_limits_are_where_the_score_test_just_rejects(only_a, only_b, n):
    interval = tango(only_a, only_b, n)
    assert interval.mean == (only_a - only_b) / n
    assert _profile_score(only_a, only_b, n, interval.low) == pytest.approx(Z, abs=1e-3)
    assert _profile_score(only_a, only_b, n, interval.high) == pytest.approx(-Z, abs=1e-3)


def test_tango_excludes_zero_exactly_when_mcnemars_statistic_rejects():
    for only_a in range(13):
        for only_b in range(13):
            interval = tango(only_a, only_b, 40)
            rejects = (only_a - only_b) ** 2 > Z**2 * (only_a + only_b)
            assert (interval.low > 0 or interval.high < 0) == rejects


def test_tango_without_discordant_pairs_has_wilsons_width():
    # With nothing discordant the variance under delta is n delta (1 - delta): Wilson's limit for 0 of n.
    interval = tango(0, 0, 50)
    assert interval.high == pytest.approx(wilson(0, 50).high, rel=1e-9)
    assert interval.low == pytest.approx(-interval.high, rel=1e-9)


def test_tango_is_antisymmetric_and_stays_inside():
    a, b = tango(9, 2, 30), tango(2, 9, 30)
    assert (a.low, a.high) == pytest.approx((-b.high, -b.low))
    assert tango(20, 0, 20).high == 1.0
    assert tango(0, 20, 20).low == -1.0


def test_tango_covers():
    generator = np.random.default_rng(5)
    cells = generator.multinomial(100, [0.12, 0.05, 0.83], 1500)
    limits = {(a, b): tango(int(a), int(b), 100) for a, b, _ in set(map(tuple, cells))}
    assert 0.93 < np.mean([limits[a, b].low <= 0.07 <= limits[a, b].high for a, b, _ in cells]) < 0.975


@pytest.mark.parametrize(
    ("only_a", "only_b", "p"),
    [(0, 0, 1.0), (5, 0, 0.0625), (6, 0, 0.03125), (10, 2, 2 * (1 + 12 + 66) / 2**12), (7, 7, 1.0)],
)
def test_mcnemar_is_the_binomial_tail(only_a, only_b, p):
    assert mcnemar(only_a, only_b) == pytest.approx(p, rel=1e-12)
    assert mcnemar(only_b, only_a) == pytest.approx(p, rel=1e-12)


def test_comparison_of_hand_made_outcomes():
    a = [True] * 8 + [True] * 6 + [False] * 6
    b = [True] * 8 + [False] * 6 + [False] * 6
    result = compare_paired(a, b, [2.0] * 20, [1.5] * 20)
    assert (result.n, result.only_a, result.only_b) == (20, 6, 0)
    assert result.difference.mean == pytest.approx(0.3)
    assert result.p_value == pytest.approx(0.03125)
    assert result.resolved
    assert (result.return_difference.mean, result.return_difference.low, result.return_difference.high) == (0.5,) * 3


def test_five_against_none_is_not_resolved_although_the_score_interval_excludes_zero():
    result = compare_paired([True] * 5 + [False] * 15, [False] * 20, [0.0] * 20, [0.0] * 20)
    assert result.difference.low > 0
    assert not result.resolved


def test_a_policy_against_itself_is_never_resolved():
    a = [True, False] * 20
    result = compare_paired(a, a, [1.0] * 40, [1.0] * 40)
    assert (result.difference.mean, result.p_value, result.resolved) == (0.0, 1.0, False)
    assert result.difference.low < 0 < result.difference.high


def test_resolved_keeps_its_error_rate_under_no_difference():
    cells = np.random.default_rng(6).multinomial(100, [0.1, 0.1, 0.8], 2000)
    assert np.mean([mcnemar(int(a), int(b)) < 0.05 for a, b, _ in cells]) < 0.05


def test_unequal_numbers_of_episodes_cannot_be_paired():
    with pytest.raises(EvaluationError, match="2 against 3"):
        compare_paired([True] * 2, [True] * 3, [0.0] * 2, [0.0] * 3)
