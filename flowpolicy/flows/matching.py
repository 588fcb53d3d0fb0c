"""Velocity matching: squared error over the valid steps of a chunk, and the optional adaptive weight."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def matching_loss(
    prediction: Float[Tensor, "b h a"],
    target: Float[Tensor, "b h a"],
    valid: Bool[Tensor, "b h"],
    power: float = 0.0,
    constant: float = 1e-3,
) -> Float[Tensor, ""]:
    """Mean squared error over the valid entries, each row weighted by :func:`adaptive_weight`.

    The sum over valid entries is divided by their number, never by the size of the batch: a chunk that
    reaches past its episode weighs by what it holds. Without a valid entry the loss is 0.

    Args:
        prediction: velocity, or mean velocity, of a network.
        target: what it should be; pass it detached.
        valid: False for steps past the episode's end.
        power: exponent of the adaptive weight; 0 is the plain mean.
        constant: its offset, in units of a mean squared error.

    """
    entries = (valid.sum(1) * prediction.shape[2]).to(prediction.dtype)
    error = ((prediction - target).square() * valid.unsqueeze(2)).sum((1, 2))
    if power:
        error = error * adaptive_weight(error / entries.clamp(min=1), power, constant)
    return error.sum() / entries.sum().clamp(min=1)


def adaptive_weight(error: Float[Tensor, " b"], power: float = 0.0, constant: float = 1e-3) -> Float[Tensor, " b"]:
    """MeanFlow's row weight ``1 / (sg(error) + constant) ** power`` (arXiv 2505.13447, section 4.3).

    With power > 0 the loss is robust: it estimates a mode where velocity matching needs a mean. Image models
    hide that behind their dimension; on action chunks it multiplied the error of the samples by 3 to 9
    (measured), so 0 is the default. Use it only where the target is a function of the input.

    Args:
        error: mean squared error of each row.
        power: 0 gives ones, 1 nearly the logarithm of the error.
        constant: offset; compare it with the typical mean squared error.

    """
    return (error.detach() + constant).pow(-power) if power else torch.ones_like(error)
