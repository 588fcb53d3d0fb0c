"""Exponential moving average of weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class EMA:
    """Average of a module's parameters: ``average += (1 - d) (weights - average)``.

    The decay warms up, ``d = min(decay, (1 + n) / (10 + n))`` at update n = 0, 1, ..., so that the initial
    weights are forgotten after some ten updates whatever the decay. Buffers are copied.

    The number of updates is the caller's: the state is the averaged weights alone, under the module's own
    names, and loads into the module as it is.

    Args:
        module: whose weights are averaged; its weights now are the first average.
        decay: final decay, in [0, 1).

    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self._average = {name: value.detach().clone() for name, value in module.state_dict().items()}
        self._pair(module)

    def _pair(self, module: nn.Module) -> None:
        """Put averages and what they follow side by side once: walking through a module takes longer than the step."""
        parameters = dict(module.named_parameters())
        self._module = module
        self._fast: list[Tensor] = list(parameters.values())
        self._slow = [self._average[name] for name in parameters]
        buffers = {name: value for name, value in module.state_dict().items() if name not in parameters}
        self._copied = [(self._average[name], value) for name, value in buffers.items()]

    def share_at(self, updates: int) -> float:
        """``1 - d`` of the step after so many."""
        return 1 - min(self.decay, (1 + updates) / (10 + updates))

    @torch.no_grad()
    def restart(self, module: nn.Module) -> None:
        """Begin again with the weights of ``module``, which were replaced."""
        for name, value in module.state_dict().items():
            self._average[name].copy_(value)

    @torch.no_grad()
    def update(self, module: nn.Module, share: float | Tensor) -> None:
        """Take one step towards the weights of ``module``: ``share`` of the way, see :meth:`share_at`.

        A tensor (one number, where the weights are) is read when the step is taken, also by a CUDA graph that holds it.
        """
        if module is not self._module:
            self._pair(module)
        if isinstance(share, Tensor):  # no kernel of PyTorch's takes a step for all weights by a tensor
            way = torch._foreach_sub(self._fast, self._slow)
            torch._foreach_mul_(way, share)
            torch._foreach_add_(self._slow, way)
        else:
            torch._foreach_lerp_(self._slow, self._fast, share)
        for average, value in self._copied:
            average.copy_(value)

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged weights under the module's names, for ``module.load_state_dict``; not a copy."""
        return dict(self._average)

    def load_state_dict(self, weights: Mapping[str, Tensor]) -> None:
        """Take up stored weights; strict. KeyError names what is missing or unknown."""
        wrong = set(weights) ^ set(self._average)
        if wrong:
            raise KeyError(f"missing or unknown in the averaged weights: {', '.join(sorted(wrong))}")
        for name, value in self._average.items():
            value.copy_(weights[name])
