"""The optimiser step that every agent takes, and its options.

One gradient step is the same everywhere: backward, clip, learning rate of this update, AdamW, averaged weights. What
belongs to *every* step of *every* agent is written here once. Gradients are averaged over the processes that train
together (:mod:`flowpolicy.core.ranks`) between backward and clipping, where those of half precision would be unscaled.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from flowpolicy.agents.base.compiled_loss import explained
from flowpolicy.core import ranks
from flowpolicy.core.protocols import Metrics
from flowpolicy.core.ranges import Decay, Natural, NonNegative, Positive, require_ranges
from flowpolicy.nets.ema import EMA


@dataclasses.dataclass(frozen=True)
class Adam:
    """Adam at a constant learning rate."""

    flag: ClassVar[str] = "--agent.*optimizer."
    """How errors call these options; an agent has several: optimizer, critic-optimizer, ..."""

    lr: Positive = 3e-4
    """Learning rate."""
    clip: NonNegative = 0.0
    """Largest gradient norm; 0, as in the FQL family, does not clip."""
    scaling: Literal["none", "sqrt"] = "none"
    """'sqrt' multiplies the learning rate by the root of the batch size over 256 (arXiv 2006.09092)."""

    def __post_init__(self) -> None:
        require_ranges(self, self.flag)

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Torch's optimiser of these options."""
        return torch.optim.Adam(parameters, lr=self.lr, fused=True)

    def scale(self, batch: int) -> float:
        """Factor of the learning rate for batches of this size."""
        return math.sqrt(batch / 256) if self.scaling == "sqrt" else 1.0

    def lr_at(self, update: int, steps: int) -> float:
        """Learning rate of the update with this number, of ``steps`` planned, for batches of 256."""
        return self.lr


@dataclasses.dataclass(frozen=True)
class Optimizer(Adam):
    """AdamW with warm-up, cosine decay, clipped gradients and averaged weights."""

    flag: ClassVar[str] = "--agent.optimizer."

    lr: Positive = 1e-3
    """Peak learning rate."""
    weight_decay: NonNegative = 1e-6
    """Decoupled weight decay."""
    warmup: Natural = 200
    """Updates of linear warm-up."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """After the warm-up: cosine decay to zero over the planned steps, or constant."""
    clip: NonNegative = 10.0
    """Largest gradient norm; 0 does not clip."""
    ema: Decay = 0.999
    """Decay of the averaged weights that the policy uses."""

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Torch's optimiser of these options."""
        return torch.optim.AdamW(parameters, lr=self.lr, weight_decay=self.weight_decay, fused=True)

    def lr_at(self, update: int, steps: int) -> float:
        """Learning rate of the update with this number, of ``steps`` planned, for batches of 256."""
        warm = min(1.0, (update + 1) / max(1, self.warmup))
        if self.schedule == "constant":
            return self.lr * warm
        progress = min(1.0, max(0, update - self.warmup) / max(1, steps - self.warmup))
        return self.lr * warm * 0.5 * (1 + math.cos(math.pi * progress))


class Group(NamedTuple):
    """Parameters that are trained together: one gradient norm, one learning rate."""

    options: Adam
    parameters: Mapping[str, nn.Parameter]
    """Name -> parameter; the names enter the stored state."""


