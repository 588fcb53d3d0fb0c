"""Adam over the parameters of some networks: the optimiser of the value-learning agents."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from flowpolicy.core.ranges import NonNegative, Positive, require_ranges


@dataclasses.dataclass(frozen=True)
class Adam:
    """Adam at a constant learning rate."""

    lr: Positive = 3e-4
    """Learning rate."""
    clip: NonNegative = 0.0
    """Largest gradient norm; 0, as in the FQL family, does not clip."""

    def __post_init__(self) -> None:
        require_ranges(self, "--agent.*optimizer.")  # an agent has several: optimizer, critic-optimizer, ...


class AdamGroup:
    """One optimiser and the networks that it trains; a parameter without a gradient is left as it is.

    Args:
        options: learning rate and clipping.
        networks: name -> module; the names enter the stored state.

    """

    def __init__(self, options: Adam, networks: Mapping[str, nn.Module]) -> None:
        self.options = options
        self.parameters = {
            f"{module}.{name}": value for module, net in networks.items() for name, value in net.named_parameters()
        }
        self.adam = torch.optim.Adam(self.parameters.values(), lr=options.lr, fused=True)

    def step(self) -> None:
        """Take one step along the gradients and drop them."""
        if self.options.clip:
            nn.utils.clip_grad_norm_(self.parameters.values(), self.options.clip, foreach=True)
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Tensor]:
        """Moments and step counts, named by parameter; not a copy."""
        return {
            f"{key}/{name}": value
            for name, parameter in self.parameters.items()
            for key, value in self.adam.state[parameter].items()
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of :meth:`state_dict`. KeyError names what is missing."""
        for name, parameter in self.parameters.items():
            self.adam.state[parameter] = {
                key: state[f"{key}/{name}"].clone() for key in ("step", "exp_avg", "exp_avg_sq")
            }
