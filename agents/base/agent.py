"""What every agent is made of: a policy in training, its optimiser, its averaged weights, and its files."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from flowpolicy.agents.base.compiled_loss import TOLERANCE, CompiledLoss
from flowpolicy.agents.base.optimizer import Group, Stepper
from flowpolicy.core import keys, ranks
from flowpolicy.core.errors import CheckpointError, TrainingError
from flowpolicy.core.protocols import Metrics
from flowpolicy.core.seed import first_weights
from flowpolicy.core.spec import Contract
from flowpolicy.core.streams import Crop, Streams
from flowpolicy.data.normalize import Normalizer
from flowpolicy.nets.ema import EMA
from flowpolicy.nets.vision import VisionEncoder, VisionProjection, begin_with
from flowpolicy.policy.actor import Actor, PolicyConfig
from flowpolicy.policy.policy import Policy


class TrainedAgent(nn.Module):
    """Base of the agents.

    Args:
        config: options.
        contract: sizes and conventions; ``history``, ``chunk``, ``execute`` and ``nfe`` come from ``config``.
        normalizer: fitted on the training data; actions in [-1, 1].
        steps: planned number of updates, for the learning-rate schedules.
        seed: seeds the initial weights.
        compile: compile the loss and its gradient into one graph.

    """

    def __init__(
        self,
        config: Any,
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
        with first_weights(seed, "weights"):
            self.actor = Actor(self.policy_config, contract)
            self._build()
        self.to(device)
        self.normalizer = normalizer.to(device)
        decay = self.averaging
        self.ema = None if decay is None else EMA(self.actor, decay)
        self.optimizer = Stepper(self.trained(), steps, (self.ema, self.actor) if self.ema else None)
        self._loss = CompiledLoss(self.loss, device) if compile else self.loss

    def describe_policy(self) -> PolicyConfig:
        """What rebuilds the policy. The networks of ``Actor`` are made from it."""
        raise NotImplementedError

    def _build(self) -> None:
        """Add the networks that only training needs, as attributes; their first weights follow the seed."""

    @property
    def exact(self) -> str:
        """Why a part of the loss must be computed in float32; empty where none must."""
        return ""

    @property
    def averaging(self) -> float | None:
        """Decay of the averaged weights, or None where the policy uses the newest ones."""
        raise NotImplementedError

    def trained(self) -> dict[str, Group]:
        """Parameters by the name of their optimiser."""
        raise NotImplementedError

    def loss(self, *args: Any, **switches: Any) -> tuple[Tensor, Metrics]:
        """Scalar loss and metrics of one batch and its draws."""
        raise NotImplementedError

    def streams(self, obs: Mapping[str, Tensor]) -> Streams:
        """Observations as losses see them, see :meth:`Actor.streams`; samplers that are told it do it once."""
        return self.actor.streams(self.normalizer, obs)

    def arguments(self, batch: Mapping[str, Any], generator: torch.Generator) -> tuple[Any, ...]:
        """What :meth:`loss` is called with: the batch as it reads it, and everything random in one update."""
        raise NotImplementedError

    def switches(self) -> dict[str, bool]:
        """Keyword arguments of :meth:`loss` that differ between updates; every combination is compiled once."""
        return {}

    def update(self, batch: Mapping[str, Any], generator: torch.Generator) -> Metrics:
        """One gradient step; see :class:`flowpolicy.core.protocols.Agent`.

        Who takes the steps of many agents at once calls :meth:`arguments`, the loss and :meth:`advance` itself, so an
        agent that overrides this takes its steps alone.
        """
        arguments, switches, rows = self.arguments(batch, generator), self.switches(), len(batch[keys.ACTION])
        group, proof = ranks.current(), None
        if group:
            proof = None if group.proven else self._alone(arguments, switches)
            arguments = self.own(arguments, rows, group.rows)
        loss, metrics = self._loss(*arguments, **switches)
        if group and proof:
            _require_same(loss, metrics, *proof, type(self).__name__)
            group.proven = True
        self.optimizer.descend(loss)
        return self.advance(loss.detach(), metrics, rows, **switches)

    @property
    def indivisible(self) -> str:
        """Why processes cannot share an update by rows; empty where they can."""
        return ""

    def own(self, arguments: tuple[Any, ...], rows: int, mine: slice) -> tuple[Any, ...]:
        """The part of one of several processes in the arguments of the loss.

        Args:
            arguments: all tensors have a row of the batch first, or several; pictures may be those of the part already.
            rows: of the batch.
            mine: rows of the part.

        """
        found: tuple[Any, ...] = pytree.tree_map(
            lambda value: value[mine] if has_rows(value, rows) else value, arguments
        )
        return found

    @torch.no_grad()
    def _alone(self, arguments: tuple[Any, ...], switches: dict[str, bool]) -> tuple[Tensor, Metrics]:
        """Loss and metrics of the whole batch as a process alone computes them."""
        with ranks.apart():
            return self.loss(*arguments, **switches)

    def advance(self, loss: Tensor, metrics: Metrics, rows: int, **switches: bool) -> Metrics:
        """The step down the gradients that the parameters have, and what follows it; the metrics to report."""
        return {"loss": loss, **self.optimizer.apply(rows), **metrics}

    @property
    def crops(self) -> dict[str, Crop]:
        """Windows of pictures that batches of training hold, by observation."""
        encoder = self.policy_config.encoder
        return encoder.crops(self.contract.spec.observation) if isinstance(encoder, VisionEncoder) else {}

    def begin(self) -> list[str]:
        """What a new run does before its first update, once: weights that the config names; says what was done."""
        encoders = [part for part in self.modules() if isinstance(part, VisionProjection)]
        said = [line for part in encoders for line in begin_with(part, part.config)]
        if said and self.ema:
            self.ema.restart(self.actor)
        return list(dict.fromkeys(said))

    def numbers(self) -> tuple[float, ...]:
        """Python numbers, beside those of the optimiser, that the next update reads and that change between updates."""
        return ()

    @property
    def waits(self) -> str:
        """Why updates on a GPU wait for the processor; empty where none does."""
        return ""

    @property
    def updates(self) -> int:
        """Finished updates."""
        return self.optimizer.updates

    @property
    def stopped(self) -> bool:
        """Never before the planned updates."""
        return False

    def policy(self) -> Policy:
        """The policy with the averaged weights, where the agent is; shares nothing with it."""
        with first_weights(0):  # which are replaced at once
            policy = Policy(self.policy_config, self.contract, copy.deepcopy(self.normalizer))
        policy.actor.load_state_dict(self._averaged())
        policy.to(self.normalizer.action_scaling.offset.device)
        return policy.eval().requires_grad_(False)

    def _averaged(self) -> dict[str, Tensor]:
        return self.ema.state_dict() if self.ema else self.actor.state_dict()

    def state_dict(self) -> dict[str, dict[str, Tensor]]:  # type: ignore[override]
        """Files of a checkpoint: ``weights``, ``ema`` and ``normalizer`` (the policy), and ``optim``."""
        return {
            "weights": self.actor.state_dict(),
            "ema": self._averaged(),
            "optim": self.optimizer.state_dict(),
            "normalizer": self.normalizer.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:  # type: ignore[override]
        """Inverse of :meth:`state_dict`; strict."""
        try:
            self._load(state)
        except (KeyError, RuntimeError, TypeError) as error:
            raise CheckpointError(
                f"the checkpoint does not fit the agent of its config: {error}",
                fix="resume with the flowpolicy version that wrote it",
            ) from error

    def _load(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Take up the files; KeyError, RuntimeError or TypeError where they are another agent's."""
        self.actor.load_state_dict(state["weights"])
        self.normalizer.load_state_dict(state["normalizer"])
        if self.ema:
            self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optim"])


