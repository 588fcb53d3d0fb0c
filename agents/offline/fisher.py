"""The Fisher Decorator: a behaviour flow, and a small residual that climbs the critic within a budget of nats.

Fisher Decorator (arXiv 2604.17919) on DeFlow (arXiv 2601.10471). The policy plays ``b + shift(s, b)``, b from the
behaviour flow, the shift trained on Q minus a weight times what it costs (:mod:`flowpolicy.flows.fisher_metric`). The
weight is adapted until the mean cost is the budget. What differs from the released code
(docs/methods/fisher-decorator.md):

- the true score, the curvature, or the KL to second order instead of a proxy, and no normalisation, so that the
  budget is in nats per dimension and one grid serves every task (``metric`` keeps the released form);
- the shift starts at exactly zero, so that early targets come from the behaviour and not from a random residual;
- optimisers of their own for critic, flow, shift and weight; the weight's logarithm is limited;
- what leaves the box is charged;
- the base may be a flow map (MeanFlow) whose diagonal gives the score: acting then costs two evaluations, not eleven.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flowpolicy.agents.base.agent_tags import register_config
from flowpolicy.agents.base.bricks import DERIVATIVE, flow_loss, flow_of, flow_sample, jump_to_action, map_loss, q_term
from flowpolicy.agents.base.optimizer import Adam
from flowpolicy.agents.base.value_learning import Transition, ValueAgent, ValueConfig
from flowpolicy.core import ranks
from flowpolicy.core.devices import exactly
from flowpolicy.core.protocols import Metrics
from flowpolicy.core.ranges import Few, NonNegative, Positive
from flowpolicy.core.references import Reference
from flowpolicy.core.streams import Streams, repeated, repeated_streams
from flowpolicy.flows import fisher_metric as fisher
from flowpolicy.flows.axes.time_laws import Ends, uniform
from flowpolicy.flows.fisher_metric import Metric
from flowpolicy.flows.straight import Field, interpolate
from flowpolicy.nets.mlp import MLP
from flowpolicy.policy.actor import Net, PolicyConfig
from flowpolicy.policy.samplers import MAP, Decorated, best_of_candidates


@register_config("fisher")
@dataclasses.dataclass(frozen=True)
class Fisher(ValueConfig):
    """Fisher Decorator."""

    references: ClassVar[tuple[Reference, ...]] = (
        Reference("Fisher Decorator: Refining Flow Policy via A Local Transport Map", "2604.17919"),
        Reference(
            "DeFlow: Decoupling Manifold Modeling and Value Maximization for Offline Policy Extraction", "2601.10471"
        ),
    )
    net: Net = MLP()
    """Trunk of the behaviour and of the shift."""
    base: Literal["map", "euler"] = "map"
    """Behaviour policy: 'map' is a MeanFlow map, one evaluation; 'euler' a velocity, ``flow_steps`` of them."""
    flow_steps: Few = 10
    """Euler steps per sample of the base 'euler'."""
    metric: Metric = Metric()
    """How a shift is charged."""
    budget: Positive = 0.01
    """Mean charge per dimension that is spent. In nats (``metric.normalise`` none): try 0.01, 0.05, 0.2, 0.5. As a mean
    square in action units ('iso' and normalised metrics): 0.001 to 0.01."""
    initial_weight: Positive = 10.0
    """Weight of the charge before it is adapted."""
    normalize_q: bool = True
    """Divide the Q term by the mean of abs(Q), so that the weight does not depend on the scale of the rewards."""
    overflow: NonNegative = 1.0
    """Weight of the squared distance of the decorated chunks from the box [-1, 1]."""
    pairs: Ends = Ends()
    """Law of the intervals [s, t] that the base 'map' is trained on."""
    candidates: Few = 1
    """Chunks generated and decorated per decision; the critic chooses."""
    decorator_optimizer: Adam = Adam(clip=1.0)
    """Optimiser of the shift."""
    dual_optimizer: Adam = Adam(lr=1e-3)
    """Optimiser of the logarithm of the weight, which moves by about ``lr`` per update."""

    @property
    def nfe(self) -> int:
        """Network evaluations per decision: for each candidate those of the base, and one of the shift."""
        return self.candidates * ((1 if self.base == "map" else self.flow_steps) + 1)

    def build(self, *args: Any, **kwargs: Any) -> FisherAgent:
        """The agent in training; arguments of :class:`ValueAgent`."""
        return FisherAgent(self, *args, **kwargs)


class Dual(nn.Module):
    """Weight of the charge, and the running mean precision for ``metric.normalise`` 'global'."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.log_weight = nn.Parameter(torch.tensor(math.log(weight)))
        self.register_buffer("precision", torch.ones(()))
        self.precision: Tensor