def parameters_of(networks: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    """The parameters of several networks, each under its network's name."""
    return {f"{net}.{name}": value for net, module in networks.items() for name, value in module.named_parameters()}


class Stepper:
    """Takes optimisation steps. A parameter without a gradient is left as it is.

    Args:
        groups: name -> parameters and their options. The name '' adds nothing to the stored names and metrics.
        steps: planned number of updates, for the learning-rate schedules.
        average: moved towards the weights of the network beside it after every step.

    """

    def __init__(self, groups: Mapping[str, Group], steps: int, average: tuple[EMA, nn.Module] | None = None) -> None:
        self.groups, self.steps, self.updates = dict(groups), steps, 0
        self._torch = {name: options.build(parameters.values()) for name, (options, parameters) in groups.items()}
        self._average = average
        self._numbers: Tensor | None = None

    def step(self, loss: Tensor, rows: int) -> Metrics:
        """One step down ``loss``.

        Args:
            loss: scalar with a graph to the parameters; each group must be reached by its own part of it.
            rows: size of the batch that the loss is a mean over.

        Returns:
            ``lr`` of each group and, where gradients are clipped, their ``grad_norm`` before that.

        """
        self.descend(loss)
        return self.apply(rows)

    def descend(self, loss: Tensor) -> None:
        """Give every parameter the gradient of ``loss``, and none to those that it does not reach."""
        for optimizer in self._torch.values():
            optimizer.zero_grad(set_to_none=True)
        with explained("the gradient of the loss"):  # compiled when it is first asked for
            loss.backward()
        if group := ranks.current():
            parameters = (p for _, each in self.groups.values() for p in each.values())
            group.average_gradients([p.grad for p in parameters if p.grad is not None])

    def apply(self, rows: int) -> Metrics:
        """The step down the gradients that the parameters have; arguments and result of :meth:`step`."""
        metrics: Metrics = {}
        numbers: Sequence[Any] = self.numbers() if self._numbers is None else self._numbers.unbind()
        for (name, (options, parameters)), rate in zip(self.groups.items(), numbers, strict=False):
            prefix = f"{name}_" if name else ""
            if options.clip:
                metrics[f"{prefix}grad_norm"] = nn.utils.clip_grad_norm_(
                    parameters.values(), options.clip, foreach=True
                )
            lr = rate * options.scale(rows)
            metrics[f"{prefix}lr"] = torch.as_tensor(lr, dtype=torch.float32)
            self._torch[name].param_groups[0]["lr"] = lr
            self._torch[name].step()
        if self._average:
            ema, network = self._average
            ema.update(network, numbers[-1])
        self.updates += 1
        return metrics

    def numbers(self) -> tuple[float, ...]:
        """What changes from step to step, for the next one: learning rates, and the newest weights' share of averages.

        That is one minus the decay; as a number of float32 the decay itself would be too coarse.
        """
        rates = [options.lr_at(self.updates, self.steps) for options, _ in self.groups.values()]
        return (*rates, *([self._average[0].share_at(self.updates)] if self._average else []))

    def reading(self, numbers: Tensor) -> None:
        """Let the steps be captured in a CUDA graph: from here on they read their numbers from this tensor.

        Args:
            numbers: as many as :meth:`numbers`, which whoever takes a step copies into it beforehand; where the
                parameters are.

        """
        self._numbers = numbers
        for optimizer in self._torch.values():
            for group in optimizer.param_groups:
                group["capturable"] = any(parameter.is_cuda for parameter in group["params"])

    def state_dict(self) -> dict[str, Tensor]:
        """Number of updates, and moments and step counts by parameter; not a copy. The average is not among them."""
        state = {"updates": torch.tensor(self.updates)}
        for group, (_, parameters) in self.groups.items():
            prefix = f"{group}/" if group else ""
            for name, parameter in parameters.items():
                for key, value in self._torch[group].state[parameter].items():
                    state[f"{prefix}{key}/{name}"] = value
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of :meth:`state_dict`.

        Raises:
            KeyError: something is missing, or belongs to no parameter. A parameter that had no gradient yet has no
                state.

        """
        left = set(state) - {"updates"}
        for group, (_, parameters) in self.groups.items():
            prefix, moments = f"{group}/" if group else "", self._torch[group].state
            for name, parameter in parameters.items():
                keys = {key: f"{prefix}{key}/{name}" for key in ("step", "exp_avg", "exp_avg_sq")}
                moments.pop(parameter, None)
                if not left.isdisjoint(keys.values()):
                    moments[parameter] = {
                        key: state[stored].to(parameter.device, copy=True) for key, stored in keys.items()
                    }
                left -= set(keys.values())
        if left:
            raise KeyError(f"unknown in the optimiser's state: {', '.join(sorted(left)[:4])}")
        self.updates = int(state["updates"])
