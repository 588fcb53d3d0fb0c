"""Several agents that take their updates together: one loss for all, with the agents as a leading dimension.

The loss is the agents' own, unchanged: ``vmap`` of its gradient over their weights. Batches and draws are those of each
agent's own generators; the optimiser, the averaged weights and the targets are its own too. An agent comes out as it
would have alone, to the round-off of batched products. Agents may differ in numbers that their loss reads (``alpha``,
``expectile``, ``budget``) and in those of their optimisers, so that a company is also a sweep.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.utils import _pytree as pytree

from flowpolicy.agents.base.agent import TrainedAgent
from flowpolicy.agents.base.compiled_loss import TOLERANCE, CompiledLoss
from flowpolicy.agents.base.optimizer import Adam
from flowpolicy.core import keys
from flowpolicy.core.errors import ConfigError, TrainingError
from flowpolicy.core.protocols import Metrics


class Company:
    """Agents that are updated together; they stay agents, each of which can be stored, loaded and asked for its policy.

    From here on their weights are parts of common tensors: what is loaded into one afterwards must be copied in, as
    ``load_state_dict`` does.

    Args:
        agents: of one kind, before the same update.
        compile: compile losses and gradients of all into one graph.

    Raises:
        ConfigError: they cannot take their updates together.

    """

    def __init__(self, agents: Sequence[Any], *, compile: bool = False) -> None:
        self.agents: list[TrainedAgent] = list(agents)
        first, differ = self.agents[0], differing([agent.config for agent in agents])
        if not isinstance(first, TrainedAgent) or type(first).update is not TrainedAgent.update:
            raise ConfigError(
                f"{type(first).__name__} takes its updates in a way of its own, and cannot take them in company",
                expected="an agent whose update is the gradient of its loss, once",
                fix="train one seed after the other",
            )
        if len({(type(agent), agent.updates) for agent in agents}) > 1:
            raise ConfigError("agents of several kinds, or after different numbers of updates", expected="one kind")
        parts = [{**dict(agent.named_parameters()), **dict(agent.named_buffers())} for agent in agents]
        self._together: dict[str, Tensor] = {}
        for name, value in parts[0].items():
            common = torch.stack([part[name].detach() for part in parts])
            for part, own in zip(parts, common, strict=True):
                part[name].data = own
            self._together[name] = common.requires_grad_(False)
            assert parts[0][name].shape == value.shape
        trained = {id(p) for _, parameters in first.optimizer.groups.values() for p in parameters.values()}
        self._trained = [name for name, value in parts[0].items() if id(value) in trained]
        self._parameters = [{name: part[name] for name in self._trained} for part in parts]
        place = self._together[self._trained[0]].device
        self._numbers = {path: torch.tensor(values, device=place) for path, values in differ.items()}
        self._loss = _LossOf(first)
        self._whole = CompiledLoss(self.losses, place) if compile else self.losses
        self._reached: dict[tuple[tuple[str, bool], ...], list[str]] = {}

    def update(self, batches: Sequence[Mapping[str, Any]], generators: Sequence[torch.Generator]) -> list[Metrics]:
        """One gradient step of every agent, on its own batch with its own generator; the metrics of each."""
        each = [
            agent.arguments(batch, generator)
            for agent, batch, generator in zip(self.agents, batches, generators, strict=True)
        ]
        switches = self.agents[0].switches()
        reached = self._reached.get(key := tuple(switches.items()))
        found = self._gradients(each, switches, reached or self._ask(each, switches, key))
        if reached is None:
            self._require_own(each, switches, found[1])
        gradients, losses, metrics = found
        results = []
        for index, agent in enumerate(self.agents):
            for name, parameter in self._parameters[index].items():
                parameter.grad = gradients[name][index] if name in gradients else None
            own = {name: value[index] for name, value in metrics.items()}
            rows = len(batches[index][keys.ACTION])
            results.append(agent.advance(losses[index], own, rows, **switches))
        return results

    def _gradients(
        self, each: list[tuple[Any, ...]], switches: dict[str, bool], reached: list[str]
    ) -> tuple[dict[str, Tensor], Tensor, Metrics]:
        """Gradients, losses and metrics of all agents, agents first."""
        moving = {name: self._together[name] for name in reached}
        resting = {name: value for name, value in self._together.items() if name not in moving}
        arguments = pytree.tree_map(_stacked, *each)
        try:
            _, metrics, gradients = self._whole(moving, resting, arguments, self._numbers, **switches)
        except (RuntimeError, TypeError) as error:
            if not self._numbers:
                raise
            raise ConfigError(
                f"--agent.{', --agent.'.join(self._numbers)} cannot differ in one company: "
                f"{str(error).strip().splitlines()[0]}",
                expected="numbers that the loss only computes with, as alpha, expectile and budget",
                fix="train them one after the other",
            ) from error
        losses = metrics.pop(_LOSSES)
        return gradients, losses, {name: value.detach() for name, value in metrics.items()}

    def losses(
        self,
        moving: dict[str, Tensor],
        resting: dict[str, Tensor],
        arguments: tuple[Any, ...],
        numbers: dict[str, Tensor],
        **switches: bool,
    ) -> tuple[Tensor, Metrics, dict[str, Tensor]]:
        """The losses of all agents, agents first in everything that is given and returned.

        Args:
            moving: weights with a gradient.
            resting: all other weights and buffers.
            arguments: of the loss; what is no tensor is the same for all.
            numbers: of the config, by their path.
            switches: of the loss.

        Returns:
            Sum of the losses; metrics, the losses among them; gradients.

        """
        places = pytree.tree_map(lambda value: 0 if isinstance(value, Tensor) else None, arguments)
        one = grad_and_value(
            lambda moving, resting, numbers, *given: self._one({**moving, **resting}, numbers, given, switches),
            has_aux=True,
        )
        over = vmap(one, in_dims=(0, 0, 0, *places))
        gradients, (losses, metrics) = over(moving, resting, numbers, *arguments)
        return losses.sum(), {**metrics, _LOSSES: losses}, gradients

    def _one(
        self, weights: dict[str, Tensor], numbers: dict[str, Tensor], given: tuple[Any, ...], switches: dict[str, bool]
    ) -> tuple[Tensor, Metrics]:
        """Loss and metrics of one agent."""
        state = {f"agent.{name}": value for name, value in weights.items()}
        with self._loss.reading(numbers):
            found: tuple[Tensor, Metrics] = functional_call(self._loss, state, given, switches)
        return found

    def _ask(
        self, each: list[tuple[Any, ...]], switches: dict[str, bool], key: tuple[tuple[str, bool], ...]
    ) -> list[str]:
        """Which parameters these switches reach: one without a gradient is left as it is, and one of zero is not."""
        first = self.agents[0]
        own = self._parameters[0]
        gradients = torch.autograd.grad(
            first.loss(*each[0], **switches)[0], list(own.values()), allow_unused=True, materialize_grads=False
        )
        self._reached[key] = [name for name, grad in zip(own, gradients, strict=True) if grad is not None]
        return self._reached[key]

    @torch.no_grad()
    def _require_own(self, each: list[tuple[Any, ...]], switches: dict[str, bool], losses: Tensor) -> None:
        """Raise unless the common loss is each agent's own: a loss may read what the company does not know of."""
        for agent, arguments, found in zip(self.agents, each, losses, strict=True):
            own, metrics = agent.loss(*arguments, **switches)
            parts = [value.detach().abs().max() for value in (own, *metrics.values()) if isinstance(value, Tensor)]
            if bool((own - found).abs() > TOLERANCE * torch.stack(parts).amax()):
                raise TrainingError(
                    f"the loss of {type(agent).__name__} is {float(found):.6g} in company and {float(own):.6g} alone",
                    expected="a function of weights, buffers, batch, draws and numbers of its config",
                    fix="train one after the other",
                )