class FisherDraws(NamedTuple):
    """Everything random in one update; None where base or metric do not ask for it."""

    next_noise: Float[Tensor, "b h a"]
    """Of the next action."""
    z: Float[Tensor, "b h a"]
    """What the base starts from where its chunk is shifted."""
    noise: Float[Tensor, "b h a"]
    """What the behaviour starts from."""
    time: Float[Tensor, " b"]
    """Where the behaviour is trained; of a map, where its intervals start."""
    end: Float[Tensor, " b"] | None = None
    """Where they end."""
    blur: Float[Tensor, "b h a"] | None = None
    """Noise of the blurred base chunks, where curvature or divergence are taken."""
    probes: Float[Tensor, "b 2 d"] | None = None
    """Signs of Hutchinson's estimate of the divergence."""
    score_blur: Float[Tensor, "n h a"] | None = None
    """Noise of the blurred behaviour actions whose scores are taken, some for every row."""
    score_noise: Float[Tensor, "n h a"] | None = None
    """What these actions start from; None where they are the data's."""


class FisherAgent(ValueAgent):
    """Critic, behaviour, shift and weight in one backward pass; no gradient of one reaches another."""

    config: Fisher
    dual: Dual

    def describe_policy(self) -> PolicyConfig:
        """The base's evaluations and one of the shift."""
        config = self.config
        base = Decorated(MAP if config.base == "map" else flow_of("euler"))
        sampler = best_of_candidates(base, config.candidates, config.critic)
        return PolicyConfig(config.net, config.encoder, sampler)

    @property
    def exact(self) -> str:
        """What a shift costs is a quotient of small differences."""
        return "what shifts are charged" + (f", and {DERIVATIVE}" if self.config.base == "map" else "")

    def build_networks(self) -> None:
        """The dual variable."""
        self.dual = Dual(self.config.initial_weight)

    def groups(self) -> dict[str, Any]:
        """One optimiser each: a large gradient of one does not scale down the others."""
        config = self.config
        return super().groups() | {
            "decorator": (config.decorator_optimizer, ("actor.decorator",)),
            "dual": (config.dual_optimizer, ("dual",)),
        }

    def draw(self, action: Float[Tensor, "b h a"], generator: torch.Generator) -> FisherDraws:
        """Noises, times, and what the metric asks for."""
        config, metric = self.config, self.config.metric

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, device=action.device)

        batch, *size = action.shape
        noises = normal(3, batch, *size).unbind(0)
        times = config.pairs.intervals(batch, generator) if config.base == "map" else (uniform(batch, generator),)
        draws = FisherDraws(*noises, *times)
        if metric.mode in ("curv", "kl2"):
            draws = draws._replace(blur=normal(batch, *size))
        if metric.mode == "kl2":
            shape = (2, batch, math.prod(size))
            signs = torch.randint(0, 2, shape, generator=generator, device=action.device)
            draws = draws._replace(probes=(2.0 * signs - 1).transpose(0, 1))
        elif metric.mode != "iso":
            draws = draws._replace(score_blur=normal(batch * max(1, self._drawn), *size))
            if self._drawn:
                draws = draws._replace(score_noise=normal(batch * self._drawn, *size))
        return draws

    def losses(self, t: Transition, draws: FisherDraws, **switches: bool) -> tuple[dict[str, Tensor], Metrics]:
        """Temporal difference, behaviour, shift and weight."""
        with torch.no_grad():
            base = self.behave(t.next_obs, draws.next_noise)
            next_action = self.normalizer.within(base + self.shift(base, self.actor.encoder(t.next_obs).cond))
            target = self.bootstrap(t, self.target.value(t.next_obs, next_action))
        critic, metrics = self.critic_loss(t, target)
        if self.config.base == "map":
            flow = map_loss(self.actor, t, draws.noise, draws.time, _given(draws.end), self.config.pairs)[0]
        else:
            flow = flow_loss(self.actor, t, draws.noise, draws.time)
        decorator, dual, more = self.decorator_losses(t, draws)
        return {"critic": critic, "flow": flow, "decorator": decorator, "dual": dual}, metrics | more

    def decorator_losses(self, t: Transition, draws: FisherDraws) -> tuple[Tensor, Tensor, Metrics]:
        """``-Q(s, b + shift) + weight * charge + overflow``, which reaches the shift alone, and the weight's loss."""
        config, dual = self.config, self.dual
        cond = self.actor.encoder(t.obs).cond.detach()
        base = self.behave(t.obs, draws.z)
        shift = self.shift(base, cond)
        chunk = base + shift
        climb, metrics = q_term(self.critic, t.obs, self.normalizer.within(chunk), normalize=config.normalize_q)
        with exactly(base.device):
            charge = self.charge(t, cond.float(), base.float(), shift.float(), draws)
        spent, beyond = ranks.mean(charge.divergence), fisher.overflow(chunk)
        loss = climb + dual.log_weight.exp().detach() * spent + config.overflow * beyond
        metrics |= {
            "charge": spent.detach(),
            "weight": dual.log_weight.exp().detach(),
            "overflow": beyond.detach(),
            "shift_rms": ranks.mean(shift.detach().square()).sqrt(),
            "precision": charge.scale.detach(),
        }
        return loss, fisher.dual_loss(dual.log_weight, spent, config.budget), metrics

    def charge(self, t: Transition, cond: Tensor, base: Tensor, shift: Tensor, draws: FisherDraws) -> fisher.Charge:
        """What the shifts (b, h, a) of the base chunks cost, per row; the gradient reaches the shift alone."""
        metric, flat = self.config.metric, shift.flatten(1)
        if metric.mode == "iso":
            return fisher.charge(metric, flat)
        if metric.sampled:
            return fisher.charge(metric, flat, self.scores(t, cond, draws), self.dual.precision)
        time = base.new_full(base.shape[:1], metric.time)
        x, one = interpolate(_given(draws.blur), base, time), flat.new_ones(())
        field = self.field(cond)
        if metric.mode == "curv":
            tangent = fisher.derivative(field, x, time, shift.detach()).flatten(1)
            return fisher.Charge(fisher.charge_curvature(metric, flat, tangent, self.scores(t, cond, draws)), one)
        with torch.no_grad():
            score = fisher.action_score(x, field(x, time), time).flatten(1)
        # The blurred density is that of x / t, so shift and divergence are taken there, not at the base chunk.
        moved, divergences = fisher.shift_and_divergence(
            lambda a: self.shift(a.view(shift.shape), cond).flatten(1),
            (x / metric.time).flatten(1),
            _given(draws.probes).transpose(0, 1),
        )
        return fisher.Charge(fisher.charge_kl(metric, moved, score, divergences), one)

    @torch.no_grad()
    def scores(self, t: Transition, cond: Tensor, draws: FisherDraws) -> Float[Tensor, "b k d"]:
        """Scores, or what the released code takes for them, of k behaviour actions per state."""
        metric, count = self.config.metric, max(1, self._drawn)
        noise = draws.score_noise
        action = t.action if noise is None else self.behave(repeated_streams(t.obs, count), noise)
        time = action.new_full(action.shape[:1], metric.time)
        x = interpolate(_given(draws.score_blur), action, time)
        v = self.field(repeated(cond, count))(x, time)
        score = fisher.proxy_score(v, time) if metric.mode == "proxy" else fisher.action_score(x, v, time)
        return score.view(len(cond), count, -1)

    def field(self, cond: Float[Tensor, "b c"]) -> Field:
        """Velocity of the behaviour; of a flow map, its diagonal."""
        net = self.actor.net
        if self.config.base == "map":
            return fisher.diagonal(lambda x, s, t: net(x, s, t, cond).value)
        return lambda x, t: net(x, t, cond).value

    def behave(self, obs: Streams, noise: Float[Tensor, "b h a"]) -> Float[Tensor, "b h a"]:
        """Chunks of the behaviour policy, clamped, without gradients."""
        if self.config.base == "map":
            return self.normalizer.within(jump_to_action(self.actor, obs, noise))
        return self.normalizer.within(flow_sample(self.actor, obs, noise, self.config.flow_steps, "euler"))

    def shift(self, base: Float[Tensor, "b h a"], cond: Float[Tensor, "b c"]) -> Float[Tensor, "b h a"]:
        """The residual of chunks."""
        assert self.actor.decorator is not None
        chunk: Tensor = self.actor.decorator(base, cond).value
        return chunk

    def advance(self, loss: Tensor, metrics: Metrics, rows: int, **switches: bool) -> Metrics:
        """The step; then the weight's limits and the running precision."""
        metrics = super().advance(loss, metrics, rows, **switches)
        with torch.no_grad():
            self.dual.log_weight.clamp_(-fisher.LOG_WEIGHT_LIMIT, fisher.LOG_WEIGHT_LIMIT)
            self.dual.precision.lerp_(metrics["precision"], self._rate(self.updates))
        return metrics

    def numbers(self) -> tuple[float, ...]:
        """How fast the running precision follows."""
        return (self._rate(self.updates + 1),)

    @staticmethod
    def _rate(updates: int) -> float:
        return max(0.01, 1 / updates)

    @property
    def _drawn(self) -> int:
        """Behaviour samples per state that the metric asks for."""
        metric = self.config.metric
        return metric.samples if metric.sampled else 0


def _given(drawn: Tensor | None) -> Tensor:
    """What base or metric asked for."""
    assert drawn is not None
    return drawn
