"""Dispersive regularisers: repulsion between the features of a batch, without positive pairs.

Source: "Diffuse and Disperse" (arXiv 2506.09027), table 1, in the published form; DM1 (arXiv 2510.07865) uses
them for policies. The released DM1 code takes the softmax over +distance, lets the diagonal compete and clamps,
which stops the gradient at ordinary feature scale; none of that is here.

The paper's covariances are of features scaled to variance 1 over the batch, so that it may leave the diagonal out.
Where rows collapse that scale is 0 / 0, and without it equal rows would be the best of all. The variance term of
VICReg (arXiv 2105.04906) takes its place: a feature whose deviation is below ``margin`` is pushed apart.

By default rows are scaled to unit root mean square and squared distances divided by the dimension, so that they
lie in [0, 4] whatever the feature size, and no loss can be lowered by inflating norms.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from flowpolicy.core.errors import ConfigError
from flowpolicy.core.ranges import Natural, NonNegative, Positive
from flowpolicy.core.references import Reference

DISPERSE = Reference("Diffuse and Disperse: Image Generation with Representation Regularization", "2506.09027")
_NOTHING = -1e4  # A logit without weight beside any other.
_TINY = 1e-12  # Keeps the scale of an all-zero row, and its gradient, finite.


@dataclass(frozen=True)
class Dispersive:
    """Which regulariser, how strong, and on which scale."""

    kind: Literal["l2", "cosine", "hinge", "covariance"] = "l2"
    """InfoNCE on squared distances, InfoNCE on cosines, squared hinge, or VICReg's variances and covariances."""
    weight: NonNegative = 0.5
    """Factor of the term in the loss; 0 switches it off."""
    temperature: Positive = 0.5
    """Temperature of the two InfoNCE kinds."""
    margin: Positive = 1.0
    """Squared distance from which the hinge is silent; of 'covariance', the deviation from which a feature is."""
    normalise: bool = True
    """Scale each row to unit root mean square first."""
    per_dimension: bool = True
    """Divide squared distances, and the sums over features of 'covariance', by the feature dimension."""
    include_diagonal: bool = False
    """Let the pairs (i, i) take part in the mean; shifts the value, hardly the gradient."""
    place: Literal["features", "trunk"] = "features"
    """What is pushed apart: the feature of every camera, or the projection of states; or the first hidden layer of the
    trunk, in the first evaluation of a decision at zero noise, so that rows differ by what was observed alone."""
    exclude_steps: Natural = 0
    """Observations of one episode that are so many steps apart or fewer do not repel each other: they need nearly the
    same actions."""

    def __post_init__(self) -> None:
        if self.exclude_steps and self.kind == "covariance":
            raise ConfigError(
                f"--agent.dispersive.exclude-steps {self.exclude_steps} with --agent.dispersive.kind covariance",
                expected="a regulariser of pairs: l2, cosine or hinge",
            )

    @property
    def references(self) -> tuple[Reference, ...]:
        """Publications of the regulariser, if it is switched on."""
        if self.weight == 0:
            return ()
        if self.kind != "covariance":
            return (DISPERSE,)
        title = "VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised Learning"
        return DISPERSE, Reference(title, "2105.04906")


def dispersive_loss(
    features: Float[Tensor, "b f"], config: Dispersive, near: Bool[Tensor, "b b"] | None = None
) -> Float[Tensor, ""]:
    """The regulariser of a batch of features, without ``config.weight``. Lower is more spread out.

    A single row has nobody to be repelled from: the loss is 0 with a zero gradient.

    Args:
        features: a row per observation.
        config: which regulariser.
        near: pairs that do not repel each other, as of :func:`neighbours`; the diagonal among them.

    """
    if features.shape[0] < 2:
        return (features * 0).sum()
    if config.normalise:
        features = features * (features.square().mean(1, keepdim=True) + _TINY).rsqrt()
    if config.kind == "covariance":
        return _covariance(features, config)
    if config.kind == "cosine":
        return _info_nce(_cosines(features), config, near)
    distances = squared_distances(features)
    if config.per_dimension:
        distances = distances / features.shape[1]
    if config.kind == "l2":
        return _info_nce(-distances, config, near)
    hinge = (config.margin - distances).clamp(min=0).square()
    return _mean_over_pairs(hinge, config.include_diagonal, near)