_LOSSES = "losses of all"
"""Their name among the metrics."""


def _stacked(value: Any, *others: Any) -> Any:
    """Tensors of several agents as one; what is none is the first one's."""
    return torch.stack([value, *others]) if isinstance(value, Tensor) else value


class _LossOf(nn.Module):
    """The loss of an agent as a module, so that it can be called with other weights; and with other numbers."""

    def __init__(self, agent: TrainedAgent) -> None:
        super().__init__()
        self.agent = agent

    def forward(self, *arguments: Any, **switches: Any) -> Any:
        """:meth:`TrainedAgent.loss`."""
        return self.agent.loss(*arguments, **switches)

    def reading(self, numbers: Mapping[str, Any]) -> _Reading:
        """A context in which the config of the agent has these values, path -> value."""
        return _Reading(self.agent, numbers)


class _Reading:
    def __init__(self, agent: TrainedAgent, numbers: Mapping[str, Any]) -> None:
        self._agent, self._numbers, self._own = agent, numbers, agent.config

    def __enter__(self) -> None:
        if self._numbers:
            self._agent.config = changed_config(self._own, self._numbers)

    def __exit__(self, *error: object) -> None:
        self._agent.config = self._own


def changed_config(config: Any, numbers: Mapping[str, Any]) -> Any:
    """A copy of a frozen config with other values, path -> value; unchecked, because they may be tensors."""
    for path, value in numbers.items():
        name, _, rest = path.partition(".")
        config = copy.copy(config)
        object.__setattr__(config, name, changed_config(getattr(config, name), {rest: value}) if rest else value)
    return config


def differing(configs: Sequence[Any], prefix: str = "") -> dict[str, list[float]]:
    """Numbers in which configs of one kind differ, by path; those of optimisers are the agents' own affair.

    Raises:
        ConfigError: they differ in something else.

    """
    found: dict[str, list[float]] = {}
    if len({type(config) for config in configs}) > 1:
        raise ConfigError(f"--agent.{prefix.rstrip('.')} is of different kinds", expected="one for all of a company")
    for field in dataclasses.fields(configs[0]):
        values, path = [getattr(config, field.name) for config in configs], f"{prefix}{field.name}"
        if all(value == values[0] for value in values) or isinstance(values[0], Adam):
            continue
        if all(isinstance(value, float | int) and not isinstance(value, bool) for value in values) and any(
            isinstance(value, float) for value in values
        ):
            found[path] = [float(value) for value in values]
        elif dataclasses.is_dataclass(values[0]):
            found |= differing(values, f"{path}.")
        else:
            raise ConfigError(
                f"--agent.{path} differs: {', '.join(map(str, values))}",
                expected="one value for all of a company, in which only numbers that losses and optimisers read differ",
                fix="train them apart",
            )
    return found
