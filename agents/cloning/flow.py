"""Any point on the axes of the flow laboratory as a behaviour-cloning agent.

``FlowSpec()`` is flow behaviour cloning; every published method changes one value. The named points with a file of
their own are :mod:`flowpolicy.agents.cloning.flow_bc` and :mod:`flowpolicy.agents.cloning.dm1`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from typing import Annotated, Any, cast

import torch
import tyro
from jaxtyping import Bool, Float
from torch import Tensor
from typing_extensions import override

from flowpolicy.agents.base.agent_tags import register_config
from flowpolicy.agents.base.bricks import DERIVATIVE
from flowpolicy.agents.base.imitation import ImitationAgent, ImitationConfig
from flowpolicy.agents.students.teacher import Teacher, load_teacher, start_from
from flowpolicy.core import keys, ranks
from flowpolicy.core.devices import exactly
from flowpolicy.core.errors import ConfigError
from flowpolicy.core.keys import ACTION, KNOWN, OBS, PREVIOUS
from flowpolicy.core.protocols import Metrics
from flowpolicy.core.ranges import Few
from flowpolicy.core.spec import Contract
from flowpolicy.core.streams import Streams
from flowpolicy.data.normalize import Normalizer
from flowpolicy.flows.axes.consistency import Problem
from flowpolicy.flows.axes.couplings import Table
from flowpolicy.flows.axes.flow_spec import FlowSpec
from flowpolicy.flows.axes.guidance import Situation
from flowpolicy.flows.axes.refusals import Setting, validate
from flowpolicy.flows.axes.sources import Mixed
from flowpolicy.flows.axes.targets import Drawn
from flowpolicy.flows.dispersive import Dispersive, dispersive_loss, neighbours, spread
from flowpolicy.flows.real_time import hold
from flowpolicy.nets.flow_nets import MapNet
from flowpolicy.policy.samplers import FlowSampler, Prefixed, Sampler, shaped

Draws = dict[str, Tensor]
"""What is drawn for a loss, by name."""


@register_config("flow")
@dataclasses.dataclass(frozen=True)
class Flow(ImitationConfig):
    """A point on the axes of the flow laboratory."""

    flow: Annotated[FlowSpec, tyro.conf.Suppress] = FlowSpec()
    """One value per axis. On the command line its flags are ``--flow.AXIS``."""
    nfe: Few = 10
    """Network evaluations per chunk."""
    dispersive: Dispersive = Dispersive(weight=0.0)
    """Regulariser on the encoder's projection, or on the feature of every camera; off by default."""
    teacher: str = ""
    """Run whose policy makes the pairs of the coupling 'table'."""
    teacher_weights: str = ""
    """Hash of the teacher's weights; another teacher at the same place is refused."""
    teacher_nfe: Few = 32
    """Evaluations of the teacher per pair."""
    from_teacher: bool = False
    """Start from the teacher's weights; the networks must be the same."""

    @property
    @override
    def previous(self) -> bool:  # type: ignore[override]
        return self.flow.interpolant.continues

    @property
    @override
    def placed(self) -> bool:  # type: ignore[override]
        return self.dispersive.weight > 0 and self.dispersive.exclude_steps > 0

    def setting(self, action: int) -> Setting:
        """What decides about the spec besides its axes, for actions of so many dimensions."""
        return Setting(
            size=self.chunk * action,
            nfe=self.nfe,
            teacher=bool(self.teacher),
        )

    @property
    def everywhere(self) -> bool:
        """Whether the trained network has a velocity at all times, and not only where its own steps begin."""
        return self.flow.time.name != "grid"

    @property
    def asks_teacher(self) -> bool:
        """Whether a teacher takes part in the training."""
        return isinstance(self.flow.coupling, Table)

    def check(self, action: int) -> None:
        """Refuse wrong combinations (:class:`flowpolicy.flows.axes.refusals.IncompatibleSpecError`)."""
        validate(self.flow, self.setting(action))
        if self.prefix:
            Prefixed(FlowSampler(self.flow.sampling()), self.prefix)  # refuses flows that move committed rows
        if self.noises > 1 and (self.teacher or self.asks_teacher or self.flow.guidance.hides):
            raise ConfigError(
                f"--agent.noises {self.noises} with {'a teacher' if self.teacher else self.flow.guidance.flag}",
                expected="one draw per observation: what is asked or hidden goes by observation",
                fix="--agent.noises 1",
            )
        if self.asks_teacher and not self.teacher:
            raise ConfigError(f"{type(self).__name__} without a teacher", fix="flowpolicy distill RUN")
        if self.teacher and not self.asks_teacher:
            raise ConfigError(
                f"a teacher with {self.flow.coupling.flag}, which does not ask it", fix="--flow.coupling table"
            )

    def build(self, *args: Any, **kwargs: Any) -> FlowAgent:
        """The agent in training; arguments of :class:`ImitationAgent`."""
        return FlowAgent(self, *args, **kwargs)


