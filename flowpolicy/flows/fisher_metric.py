"""The Fisher Decorator: what it costs, in nats, to move the actions of a flow policy by a small residual.

A decorated policy plays ``b + shift(o, b)`` with ``b`` from the behaviour flow. The Kullback-Leibler divergence
from the decorated to the undecorated density p is, to second order in the shift,

    KL = 1/2 E[(shift . score + div shift)^2],    score = grad log p,

and ``1/2 shift^T F shift`` with ``F = E[score score^T]`` where the shift does not depend on b. Both need the
score of p, which a flow gives away: ``(t v - x) / (1 - t)`` at the flow time t. The released code takes
``v / (1 - t)`` instead; near t = 1 its second moment tends to the covariance, the inverse of what is meant.

Everything here is in action units: ``x_t / t = action + noise (1 - t) / t``, so the density is that of the
actions blurred by ``(1 - t) / t``, the resolution. Noise at t = 0, standard Gaussian; data at t = 1.

Source: Fisher Decorator (arXiv 2604.17919) and its code. Derivations, and what is corrected:
docs/methods/fisher-decorator.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from flowpolicy.core import ranks
from flowpolicy.core.errors import ConfigError
from flowpolicy.core.ranges import Inside, Natural, NonNegative, Share, require_ranges
from flowpolicy.flows.straight import Field, MeanField, rows, velocity_to_score

MetricMode = Literal["iso", "proxy", "score", "curv", "kl2"]


@dataclass(frozen=True)
class Metric:
    """How a shift of the actions is charged (docs/methods/fisher-decorator.md#what-a-shift-costs)."""

    mode: MetricMode = "score"
    """'score': Fisher metric of the true score; 'curv': curvature of the log density, one derivative of the flow;
    'kl2': second-order KL with the divergence of the shift; 'iso': mean square (DeFlow); 'proxy': as released."""
    normalise: Literal["none", "state", "global"] = "none"
    """'none' charges nats per dimension; the others divide by the mean precision, of each state or a running mean
    over all, and charge mean squares in action units. 'score' and 'proxy' only."""
    time: Inside = 0.9
    """Flow time at which the velocity is read; actions are blurred by (1 - time) / time. ``flowpolicy data info FILE
    --spread`` says which time the data ask for."""
    samples: Natural = 0
    """Behaviour samples per state for 'score' and 'proxy'. 0 takes the action of the batch: one sample, unbiased
    over the updates, and free of charge."""
    shrinkage: Share = 0.1
    """Share of the isotropic part in 'curv', and in 'score' with samples, there at least d / (d + samples) in d
    dimensions. It overcharges the wide directions of a narrow behaviour; single samples need none of it."""
    damping: NonNegative = 0.1
    """Precision added to every direction ('iso' aside): none is taken to be wider than ``damping ** -0.5``."""

    def __post_init__(self) -> None:
        require_ranges(self, "--agent.metric.")
        if self.normalise != "none" and self.mode not in ("score", "proxy"):
            raise ConfigError(
                f"metric.normalise is '{self.normalise}' in the mode '{self.mode}', which has no trace at hand",
                expected="normalise none, or the mode score or proxy",
            )
        if self.normalise == "state" and self.samples < 2:
            raise ConfigError(
                f"metric.normalise is 'state' with {self.samples} samples, which leaves only a direction of each state",
                expected="samples of at least 2 (the released code has 4 or 8)",
            )

    @property
    def sampled(self) -> bool:
        """Whether the mode averages scores over actions of the state."""
        return self.mode in ("score", "proxy")

    def share(self, dimensions: int) -> float:
        """Share of the isotropic part of the metric."""
        if self.mode == "curv":
            return self.shrinkage
        if self.mode == "score" and self.samples:
            return max(self.shrinkage, dimensions / (dimensions + self.samples))
        return 0.0


def diagonal(mean_field: MeanField) -> Field:
    """Velocity field of a flow map: its mean velocity over an interval of length zero.

    With it a one-step policy has a score, and its decorator acts in two network evaluations.
    """
    return lambda x, t: mean_field(x, t, t)


def action_score(x: Float[Tensor, "b *d"], v: Float[Tensor, "b *d"], t: Float[Tensor, " b"]) -> Float[Tensor, "b *d"]:
    """Score of the blurred actions at ``x / t`` from the velocity v at x: ``t (t v - x) / (1 - t)``."""
    return rows(t, x) * velocity_to_score(x, v, t)


def proxy_score(v: Float[Tensor, "b *d"], t: Float[Tensor, " b"]) -> Float[Tensor, "b *d"]:
    """What the released code takes for the score: ``t v / (1 - t)``, in the units of :func:`action_score`.

    Zero where the actions' std is ``((1 - t) / t) ** 0.5``, inverted above. For comparison
    only; docs/methods/fisher-decorator.md#the-score.
    """
    time = rows(t, v)
    return time * v / (1 - time)


def mean_precision(scores: Float[Tensor, "b k d"], damping: float = 0.0) -> Float[Tensor, " b"]:
    """Trace of the metric of each state over the dimension; shrinkage does not change it."""
    return scores.square().mean((1, 2)) + damping


def quadratic(
    shift: Float[Tensor, "b d"], scores: Float[Tensor, "b k d"], share: float = 0.0, damping: float = 0.0
) -> Float[Tensor, " b"]:
    """``shift^T F shift`` with ``F = (1 - share) S + (share tr(S) / d + damping) I``, S the mean outer product.

    S has rank k at most: without shrinkage or damping, all other directions cost nothing. No matrix is formed.

    Args:
        shift: change of the action.
        scores: k scores per state, at actions that are independent of the shift; pass them detached.
        share: share of the isotropic part (Ledoit and Wolf 2004 call it shrinkage).
        damping: precision added to every direction.

    """
    along = torch.einsum("bd,bkd->bk", shift, scores).square().mean(1)
    isotropic = share * mean_precision(scores) + damping
    return (1 - share) * along + isotropic * shift.square().sum(1)


class Charge(NamedTuple):
    """Cost of a batch of shifts."""

    divergence: Float[Tensor, " b"]
    """Of each row; see :attr:`Metric.normalise` for the unit."""
    scale: Float[Tensor, ""]
    """Mean precision of the batch, the next value for the running mean of 'global'; 1 in the mode 'iso'."""


def charge(
    metric: Metric,
    shift: Float[Tensor, "b d"],
    scores: Float[Tensor, "b k d"] | None = None,
    running: Float[Tensor, ""] | None = None,
) -> Charge:
    """Cost per dimension of a shift in the modes 'iso', 'proxy' and 'score'.

    Args:
        metric: mode and options.
        shift: change of the action; carries the gradient.
        scores: detached :func:`action_score` or :func:`proxy_score` of k actions per state; not for 'iso'.
        running: running mean of the scale, detached; only for 'global'.

    """
    if scores is None:
        return Charge(shift.square().mean(1), shift.new_ones(()))
    size = shift.shape[1]
    cost = quadratic(shift, scores, metric.share(size), metric.damping) / size
    precision = mean_precision(scores, metric.damping)
    if metric.normalise == "state":
        cost = cost / precision.clamp(min=1e-6)
    elif metric.normalise == "global" and running is not None:
        cost = cost / running.clamp(min=1e-6)
    else:
        cost = 0.5 * cost
    return Charge(cost, ranks.mean(precision))


def derivative(
    field: Field, x: Float[Tensor, "b *d"], t: Float[Tensor, " b"], dx: Float[Tensor, "b *d"]
) -> Float[Tensor, "b *d"]:
    """Derivative of the velocity at x along dx, times fixed; carries no graph."""
    with torch.no_grad():
        tangent: Tensor = torch.func.jvp(lambda x: field(x, t), (x,), (dx,))[1]
    return tangent


def curvature(
    shift: Float[Tensor, "b d"], tangent: Float[Tensor, "b d"], t: Float[Tensor, " b"]
) -> Float[Tensor, " b"]:
    """``-shift^T H shift``, H the Hessian of the log density: ``t^2 (shift - t tangent) . shift / (1 - t)``.

    Negative between the modes of a density; the caller clamps. The gradient with respect to the shift counts H
    as symmetric, which it is for any true velocity, so that the tangent needs no graph.

    Args:
        shift: change of the action; carries the gradient.
        tangent: :func:`derivative` of the velocity along the shift, at x_t.
        t: flow time of x_t.

    """
    time = t.unsqueeze(1)
    image = (time.square() * (shift - time * tangent) / (1 - time)).detach()
    value = (shift * image).sum(1)
    return 2 * value - value.detach()


def shift_and_divergence(
    decorator: Callable[[Tensor], Tensor], action: Float[Tensor, "b d"], probes: Float[Tensor, "p b d"]
) -> tuple[Float[Tensor, "b d"], Float[Tensor, "p b"]]:
    """A residual and estimates of its divergence, ``probe . J probe``; gradients flow through both.

    Args:
        decorator: action (b, d) -> shift (b, d).
        action: where.
        probes: entries -1 or 1, independent and equally likely (Hutchinson 1990); the estimates then are unbiased.

    """

    def along(probe: Tensor) -> tuple[Tensor, Tensor]:
        pair = torch.func.jvp(decorator, (action,), (probe,))
        return pair[0], (pair[1] * probe).sum(1)

    values, estimates = torch.func.vmap(along)(probes)
    return values[0], estimates


def second_order_kl(
    shift: Float[Tensor, "b d"],
    score: Float[Tensor, "b d"],
    first: Float[Tensor, " b"],
    second: Float[Tensor, " b"],
) -> Float[Tensor, " b"]:
    """``1/2 (shift . score + div shift)^2``, whose mean over the actions is the KL to second order.

    The square is a product with two independent estimates of the divergence: the square of one of them would
    charge its variance too. So a row may be negative; its expectation is not.

    Args:
        shift: change of the action, *at the action whose score is given*.
        score: :func:`action_score`, detached.
        first: an estimate of the divergence.
        second: an independent one.

    """
    drift = (shift * score).sum(1)
    return 0.5 * (drift + first) * (drift + second)


def charge_curvature(
    metric: Metric, shift: Float[Tensor, "b d"], tangent: Float[Tensor, "b d"], scores: Float[Tensor, "b k d"]
) -> Float[Tensor, " b"]:
    """Nats per dimension in the mode 'curv'.

    Rows of negative :func:`curvature` count as zero, and would be free: a residual finds them, and there are always
    some in a learned flow. So the isotropic share of the metric is charged everywhere, as in the mode 'score'.
    Arguments of :func:`curvature` and :func:`quadratic`.
    """
    share = metric.share(shift.shape[1])
    bent = curvature(shift, tangent, shift.new_full(shift.shape[:1], metric.time)).clamp(min=0)
    isotropic = share * mean_precision(scores) + metric.damping
    return 0.5 * ((1 - share) * bent + isotropic * shift.square().sum(1)) / shift.shape[1]


def charge_kl(
    metric: Metric, shift: Float[Tensor, "b d"], score: Float[Tensor, "b d"], divergences: Float[Tensor, "2 b"]
) -> Float[Tensor, " b"]:
    """Nats per dimension in the mode 'kl2'; arguments of :func:`second_order_kl`."""
    nats = second_order_kl(shift, score, divergences[0], divergences[1])
    return (nats + 0.5 * metric.damping * shift.square().sum(1)) / shift.shape[1]


def overflow(action: Float[Tensor, "b *d"], limit: float = 1.0) -> Float[Tensor, ""]:
    """Mean square of what lies beyond the box: there, clamping stops the gradient of Q, and drift would be free."""
    return ranks.mean((action.abs() - limit).clamp(min=0).square())


def dual_loss(log_weight: Float[Tensor, ""], divergence: Float[Tensor, ""], budget: float) -> Float[Tensor, ""]:
    """Loss whose descent raises the logarithm of the weight exactly if the divergence exceeds the budget."""
    return -log_weight * (divergence.detach() - budget)


LOG_WEIGHT_LIMIT = 10.0
"""Adam moves a logarithm by its learning rate per update whatever the violation: without a limit, 1e5 updates of
3e-4 reach e^30."""
