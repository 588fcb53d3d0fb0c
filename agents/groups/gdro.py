"""GDRO: post-training of a flow policy from groups of scored candidates, without the environment.

Group-level direct reward optimisation (arXiv 2601.02036) carried from images to action chunks; the mathematics is in
docs/methods/gdro.md. The policy starts as a copy of the base and is told which log-ratios to the base its candidates
should have: ``advantage / temperature``, up to a constant of the state. On a flow map the diagonal is post-trained, and
the map follows it: it stays the flow of its own velocity at points of reference-tilted samples, so that the result
still acts in one evaluation.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, cast

import torch
import tyro
from jaxtyping import Bool, Float
from torch import Tensor
from typing_extensions import override

from flowpolicy.agents.base.agent import joined, parted
from flowpolicy.agents.base.agent_tags import register_config
from flowpolicy.agents.base.bricks import DERIVATIVE
from flowpolicy.agents.base.imitation import ImitationAgent, ImitationConfig
from flowpolicy.agents.base.optimizer import Optimizer
from flowpolicy.agents.groups.assessment import Assessment, Assessor, field, velocity_errors
from flowpolicy.agents.groups.group_file import Groups
from flowpolicy.core import keys
from flowpolicy.core.columns import plain
from flowpolicy.core.devices import exactly
from flowpolicy.core.errors import ConfigError
from flowpolicy.core.protocols import Metrics
from flowpolicy.core.ranges import Count, Few, Natural, NonNegative, Positive, Share
from flowpolicy.core.references import Reference
from flowpolicy.core.seed import torch_generator
from flowpolicy.core.spec import Contract
from flowpolicy.core.streams import Streams
from flowpolicy.data.normalize import Normalizer
from flowpolicy.flows import group_objectives as mathematics
from flowpolicy.flows.axes.consistency import MeanFlow, Problem
from flowpolicy.flows.axes.interpolants import Linear
from flowpolicy.flows.axes.losses import Squared, matching_loss
from flowpolicy.flows.axes.time_laws import Ends, uniform
from flowpolicy.flows.group_objectives import Objective, Scale, Weight
from flowpolicy.flows.straight import interpolate, velocity
from flowpolicy.flows.trajectory_balance import Kernels, kernels, noised_path, path_log_ratio
from flowpolicy.nets.flow_nets import MapNet
from flowpolicy.policy.actor import Actor
from flowpolicy.policy.policy import Policy
from flowpolicy.policy.samplers import MAP, Sampler

_GROUPS = 256  # on which the reference's uncertainty is measured
PUBLISHED = (Reference("GDRO: Group-level Reward Post-training Suitable for Diffusion Models", "2601.02036"),)
BALANCE = (
    Reference("Flow Network based Generative Models for Non-Iterative Diverse Candidate Generation", "2106.04399"),
    Reference("Amortizing intractable inference in diffusion models for vision, language, and control", "2405.20971"),
)


@register_config("gdro")
@dataclasses.dataclass(frozen=True)
class GDRO(ImitationConfig):
    """Group-level reward post-training. Network, encoder, sizes and sampler are those of the base."""

    needs: ClassVar[str] = "groups"
    optimizer: Optimizer = Optimizer(lr=1e-4, warmup=50, schedule="constant", ema=0.99)
    """Optimiser and averaging; the learning rate is a tenth of that of behaviour cloning."""
    sampler: Annotated[Sampler, tyro.conf.Suppress] = MAP
    """How the policy generates a chunk; the base's."""
    nfe: Few = 1
    """Network evaluations per chunk; the base's."""
    objective: Objective = "plackett_luce"
    """'plackett_luce' (GDRO), 'top_one', 'regression' (the control), 'dpo', 'dgpo' or 'trajectory_balance'."""
    temperature: Positive = 1.0
    """tau of pi_ref exp(advantage / tau), in units of the global scale; the knob to tune: 0.3, 1, 3."""
    scale: Scale = "robust"
    """Global unit of the scores: 'robust', 'deviation' for scores that mostly tie (success), or 'none'."""
    gate: NonNegative = 0.1
    """Groups whose scores spread less than this share of the global scale are ignored."""
    weight: Weight = "elbo"
    """'elbo': t / (1 - t), capped; the scores then are nats. 'uniform': as published, with a calibrated beta."""
    beta: NonNegative = 0.0
    """Factor of the velocity errors; 0 stands for 1 under 'elbo' and for the calibration under 'uniform'."""
    draws: Few = 4
    """Stratified draws (time, noise) per group, shared by its candidates. At 1 or 2 the policy over-tilts."""
    times: Literal["uniform", "importance"] = "uniform"
    """'importance' draws times where the log-ratios of Gaussian candidates vary most, under the weight 'elbo': half the
    error at equal cost. Not the default: what precise log-ratios teach is learned nearest to the data, and on a
    Gaussian the policy then moves 0.6 of the way of the closed form (64 uniform draws: 0.65; 16: 0.9)."""
    path_steps: Few = 8
    """Steps of the trajectories of 'trajectory_balance', in the place of ``draws``, ``weight`` and ``beta``."""
    anchor: NonNegative = 0.1
    """Weight of velocity matching on the best candidate: keeps all likely. Long chunks need more (gdro-can: 300)."""
    bc_weight: NonNegative = 0.5
    """Weight of velocity matching on the dataset, which keeps the field valid everywhere."""
    map_weight: NonNegative = 1.0
    """Weight of the self-consistency of a flow map; without effect on a velocity network."""
    pairs: Ends = Ends(share_diagonal=0.0, share_endpoint=0.5)
    """Law of the intervals on which a flow map is kept consistent."""
    reference_rate: Share = 0.0
    """Share of the way to the averaged policy that the reference moves per update; 0 freezes it."""
    assess_every: Count = 100
    """Updates between two assessments by the held-out judge."""
    support_weight: NonNegative = 0.1
    """Corrected score lost per nat outside the support of the behaviour."""
    support_limit: NonNegative = 3.0
    """Policies this many nats further outside the support than the base are never kept."""
    early_stopping: bool = True
    """Keep the assessed policy with the best corrected score, the base included; otherwise the newest."""
    patience: Natural = 0
    """Assessments without a new best after which training stops; 0 never stops."""

    @property
    def references(self) -> tuple[Reference, ...]:  # type: ignore[override]
        """GDRO's, and those of an objective that is not its own."""
        return PUBLISHED + BALANCE if self.objective == "trajectory_balance" else PUBLISHED

    def build(self, *args: Any, **kwargs: Any) -> GDROAgent:
        """The agent in training; arguments of :class:`GDROAgent`."""
        if kwargs.keys().isdisjoint({"base", "groups"}):
            raise ConfigError("GDRO post-trains and cannot start from nothing", expected="--base RUN --groups FILE")
        return GDROAgent(self, *args, **kwargs)


