"""Samplers: how a policy turns networks, observations and noise into a chunk. One class is one way of acting.

``Direct``, ``OneStep``, ``Mip`` and ``FlowSampler`` ask networks; ``BestOf``, ``Decorated``, ``Prefixed`` and
``Guided`` wrap another sampler. A sampler says which networks it needs, which noise it starts from, and how it acts;
nobody else asks what kind it is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import override

from flowpolicy.core.errors import ConfigError
from flowpolicy.core.noise import NoiseLaw
from flowpolicy.core.spec import ObservationSpec
from flowpolicy.core.streams import STATES, Streams, repeated, repeated_streams
from flowpolicy.data.normalize import Normalizer
from flowpolicy.flows.axes.flow_spec import Network, Sampling
from flowpolicy.flows.axes.guidance import Aimed, Situation
from flowpolicy.flows.axes.interpolants import Linear
from flowpolicy.flows.axes.solvers import Dynamics, MapJumps
from flowpolicy.flows.axes.sources import divergence, mix
from flowpolicy.flows.real_time import GUIDANCE_LIMIT, guided, soft_mask
from flowpolicy.nets.critic import CriticConfig
from flowpolicy.nets.flow_nets import DecoratorNet, MapNet, OneStepNet, VelocityNet
from flowpolicy.nets.mlp import MLP
from flowpolicy.nets.plain import Plain
from flowpolicy.nets.prefix_net import CommittedNet
from flowpolicy.nets.source import SourceNet
from flowpolicy.nets.transformer import Transformer
from flowpolicy.nets.unet import UNet
from flowpolicy.nets.vision import ENCODERS, Encoder
from flowpolicy.policy.committed import Committed
from flowpolicy.policy.previous import Previous

if TYPE_CHECKING:
    from flowpolicy.policy.actor import Actor

Net = MLP | UNet | Transformer | Plain
Part = nn.Module | nn.Parameter


class Sizes(NamedTuple):
    """What decides the size of the networks."""

    observation: Mapping[str, ObservationSpec]
    """Streams that are observed."""
    history: int
    """Observations per decision."""
    encoder: int
    """Size of the encoder's condition."""
    chunk: int
    """Actions of a chunk."""
    action: int
    """Numbers of an action."""
    told: int = 0
    """Numbers that the network is told before the condition."""
    see: Encoder = ENCODERS["state"]
    """Encoder of the policy: a critic sees pictures by one of its own of this kind."""


