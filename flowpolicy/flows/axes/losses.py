"""The loss axis: the shape of the loss. Errors are errors of a velocity, (b, h, a); steps past the episode are invalid.

A loss whose weight depends on the error itself estimates a mode where the target is random, and flow matching needs
the mean: on action chunks that multiplied the error of the samples by 3 to 9 (measured). Such losses declare
``robust`` and are refused unless the pairs of noise and data are deterministic.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from typing_extensions import override

from flowpolicy.core import ranks
from flowpolicy.core.ranges import NonNegative, Positive
from flowpolicy.flows.axes.interpolants import Interpolant
from flowpolicy.flows.axes.registry import Conflict, Reference, Value, register


@dataclasses.dataclass(frozen=True)
class Loss(Value):
    """Base of the shapes: squared error over the valid entries, with two hooks."""

    @property
    def robust(self) -> bool:
        """Whether large errors count less than their square."""
        return False

    def time_weight(self, t: Float[Tensor, " b"], path: Interpolant) -> Float[Tensor, " b"] | None:
        """Weight of every row by its time; None where all weigh the same."""
        return None

    def shape(self, square: Float[Tensor, " b"], entries: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Loss of each row, in units of a sum of squares.

        Args:
            square: sum of the squared errors of a row's valid entries.
            entries: their number.

        """
        return square

    def reduce(
        self,
        error: Float[Tensor, "b h a"],
        valid: Bool[Tensor, "b h"],
        t: Float[Tensor, " b"],
        path: Interpolant,
        weight: Float[Tensor, " b"] | None = None,
    ) -> Float[Tensor, ""]:
        """Loss of a batch: a sum over valid entries divided by their number, 0 without any.

        Never divided by the size of the batch: a chunk that reaches past its episode weighs by what it holds.

        Args:
            error: prediction minus target.
            valid: False for steps past the episode's end.
            t: times of the rows.
            path: the path, whose signal-to-noise ratio may weigh.
            weight: weights of the pairs, mean 1.

        """
        square, entries = squares(error, valid)
        value = self.shape(square, entries)
        for factor in (self.time_weight(t, path), weight):
            if factor is not None:
                value = value * factor
        total, count = ranks.totals(value.sum(), entries.sum())
        return total / count.clamp(min=1)

    def balance(self, loss: Float[Tensor, ""], diagonal: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """The loss off the diagonal, rescaled where the shape compares it with the loss on the diagonal."""
        return loss


@register("loss", "squared", Reference("Flow Matching for Generative Modeling", "2210.02747"))
@dataclasses.dataclass(frozen=True)
class Squared(Loss):
    """Mean squared error."""


def squares(
    error: Float[Tensor, "b h a"], valid: Bool[Tensor, "b h"]
) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
    """Sum of the squared errors over the valid entries of every row, and the number of these entries."""
    entries = (valid.sum(1) * error.shape[2]).to(error.dtype)
    return (error.square() * valid.unsqueeze(2)).sum((1, 2)), entries


def matching_loss(
    prediction: Float[Tensor, "b h a"], target: Float[Tensor, "b h a"], valid: Bool[Tensor, "b h"]
) -> Float[Tensor, ""]:
    """Mean squared error over the valid entries; 0 without any. Pass the target detached."""
    square, entries = squares(prediction - target, valid)
    total, count = ranks.totals(square.sum(), entries.sum())
    return total / count.clamp(min=1)


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


@register("loss", "adaptive", Reference("Mean Flows for One-step Generative Modeling", "2505.13447"))
@dataclasses.dataclass(frozen=True)
class Adaptive(Loss):
    """Rows weigh ``1 / (error + constant)^power`` (MeanFlow, arXiv 2505.13447, section 4.3)."""

    power: NonNegative = 1.0
    """0 is the squared error, 1 nearly its logarithm."""
    constant: Positive = 1e-3
    """Offset, in units of a mean squared error."""

    @property
    @override
    def robust(self) -> bool:
        return self.power > 0

    @override
    def shape(self, square: Float[Tensor, " b"], entries: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        return square * adaptive_weight(square / entries.clamp(min=1), self.power, self.constant)


@register("loss", "pseudo-huber", Reference("Improving the Training of Rectified Flows", "2405.20320"))
@dataclasses.dataclass(frozen=True)
class PseudoHuber(Loss):
    """``sqrt(|e|^2 + c^2) - c`` over the number n of entries, ``c = factor n`` (arXiv 2405.20320, section 4.2)."""

    factor: Positive = 0.00054
    """c per entry: far below c the loss is ``|e|^2 / 2c``, far above it the length of e."""

    @property
    @override
    def robust(self) -> bool:
        return True

    @override
    def shape(self, square: Float[Tensor, " b"], entries: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        c = self.factor * entries.clamp(min=1)
        # The difference of the two roots, written so that small errors do not cancel.
        return square / ((square + c.square()).sqrt() + c)


@register("loss", "elbo", Reference("Variational Diffusion Models", "2107.00630"))
@dataclasses.dataclass(frozen=True)
class Elbo(Loss):
    """Rows weigh as in the likelihood bound: half the slope of the signal-to-noise ratio (arXiv 2107.00630, eq. 17).

    For the error of a velocity that is ``beta / (sigma wronskian)``, on the straight line ``t / (1 - t)``.
    """

    clamp: Positive = 20.0
    """Largest weight."""

    @override
    def time_weight(self, t: Float[Tensor, " b"], path: Interpolant) -> Float[Tensor, " b"] | None:
        e = path.effective(t, t)
        weight: Tensor = e.beta / (e.sigma * e.wronskian)
        return weight.nan_to_num(self.clamp, posinf=self.clamp).clamp(0, self.clamp)


@register(
    "loss",
    "balanced",
    Reference("AnyFlow: Any-Step Video Diffusion Model with On-Policy Flow Map Distillation", "2605.13724"),
)
@dataclasses.dataclass(frozen=True)
class Balanced(Loss):
    """The loss off the diagonal is scaled to the size of the loss on it (AnyFlow), by one factor for the batch.

    AnyFlow scales row by row, which is the adaptive weight of power 1 and biased to a mode. One factor is not.
    """

    def conflicts(self, spec: Any, setting: Any) -> Iterator[Conflict]:
        """There must be something to balance."""
        if not spec.consistency.two_time:
            yield Conflict(
                f"{self.flag} with {spec.consistency.flag}",
                "there is no loss off the diagonal to be balanced",
                "--flow.loss squared, or --flow.consistency meanflow",
            )

    @override
    def balance(self, loss: Float[Tensor, ""], diagonal: Float[Tensor, ""]) -> Float[Tensor, ""]:
        return loss * (diagonal / (loss + 1e-5)).detach()
