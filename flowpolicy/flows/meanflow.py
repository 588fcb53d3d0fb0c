"""The MeanFlow objective with noise at t = 0 and data at t = 1.

The mean velocity U from s to t obeys ``(t - s) U(x_s, s, t) = x_t - x_s``. The derivative with respect to s
along the flow, t fixed, gives the identity

    U = w + (t - s) dU/ds,    dU/ds = (d_x U) w + d_s U.

The network is evaluated at the noisier end s, the one that is in hand when sampling. Mind the sign: the
published form, with data at 0, has a minus (arXiv 2505.13447, equation 6); at that border times are mirrored
and velocities change their sign.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from flowpolicy.flows.interpolant import rows
from flowpolicy.flows.matching import matching_loss


@runtime_checkable
class TangentMap(Protocol):
    """A mean-velocity network that gives its directional derivative with the value."""

    def __call__(self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor) -> Any:
        """An object with the fields ``value`` (b, h, a) and ``features``: mean velocity from s to t at x."""

    def with_tangent(
        self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor, dx: Tensor, ds: Tensor, skip: int
    ) -> tuple[Any, Tensor]:
        """The same for all rows, and the derivative (b - skip, h, a) along (dx, ds) for rows ``skip`` to b."""


class MeanFlow(NamedTuple):
    """What one evaluation of the objective gives."""

    loss: Float[Tensor, ""]
    """Mean squared error against the target, adaptive weight included."""
    features: dict[str, Float[Tensor, "b _"]]
    """Features of the same forward pass, for regularisers."""
    metrics: dict[str, Float[Tensor, ""]]
    """``tangent_rms``: size of (t - s) dU/ds, what the target adds to the velocity; off-diagonal rows."""


def meanflow_target(
    velocity: Float[Tensor, "b *d"],
    derivative: Float[Tensor, "b *d"],
    s: Float[Tensor, " b"],
    t: Float[Tensor, " b"],
) -> Float[Tensor, "b *d"]:
    """``sg(w + (t - s) dU/ds)``, the regression target of the mean velocity from s to t."""
    return (velocity + (t - s).reshape(rows(s, velocity).shape) * derivative).detach()


def meanflow(
    network: TangentMap,
    x: Float[Tensor, "b h a"],
    s: Float[Tensor, " b"],
    t: Float[Tensor, " b"],
    velocity: Float[Tensor, "b h a"],
    cond: Float[Tensor, "b c"],
    valid: Bool[Tensor, "b h"],
    skip: int = 0,
    kappa: float = 1.0,
    power: float = 0.0,
    constant: float = 1e-3,
) -> MeanFlow:
    """MeanFlow loss of a batch of intervals.

    Args:
        network: mean-velocity network.
        x: the points x_s of the interpolant.
        s: noisier ends of the intervals.
        t: cleaner ends, t >= s.
        velocity: conditional velocity w = data - noise of each row.
        cond: condition; its derivative is zero.
        valid: False for steps past the episode's end.
        skip: number of leading rows with s = t: their target is w, so no tangent is computed for them.
        kappa: share of the conditional velocity in the tangent; the rest is the network's own velocity
            U(x, s, s), which has less variance (improved MeanFlow, arXiv 2512.02012) for one more forward pass.
        power: exponent of the adaptive weight, see :func:`flowpolicy.flows.matching.adaptive_weight`.
        constant: offset of the adaptive weight.

    """
    dx = _tangent(network, x, s, cond, velocity, skip, kappa)
    output, derivative = network.with_tangent(x, s, t, cond, dx, torch.ones_like(s), skip)
    tail = meanflow_target(velocity[skip:], derivative, s[skip:], t[skip:])
    target = torch.cat([velocity[:skip], tail])
    loss = matching_loss(output.value, target, valid, power, constant)
    shift = (tail - velocity[skip:]).square().sum() / max(tail.numel(), 1)
    return MeanFlow(loss, output.features, {"tangent_rms": shift.sqrt().detach()})


def _tangent(
    network: TangentMap, x: Tensor, s: Tensor, cond: Tensor, velocity: Tensor, skip: int, kappa: float
) -> Tensor:
    if kappa == 1.0:
        return velocity
    with torch.no_grad():
        own = network(x[skip:], s[skip:], s[skip:], cond[skip:]).value
        return torch.cat([velocity[:skip], kappa * velocity[skip:] + (1 - kappa) * own])