class GDRODraws(NamedTuple):
    """Everything random in one update: g groups of k candidates, and g windows of the dataset."""

    t: Float[Tensor, "g m"]
    density: Float[Tensor, "g m"]
    """Density with which the times are drawn; 1 where they are uniform."""
    noise: Float[Tensor, "g m h a"]
    tie: Float[Tensor, "g k"]
    member: Float[Tensor, " g"]
    """Which candidate the map is trained on, see :func:`flowpolicy.flows.group_objectives.tilted_choice`."""
    bc_t: Float[Tensor, " b"]
    bc_noise: Float[Tensor, "b h a"]
    path: Float[Tensor, "g n k h a"]
    """Noise of the trajectories of 'trajectory_balance'; n is 0 for the other objectives."""
    map_noise: Float[Tensor, "n h a"]
    """What the map's intervals start from: of a candidate of every group, and of every window."""
    start: Float[Tensor, " n"]
    """Of these intervals."""
    end: Float[Tensor, " n"]
    """Of the same intervals."""


class GDROAgent(ImitationAgent):
    """Trains a copy of the base on groups, and acts as the base does.

    Args:
        config: options.
        contract: sizes and conventions, the base's.
        normalizer: the base's.
        base: the policy to improve.
        groups: scored candidates of the base.
        **options: of :class:`ImitationAgent`.

    """

    config: GDRO

    def __init__(
        self, config: GDRO, contract: Contract, normalizer: Normalizer, *, base: Policy, groups: Groups, **options: Any
    ) -> None:
        super().__init__(config, contract, normalizer, **options)
        self.actor.load_state_dict(base.actor.state_dict())
        self.ema.restart(self.actor)
        self.best = {name: value.clone() for name, value in self.ema.state_dict().items()}
        self.reference = copy.deepcopy(self.actor).requires_grad_(False)
        self.scale = mathematics.global_scale(groups.score[~groups.held_out], config.scale)
        place: dict[str, Any] = {"seed": options["seed"], "device": options.get("device", "cpu")}
        self.assessor = Assessor(groups, base, self.scale, config.support_weight, config.support_limit, **place)
        self.assessment = Assessment(unsupported=self.assessor.start["unsupported"])
        self.beta = config.beta or 1.0
        if config.weight == "uniform" and not config.beta:
            self.beta = mathematics.calibrated_beta(self.assessor.reference_error)
        balanced = config.objective == "trajectory_balance"
        self.chain = chain_of(self.reference, groups, self.normalizer, config.path_steps) if balanced else None

    @property
    def sampler(self) -> Sampler:
        """The base's."""
        return self.config.sampler

    @property
    def exact(self) -> str:
        """The self-consistency of a flow map."""
        flow = self.config.sampler.flow
        return DERIVATIVE if flow and flow.sampling.two_time else ""

    @property
    def waits(self) -> str:
        """Assessments."""
        return "its policy is assessed after some of the updates, by the processor"

    @property
    def stopped(self) -> bool:
        """Whether patience has run out."""
        return 0 < self.config.patience <= int(self.assessment.stale)

    def draw(self, action: Float[Tensor, "g k h a"], generator: torch.Generator) -> GDRODraws:
        """Noises, times, lots and intervals."""
        (g, k, h, a), m = action.shape, self.config.draws
        place: dict[str, Any] = {"generator": generator, "device": action.device}
        t, density = self.draw_times(g, m, generator)
        return GDRODraws(
            t,
            density,
            noise=torch.randn((g, m, h, a), **place),
            tie=torch.rand((g, k), **place),
            member=torch.rand(g, **place),
            bc_t=uniform(g, generator),
            bc_noise=torch.randn((g, h, a), **place),
            path=torch.randn((g, self.config.path_steps if self.chain else 0, k, h, a), **place),
            map_noise=torch.randn((2 * g, h, a), **place),
            **dict(zip(("start", "end"), self.config.pairs.intervals(2 * g, generator), strict=True)),
        )

    def draw_times(self, g: int, m: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Times (g, m) of the velocity errors, and the density that they are drawn with."""
        config = self.config
        by_ratios = config.weight == "elbo" and config.objective not in ("regression", "trajectory_balance")
        if config.times == "importance" and by_ratios:
            return mathematics.importance_times(g, m, self.assessor.spread, generator)
        t = mathematics.stratified_times(g, m, generator)
        return t, torch.ones_like(t)

    @override
    def arguments(self, batch: Mapping[str, Any], generator: torch.Generator) -> tuple[Any, ...]:
        group = batch[keys.GROUP]
        windows = {name: value for name, value in batch.items() if name != keys.GROUP}
        return plain(windows), plain(group), self.draw(group[keys.ACTION], generator)

    def advance(self, loss: Tensor, metrics: Metrics, rows: int, **switches: bool) -> Metrics:
        """The step, and after every ``assess_every`` of them an assessment; its values stand until the next."""
        metrics = super().advance(loss, metrics, rows, **switches)
        slow, average = dict(self.reference.named_parameters()), self.ema.state_dict()
        with torch.no_grad():
            torch._foreach_lerp_(list(slow.values()), [average[name] for name in slow], self.config.reference_rate)
        if self.updates % self.config.assess_every == 0:
            self.assess()
        return metrics | self.assessment.metrics()

    def loss(  # type: ignore[override]
        self, windows: dict[str, Any], group: dict[str, Any], draws: GDRODraws
    ) -> tuple[Float[Tensor, ""], Metrics]:
        """Group loss, anchor, behaviour cloning and, on a flow map, self-consistency."""
        config = self.config
        chunks, valid = self.normalizer.action(group[keys.ACTION]), group[keys.VALID]
        scaled = mathematics.advantages(group[keys.SCORE], self.scale)
        gate = mathematics.spread_gate(group[keys.SCORE], self.scale, config.gate)
        order = mathematics.ranking(scaled, draws.tie)
        obs, own = self.streams(group[keys.OBS]), self.streams(windows[keys.OBS])
        data = self.normalizer.action(windows[keys.ACTION])
        scores, errors = self.scored(obs, chunks, valid, draws)
        preference = mathematics.group_loss(config.objective, scores, errors, scaled, config.temperature, order)
        best = order[:, :1]
        terms = {
            "group_loss": (gate * preference).mean(),
            "anchor_loss": (gate * errors.gather(1, best).squeeze(1)).mean(),
            "bc_loss": self.behaviour_loss(own, data, windows[keys.VALID], draws),
        }
        weights = {"group_loss": 1.0, "anchor_loss": config.anchor, "bc_loss": config.bc_weight}
        if config.sampler.flow and config.sampler.flow.sampling.two_time:
            chosen = mathematics.tilted_choice(mathematics.softened_targets(scaled, config.temperature), draws.member)
            tilted = chunks[torch.arange(len(chunks), device=chunks.device), chosen]
            both = {name: torch.cat([obs[name], own[name]]) for name in obs}
            chunks, valid = torch.cat([tilted, data]), torch.cat([valid, windows[keys.VALID]])
            with exactly(chunks.device):
                terms["map_loss"] = self.map_loss(both, chunks, valid, draws)
            weights["map_loss"] = config.map_weight
        total = torch.stack([weights[name] * value for name, value in terms.items()]).sum()
        metrics = {name: value.detach() for name, value in terms.items()}
        # Whether likelihood drifts away from all candidates, as in DPO: the best should not fall below -1 nat.
        metrics["best_log_ratio"] = scores.detach().gather(1, best).mean()
        metrics["gate"] = gate.mean()
        return total, metrics

    def scored(
        self,
        obs: Streams,
        chunks: Float[Tensor, "g k h a"],
        valid: Bool[Tensor, "g h"],
        draws: GDRODraws,
    ) -> tuple[Float[Tensor, "g k"], Float[Tensor, "g k"]]:
        """Log-ratios to the reference of normalised candidates, and their errors in the units of velocity matching.

        'trajectory_balance' takes the log-ratios of whole trajectories, the other objectives estimate them from
        velocity errors. Gradients pass through both results.
        """
        error = velocity_errors(self.actor, obs, chunks, valid, draws.t, draws.noise)
        entries = (valid.sum(1, keepdim=True) * chunks.shape[3]).clamp(min=1)
        errors = (error / draws.density.unsqueeze(2)).mean(1) / entries
        if self.chain is not None:
            states = noised_path(chunks, draws.path)
            predicted = predicted_chunks(self.actor, obs, states[:, :-1], self.chain)
            with torch.no_grad():
                known = predicted_chunks(self.reference, obs, states[:, :-1], self.chain)
            return path_log_ratio(states, predicted, known, self.chain, valid), errors
        with torch.no_grad():
            known = velocity_errors(self.reference, obs, chunks, valid, draws.t, draws.noise)
        weight = mathematics.time_weight(draws.t, self.config.weight) / draws.density
        return mathematics.log_ratio(error, known, weight, self.beta, limit=20.0), errors

    def behaviour_loss(
        self, obs: Streams, data: Float[Tensor, "b h a"], valid: Bool[Tensor, "b h"], draws: GDRODraws
    ) -> Float[Tensor, ""]:
        """Velocity matching on the dataset."""
        cond = self.actor.encoder(obs).cond
        predicted = field(self.actor, interpolate(draws.bc_noise, data, draws.bc_t), draws.bc_t, cond)
        return matching_loss(predicted, velocity(draws.bc_noise, data), valid)

    def map_loss(
        self,
        obs: Streams,
        data: Float[Tensor, "n h a"],
        valid: Bool[Tensor, "n h"],
        draws: GDRODraws,
    ) -> Float[Tensor, ""]:
        """The map against the flow of its own diagonal, at points of tilted candidates and of the dataset.

        The target is MeanFlow's with the network's own velocity in the place of the conditional one: what moved on
        the diagonal is carried to every interval, (0, 1) among them.
        """
        network, cond = cast(MapNet, self.actor.net), self.actor.encoder(obs).cond
        s, t = draws.start, draws.end
        x = interpolate(draws.map_noise, data, s)
        with torch.no_grad():
            own = network(x, s, s, cond).value
        problem = Problem(network, x, own, s, t, cond, diagonal=0)
        return MeanFlow().loss(problem, valid, Squared(), Linear())[0]

    def assess(self) -> None:
        """Judge the averaged policy; keep it if its corrected score is the best so far."""
        average = self.ema.state_dict()
        self.assessment, improved = self.assessor.assess(self.policy(average), self.assessment, self.updates)
        if improved:
            self.best = {name: value.clone() for name, value in average.items()}

    def chosen(self) -> dict[str, Tensor]:
        """Weights of the policy: the best assessed ones, or the newest average."""
        return self.best if self.config.early_stopping else self.ema.state_dict()

    def policy(self, weights: Mapping[str, Tensor] | None = None) -> Policy:
        """The policy with the chosen weights, or with those given."""
        policy = copy.deepcopy(self.assessor.base)  # a new one would draw its weights from the global generator
        policy.contract, policy.evaluations = self.contract, 0
        policy.actor.load_state_dict(dict(self.chosen() if weights is None else weights))
        return policy

    def state_dict(self) -> dict[str, dict[str, Tensor]]:  # type: ignore[override]
        """Files of a checkpoint; ``ema`` holds the chosen weights, ``training`` the average and the reference."""
        training = joined(
            average=self.ema.state_dict(),
            best=self.best,
            reference=self.reference.state_dict(),
            assessment={name: value.double() for name, value in self.assessment.metrics().items()},
        )
        return {**super().state_dict(), "ema": self.chosen(), "training": training}

    @override
    def _load(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        parts = parted(state["training"], "average", "best", "reference", "assessment")
        super()._load({**state, "ema": parts["average"]})
        self.reference.load_state_dict(parts["reference"])
        for name, best in self.best.items():
            best.copy_(parts["best"][name])
        self.assessment = Assessment(**{name: float(value) for name, value in parts["assessment"].items()})


def predicted_chunks(
    actor: Actor, obs: Streams, states: Float[Tensor, "g n k h a"], chain: Kernels
) -> Float[Tensor, "g n k h a"]:
    """Chunks that a policy predicts from the states of trajectories, ``x + (1 - t) v(x, t)``."""
    g, n, k, h, a = states.shape
    cond = actor.encoder(obs).cond
    conds = cond[:, None, None].expand(g, n, k, cond.shape[1]).reshape(-1, cond.shape[1])
    times = chain.start.reshape(1, n, 1).expand(g, n, k).reshape(-1)
    velocity = field(actor, states.reshape(-1, h, a), times, conds).view(states.shape)
    return states + (1 - chain.start).reshape(1, n, 1, 1, 1) * velocity


@torch.no_grad()
def chain_of(reference: Actor, groups: Groups, normalizer: Normalizer, steps: int) -> Kernels:
    """The chain of a reference, whose uncertainty about the chunk is measured on candidates; the same every time."""
    place = normalizer.action(groups.action[:1]).device
    chunks = normalizer.action(groups.action[:_GROUPS].to(place))
    obs = reference.streams(normalizer, {name: value[:_GROUPS].to(place) for name, value in groups.obs.items()})
    noise = torch.randn((len(chunks), steps, *chunks.shape[1:]), generator=torch_generator(0, "chain")).to(place)
    states = noised_path(chunks, noise)[:, :-1]
    start = kernels(torch.zeros(steps, device=place))
    error = (predicted_chunks(reference, obs, states, start) - chunks.unsqueeze(1)).square()
    valid = groups.valid[:_GROUPS].to(place)[:, None, None, :, None].expand_as(error)
    return kernels((error * valid).sum((0, 2)) / valid.sum((0, 2)).clamp(min=1))
