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
from jaxtyping import Float
from torch import Tensor

from flowpolicy.core.ranges import NonNegative, Positive
from flowpolicy.core.references import Reference

DISPERSE = Reference("Diffuse and Disperse: Image Generation with Representation Regularization", "2506.09027")
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

    @property
    def references(self) -> tuple[Reference, ...]:
        """Publications of the regulariser, if it is switched on."""
        if self.weight == 0:
            return ()
        if self.kind != "covariance":
            return (DISPERSE,)
        title = "VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised Learning"
        return DISPERSE, Reference(title, "2105.04906")


def dispersive_loss(features: Float[Tensor, "b f"], config: Dispersive) -> Float[Tensor, ""]:
    """The regulariser of a batch of features, without ``config.weight``. Lower is more spread out.

    A single row has nobody to be repelled from: the loss is 0 with a zero gradient.
    """
    if features.shape[0] < 2:
        return (features * 0).sum()
    if config.normalise:
        features = features * (features.square().mean(1, keepdim=True) + _TINY).rsqrt()
    if config.kind == "covariance":
        return _covariance(features, config)
    if config.kind == "cosine":
        return _info_nce(_cosines(features), config)
    distances = squared_distances(features)
    if config.per_dimension:
        distances = distances / features.shape[1]
    if config.kind == "l2":
        return _info_nce(-distances, config)
    hinge = (config.margin - distances).clamp(min=0).square()
    return _mean_over_pairs(hinge, config.include_diagonal)


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


def _info_nce(similarity: Float[Tensor, "b b"], config: Dispersive) -> Float[Tensor, ""]:
    count = similarity.shape[0]
    logits = similarity / config.temperature
    if config.include_diagonal:
        return logits.flatten().logsumexp(0) - 2 * math.log(count)
    logits = logits.masked_fill(_diagonal(similarity), -math.inf)
    return logits.flatten().logsumexp(0) - math.log(count * (count - 1))


def _mean_over_pairs(values: Float[Tensor, "b b"], include_diagonal: bool) -> Float[Tensor, ""]:
    if include_diagonal:
        return values.mean()
    count = values.shape[0]
    return values.masked_fill(_diagonal(values), 0).sum() / (count * (count - 1))


def _covariance(features: Float[Tensor, "b f"], config: Dispersive) -> Float[Tensor, ""]:
    centred = features - features.mean(0)
    covariance = centred.T @ centred / (features.shape[0] - 1)
    deviations = (covariance.diagonal() + _TINY).sqrt()
    total = (config.margin - deviations).clamp(min=0).sum()
    total = total + covariance.masked_fill(_diagonal(covariance), 0).square().sum()
    return total / features.shape[1] if config.per_dimension else total


def _diagonal(square: Float[Tensor, "n n"]) -> Tensor:
    return torch.eye(square.shape[0], dtype=torch.bool, device=square.device)
