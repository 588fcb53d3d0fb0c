"""What behaviour-cloning agents share: the actor, the optimiser and the shape of one update.

An algorithm adds two methods: ``draw`` (everything random, from the given generator) and ``loss``
(pure and compiled).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from typing_extensions import override

from flowpolicy.agents.base.agent import TrainedAgent
from flowpolicy.agents.base.optimizer import Group, Optimizer
from flowpolicy.core.errors import ConfigError
from flowpolicy.core.keys import ACTION, OBS, PREVIOUS, VALID
from flowpolicy.core.protocols import Metrics
from flowpolicy.core.ranges import Few, Natural, require_ranges
from flowpolicy.core.references import Reference
from flowpolicy.core.streams import STATES, Streams
from flowpolicy.flows.real_time import committed_rows
from flowpolicy.nets.ema import EMA
from flowpolicy.nets.encoder import EncoderOutput, StateEncoder
from flowpolicy.nets.mlp import MLP
from flowpolicy.nets.vision import Encoder
from flowpolicy.policy.actor import Net, PolicyConfig
from flowpolicy.policy.samplers import Prefixed, Sampler


@dataclasses.dataclass(frozen=True)
class ImitationConfig:
    """Options of every behaviour-cloning agent."""

    references: ClassVar[tuple[Reference, ...]] = ()
    """Publications that ``flowpolicy cite`` lists."""
    needs: ClassVar[str] = "windows"
    previous: ClassVar[bool] = False
    horizon: ClassVar[int] = 0
    """Whether batches must hold the actions before their windows."""
    placed: ClassVar[bool] = False
    """Whether batches must say which rows of the dataset their windows begin at."""
    compile_from: ClassVar[int | None] = 6_000
    """Planned updates from which compiling pays on a CPU, see :mod:`flowpolicy.train.compiling`; None: never."""
    net: Net = MLP()
    """Trunk over the chunk: mlp, unet or transformer."""
    encoder: Encoder = StateEncoder()
    """Encoder of the observation history."""
    optimizer: Optimizer = Optimizer()
    """Optimiser and averaging."""
    history: Few = 1
    """Observations per decision."""
    chunk: Few = 8
    """Actions predicted per decision."""
    execute: Few = 8
    """Actions of a chunk that are executed before the next decision."""
    prefix: Natural = 0
    """Real-time chunking: the most actions that may be committed while the policy computes, or 0. The policy is
    trained to continue 0 to this many given actions; at least the largest delay times the control rate."""

    noises: Few = 1
    """Draws of noise and time per observation and update. An observation is encoded once for all of them, which pays
    where the encoder reads pictures."""

    def __post_init__(self) -> None:
        require_ranges(self, "--agent.")
        if self.prefix and not 0 < self.prefix <= self.chunk - self.execute:
            raise ConfigError(
                f"--agent.prefix {self.prefix}, --agent.chunk {self.chunk}, --agent.execute {self.execute}",
                expected="prefix + execute <= chunk: what is executed must lie after what was committed",
                fix=f"--agent.chunk {max(self.prefix, 0) + self.execute} or more",
            )


class ImitationAgent(TrainedAgent):
    """Base of the behaviour-cloning agents. One that can be told a prefix adds :meth:`draw_committed` to its draws."""

    config: ImitationConfig
    ema: EMA

    @property
    @override
    def averaging(self) -> float | None:
        return self.config.optimizer.ema

    @override
    def trained(self) -> dict[str, Group]:
        return {"": Group(self.config.optimizer, dict(self.actor.named_parameters()))}

    @override
    def describe_policy(self) -> PolicyConfig:
        config = self.config
        sampler = Prefixed(self.sampler, config.prefix) if config.prefix else self.sampler
        return PolicyConfig(config.net, config.encoder, sampler)

    @property
    def sampler(self) -> Sampler:
        """How the trained policy generates a chunk."""
        raise NotImplementedError

    def scaled(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """A batch as draws and loss see it: streams and actions normalised, states packed. Once per update."""
        found: dict[str, Any] = dict(batch)
        actions = {name: self.normalizer.action(found[name]) for name in (ACTION, PREVIOUS) if name in found}
        return {**found, **actions, OBS: self.streams(found[OBS])}

    def tiled(self, seen: dict[str, Any]) -> dict[str, Any]:
        """A :meth:`scaled` batch as often as noise is drawn per observation, one copy after the other; no pictures.

        In this order those rows lead that a flow map trains on the diagonal, and they are different observations.
        """
        times = self.config.noises
        if times == 1:
            return seen
        states = {STATES: seen[OBS][STATES]} if STATES in seen[OBS] else {}
        return {
            **{name: value.repeat(times, *[1] * (value.dim() - 1)) for name, value in seen.items() if name != OBS},
            OBS: {name: value.repeat(times, 1, 1) for name, value in states.items()},
        }

    def encoded(self, obs: Streams, rows: int) -> EncoderOutput:
        """What the encoder makes of observations, its condition for every of ``rows`` rows (:meth:`tiled`)."""
        output: EncoderOutput = self.actor.encoder(obs)
        times = rows // len(output.cond)
        return output if times == 1 else output._replace(cond=output.cond.repeat(times, 1))

    def draws(self, batch: dict[str, Any], generator: torch.Generator) -> Any:
        """Everything random in one update, where that depends on more than the chunks of a :meth:`scaled` batch."""
        return self.draw(batch[ACTION], generator)

    def draw(self, action: Float[Tensor, "b h a"], generator: torch.Generator) -> Any:
        """Everything random in one update: a tensor, a named tuple or a dictionary of tensors."""
        raise NotImplementedError

    def draw_committed(self, action: Float[Tensor, "b h a"], generator: torch.Generator) -> tuple[Tensor, ...]:
        """Committed rows (b, h) of a simulated delay, uniform on 0 to ``prefix`` actions; nothing where that is 0."""
        if not self.config.prefix:
            return ()
        high, rows = self.config.prefix + 1, action.shape[:1]
        length = torch.randint(high, rows, generator=generator, device=generator.device).to(action.device)
        return (committed_rows(length, action.shape[1]),)

    def loss(
        self,
        obs: Streams,
        action: Float[Tensor, "b h a"],
        valid: Bool[Tensor, "b h"],
        draws: Any,
    ) -> tuple[Float[Tensor, ""], Metrics]:
        """Scalar loss and metrics of normalised streams and chunks; several chunks an observation are :meth:`tiled`."""
        raise NotImplementedError

    @override
    def arguments(self, batch: Mapping[str, Any], generator: torch.Generator) -> tuple[Any, ...]:
        seen = self.scaled(batch)
        rows = self.tiled(seen)
        return seen[OBS], rows[ACTION], rows[VALID], self.draws(rows, generator)
