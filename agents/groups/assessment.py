"""Whether a post-trained policy is better, or only better liked by its training judge."""

from __future__ import annotations

import dataclasses

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from flowpolicy.agents.groups.group_file import Groups
from flowpolicy.agents.groups.judges import Judge, load_judge
from flowpolicy.core.errors import DataError
from flowpolicy.core.protocols import Metrics
from flowpolicy.core.seed import torch_generator
from flowpolicy.core.streams import Streams
from flowpolicy.data.normalize import Normalizer
from flowpolicy.flows.group_objectives import Weight, importance_times, time_weight
from flowpolicy.nets.flow_nets import MapNet
from flowpolicy.policy.actor import Actor
from flowpolicy.policy.policy import Policy

STATES, SAMPLES, DRAWS = 64, 4, 16
"""Held-out states of an assessment, chunks per state, and draws (time, noise) per chunk."""
LATEST_TIME = 0.98
"""Where the integral over times is cut: for a single model it diverges, logarithmically, at the data."""


@dataclasses.dataclass(frozen=True)
class Assessment:
    """The newest assessment and the best one. All gains are over the base, in units of the global scale."""

    reward_gain: float = 0.0
    """By the judge that stands for the training rewards."""
    held_out_gain: float = 0.0
    """By the judge that trained nothing."""
    corrected_gain: float = 0.0
    """``held_out_gain`` minus the price of leaving the support of the behaviour; early stopping goes by it."""
    hacking_gap: float = 0.0
    """``reward_gain - held_out_gain``; above half of ``reward_gain`` the rewards are being exploited."""
    unsupported: float = 0.0
    """Mean nats by which chunks are less likely under the base than 95 % of the data's."""
    kl: float = 0.0
    """Estimated divergence from the base, nats per chunk."""
    best_corrected: float = 0.0
    """The best ``corrected_gain`` so far; the base has 0."""
    best_update: float = 0.0
    """The update that had it."""
    stale: float = 0.0
    """Assessments since."""

    def metrics(self) -> Metrics:
        """As a row of ``metrics.csv``."""
        return {name: torch.tensor(value) for name, value in dataclasses.asdict(self).items()}


