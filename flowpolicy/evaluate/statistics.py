"""Intervals and tests for success rates and returns, alone and in pairs.

All intervals are two-sided at 95 % unless told otherwise.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import scipy  # which imports its parts when they are used: half a second of every start

from flowpolicy.core.errors import EvaluationError
from flowpolicy.core.seed import numpy_generator

CONFIDENCE = 0.95
RESAMPLES = 10_000
_DRAWS_AT_ONCE = 1 << 20


@dataclasses.dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval."""

    mean: float
    """Point estimate."""
    low: float
    """Lower end."""
    high: float
    """Upper end."""
    n: int
    """Number of episodes."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two policies on one plan, episode against episode."""

    n: int
    """Pairs of episodes."""
    only_a: int
    """Episodes in which only A succeeded."""
    only_b: int
    """Episodes in which only B succeeded."""
    difference: Interval
    """Success of A minus success of B, with Tango's score interval."""
    p_value: float
    """Exact two-sided McNemar test of no difference."""
    resolved: bool
    """Whether the exact test rejects 'no difference'."""
    return_difference: Interval
    """Return of A minus return of B, mean over pairs, with a bootstrap interval."""


def wilson(successes: int, n: int, confidence: float = CONFIDENCE) -> Interval:
    """Wilson's score interval of a success rate; Wilson 1927, JASA 22:209, eq. for the limits.

    Unlike the textbook interval (mean plus or minus 1.96 standard errors) it has a width at 0 and 100 %.

    Raises:
        EvaluationError: no episodes, or more successes than episodes.

    """
    if not 0 <= successes <= n or n == 0:
        raise EvaluationError(
            f"{successes} successes in {n} episodes", expected="0 <= successes <= episodes, episodes > 0"
        )
    limits = scipy.stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
    # At the ends the limit is the rate itself; rounding would put it a hair beyond.
    low = 0.0 if successes == 0 else float(limits.low)
    high = 1.0 if successes == n else float(limits.high)
    return Interval(successes / n, low, high, n)


def bootstrap_mean(values: Sequence[float] | np.ndarray, seed: int = 0, confidence: float = CONFIDENCE) -> Interval:
    """Bias-corrected accelerated (BCa) bootstrap interval of a mean; Efron 1987, JASA 82:171.

    Equal values give an interval without width.

    Raises:
        EvaluationError: no values, or one that is not finite.

    """
    data = np.asarray(values, dtype=np.float64)
    if data.size == 0 or not np.isfinite(data).all():
        raise EvaluationError("an interval of no values, or of values that are not finite", expected="finite numbers")
    mean = float(data.mean())
    deviation = data - mean
    if np.ptp(data) == 0.0:
        return Interval(float(data[0]), float(data[0]), float(data[0]), data.size)
    means = _resampled_means(data, numpy_generator(seed, "bootstrap"))
    # A resample that ties with the mean counts half, or discrete data (0/1 returns) would be called biased.
    below = np.mean(means < mean) + 0.5 * np.mean(means == mean)
    bias = scipy.special.ndtri(np.clip(below, 1 / RESAMPLES, 1 - 1 / RESAMPLES))
    # Jackknife acceleration; for a mean the leave-one-out differences are proportional to the deviations.
    acceleration = np.sum(deviation**3) / (6 * np.sum(deviation**2) ** 1.5)
    z = bias + scipy.special.ndtri([(1 - confidence) / 2, (1 + confidence) / 2])
    low, high = np.quantile(means, scipy.special.ndtr(bias + z / (1 - acceleration * z)))
    return Interval(mean, float(low), float(high), data.size)


