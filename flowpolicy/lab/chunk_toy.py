"""A toy policy task whose every conditional law can be sampled: action chunks with several modes.

An observation in [-1, 1]^n has one mode, or several where its first number is low. Every mode is a smooth function of
the observation; around it the dimensions are alternately narrow and wide. Size, modes and deviations are parameters:
a ranking of methods should hold on another toy too. Imports no torch: the command line reads the options.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Annotated

from flowpolicy.core.ranges import Count, Positive, Range, Seed, Share, require_ranges

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float
    from torch import Tensor


@dataclasses.dataclass(frozen=True)
class ChunkToy:
    """Which toy, and its laws."""

    steps: Count = 4
    """Steps of a chunk."""
    action: Count = 2
    """Numbers of a step; a chunk has steps times action of them."""
    obs: Count = 2
    """Numbers of an observation."""
    modes: Count = 2
    """Modes of an observation that has several."""
    share: Share = 0.65
    """Share of the observations that have several."""
    first: Annotated[float, Range(0, 1, above=True)] = 0.7
    """Probability of the first mode there; the others share the rest."""
    narrow: Positive = 0.02
    """Deviation of the even numbers of a chunk."""
    wide: Positive = 0.2
    """Deviation of the odd ones."""
    size: Count = 20_000
    """Training chunks."""
    seed: Seed = 0
    """Which functions of the observation the modes are."""

    def __post_init__(self) -> None:
        require_ranges(self, "--toy.")

    @property
    def dimensions(self) -> int:
        """Numbers in a chunk."""
        return self.steps * self.action

    def observe(self, count: int, generator: torch.Generator) -> Float[Tensor, "n o"]:
        """Observations, uniform in the cube."""
        import torch

        return 2 * torch.rand(count, self.obs, generator=generator) - 1

    def weights(self, obs: Float[Tensor, "n o"]) -> Float[Tensor, "n k"]:
        """Probabilities of the modes."""
        import torch

        several = torch.full((self.modes,), (1 - self.first) / max(self.modes - 1, 1))
        several[0] = self.first if self.modes > 1 else 1.0
        one = torch.zeros(self.modes)
        one[0] = 1.0
        return torch.where((obs[:, :1] < 2 * self.share - 1), several, one)

    def centres(self, obs: Float[Tensor, "n o"]) -> Float[Tensor, "n k d"]:
        """Middle of every mode: waves of the observation that differ by an equal part of a turn."""
        import torch

        from flowpolicy.core.seed import torch_generator

        random = torch_generator(self.seed, "toy")
        slopes = 1.5 * torch.randn(self.obs, self.dimensions, generator=random)
        phases = 2 * math.pi * torch.rand(self.dimensions, generator=random)
        turns = 2 * math.pi * torch.arange(self.modes) / self.modes
        return 0.5 * torch.sin((obs @ slopes + phases).unsqueeze(1) + turns.reshape(1, -1, 1))

    def chunks(self, obs: Float[Tensor, "n o"], generator: torch.Generator) -> Float[Tensor, "n h a"]:
        """One chunk per observation, clamped to [-1, 1] as actions are."""
        import torch

        mode = torch.multinomial(self.weights(obs), 1, generator=generator)
        centre = self.centres(obs).gather(1, mode.unsqueeze(2).expand(-1, 1, self.dimensions)).squeeze(1)
        deviation = torch.tensor([self.narrow, self.wide]).repeat((self.dimensions + 1) // 2)[: self.dimensions]
        noise = torch.randn(centre.shape, generator=generator)
        return (centre + deviation * noise).clamp(-1, 1).reshape(-1, self.steps, self.action)