def has_rows(value: Any, rows: int) -> bool:
    """Whether it is a tensor with so many rows or more: no number for all of them, and no part of them."""
    return isinstance(value, Tensor) and value.dim() > 0 and len(value) >= rows


def _require_same(loss: Tensor, metrics: Metrics, whole: Tensor, expected: Metrics, name: str) -> None:
    """Raise TrainingError unless what processes compute together is what one computes alone."""
    pairs = {"loss": (loss.detach(), whole)}
    pairs |= {key: (value.detach(), expected[key]) for key, value in metrics.items() if key.endswith("loss")}
    scale = max(float(alone.abs()) for _, alone in pairs.values())
    for key, (shared, alone) in pairs.items():
        if bool((shared - alone).abs() > TOLERANCE * scale):  # what is not finite is the trainer's business
            raise TrainingError(
                f"the {key} of {name} is {float(shared):.6g} by rows of several processes and {float(alone):.6g} whole",
                expected="means and sums over rows by flowpolicy.core.ranks: ranks.mean(x) for x.mean()",
                fix="train in one process, or write the loss so",
            )


def joined(**parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Several states as one file, every name after that of its part."""
    return {f"{part}.{name}": value for part, state in parts.items() for name, value in state.items()}


def parted(file: Mapping[str, Tensor], *parts: str) -> dict[str, dict[str, Tensor]]:
    """Inverse of :func:`joined`; KeyError names a part that is none of ``parts``."""
    found: dict[str, dict[str, Tensor]] = {part: {} for part in parts}
    for name, value in file.items():
        part, _, rest = name.partition(".")
        found[part][rest] = value
    return found