def _resampled_means(data: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """(RESAMPLES,) means of samples drawn with replacement, in blocks that bound the memory."""
    draws = [data[generator.integers(0, data.size, (rows, data.size))].mean(axis=1) for rows in _blocks(data.size)]
    return np.concatenate(draws)


def tango(only_a: int, only_b: int, n: int, confidence: float = CONFIDENCE) -> Interval:
    """Score interval of the difference of two paired success rates; Tango 1998, Stat. Med. 17:891, eqs. 12-17.

    Chosen over the paired bootstrap and over Wald's interval because both collapse to a point when no
    pair is discordant, and undercover at the 10 to 100 episodes of a usual evaluation. The interval
    excludes zero exactly when McNemar's statistic without continuity correction rejects.

    Args:
        only_a: pairs in which only A succeeded.
        only_b: pairs in which only B succeeded.
        n: all pairs.
        confidence: coverage.

    """
    if min(only_a, only_b) < 0 or only_a + only_b > n or n == 0:
        raise EvaluationError(f"{only_a} + {only_b} discordant pairs of {n}", expected="no more than there are pairs")
    critical = float(scipy.special.ndtri((1 + confidence) / 2))
    mean = (only_a - only_b) / n

    def excess(delta: float, side: float) -> float:
        # Not divided by the standard error, which vanishes at the ends of [-1, 1].
        error = float(np.sqrt(_tango_variance(only_a, only_b, n, delta)))
        return side * (only_a - only_b - n * delta) - critical * error

    # The search starts beside the mean: without discordant pairs the mean itself is a root, but not a limit.
    beside = 1e-9
    low = -1.0 if mean == -1.0 else float(scipy.optimize.brentq(excess, -1.0, mean - beside, args=(1.0,)))
    high = 1.0 if mean == 1.0 else float(scipy.optimize.brentq(excess, mean + beside, 1.0, args=(-1.0,)))
    return Interval(mean, low, high, n)


def _tango_variance(only_a: int, only_b: int, n: int, delta: float) -> float:
    """Variance of ``only_a - only_b`` under a true difference ``delta``; the nuisance rate is its MLE there."""
    b = -only_a - only_b + (2 * n - only_a + only_b) * delta
    c = -only_b * delta * (1 - delta)
    rate_b = (np.sqrt(max(b * b - 8 * n * c, 0.0)) - b) / (4 * n)
    return max(n * (2 * rate_b + delta * (1 - delta)), 0.0)


def mcnemar(only_a: int, only_b: int) -> float:
    """Exact two-sided p-value of 'both policies succeed equally often'; McNemar 1947, Psychometrika 12:153.

    Only the discordant pairs speak: under the hypothesis each falls on either side with probability 1/2.
    """
    discordant = only_a + only_b
    return float(scipy.stats.binomtest(only_a, discordant, 0.5).pvalue) if discordant else 1.0


def compare_paired(
    success_a: Sequence[bool],
    success_b: Sequence[bool],
    return_a: Sequence[float],
    return_b: Sequence[float],
    confidence: float = CONFIDENCE,
) -> Comparison:
    """Compare two policies from outcomes in the same plan order.

    A difference counts as resolved only when the exact test rejects. That test never exceeds its error
    rate, whereas the score interval is right on average: it may exclude zero by a hair where the test
    does not reject.
    """
    a, b = np.asarray(success_a, dtype=bool), np.asarray(success_b, dtype=bool)
    if not len(a) == len(b) == len(return_a) == len(return_b):
        raise EvaluationError(f"{len(a)} against {len(b)} episodes cannot be paired", expected="one plan for both")
    only_a, only_b = int(np.sum(a & ~b)), int(np.sum(b & ~a))
    p_value = mcnemar(only_a, only_b)
    return Comparison(
        n=len(a),
        only_a=only_a,
        only_b=only_b,
        difference=tango(only_a, only_b, len(a), confidence),
        p_value=p_value,
        resolved=p_value < 1 - confidence,
        return_difference=bootstrap_mean(np.subtract(return_a, return_b), confidence=confidence),
    )


def _interval(mean: float, draws: np.ndarray, n: int, confidence: float) -> Interval:
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(mean, float(low), float(high), n)


def hierarchical_mean(values: np.ndarray, seed: int = 0, confidence: float = CONFIDENCE) -> Interval:
    """Mean over training seeds and episodes; the percentile bootstrap draws seeds, and episodes of the common plan.

    With few seeds such an interval is too narrow rather than too wide: three seeds cannot show a rare bad one.
    Where all outcomes are failures, or all successes, resamples are too, and Wilson's interval takes their place.

    Args:
        values: (seeds, episodes) outcomes: 0 or 1, or a score.
        seed: of the bootstrap.
        confidence: coverage.

    """
    if _all_or_none(values):
        return wilson(int(values.sum()), values.size, confidence)
    return _interval(float(values.mean()), _hierarchical_draws(values, seed), values.size, confidence)


def hierarchical_difference(a: np.ndarray, b: np.ndarray, seed: int = 0, confidence: float = CONFIDENCE) -> Interval:
    """Mean of ``a`` minus mean of ``b``, (seeds, episodes) each on one plan; episodes are paired, seeds are not.

    Where neither varies, Newcombe's interval (1998, Stat. Med. 17:873, method 10) takes the bootstrap's place.
    """
    if a.shape[1] != b.shape[1]:
        raise EvaluationError(f"{a.shape[1]} against {b.shape[1]} episodes cannot be paired", expected="one plan")
    if _all_or_none(a) and _all_or_none(b):
        first, second = (wilson(int(v.sum()), v.size, confidence) for v in (a, b))
        mean = first.mean - second.mean
        low = mean - np.hypot(first.mean - first.low, second.high - second.mean)
        high = mean + np.hypot(first.high - first.mean, second.mean - second.low)
        return Interval(mean, float(low), float(high), min(a.size, b.size))
    # The stream of the episodes is that of the seed, so the same draw of episodes meets both.
    draws = _hierarchical_draws(a, seed, "a") - _hierarchical_draws(b, seed, "b")
    return _interval(float(a.mean() - b.mean()), draws, min(a.size, b.size), confidence)


def _all_or_none(values: np.ndarray) -> bool:
    return bool(values.size) and np.ptp(values) == 0.0 and values.flat[0] in (0.0, 1.0)


def _hierarchical_draws(values: np.ndarray, seed: int, side: str = "a") -> np.ndarray:
    """(RESAMPLES,) means over drawn seeds and drawn episodes."""
    seeds, episodes = values.shape
    if not values.size or not np.isfinite(values).all():
        raise EvaluationError("an interval of no values, or of values that are not finite", expected="finite numbers")
    # How often each seed and each episode is drawn; the mean of a resample is then a product of three matrices.
    draws = []
    drawn_seeds, drawn_episodes = (
        numpy_generator(seed, name) for name in (f"bootstrap seeds {side}", "bootstrap episodes")
    )
    for block in _blocks(seeds + episodes):
        rows, columns = _counts(drawn_seeds, seeds, block), _counts(drawn_episodes, episodes, block)
        draws.append(((rows.astype(np.float64) @ values) * columns).sum(axis=1))
    return np.concatenate(draws) / values.size


def _counts(generator: np.random.Generator, n: int, resamples: int) -> np.ndarray:
    """(resamples, n): how often each of ``n`` is drawn in ``n`` draws with replacement."""
    return generator.multinomial(n, np.full(n, 1 / n), resamples)


def _blocks(width: int) -> list[int]:
    """Numbers of resamples, RESAMPLES together, whose rows of ``width`` numbers fit in a few megabytes."""
    block = max(1, _DRAWS_AT_ONCE // width)
    return [min(block, RESAMPLES - start) for start in range(0, RESAMPLES, block)]


def interquartile_mean(scores: Sequence[np.ndarray], seed: int = 0, confidence: float = CONFIDENCE) -> Interval:
    """Mean of the middle half of all scores; Agarwal et al. 2021 (arXiv 2108.13264), section 4.3.

    Args:
        scores: per task the scores of its runs; the bootstrap draws runs within each task.
        seed: of the bootstrap.
        confidence: coverage.

    """
    flat = np.concatenate(scores)
    if not flat.size or not np.isfinite(flat).all():
        raise EvaluationError("an IQM of no scores, or of scores that are not finite", expected="finite numbers")
    generator = numpy_generator(seed, "bootstrap")
    draws = np.concatenate([s[generator.integers(0, s.size, (RESAMPLES, s.size))] for s in scores], axis=1)
    means = scipy.stats.trim_mean(draws, 0.25, axis=1)
    return _interval(float(scipy.stats.trim_mean(flat, 0.25)), means, flat.size, confidence)


def probability_of_improvement(
    a: Sequence[np.ndarray], b: Sequence[np.ndarray], seed: int = 0, confidence: float = CONFIDENCE
) -> Interval:
    """How likely a run of ``a`` scores higher than one of ``b``, mean over tasks; ties count half.

    Agarwal et al. 2021 (arXiv 2108.13264), section 4.3; per task it is the Mann-Whitney statistic over its pairs. The
    bootstrap draws runs of both within each task.

    Args:
        a: per task the scores of its runs.
        b: likewise, the same tasks.
        seed: of the bootstrap.
        confidence: coverage.

    """
    if not a or len(a) != len(b) or not all(s.size and np.isfinite(s).all() for s in (*a, *b)):
        raise EvaluationError(
            f"a probability of improvement over {len(a)} and {len(b)} tasks", expected="finite scores of the same tasks"
        )
    generator = numpy_generator(seed, "bootstrap")
    means, draws = [], []
    for x, y in zip(a, b, strict=True):
        # Of sorted others, those before the left place are worse and those before the right one no better: linear in
        # the runs, where a matrix of pairs would be quadratic.
        order = np.argsort(y, kind="stable")
        worse, no_better = (np.searchsorted(y[order], x, side) for side in ("left", "right"))
        means.append((worse + no_better).mean() / (2 * len(y)))
        rows, columns = (_counts(generator, len(runs), RESAMPLES) for runs in (x, y))
        before = np.zeros((RESAMPLES, len(y) + 1), columns.dtype)
        columns[:, order].cumsum(axis=1, out=before[:, 1:])
        wins = sum(np.einsum("ri,ri->r", rows, before[:, place]) for place in (worse, no_better))
        draws.append(wins / (2 * len(x) * len(y)))
    return _interval(float(np.mean(means)), np.mean(draws, axis=0), sum(s.size for s in (*a, *b)), confidence)