def neighbours(row: Int[Tensor, " b"], first: Int[Tensor, " b"], steps: int) -> Bool[Tensor, "b b"]:
    """Which pairs lie in one episode and at most so many steps apart, every row with itself among them.

    Args:
        row: row of the dataset of each observation.
        first: first row of its episode.
        steps: how far is near.

    """
    return (first.unsqueeze(1) == first) & ((row.unsqueeze(1) - row).abs() <= steps)


@torch.no_grad()
def spread(features: Float[Tensor, "b f"]) -> dict[str, Float[Tensor, ""]]:
    """How far a batch of features is from collapse, for the log.

    ``feature_rank`` is the participation ratio of the covariance, (tr C)^2 / tr C^2, between 1 (all rows on a
    line) and the dimension; ``feature_distance`` the mean squared distance between two rows over the mean
    squared length of a row, between 0 (all rows equal) and 2 b / (b - 1) (centred).
    """
    centred = features - features.mean(0)
    covariance = centred.T @ centred
    trace = covariance.diagonal().sum()
    count = features.shape[0]
    return {
        "feature_rank": trace.square() / (covariance.square().sum() + _TINY),
        "feature_distance": 2 * trace / (max(count - 1, 1) * features.square().sum(1).mean() + _TINY),
    }


def squared_distances(features: Float[Tensor, "b f"]) -> Float[Tensor, "b b"]:
    """Squared Euclidean distances between all rows."""
    # Centred first: distances stay the same, and nearly collapsed rows do not cancel in float32.
    centred = features - features.mean(0)
    norms = centred.square().sum(1)
    return norms.unsqueeze(1) + norms.unsqueeze(0) - 2 * centred @ centred.T


def _cosines(features: Float[Tensor, "b f"]) -> Float[Tensor, "b b"]:
    unit = features * (features.square().sum(1, keepdim=True) + _TINY).rsqrt()
    return unit @ unit.T


def _info_nce(
    similarity: Float[Tensor, "b b"], config: Dispersive, near: Bool[Tensor, "b b"] | None
) -> Float[Tensor, ""]:
    out, count = _left_out(similarity, config.include_diagonal, near)
    logits = similarity / config.temperature
    if out is None:
        return logits.flatten().logsumexp(0) - 2 * math.log(similarity.shape[0])
    if isinstance(count, int):
        return logits.masked_fill(out, -math.inf).flatten().logsumexp(0) - math.log(count)
    # Not infinity: a batch of neighbours alone has no pair, and must have a gradient, which is zero.
    total = logits.masked_fill(out, _NOTHING).flatten().logsumexp(0) - count.clamp(min=1).log()
    return torch.where(count > 0, total, 0.0)


def _mean_over_pairs(
    values: Float[Tensor, "b b"], include_diagonal: bool, near: Bool[Tensor, "b b"] | None
) -> Float[Tensor, ""]:
    out, count = _left_out(values, include_diagonal, near)
    if out is None:
        return values.mean()
    total = values.masked_fill(out, 0).sum()
    return total / (count if isinstance(count, int) else count.clamp(min=1))


def _left_out(
    square: Float[Tensor, "b b"], include_diagonal: bool, near: Bool[Tensor, "b b"] | None
) -> tuple[Tensor | None, int | Tensor]:
    """Which pairs take no part, None where all do, and how many are left."""
    rows = square.shape[0]
    if near is None:
        return (None, rows * rows) if include_diagonal else (_diagonal(square), rows * (rows - 1))
    out = near & ~_diagonal(square) if include_diagonal else near
    return out, (~out).sum()


def _covariance(features: Float[Tensor, "b f"], config: Dispersive) -> Float[Tensor, ""]:
    centred = features - features.mean(0)
    covariance = centred.T @ centred / (features.shape[0] - 1)
    deviations = (covariance.diagonal() + _TINY).sqrt()
    total = (config.margin - deviations).clamp(min=0).sum()
    total = total + covariance.masked_fill(_diagonal(covariance), 0).square().sum()
    return total / features.shape[1] if config.per_dimension else total


def _diagonal(square: Float[Tensor, "n n"]) -> Tensor:
    return torch.eye(square.shape[0], dtype=torch.bool, device=square.device)