class FlowAgent(ImitationAgent):
    """Draws noise, times and pairs as the spec says, and regresses what it says."""

    config: Flow

    def __init__(
        self, config: Flow, contract: Contract, normalizer: Normalizer, *, compile: bool, **options: Any
    ) -> None:
        config.check(contract.spec.action.size)
        self.spec = dataclasses.replace(
            config.flow, time=config.flow.time.for_size(contract.chunk * contract.spec.action.size)
        )
        self.sampling = self.spec.sampling()
        # A gradient through a forward derivative is not tried in compiled graphs: those objectives run uncompiled.
        differentiable = self.spec.consistency.forward_mode and self.spec.consistency.differentiated
        super().__init__(config, contract, normalizer, compile=compile and not differentiable, **options)
        if self.spec.coupling.waits and torch.device(options.get("device", "cpu")).type == "cuda":
            warnings.warn(
                f"{self.spec.coupling.flag} makes a GPU wait in every update: {self.spec.coupling.waits}", stacklevel=2
            )
        # On the device once: a copy in every draw would make a GPU wait.
        self._hidings = self.actor.layout.hidings(self.spec.guidance.hides).to(options.get("device", "cpu"))
        scaling, like = normalizer.action_scaling, torch.zeros(1, config.chunk, contract.spec.action.size)
        self.spec.guidance.check(Situation(scale=scaling.scale.cpu(), offset=scaling.offset.cpu()), like)
        # In a list: the teacher is no part of this module, nor of its state.
        self._teacher = [load_teacher(config, normalizer, options.get("device", "cpu"))] if config.teacher else []
        if config.from_teacher:
            start_from(self.actor, self.teacher.policy, config.teacher)
            self.ema.restart(self.actor)

    @property
    @override
    def exact(self) -> str:
        return DERIVATIVE if self.spec.consistency.forward_mode else ""

    @property
    @override
    def indivisible(self) -> str:
        if self._teacher:
            return "every process would ask the teacher for the whole batch"
        return ""

    @override
    def own(self, arguments: tuple[Any, ...], rows: int, mine: slice) -> tuple[Any, ...]:
        *parts, draws = super().own(arguments, rows, mine)
        if "near" in draws:  # of pairs of the whole batch: features that repel each other are gathered
            draws["near"] = arguments[-1]["near"]
        return (*parts, draws)

    @property
    def progress(self) -> float:
        """Share of the planned updates that is done."""
        return self.updates / max(self.steps, 1)

    @property
    def settles(self) -> float:
        """Share of the updates from which on draws no longer depend on :attr:`progress`."""
        return max(self.spec.coupling.settles, self.spec.consistency.settles)

    @override
    def numbers(self) -> tuple[float, ...]:
        return (min(self.progress, self.settles),)

    @property
    @override
    def waits(self) -> str:
        return self.spec.coupling.waits

    @property
    def sampler(self) -> Sampler:
        """The sampling side of the spec."""
        return FlowSampler(self.sampling)

    @torch.no_grad()
    def draws(self, batch: dict[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
        """Noise, times, and whatever else the values of the axes draw."""
        spec, rows, progress = self.spec, len(batch[ACTION]), self.progress
        data, streams = batch[ACTION], batch[OBS]
        shape, cond = tuple(data.shape), self.actor.layout.states(streams, data)
        pairing = spec.coupling.pair(lambda: spec.source.sample(shape, generator), data, cond, progress)
        drawn = {"noise": self._begin(pairing.noise, batch), **self._times(rows, progress, generator)}
        extra = {
            "weight": pairing.weight,
            "share": spec.source.shares(rows, generator),
        }
        drawn |= {name: value for name, value in extra.items() if value is not None}
        if spec.interpolant.latent:
            drawn["z"] = torch.randn(shape, generator=generator, device=data.device)
        if spec.guidance.drop:
            drawn["drop"] = torch.rand(rows, generator=generator, device=data.device) < spec.guidance.drop
        if spec.guidance.hides:
            drawn["visible"] = self._visible(rows, generator)
        if committed := self.draw_committed(data, generator):
            drawn["committed"] = committed[0]
        if self.config.placed:
            apart = rows // self.config.noises
            places = (batch[keys.ROW][:apart], batch[keys.FIRST][:apart])
            drawn["near"] = neighbours(*places, self.config.dispersive.exclude_steps)
        if self._teacher:
            drawn |= self.taught(streams, data, drawn, generator)
        return drawn

    def _begin(self, noise: Tensor, batch: dict[str, Any]) -> Tensor:
        """Where the path starts: at the noise, or at the actions before the window."""
        if not self.spec.interpolant.continues:
            return noise
        if PREVIOUS not in batch:
            raise ConfigError(
                f"batches without the actions before the window for {self.spec.interpolant.flag}",
                expected="windows of episodes: flowpolicy train",
            )
        return self.spec.interpolant.begin(noise, batch[PREVIOUS].masked_fill(~batch[KNOWN].unsqueeze(2), 0.0))

    def _visible(self, rows: int, generator: torch.Generator) -> Tensor:
        """Factors (b, s) of the streams: a share of the rows sees none, or one, of the hidden observations."""
        guidance, device = self.spec.guidance, generator.device
        dropped = torch.rand(rows, generator=generator, device=device) < guidance.hidden_share
        which = torch.randint(len(self._hidings), (rows,), generator=generator, device=device)
        return torch.where(dropped.unsqueeze(1), self._hidings[which], 1.0)

    def taught(self, obs: Streams, data: Float[Tensor, "b h a"], drawn: Draws, generator: torch.Generator) -> Draws:
        """What the teacher puts in the place of draws: here the pairs of the coupling 'table'.

        Args:
            obs: normalised observations.
            data: normalised chunks of the batch.
            drawn: what is drawn already; ``noise`` (b, h, a), ``s`` (b,) and more.
            generator: source of whatever else is drawn.

        Returns:
            Draws to add or to replace. ``data`` are the chunks to train on, and ``made`` (b,) says which of them are
            the teacher's: all their steps count, whereas real chunks may reach past their episode.

        """
        coupling, nfe = cast(Table, self.spec.coupling), self.config.teacher_nfe
        return self.teacher.pairs(coupling, nfe, obs, data, drawn["noise"], self.progress, generator)

    @property
    def teacher(self) -> Teacher:
        """The teacher that ``config.teacher`` names."""
        return self._teacher[0]

    def _times(self, rows: int, progress: float, generator: torch.Generator) -> dict[str, Tensor]:
        spec = self.spec
        if not spec.consistency.two_time and not spec.target.integrates:
            return {"s": spec.interpolant.inside(spec.time.draw(rows, generator))}
        (s, t), _ = spec.consistency.pairs(spec.time, rows, progress, generator)
        s = spec.interpolant.inside(s)
        ends = {"s": s, "t": torch.maximum(s, t)}
        if spec.consistency.cuts:
            ends["fraction"] = torch.rand(rows, generator=generator, device=s.device)
        return ends

    def loss(
        self, obs: Streams, action: Float[Tensor, "b h a"], valid: Bool[Tensor, "b h"], d: dict[str, Tensor]
    ) -> tuple[Float[Tensor, ""], Metrics]:
        """What the spec says, and the two regularisers where they are on."""
        actor, spec = self.actor, self.spec
        data = d.get("data", action)
        valid = valid | d["made"].unsqueeze(1) if "made" in d else valid
        seen = actor.layout.hidden(obs, d["visible"]) if "visible" in d else obs
        cond, features = self.encoded(seen, len(action))
        noise, divergence = shaped(actor, d["noise"], cond, d.get("share"))
        if "drop" in d:
            cond = torch.where(d["drop"].unsqueeze(1), cast(Tensor, actor.null), cond)
        if spec.source.inputs:
            cond = torch.cat([d["share"].unsqueeze(1), cond], dim=1)
        with exactly(data.device) if self.exact else contextlib.nullcontext():
            loss, metrics = self._matching(noise.float(), data, cond.float(), valid, d)
        if divergence is not None:
            loss = loss + cast(Mixed, spec.source).beta * divergence
            metrics["divergence"] = divergence.detach()
        if self.config.dispersive.weight:
            repelled = [ranks.gathered(rows) for rows in self._repelled(features, cond)]
            each = [dispersive_loss(rows, self.config.dispersive, d.get("near")) for rows in repelled]
            repulsion = torch.stack(each).mean()
            loss = loss + self.config.dispersive.weight * repulsion
            metrics |= {"dispersive": repulsion.detach(), **_mean([spread(rows) for rows in repelled])}
        return loss, metrics

    def _repelled(self, features: dict[str, Tensor], cond: Tensor) -> list[Tensor]:
        """What the dispersive regulariser acts on, a row per observation: of every feature, or of the trunk."""
        if self.config.dispersive.place == "features":
            return list(features.values())
        cond = cond[: len(cond) // self.config.noises]
        if self.config.prefix:
            cond = torch.cat([cond.new_zeros(len(cond), self.config.chunk), cond], dim=1)
        contract = self.contract
        nothing = cond.new_zeros(len(cond), contract.chunk, contract.spec.action.size)
        times = [cond.new_full((len(cond),), time) for time in ((0.0, 1.0) if self.sampling.two_time else (0.0,))]
        return [self.actor.net(nothing, *times, cond).features["trunk"]]

    def _matching(
        self, noise: Tensor, data: Tensor, cond: Tensor, valid: Tensor, d: dict[str, Tensor]
    ) -> tuple[Tensor, Metrics]:
        spec, path, s, z = self.spec, self.spec.interpolant, d["s"], d.get("z")
        held = hold(
            path.point(noise, data, s, z), path.velocity(noise, data, s, z), data, valid, cond, d.get("committed")
        )
        x, velocity, valid, cond = held
        if spec.target.integrates:
            predict = lambda x, s: self.actor.net(x, s, cond).value  # noqa: E731
            errors = spec.target.errors(predict, x, velocity, s, d["t"])
            start, curve = (spec.loss.reduce(error, valid, s, path, d.get("weight")) for error in errors)
            return start + curve, {"on_diagonal": start.detach(), "off_diagonal": curve.detach()}
        if not spec.consistency.two_time:
            error = spec.target.error(self.actor.net(x, s, cond).value, Drawn(noise, data, z, s, path))
            return spec.loss.reduce(error, valid, s, path, d.get("weight")), {}
        problem = Problem(
            cast(MapNet, self.actor.net),
            x,
            velocity,
            s,
            d["t"],
            cond,
            ranks.own(spec.consistency.leading(spec.time, ranks.whole(len(x)))),
            d.get("fraction"),
        )
        return spec.consistency.loss(problem, valid, spec.loss, path)


def _mean(rows: list[Metrics]) -> Metrics:
    return {name: torch.stack([row[name] for row in rows]).mean() for name in rows[0]}


def as_flow(config: Any) -> Flow:
    """The agent as a plain point on the axes.

    Raises:
        ConfigError: it is none.

    """
    if not isinstance(config, Flow):
        raise ConfigError(
            f"--flow flags with a preset of the agent {type(config).__name__}",
            expected="a preset of Flow BC or DM1, which are points on the axes",
            fix="flowpolicy train debug --flow.coupling c2ot",
        )
    return Flow(**{field.name: getattr(config, field.name) for field in dataclasses.fields(Flow)})