@dataclasses.dataclass(frozen=True)
class Decision:
    """One decision for b observations, everything scaled. Samplers that generate k chunks for each have b k rows."""

    networks: Actor
    """Networks of the policy."""
    normalizer: Normalizer
    """Scaling, which also says what actions there are."""
    streams: Streams
    """Observation histories, name -> (b, o, *shape), packed (:class:`flowpolicy.core.streams.Layout`)."""
    cond: Float[Tensor, "b c"]
    """What the encoder makes of them."""
    nfe: int = 1
    """Network evaluations to spend per observation."""
    repeats: int = 1
    """How often every observation is repeated."""
    count: Callable[[int], None] = lambda evaluations: None
    """Told of every evaluation, k of them where a network is asked for k chunks per observation."""
    generator: torch.Generator | None = None
    """Source of chance beside the noise; only some samplers need one."""
    committed: Committed | None = None
    """Actions that the chunk begins with."""
    previous: Previous | None = None
    """What was done before; None in the first decision of an episode."""
    told: Float[Tensor, "b t"] | None = None
    """What the network is told before the condition."""

    def ask(self, network: Callable[..., Any], *args: Tensor) -> Tensor:
        """The value of a network for as many rows as the first argument has."""
        if not torch.compiler.is_compiling():  # a compiled graph would be compiled anew for every count
            self.count(len(args[0]) * self.repeats // len(self.cond))
        value: Tensor = network(*args).value
        return value

    def shown(self, cond: Float[Tensor, "b c"], share: Float[Tensor, " b"] | None = None) -> Float[Tensor, "b e"]:
        """All that the network is told: committed rows, the share of a source, and last a condition of the encoder."""
        parts = [self.told, share.unsqueeze(1) if share is not None else None, cond]
        return torch.cat([part for part in parts if part is not None], dim=1)

    def spending(self, nfe: int) -> Decision:
        """The same decision with so many evaluations."""
        return dataclasses.replace(self, nfe=nfe)

    def repeated(self, times: int) -> Decision:
        """Every row ``times`` times, one after the other."""
        if times == 1:
            return self

        def each(value: Any) -> Any:
            return None if value is None else repeated(value, times)

        return dataclasses.replace(
            self,
            repeats=times * self.repeats,
            streams=repeated_streams(self.streams, times),
            cond=each(self.cond),
            told=each(self.told),
            committed=None if self.committed is None else Committed(*(each(part) for part in self.committed)),
            previous=None if self.previous is None else Previous(*(each(part) for part in self.previous)),
        )


@dataclasses.dataclass(frozen=True)
class Sampler:
    """Base of the ways of acting."""

    @property
    def law(self) -> NoiseLaw:
        """Law of the noise at the start."""
        return NoiseLaw()

    @property
    def candidates(self) -> int:
        """Chunks that start from noise of their own for one that is acted on."""
        return 1

    @property
    def prefix(self) -> int:
        """The most committed actions that a chunk can continue."""
        return 0

    @property
    def continues(self) -> bool:
        """Whether a decision depends on the previous chunk."""
        return False

    @property
    def differentiates(self) -> bool:
        """Whether networks are differentiated while acting."""
        return False

    @property
    def hides(self) -> tuple[str, ...]:
        """Observations that networks are also asked without."""
        return ()

    @property
    def flow(self) -> FlowSampler | None:
        """The flow that noise is carried by, or None where there is none."""
        return None

    @property
    def belongs_to(self) -> str:
        """Hash of the weights that the sampler was fitted on; empty where nothing is fitted."""
        return ""

    @property
    def live(self) -> str:
        """Why engines and servers, which draw noise at the start and remember nothing, cannot act so; or empty."""
        return ""

    @property
    def interpreted(self) -> str:
        """Why no compiled or exported graph can hold this, only Python; or empty."""
        return "it differentiates its network while it acts" if self.differentiates else ""

    def build(self, net: Net, sizes: Sizes) -> dict[str, Part]:
        """The networks, by their name in the actor; 'net' is the one that generates."""
        raise NotImplementedError

    def plain(self, decision: Decision) -> Decision:
        """The decision as the flow's networks must be told of it where nothing is committed."""
        return decision

    def sample(self, decision: Decision, noise: Float[Tensor, "bk h a"]) -> Float[Tensor, "b h a"]:
        """Chunks within what the data reach; the k candidates of an observation follow each other in ``noise``.

        Raises:
            ConfigError: the evaluations cannot be spent.

        """
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Direct(Sampler):
    """One evaluation without noise: regression, or the mean of a Gaussian policy."""

    squashed: bool = False
    """Pass the chunk through tanh."""

    def build(self, net: Net, sizes: Sizes) -> dict[str, Part]:
        """A velocity network, asked at time 0."""
        return {"net": VelocityNet(net, sizes.action, sizes.chunk, sizes.told + sizes.encoder)}

    def sample(self, decision: Decision, noise: Float[Tensor, "bk h a"]) -> Float[Tensor, "b h a"]:
        """What the network says of zeros, and of the committed actions."""
        _require_evaluations("regression", decision.nfe, 1)
        start = torch.zeros_like(noise)
        if decision.committed is not None:
            start = torch.where(decision.committed.rows.unsqueeze(2), decision.committed.action, start)
        chunk = decision.ask(decision.networks.net, start, _time(noise, 0.0), decision.shown(decision.cond))
        return decision.normalizer.within(chunk.tanh() if self.squashed else chunk)


@dataclasses.dataclass(frozen=True)
class OneStep(Sampler):
    """One evaluation of a network of noise and observation, with no flow behind it (FQL)."""

    def build(self, net: Net, sizes: Sizes) -> dict[str, Part]:
        """A network without a time."""
        return {"net": OneStepNet(net, sizes.action, sizes.chunk, sizes.told + sizes.encoder)}

    def sample(self, decision: Decision, noise: Float[Tensor, "bk h a"]) -> Float[Tensor, "b h a"]:
        """``mu(noise, observation)``."""
        _require_evaluations("one-step", decision.nfe, 1)
        return decision.normalizer.within(decision.ask(decision.networks.net, noise, decision.shown(decision.cond)))


@dataclasses.dataclass(frozen=True)
class Mip(Direct):
    """Two evaluations without noise: the second sees what the first said (minimal iterative policy, 2512.01809)."""

    again: float = 0.9
    """Flow time at which the network is asked again."""

    def sample(self, decision: Decision, noise: Float[Tensor, "bk h a"]) -> Float[Tensor, "b h a"]:
        """From zeros, then from the first prediction."""
        _require_evaluations("mip", decision.nfe, 2)
        net, cond = decision.networks.net, decision.shown(decision.cond)
        first = decision.ask(net, torch.zeros_like(noise), _time(noise, 0.0), cond)
        return decision.normalizer.within(decision.ask(net, first, _time(noise, self.again), cond))


@dataclasses.dataclass(frozen=True)
class FlowSampler(Sampler):
    """Noise carried to a chunk by a flow: any point on the axes of the flow laboratory."""

    sampling: Sampling = Sampling()
    """Path, source, target, solver, schedule and guidance."""
    refiner: Net | None = None
    """Trunk of the small network that refines velocities in the steps R of the solver 'plan'."""

    @property
    def law(self) -> NoiseLaw:
        """The source's."""
        return self.sampling.source.law

    @property
    def candidates(self) -> int:
        """The guidance's."""
        return self.sampling.guidance.candidates

    @property
    def continues(self) -> bool:
        """Where path, source or guidance look at the previous chunk."""
        return self.sampling.continues

    @property
    def differentiates(self) -> bool:
        """Where the guidance does."""
        return self.sampling.guidance.differentiates

    @property
    def hides(self) -> tuple[str, ...]:
        """The guidance's."""
        return self.sampling.guidance.hides

    @property
    def flow(self) -> FlowSampler | None:
        """Itself."""
        return self

    @property
    def belongs_to(self) -> str:
        """Hash of the weights that solver or schedule were fitted on."""
        return self.sampling.belongs_to

    @property
    def live(self) -> str:
        """Chance on the way, and memory."""
        flow = self.sampling
        if flow.solver.stochastic:
            return f"its solver '{flow.solver.name}' draws noise on the way"
        if flow.source.draws_while_acting:
            return f"its source '{flow.source.name}' draws more than the noise"
        return "it continues its previous chunk" if flow.continues else ""

    @property
    @override
    def interpreted(self) -> str:
        guidance = self.sampling.guidance
        reads = f"its guidance '{guidance.name}' reads a goal" if isinstance(guidance, Aimed) else ""
        return reads or super().interpreted

    def build(self, net: Net, sizes: Sizes) -> dict[str, Part]:
        """Velocity network or flow map, and what source and guidance ask for."""
        flow, (_, _, encoder, chunk, action, told, _) = self.sampling, sizes
        cond = told + flow.source.inputs + encoder
        parts: dict[str, Part] = {}
        if flow.two_time:
            parts["net"] = MapNet(net, action, chunk, cond)
        else:
            parts["net"] = VelocityNet(net, action, chunk, cond, flow.target.outputs(action))
        if self.refiner is not None:  # it is told the last velocity before everything else
            parts["refiner"] = VelocityNet(self.refiner, action, chunk, chunk * action + cond)
        if flow.source.conditioned:
            parts["source"] = SourceNet(encoder, chunk, action)
        if flow.guidance.null:
            parts["null"] = nn.Parameter(torch.zeros(encoder))
        return parts

    def sample(self, decision: Decision, noise: Float[Tensor, "bk h a"]) -> Float[Tensor, "b h a"]:
        """Carry, and let the guidance choose and change."""
        guidance, rows = self.sampling.guidance, len(decision.cond)
        candidates = noise.shape[0] // rows
        if candidates != guidance.candidates:
            raise ConfigError(
                f"noise for {candidates} chunks per decision with {guidance.flag}", expected=f"{guidance.candidates}"
            )
        carried = Carried(self.sampling, decision.repeated(candidates), guidance.budget(decision.nfe), noise)
        start = guidance.start(carried.start, carried.to_data, carried.situation(carried.start))
        # Only finished chunks are clamped: half-way states are no actions, and clamping them damages several steps.
        chunks = decision.normalizer.within(carried.to_data(start))
        if candidates == 1 and not guidance.finishes:
            return chunks  # a graph of one small decision is 2 % faster without what changes nothing
        finished = guidance.finish(chunks.view(rows, candidates, *chunks.shape[1:]), carried.situation(start))
        return decision.normalizer.within(finished)  # a goal moves no dimension that never varied in the data

    def carry(self, decision: Decision, noise: Float[Tensor, "b h a"]) -> Float[Tensor, "b h a"]:
        """Where the guided flow carries the noise in ``nfe`` evaluations, not clamped, nothing chosen or projected."""
        guidance = self.sampling.guidance
        carried = Carried(self.sampling, decision, guidance.budget(guidance.repeats * decision.nfe), noise)
        return carried.to_data(carried.start)

    def dynamics(self, decision: Decision) -> Dynamics:
        """Velocity, and mean velocity of a flow map, for the observations of a decision; guided, nothing counted."""
        uncounted = dataclasses.replace(decision, count=lambda evaluations: None)
        return dynamics(uncounted, self.sampling, None, Situation(path=self.sampling.interpolant))


MAP = FlowSampler(Sampling(solver=MapJumps(), two_time=True))
"""Jumps of a flow map from Gaussian noise along the straight path: how DM1 acts."""


@dataclasses.dataclass(frozen=True)
class Wrapper(Sampler):
    """Base of the samplers that change what another one does."""

    inner: Sampler
    """What is wrapped."""

    @property
    def law(self) -> NoiseLaw:
        """The wrapped sampler's."""
        return self.inner.law

    @property
    def candidates(self) -> int:
        """The wrapped sampler's."""
        return self.inner.candidates

    @property
    def prefix(self) -> int:
        """The wrapped sampler's."""
        return self.inner.prefix

    @property
    def continues(self) -> bool:
        """Whether the wrapped sampler does."""
        return self.inner.continues

    @property
    def differentiates(self) -> bool:
        """Whether the wrapped sampler does."""
        return self.inner.differentiates

    @property
    def hides(self) -> tuple[str, ...]:
        """The wrapped sampler's."""
        return self.inner.hides

    @property
    def flow(self) -> FlowSampler | None:
        """The wrapped sampler's."""
        return self.inner.flow

    @property
    def belongs_to(self) -> str:
        """The wrapped sampler's."""
        return self.inner.belongs_to

    @property
    def live(self) -> str:
        """The wrapped sampler's."""
        return self.inner.live

    @property
    def interpreted(self) -> str:
        """The wrapped sampler's."""
        return self.inner.interpreted

    def build(self, net: Net, sizes: Sizes) -> dict[str, Part]:
        """The wrapped sampler's networks."""
        return self.inner.build(net, sizes)

    def plain(self, decision: Decision) -> Decision:
        """The wrapped sampler's."""
        return self.inner.plain(decision)


@dataclasses.dataclass(frozen=True)
class BestOf(Wrapper):
    """Several chunks of the wrapped sampler, and the one that a critic values most."""

    critic: CriticConfig = CriticConfig()
    """Who chooses."""
    among: int = 2
    """Chunks to choose among, at least 2. Each costs what one of the wrapped sampler does; the critic is not
    counted."""

    def __post_init__(self) -> None:
        if self.among < 2 or self.inner.candidates > 1:
            raise ConfigError(
                f"the best of {self.among} chunks of a sampler that makes {self.inner.candidates} itself",
                expected="at least 2 chunks, of a sampler that makes one",
            )

    @property
    def candidates(self) -> int:
        """As many as there are to choose among."""
        return self.among

    def build(self, net: Net, sizes: Sizes) -> dict[str, Part]:
        """The wrapped sampler's networks and the critic."""
        parts = self.inner.build(net, sizes)
        critic = self.critic.build(sizes.observation, sizes.history, sizes.chunk * sizes.action, sizes.see)
        return {**parts, "critic": critic}

    def sample(self, decision: Decision, noise: Float[Tensor, "bk h a"]) -> Float[Tensor, "b h a"]:
        """The chunk of the largest value in every row."""
        rows = len(decision.cond)
        among, critic = noise.shape[0] // rows, decision.networks.critic
        assert critic is not None
        if decision.nfe % among:
            raise ConfigError(
                f"a policy cannot spend {decision.nfe} evaluations on {among} candidates",
                expected=f"a multiple of {among}",
            )
        each = decision.repeated(among).spending(decision.nfe // among)
        chunks = self.inner.sample(each, noise)
        value = critic.value(decision.streams, chunks).view(rows, among)
        return best_of(chunks.view(rows, among, *chunks.shape[1:]), value)


def best_of_candidates(inner: Sampler, candidates: int, critic: CriticConfig) -> Sampler:
    """The sampler itself where there is nothing to choose."""
    return BestOf(inner, critic, candidates) if candidates > 1 else inner


@dataclasses.dataclass(frozen=True)
class Decorated(Wrapper):
    """A residual on the clamped chunk of the wrapped sampler, for one more evaluation (Fisher Decorator)."""

    def __post_init__(self) -> None:
        if self.inner.candidates > 1 or self.inner.prefix:
            raise ConfigError(
                "a decorated sampler that chooses among chunks or continues a prefix",
                expected="one that generates one chunk; choose among decorated chunks",
            )

    def build(self, net: Net, sizes: Sizes) -> dict[str, Part]:
        """The wrapped sampler's networks and the residual."""
        parts = self.inner.build(net, sizes)
        return {**parts, "decorator": DecoratorNet(net, sizes.action, sizes.chunk, sizes.encoder)}

    def sample(self, decision: Decision, noise: Float[Tensor, "bk h a"]) -> Float[Tensor, "b h a"]:
        """Chunk plus residual, clamped."""
        decorator = decision.networks.decorator
        assert decorator is not None
        chunk = self.inner.sample(decision.spending(decision.nfe - 1), noise)
        return decision.normalizer.within(chunk + decision.ask(decorator, chunk, decision.cond))


@dataclasses.dataclass(frozen=True)
class Prefixed(Wrapper):
    """Chunks that begin with committed actions, which the network was trained to continue (real-time chunking).

    Committed rows start at what they are, and the network, told which they are, does not move them.
    """

    most: int = 1
    """The most committed actions, at least 1."""

    def __post_init__(self) -> None:
        reason = f"a {type(self.inner).__name__} policy" if type(self.inner) not in (Direct, FlowSampler) else ""
        if isinstance(self.inner, FlowSampler):
            reason = _moves_committed_rows(self.inner.sampling)
        if reason or self.most < 1:
            raise ConfigError(
                f"a prefix of {self.most} committed actions with {reason or 'nothing to commit'}",
                expected="a flow on the straight path, or a regression: their committed rows can stand still",
                fix="--agent.prefix 0",
            )

    @property
    def prefix(self) -> int:
        """As trained."""
        return self.most

    def build(self, net: Net, sizes: Sizes) -> dict[str, Part]:
        """The wrapped sampler's networks, told which rows are committed."""
        parts = self.inner.build(net, sizes._replace(told=sizes.told + sizes.chunk))
        return {**parts, "net": CommittedNet(parts["net"], sizes.chunk)}

    def plain(self, decision: Decision) -> Decision:
        """No row is committed."""
        chunk = decision.networks.net.chunk
        return dataclasses.replace(decision, told=decision.cond.new_zeros(len(decision.cond), chunk))

    def sample(self, decision: Decision, noise: Float[Tensor, "bk h a"]) -> Float[Tensor, "b h a"]:
        """The wrapped sampler's chunks from noise whose committed rows are the actions themselves."""
        committed = decision.committed
        if committed is None:
            return self.inner.sample(self.plain(decision), noise)
        noise = torch.where(committed.rows.unsqueeze(2), committed.action, noise)
        return self.inner.sample(dataclasses.replace(decision, told=committed.rows.to(decision.cond.dtype)), noise)


def _moves_committed_rows(flow: Sampling) -> str:
    """Why committed rows would not stand still in a flow, or would be started otherwise; empty where they do."""
    if not isinstance(flow.interpolant, Linear):
        return flow.interpolant.flag
    if flow.target.converts or flow.target.integrates:
        return flow.target.flag
    if flow.solver.stochastic or flow.solver.converts or flow.solver.needs_score or flow.solver.belongs_to:
        return flow.solver.flag
    if flow.source.continues or flow.source.conditioned:
        return flow.source.flag
    return flow.guidance.flag if flow.guidance.name != "none" else ""


@dataclasses.dataclass(frozen=True)
class Guided(Wrapper):
    """Chunks that continue committed actions although no training prepared them: pseudo-inverse guidance.

    The committed rows are pulled to what they are, those that the previous chunk planned as well, less and less
    (arXiv 2506.07339); a backward pass per evaluation. Committed rows then are put in exactly. Without committed
    actions it is the wrapped sampler, bit for bit.
    """

    limit: float = GUIDANCE_LIMIT
    """Largest strength."""

    def __post_init__(self) -> None:
        inner = self.inner
        flow = inner.flow if isinstance(inner, FlowSampler | Prefixed) else None
        if flow is None or flow.sampling.two_time or _moves_committed_rows(flow.sampling):
            raise ConfigError(
                f"guidance towards committed actions of a {type(inner).__name__} policy",
                expected="a velocity that a solver integrates in several steps on the straight path",
                fix="train the policy to continue committed actions: --agent.prefix N",
            )

    @property
    def prefix(self) -> int:
        """Any number of actions: it is not trained."""
        return _ANY

    @property
    def differentiates(self) -> bool:
        """In every evaluation."""
        return True

    @property
    def live(self) -> str:
        """Engines are told no overlap with the previous chunk."""
        return "it is guided towards its previous chunk"

    def sample(self, decision: Decision, noise: Float[Tensor, "bk h a"]) -> Float[Tensor, "b h a"]:
        """The wrapped flow, steered."""
        committed, flow = decision.committed, cast(FlowSampler, self.inner.flow).sampling
        if committed is None:
            return self.inner.sample(decision, noise)
        field = dynamics(self.inner.plain(decision), flow, None, Situation(path=flow.interpolant))
        weight = soft_mask(committed.length, committed.overlap, noise.shape[1])
        steered = guided(field.velocity, committed.action, weight, self.limit)
        chunk = flow.generate(Dynamics(steered, flow.interpolant), noise, decision.nfe, decision.generator)
        return decision.normalizer.within(chunk)


_ANY = 1 << 30


class Carried:
    """The way of the noise of one decision through a flow.

    Args:
        flow: what the policy is.
        decision: with one row per chunk.
        evaluations: of the solver, guidance aside.
        noise: from the source, before anything has moved it.

    """

    def __init__(self, flow: Sampling, decision: Decision, evaluations: int, noise: Float[Tensor, "b h a"]) -> None:
        self.flow, self.decision, self.evaluations = flow, decision, evaluations
        self.share = flow.source.acting_shares(noise, decision.generator)
        self.past = self.planned = self.begun = None
        if (previous := decision.previous) is not None:
            self.past = previous.executed.masked_fill(~previous.known.unsqueeze(2), 0.0)
            self.planned, self.begun = decision.normalizer.within(previous.planned), previous.begun
        noise, _ = shaped(decision.networks, noise, decision.cond, self.share)
        self.start = flow.interpolant.begin(noise, torch.zeros_like(noise) if self.past is None else self.past)
        """The points at t = 0."""

    def situation(self, start: Float[Tensor, "b h a"]) -> Situation:
        """What guidance may know."""
        scaling = self.decision.normalizer.action_scaling
        return Situation(
            path=self.flow.interpolant,
            grid=self.flow.grid(self.evaluations),
            scale=scaling.scale,
            offset=scaling.offset,
            noise=start,
            planned=self.planned,
            begun=self.begun,
        )

    def to_data(self, start: Float[Tensor, "b h a"]) -> Float[Tensor, "b h a"]:
        """Chunks for points at t = 0, not clamped."""
        flow, decision = self.flow, self.decision
        field = dynamics(decision, flow, self.share, self.situation(start))
        if flow.source.continues and self.planned is not None and self.begun is not None:
            states = decision.networks.layout.pack(decision.streams)[STATES]
            late = flow.source.begin(states).masked_fill(~self.begun, 0.0)
            start, field = flow.interpolant.point(start, self.planned, late), field.after(late)
        return flow.generate(field, start, self.evaluations, decision.generator)


def dynamics(decision: Decision, flow: Sampling, share: Float[Tensor, " b"] | None, at: Situation) -> Dynamics:
    """The guided velocity of a policy for the observations of a decision."""
    actor, cond = decision.networks, decision.cond
    share = share if flow.source.inputs else None

    def predict(cond: Tensor) -> Network:
        shown = decision.shown(cond, share)
        if flow.two_time:
            return lambda x, s, t: decision.ask(actor.net, x, s, t, shown)
        return lambda x, s, t: decision.ask(actor.net, x, s, shown)

    null, parts = cond if actor.null is None else actor.null.expand_as(cond), []
    if flow.guidance.hides:
        hidings = actor.layout.hidings(flow.guidance.hides).to(cond)
        hidden = (actor.layout.hidden(decision.streams, factors) for factors in hidings.split(1))
        null, *parts = (actor.encoder(streams).cond for streams in hidden)
    field = flow.dynamics(predict(cond), predict(null), [predict(part) for part in parts], at)
    if (refiner := actor.refiner) is None:
        return field
    shown = decision.shown(cond, share)

    def refine(x: Tensor, t: Tensor, v: Tensor) -> Tensor:
        return decision.ask(refiner, x, t, torch.cat([v.flatten(1), shown], 1))

    return dataclasses.replace(field, refine=refine)


def shaped(
    actor: Actor, noise: Float[Tensor, "b h a"], cond: Float[Tensor, "b c"], share: Float[Tensor, " b"] | None
) -> tuple[Float[Tensor, "b h a"], Float[Tensor, ""] | None]:
    """Noise of a source that the observation moves by ``share``, and its divergence from N(0, I).

    Noise of all other sources stays as it is.
    """
    if actor.source is None or share is None:
        return noise, None
    mean, log_variance = actor.source(cond)
    return mix(noise, share, mean, log_variance), divergence(mean, log_variance)


def best_of(chunks: Float[Tensor, "b k h a"], values: Float[Tensor, "b k"]) -> Float[Tensor, "b h a"]:
    """The candidate of the largest value in every row."""
    return chunks[torch.arange(len(values), device=values.device), values.argmax(1)]


def _time(noise: Tensor, time: float) -> Float[Tensor, " b"]:
    return noise.new_full(noise.shape[:1], time)


def _require_evaluations(kind: str, nfe: int, expected: int) -> None:
    if nfe != expected:
        raise ConfigError(f"a {kind} policy cannot act in {nfe} evaluations", expected=f"nfe {expected}")


SAMPLERS: dict[str, type[Sampler]] = {
    "sampler/direct": Direct,
    "sampler/one_step": OneStep,
    "sampler/mip": Mip,
    "sampler/flow": FlowSampler,
    "sampler/best_of": BestOf,
    "sampler/decorated": Decorated,
    "sampler/prefixed": Prefixed,
    "sampler/guided": Guided,
}
"""Tags of configuration files."""
