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
from tensordict import TensorDict
from torch import Tensor, nn

from flowpolicy.agents.base.compiled_loss import CompiledLoss
from flowpolicy.agents.base.optimizer import Group, Optimizer, Stepper
from flowpolicy.core.errors import CheckpointError, ConfigError
from flowpolicy.core.keys import ACTION, OBS, PREVIOUS, VALID
from flowpolicy.core.protocols import Metrics
from flowpolicy.core.ranges import Few, Natural
from flowpolicy.core.references import Reference
from flowpolicy.core.seed import torch_generator
from flowpolicy.core.spec import Contract
from flowpolicy.core.streams import Streams
from flowpolicy.data.normalize import Normalizer
from flowpolicy.flows.real_time import committed_rows
from flowpolicy.nets.ema import EMA
from flowpolicy.nets.encoder import StateEncoder
from flowpolicy.nets.mlp import MLP
from flowpolicy.policy.actor import Actor, Net, PolicyConfig
from flowpolicy.policy.policy import Policy
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
    net: Net = MLP()
    """Trunk over the chunk: mlp, unet or transformer."""
    encoder: StateEncoder = StateEncoder()
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

    def __post_init__(self) -> None:
        if self.prefix and not 0 < self.prefix <= self.chunk - self.execute:
            raise ConfigError(
                f"--agent.prefix {self.prefix}, --agent.chunk {self.chunk}, --agent.execute {self.execute}",
                expected="prefix + execute <= chunk: what is executed must lie after what was committed",
                fix=f"--agent.chunk {max(self.prefix, 0) + self.execute} or more",
            )


class ImitationAgent(nn.Module):
    """Base of the behaviour-cloning agents. One that can be told a prefix appends :meth:`draw_committed` to its draws.

    Args:
        config: options.
        contract: sizes and conventions; ``history``, ``chunk``, ``execute`` and ``nfe`` come from ``config``.
        normalizer: fitted on the training data; actions in [-1, 1].
        steps: planned number of updates, for the learning-rate schedule.
        seed: seeds the initial weights.
        compile: compile the loss and its gradient into one graph.

    """

    def __init__(
        self,
        config: ImitationConfig,
        contract: Contract,
        normalizer: Normalizer,
        *,
        steps: int,
        seed: int,
        compile: bool,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        self.config, self.contract, self.steps = config, contract, steps
        self.policy_config = self.describe_policy()
        # torch initialises layers from its global generator only, so the fork keeps the caller's state.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch_generator(seed, "weights").initial_seed())
            self.actor = Actor(self.policy_config, contract).to(device)
        self.normalizer = normalizer.to(device)
        self.ema = EMA(self.actor, config.optimizer.ema)
        trained = Group(config.optimizer, dict(self.actor.named_parameters()))
        self.optimizer = Stepper({"": trained}, steps, (self.ema, self.actor))
        self._loss = CompiledLoss(self.loss, device) if compile else self.loss

    def describe_policy(self) -> PolicyConfig:
        """What rebuilds the policy. The networks of ``Actor`` are made from it."""
        config = self.config
        sampler = Prefixed(self.sampler, config.prefix) if config.prefix else self.sampler
        return PolicyConfig(config.net, config.encoder, sampler)

    @property
    def sampler(self) -> Sampler:
        """How the trained policy generates a chunk."""
        raise NotImplementedError

    def scaled(self, batch: TensorDict) -> dict[str, Any]:
        """A batch as draws and loss see it: streams and actions normalised, states packed. Once per update."""
        found: dict[str, Any] = dict(batch.items())
        actions = {name: self.normalizer.action(found[name]) for name in (ACTION, PREVIOUS) if name in found}
        return {**found, **actions, OBS: self.streams(found[OBS])}

    def streams(self, obs: Mapping[str, Tensor] | TensorDict) -> Streams:
        """Observations as draws and loss see them, see :meth:`Actor.streams`; samplers that are told it do it once."""
        return self.actor.streams(self.normalizer, obs)

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
        """Scalar loss and metrics of normalised streams and chunks."""
        raise NotImplementedError

    def update(self, batch: TensorDict, generator: torch.Generator) -> Metrics:
        """One gradient step; see :class:`flowpolicy.core.protocols.Agent`."""
        seen = self.scaled(batch)
        loss, metrics = self._loss(seen[OBS], seen[ACTION], seen[VALID], self.draws(seen, generator))
        return {"loss": loss.detach(), **self.optimizer.step(loss, len(batch)), **metrics}

    @property
    def updates(self) -> int:
        """Finished updates."""
        return self.optimizer.updates

    @property
    def stopped(self) -> bool:
        """Never before the planned updates."""
        return False

    def policy(self) -> Policy:
        """The policy with the averaged weights; shares nothing with the agent."""
        policy = Policy(self.policy_config, self.contract, self.normalizer)
        policy.actor.load_state_dict(self.ema.state_dict())
        return policy.eval().requires_grad_(False)

    def state_dict(self) -> dict[str, dict[str, Tensor]]:  # type: ignore[override]
        """Files of a checkpoint: ``weights``, ``ema``, ``optim`` and ``normalizer``."""
        return {
            "weights": self.actor.state_dict(),
            "ema": self.ema.state_dict(),
            "optim": self.optimizer.state_dict(),
            "normalizer": self.normalizer.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:  # type: ignore[override]
        """Inverse of :meth:`state_dict`; strict."""
        try:
            self.actor.load_state_dict(state["weights"])
            self.normalizer.load_state_dict(state["normalizer"])
            self.ema.load_state_dict(state["ema"])
            self.optimizer.load_state_dict(state["optim"])
        except (KeyError, RuntimeError) as error:
            raise CheckpointError(
                f"the checkpoint does not fit the agent of its config: {error}",
                fix="resume with the flowpolicy version that wrote it",
            ) from error
