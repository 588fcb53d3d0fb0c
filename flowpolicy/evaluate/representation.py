"""How far features are from collapse, and what of the scene is left in them. Mathematics on arrays alone.

Ranks and uniformity say how features are spread, which noise is too; the probe, the confusable pairs and the signal
over augmentation say what the spread is good for. Definitions: participation ratio (tr C)^2 / tr C^2; RankMe
(arXiv 2210.02885); uniformity (Wang and Isola 2020, arXiv 2005.10242).
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray

Rows = Float[NDArray[np.floating], "n d"]

APART_MM, NEAR_MM = 10.0, 5.0
"""Of a confusable pair: the object is at least so far apart, and the hand at most."""
PENALTY = 1e-3
"""Ridge of the linear probe, as a share of the rows: features are scaled to variance 1."""
FOLDS = 5


_ROUNDING = 1e-12
"""Squared distance on the sphere that float32 may make of nothing."""


@dataclasses.dataclass(frozen=True)
class Sample:
    """Features of the same n observations, seen four times."""

    middle: Rows
    """Of pictures cropped as in acting."""
    augmented: tuple[Rows, Rows] | None
    """Of two random windows of every picture, as in training; None where training sees one window alone."""
    following: Rows
    """Of the observations one step later."""


class Probe(NamedTuple):
    """What a linear map of the features knows of a position, on episodes that it was not fitted to."""

    rmse: float
    """Root of the mean squared distance to the true position, in its unit."""
    baseline: float
    """The same of the mean position of the other episodes: what features that know nothing give."""
    r2: float
    """1 - (rmse / baseline)^2; below 0 where the probe is worse than the mean."""


class KnownScene(NamedTuple):
    """What the file knows of the n observations, and pictures do not say outright."""

    thing: Float[NDArray[np.floating], "n 3"]
    """Position of the object, mm."""
    hand: Float[NDArray[np.floating], "n 3"] | None
    """Position of the hand, mm."""


def participation_ratio(features: Rows) -> float:
    """(tr C)^2 / tr C^2 of the covariance, from 1 (rows on a line) to the dimension; 0 where all rows are equal."""
    powers = _singular(features, centred=True) ** 2
    return float(powers.sum() ** 2 / (powers**2).sum()) if powers.any() else 0.0


def rank_me(features: Rows, *, centred: bool) -> float:
    """Exp of the entropy of the singular values' shares, from 1 to min(n, d); 0 where all are 0."""
    values = _singular(features, centred)
    if not values.any():
        return 0.0
    shares = values / values.sum()
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum()))


def spectrum(features: Rows) -> Float[NDArray[np.float64], " k"]:
    """Singular values of the centred rows over the largest, falling; zeros where all rows are equal."""
    values = _singular(features, centred=True)
    return values / values[0] if values.any() else values


def on_sphere(features: Rows) -> Float[NDArray[np.float64], "n d"]:
    """Rows of length 1; rows of zeros stay."""
    rows = features.astype(np.float64)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1.0)


def cosines(features: Rows) -> Float[NDArray[np.float64], " pairs"]:
    """Cosines of all pairs of different rows."""
    unit = on_sphere(features)
    return (unit @ unit.T)[np.triu_indices(len(unit), 1)]


def uniformity(features: Rows) -> float:
    """Log of the mean of exp(-2 |z_i - z_j|^2) over pairs on the sphere: 0 collapsed, about -4 spread out."""
    return float(np.log(np.exp(-4 * (1 - cosines(features))).mean()))


def signal_over_augmentation(features: Rows, first: Rows, second: Rows) -> float:
    """Mean squared distance on the sphere of two rows, over that of two random windows of one picture.

    About 1 where features tell nothing but the window, infinite where windows do not change them.
    """
    signal = 2 * (1 - cosines(features).mean())
    noise = ((on_sphere(first) - on_sphere(second)) ** 2).sum(1).mean()
    return float(signal / noise) if noise > _ROUNDING else math.inf