class Assessor:
    """Judges policies at held-out states, with the same noise every time.

    Args:
        groups: with the judges ``train`` and ``held_out``, and held-out states.
        base: the policy that gains are counted from; also the model of the behaviour's support.
        scale: global unit of the scores.
        support_weight: corrected score lost per nat outside the support.
        support_limit: nats outside the support, more than the base, beyond which no policy is the best.
        seed: of the noise.
        device: where the policies live.

    Raises:
        DataError: the group file has no held-out state, or lacks a judge.

    """

    def __init__(
        self,
        groups: Groups,
        base: Policy,
        scale: float,
        support_weight: float,
        support_limit: float,
        *,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        if not bool(groups.held_out.any()) or not {"train", "held_out"} <= set(groups.judges):
            raise DataError(
                f"{groups.path} holds {int(groups.held_out.sum())} held-out states and the judges "
                f"{', '.join(groups.judges) or 'none'}",
                expected="held-out states, and the judges train and held_out",
                fix="make the groups again with `flowpolicy groups make`, --held-out-share above 0",
            )
        self.base, self.scale = base.to(device), scale
        self.support_weight, self.support_limit = support_weight, support_limit
        self.judges: dict[str, Judge] = {name: load_judge(groups.judges[name]).to(device) for name in groups.judges}
        rows = groups.held_out.nonzero().flatten()[:STATES]
        self.obs = {k: v[rows].repeat_interleave(SAMPLES, 0).to(device) for k, v in groups.obs.items()}
        self.valid = groups.valid[rows].repeat_interleave(SAMPLES, 0).to(device)
        shape = (len(self.valid), *groups.action.shape[2:])
        generator = torch_generator(seed, "assess")
        self.noise = torch.randn(shape, generator=generator).to(device)
        self.spread = spread_of(groups, base.normalizer)
        times = importance_times(shape[0], DRAWS, self.spread, generator, high=LATEST_TIME)
        self.t, self.density = (value.to(device) for value in times)
        self.draws = torch.randn((shape[0], DRAWS, *shape[1:]), generator=generator).to(device)
        data = groups.action[rows, 0].repeat_interleave(SAMPLES, 0).to(device)
        self.threshold = self.surprise(base.actor, data).quantile(0.95)
        self.start = self.raw(base)
        # E|w - w_ref|^2 on the data, at uniform times: what beta is calibrated by.
        self.reference_error = float(self.surprise(base.actor, data, "uniform").mean())

    @torch.no_grad()
    def surprise(self, actor: Actor, chunk: Float[Tensor, "n h a"], weight: Weight = "elbo") -> Float[Tensor, " n"]:
        """``E omega(t) |w - w_actor|^2`` of chunks in environment units; in nats, up to a constant, under 'elbo'."""
        chunks, obs = self.base.normalizer.action(chunk).unsqueeze(1), self.base.streams(self.obs)
        error = velocity_errors(actor, obs, chunks, self.valid, self.t, self.draws).squeeze(2)
        return (time_weight(self.t, weight) / self.density * error).mean(1)

    @torch.no_grad()
    def raw(self, policy: Policy) -> dict[str, float]:
        """Mean judgements of what a policy does at the held-out states."""
        chunk = policy.act_from(self.obs, self.noise, policy.contract.nfe).clone()
        surprise = self.surprise(self.base.actor, chunk)
        values = {name: float(judge(self.obs, chunk).mean()) / self.scale for name, judge in self.judges.items()}
        unsupported = float((surprise - self.threshold).relu().mean())
        corrected = values["held_out"] - self.support_weight * unsupported
        kl = float((surprise - self.surprise(policy.actor, chunk)).mean())
        return {**values, "unsupported": unsupported, "corrected": corrected, "kl": kl}

    def assess(self, policy: Policy, before: Assessment, update: int) -> tuple[Assessment, bool]:
        """The assessment of ``policy`` after ``update`` updates, and whether it is the best so far."""
        raw = self.raw(policy)
        gain = {name: raw[name] - self.start[name] for name in ("train", "held_out", "corrected")}
        # Where judges were never trained they can be wrong together, by more than any price per nat: on Can two
        # independent IQL critics gave 10 units of the global scale to a policy 17 nats outside.
        supported = raw["unsupported"] <= self.start["unsupported"] + self.support_limit
        improved = supported and gain["corrected"] > before.best_corrected
        found = Assessment(
            reward_gain=gain["train"],
            held_out_gain=gain["held_out"],
            corrected_gain=gain["corrected"],
            hacking_gap=gain["train"] - gain["held_out"],
            unsupported=raw["unsupported"],
            kl=raw["kl"],
            best_corrected=gain["corrected"] if improved else before.best_corrected,
            best_update=float(update) if improved else before.best_update,
            stale=0.0 if improved else before.stale + 1,
        )
        return found, improved


def spread_of(groups: Groups, normalizer: Normalizer) -> float:
    """Deviation of the normalised candidates of a state from their mean, over all groups and numbers."""
    chunks = normalizer.action(groups.action.to(normalizer.action_scaling.scale.device))
    valid = groups.valid.to(chunks.device)[:, None, :, None].expand_as(chunks)
    apart = (chunks - chunks.mean(1, keepdim=True))[valid]
    count = chunks.shape[1]
    return max(float((apart.square().mean() * count / max(count - 1, 1)).sqrt()), 0.01)


def field(actor: Actor, x: Tensor, t: Float[Tensor, " b"], cond: Tensor) -> Tensor:
    """Velocity of a velocity network, or of the diagonal of a flow map."""
    network = actor.net
    value: Tensor = (network(x, t, t, cond) if isinstance(network, MapNet) else network(x, t, cond)).value
    return value


def velocity_errors(
    actor: Actor,
    obs: Streams,
    chunks: Float[Tensor, "g k h a"],
    valid: Bool[Tensor, "g h"],
    t: Float[Tensor, "g m"],
    noise: Float[Tensor, "g m h a"],
) -> Float[Tensor, "g m k"]:
    """Squared velocity errors of normalised chunks, summed over their valid entries; draws shared in a group."""
    (g, k, h, a), m = chunks.shape, t.shape[1]
    cond = actor.encoder(obs).cond
    time = t.reshape(g, m, 1, 1, 1)
    x = (1 - time) * noise.unsqueeze(2) + time * chunks.unsqueeze(1)
    target = chunks.unsqueeze(1) - noise.unsqueeze(2)
    times = t.unsqueeze(2).expand(g, m, k).reshape(-1)
    conds = cond[:, None, None].expand(g, m, k, cond.shape[1]).reshape(-1, cond.shape[1])
    predicted = field(actor, x.reshape(-1, h, a), times, conds).view(g, m, k, h, a)
    return ((target - predicted).square() * valid[:, None, None, :, None]).sum((3, 4))
