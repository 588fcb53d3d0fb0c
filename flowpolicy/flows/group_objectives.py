"""Preferences inside groups of candidates, as targets of a flow policy: GDRO and its siblings.

GDRO (arXiv 2601.02036) post-trains a generator from groups of finished samples with rewards: no sampling while it
trains. docs/methods/gdro.md carries it over to policies. The KL-regularised optimum ``pi* ~ pi_ref exp(r / tau)`` says
what the log-ratios of a group should be, up to a constant of the state; they are estimated from velocity errors,

    log pi(a) / pi_ref(a) = integral of t / (1 - t) E_eps[ |w - w_ref(x_t)|^2 - |w - w(x_t)|^2 ] dt,

exact for exact fields, squared errors summed over the dimensions (noise at t = 0).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import logsigmoid

from flowpolicy.core.errors import ConfigError
from flowpolicy.flows.trajectory_balance import trajectory_balance

Objective = Literal["plackett_luce", "top_one", "regression", "dpo", "dgpo", "trajectory_balance"]
Weight = Literal["elbo", "uniform"]
Scale = Literal["robust", "deviation", "none"]

TIE = 1e-6
"""Rewards that are nearer than this are equal."""


def stratified_times(
    groups: int, draws: int, generator: torch.Generator, low: float = 0.0, high: float = 1.0
) -> Float[Tensor, "g m"]:
    """One uniform time in each of ``draws`` equal parts of [low, high), the same for all candidates of a group."""
    inside = torch.rand(groups, draws, generator=generator, device=generator.device)
    return low + (high - low) * (torch.arange(draws, device=inside.device) + inside) / draws


UNIFORM_SHARE = 0.25
"""Share of importance-drawn times that stays uniform: no draw counts more than 1 / this times a uniform one."""


def importance_times(
    groups: int, draws: int, spread: float, generator: torch.Generator, high: float = 1.0
) -> tuple[Float[Tensor, "g m"], Float[Tensor, "g m"]]:
    """Times where the log-ratio's integrand is large, stratified, and the density that they are drawn with.

    Weights divided by the density give means without bias, at 0.4 (s = 0.1) to 0.8 (s = 0.6) of the error of
    :func:`stratified_times`.
    For two Gaussians of deviation s the root of the integrand's second moment is ``t / (t^2 s^2 + (1 - t)^2)^1.5``,
    whose integral is ``1 - (1 - t) / (t^2 s^2 + (1 - t)^2)^0.5`` up to factors; a quarter of the mass is uniform, for
    what is no Gaussian.

    Args:
        groups: rows.
        draws: times of a row, one in each of as many equally likely parts.
        spread: deviation s of the chunks of a state; half or twice the true one costs a fifth of the gain.
        generator: source of chance.
        high: end of the times.

    """

    def below(t: Tensor) -> Tensor:
        return 1 - (1 - t) / (t * spread).hypot(1 - t)

    share = stratified_times(groups, draws, generator).double()
    whole = below(torch.tensor(high, dtype=share.dtype, device=share.device))
    low, up = torch.zeros_like(share), torch.full_like(share, high)
    for _ in range(40):  # bisection: the law has no closed inverse
        t = 0.5 * (low + up)
        more = UNIFORM_SHARE * t / high + (1 - UNIFORM_SHARE) * below(t) / whole < share
        low, up = torch.where(more, t, low), torch.where(more, up, t)
    peaked = spread**2 * t / (t * spread).hypot(1 - t) ** 3 / whole
    return t.float(), (UNIFORM_SHARE / high + (1 - UNIFORM_SHARE) * peaked).float()


def time_weight(t: Float[Tensor, "*b"], weight: Weight = "elbo", cap: float = 49.0) -> Float[Tensor, "*b"]:
    """``min(t / (1 - t), cap)``, or ones.

    Uniform weight is the published choice. It is another functional: a shift of N(., sigma^2) counts
    pi sigma / 2 times its log-ratio, so narrow directions are under-charged
    (docs/methods/gdro.md#log-ratios-from-velocity-errors).
    """
    if weight == "uniform":
        return torch.ones_like(t)
    return (t / (1 - t).clamp(min=1e-12)).clamp(max=cap)


def log_ratio(
    error: Float[Tensor, "g m k"],
    reference: Float[Tensor, "g m k"],
    weight: Float[Tensor, "g m"],
    beta: float | Float[Tensor, ""] = 1.0,
    limit: float = math.inf,
) -> Float[Tensor, "g k"]:
    """Estimated ``log pi / pi_ref`` of every candidate, in nats where the weight is exact and ``beta`` is 1.

    Args:
        error: squared velocity errors of the policy, summed over dimensions, at m shared draws of (t, noise).
        reference: those of the reference.
        weight: of each draw, for times uniform on [0, 1]; divided by their density for other times.
        beta: 1 with the exact weight; see :func:`calibrated_beta`.
        limit: estimates are bent to stay inside +- this, ``limit tanh(s / limit)``.

    """
    scores = -beta * (weight.unsqueeze(2) * (error - reference)).mean(1)
    return scores if math.isinf(limit) else limit * torch.tanh(scores / limit)


def calibrated_beta(reference_error: float | Float[Tensor, ""], share: float = 0.1) -> float:
    """The ``beta`` for uniform weight: one unit of log-odds for ``share`` of the reference's error.

    ``reference_error`` is E|w - w_ref|^2 at uniform times, summed over dimensions; at the least
    pi sigma / 2 per principal direction of the behaviour.
    """
    if not float(reference_error) > 0:
        raise ConfigError(
            f"beta cannot be calibrated: the reference's velocity error is {float(reference_error)}",
            expected="above 0",
            fix="use the exact weight (--agent.weight elbo), which needs no calibration",
        )
    return 1.0 / (share * float(reference_error))


def global_scale(rewards: Float[Tensor, "n k"], scale: Scale = "robust") -> float:
    """Spread of the deviations from the group means, over all groups: the unit of rewards.

    'robust' is the inter-quartile range / 1.35, the deviation of a normal law. Never one scale per group: that
    would blow up noise where the candidates are equally good. 'deviation' is the root mean square, for rewards that
    mostly tie, such as success. 'none' is 1.
    """
    if scale == "none":
        return 1.0
    deviations = (rewards - rewards.mean(1, keepdim=True)).double().flatten()
    if scale == "deviation":
        value = float(deviations.square().mean().sqrt())
    else:
        low, high = deviations.quantile(torch.tensor([0.25, 0.75], dtype=torch.float64, device=deviations.device))
        value = float(high - low) / 1.35
    if not value > TIE:
        raise ConfigError(
            f"the {scale} scale of the rewards is {value:.2g}: "
            f"{'more than half of' if scale == 'robust' else 'all'} the candidates score like their group",
            fix="use --agent.scale deviation for scores that mostly tie, or make groups whose candidates differ",
        )
    return value


def advantages(rewards: Float[Tensor, "g k"], scale: float, clip: float = 3.0) -> Float[Tensor, "g k"]:
    """``(r - group mean) / scale``, clipped to +- ``clip``."""
    return ((rewards - rewards.mean(1, keepdim=True)) / scale).clamp(-clip, clip)


def spread_gate(rewards: Float[Tensor, "g k"], scale: float, least: float = 0.1) -> Float[Tensor, " g"]:
    """Weight of each group: its deviation over the global scale, at most 1, and 0 below ``least``.

    Groups without spread hold the noise of their scores and no preference.
    """
    spread = (rewards - rewards.mean(1, keepdim=True)).square().mean(1).sqrt() / scale
    return torch.where(spread < least, 0.0, spread.clamp(max=1.0))


def ranking(rewards: Float[Tensor, "g k"], tie: Float[Tensor, "g k"]) -> Int64[Tensor, "g k"]:
    """Candidates from best to worst; those that tie (nearer than 1e-6 to their neighbour) in the order of ``tie``.

    ``tie`` is uniform on [0, 1) and drawn anew for every update: a fixed order would teach a preference
    that nothing supports.
    """
    ordered, index = rewards.sort(dim=1, descending=True)
    falls = (ordered[:, :-1] - ordered[:, 1:] >= TIE).to(tie.dtype)
    level = torch.cat([torch.zeros_like(tie[:, :1]), falls.cumsum(1)], dim=1)
    return index.gather(1, (level + tie).argsort(dim=1))


def softened_targets(rewards: Float[Tensor, "g k"], temperature: float) -> Float[Tensor, "g k"]:
    """``softmax(r / tau)``: the shares of a group under ``pi_ref exp(r / tau)``, candidates drawn from ``pi_ref``."""
    return (rewards / temperature).softmax(dim=1)


def tilted_choice(targets: Float[Tensor, "g k"], uniform: Float[Tensor, " g"]) -> Int64[Tensor, " g"]:
    """A candidate per group drawn from ``targets``: where their distribution function passes ``uniform``."""
    return (targets.cumsum(1) < uniform.unsqueeze(1)).sum(1).clamp(max=targets.shape[1] - 1)


def top_one(scores: Float[Tensor, "g k"], rewards: Float[Tensor, "g k"], temperature: float) -> Float[Tensor, " g"]:
    """Cross-entropy of ``softmax(scores)`` against the softened targets."""
    return scores.logsumexp(1) - (softened_targets(rewards, temperature) * scores).sum(1)


def plackett_luce(
    scores: Float[Tensor, "g k"], rewards: Float[Tensor, "g k"], temperature: float, order: Int64[Tensor, "g k"]
) -> Float[Tensor, " g"]:
    """Plackett-Luce loss with softened targets: :func:`top_one` of the candidates from rank i on, summed over i < k.

    ``temperature`` -> 0 gives the negative log-likelihood of the ranking; with two candidates that is DPO. The
    gradient vanishes where ``scores = rewards / temperature + const``.

    Args:
        scores: log-ratios to the reference.
        rewards: higher is better.
        temperature: tau of ``pi_ref exp(r / tau)``.
        order: candidates from best to worst, see :func:`ranking`.

    """
    s, logits = scores.gather(1, order), rewards.gather(1, order) / temperature
    past = torch.ones(s.shape[1], s.shape[1], dtype=torch.bool, device=s.device).tril(-1)  # column before row
    remaining = logits.unsqueeze(1).masked_fill(past, -math.inf).softmax(dim=2)
    normalisers = s.unsqueeze(1).masked_fill(past, -math.inf).logsumexp(dim=2)
    terms = normalisers - (remaining * s.unsqueeze(1)).sum(2)
    return terms[:, :-1].sum(1)


def group_loss(
    objective: Objective,
    scores: Float[Tensor, "g k"],
    errors: Float[Tensor, "g k"],
    rewards: Float[Tensor, "g k"],
    temperature: float,
    order: Int64[Tensor, "g k"],
) -> Float[Tensor, " g"]:
    """Loss of each group under one of the objectives. Gradients pass through ``scores`` and ``errors`` alone.

    - 'plackett_luce': GDRO, a mean over the k - 1 ranks; 'top_one': its first term;
    - 'regression': ``sum_i q_i error_i``, weighted regression with the same targets. It pulls and never pushes: the
      control that says what the log-ratios are worth;
    - 'dpo': the best against the worst, ``-log sigmoid(s_best - s_worst)``; without a temperature;
    - 'dgpo': ``sigmoid(-mean_i A_i s_i) mean_i A_i error_i`` with advantages A of mean 0 and deviation 1 per group,
      the sigmoid held constant (Luo et al., code; ``s = -beta (error - reference)``);
    - 'trajectory_balance': ``scores`` are those of whole trajectories, see
      :mod:`flowpolicy.flows.trajectory_balance`.

    Args:
        objective: which.
        scores: log-ratios to the reference.
        errors: velocity errors of the policy, in the units of a velocity-matching loss.
        rewards: higher is better.
        temperature: tau of ``pi_ref exp(r / tau)``.
        order: candidates from best to worst, see :func:`ranking`.

    """
    if objective == "plackett_luce":
        return plackett_luce(scores, rewards, temperature, order) / (scores.shape[1] - 1)
    if objective == "trajectory_balance":
        return trajectory_balance(scores, rewards, temperature)
    if objective == "top_one":
        return top_one(scores, rewards, temperature)
    if objective == "regression":
        return (softened_targets(rewards, temperature) * errors).sum(1)
    if objective == "dpo":
        ranked = scores.gather(1, order)
        return -logsigmoid(ranked[:, 0] - ranked[:, -1])
    centred = rewards - rewards.mean(1, keepdim=True)
    deviation = centred.square().mean(1, keepdim=True).sqrt()
    advantage = torch.where(deviation < TIE, 0.0, centred / deviation.clamp(min=TIE))
    return torch.sigmoid(-(advantage * scores).mean(1)).detach() * (advantage * errors).mean(1)