def linear_probe(
    features: Rows, position: Float[NDArray[np.floating], "n p"], episode: Int[NDArray[np.integer], " n"]
) -> Probe:
    """Ridge regression of a position, in closed form, fitted to some episodes and judged on the others, in folds.

    Args:
        features: as the policy sees.
        position: what is to be told from them.
        episode: of every row, at least two different ones.

    """
    x, y = features.astype(np.float64), position.astype(np.float64)
    _, number = np.unique(episode, return_inverse=True)
    fold = number % min(FOLDS, int(number.max()) + 1)
    error, spread = np.empty(len(x)), np.empty(len(x))
    for held in range(int(fold.max()) + 1):
        out, fit = fold == held, fold != held
        mean, middle = x[fit].mean(0), y[fit].mean(0)
        deviation = x[fit].std(0)
        # What differs by rounding alone says nothing, and must not be scaled up until it seems to.
        scale = np.where(deviation > 1e-6 * (np.abs(mean) + deviation.max(initial=0.0)), deviation, np.inf)
        inputs, wanted = (x[fit] - mean) / scale, y[fit] - middle
        ridge = PENALTY * len(inputs) * np.eye(inputs.shape[1])
        weights = np.linalg.solve(inputs.T @ inputs + ridge, inputs.T @ wanted)
        error[out] = ((y[out] - middle - (x[out] - mean) / scale @ weights) ** 2).sum(1)
        spread[out] = ((y[out] - middle) ** 2).sum(1)
    total = spread.sum()
    r2 = float(1 - error.sum() / total) if total > 0 else math.nan
    return Probe(float(np.sqrt(error.mean())), float(np.sqrt(spread.mean())), r2)


def look_alikes(scene: KnownScene) -> Bool[NDArray[np.bool_], " pairs"]:
    """Which pairs of different rows have the hand in one place and the object in two; none without the hand."""
    first, second = np.triu_indices(len(scene.thing), 1)
    if scene.hand is None:
        return np.zeros(len(first), np.bool_)
    apart = np.linalg.norm(scene.thing[first] - scene.thing[second], axis=1) >= APART_MM
    near: NDArray[np.bool_] = np.linalg.norm(scene.hand[first] - scene.hand[second], axis=1) <= NEAR_MM
    return apart & near


def confusable(sample: Sample, pairs: Bool[NDArray[np.bool_], " pairs"]) -> float:
    """Share of pairs that look alike to the policy; nan where there is none.

    Alike are features whose cosine is at least the 99th percentile of those of observations one step apart.

    Args:
        sample: of one feature.
        pairs: which pairs are judged, as of :func:`look_alikes`.

    """
    if not pairs.any():
        return math.nan
    successive = (on_sphere(sample.middle) * on_sphere(sample.following)).sum(1)
    # Less what float32 rounds away: features that all are equal are alike.
    limit = np.percentile(successive, 99) - 1e-7
    return float((cosines(sample.middle)[pairs] >= limit).mean())


@dataclasses.dataclass(frozen=True)
class Figures:
    """One feature of a policy in figures; nan where a figure is not defined."""

    size: int
    """Numbers of the feature."""
    participation_ratio: float
    rank_me: float
    """Of centred rows."""
    rank_me_uncentred: float
    cosine: float
    """Mean over pairs."""
    cosine_95: float
    """95th percentile over pairs."""
    uniformity: float
    signal_over_augmentation: float
    probe_mm: float
    """Error of the linear probe of the object's position on episodes that it was not fitted to."""
    probe_baseline_mm: float
    """The same of the mean position of the other episodes."""
    probe_r2: float
    confusable: float
    """Share of the pairs that differ in the object alone and look alike."""


def figures(sample: Sample, episode: Int[NDArray[np.integer], " n"], scene: KnownScene | None) -> Figures:
    """All figures of one feature; those of the scene are nan where the file does not know it."""
    pairs = cosines(sample.middle)
    probe = linear_probe(sample.middle, scene.thing, episode) if scene else Probe(math.nan, math.nan, math.nan)
    return Figures(
        size=sample.middle.shape[1],
        participation_ratio=participation_ratio(sample.middle),
        rank_me=rank_me(sample.middle, centred=True),
        rank_me_uncentred=rank_me(sample.middle, centred=False),
        cosine=float(pairs.mean()),
        cosine_95=float(np.percentile(pairs, 95)),
        uniformity=uniformity(sample.middle),
        signal_over_augmentation=(
            signal_over_augmentation(sample.middle, *sample.augmented) if sample.augmented else math.nan
        ),
        probe_mm=probe.rmse,
        probe_baseline_mm=probe.baseline,
        probe_r2=probe.r2,
        confusable=confusable(sample, look_alikes(scene)) if scene else math.nan,
    )


def _singular(features: Rows, centred: bool) -> Float[NDArray[np.float64], " k"]:
    """Singular values, falling; those that are rounding errors of the rows are 0."""
    rows = features.astype(np.float64)
    if centred:
        rows = rows - rows.mean(0)
    values = np.linalg.svd(rows, compute_uv=False)
    return np.where(values > 1e-7 * np.linalg.norm(features.astype(np.float64)), values, 0.0)
