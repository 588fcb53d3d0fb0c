"""A toy policy task whose every conditional law can be sampled: action chunks with several modes [flow-methods 0.4].

An observation in [-1, 1]^n has one mode, or several where its first number is low. Every mode is a smooth function of
the observation; around it the dimensions are alternately narrow and wide. Size, modes and deviations are parameters:
a ranking of methods should hold on another toy too.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from jaxtyping import Float
from torch import Tensor

from flowpolicy.bench.toy_options import Toy
from flowpolicy.core.seed import torch_generator


@dataclasses.dataclass(frozen=True)
class ChunkToy(Toy):
    """The toy's laws."""

    @property
    def dimensions(self) -> int:
        """Numbers in a chunk."""
        return self.steps * self.action

    def observe(self, count: int, generator: torch.Generator) -> Float[Tensor, "n o"]:
        """Observations, uniform in the cube."""
        return 2 * torch.rand(count, self.obs, generator=generator) - 1

    def weights(self, obs: Float[Tensor, "n o"]) -> Float[Tensor, "n k"]:
        """Probabilities of the modes."""
        several = torch.full((self.modes,), (1 - self.first) / max(self.modes - 1, 1))
        several[0] = self.first if self.modes > 1 else 1.0
        one = torch.zeros(self.modes)
        one[0] = 1.0
        return torch.where((obs[:, :1] < 2 * self.share - 1), several, one)

    def centres(self, obs: Float[Tensor, "n o"]) -> Float[Tensor, "n k d"]:
        """Middle of every mode: waves of the observation that differ by an equal part of a turn."""
        random = torch_generator(self.seed, "toy")
        slopes = 1.5 * torch.randn(self.obs, self.dimensions, generator=random)
        phases = 2 * math.pi * torch.rand(self.dimensions, generator=random)
        turns = 2 * math.pi * torch.arange(self.modes) / self.modes
        return 0.5 * torch.sin((obs @ slopes + phases).unsqueeze(1) + turns.reshape(1, -1, 1))

    def chunks(self, obs: Float[Tensor, "n o"], generator: torch.Generator) -> Float[Tensor, "n h a"]:
        """One chunk per observation, clamped to [-1, 1] as actions are."""
        mode = torch.multinomial(self.weights(obs), 1, generator=generator)
        centre = self.centres(obs).gather(1, mode.unsqueeze(2).expand(-1, 1, self.dimensions)).squeeze(1)
        deviation = torch.tensor([self.narrow, self.wide]).repeat((self.dimensions + 1) // 2)[: self.dimensions]
        noise = torch.randn(centre.shape, generator=generator)
        return (centre + deviation * noise).clamp(-1, 1).reshape(-1, self.steps, self.action)


def energy_distance(x: Float[Tensor, "n s d"], y: Float[Tensor, "n s d"]) -> Float[Tensor, " n"]:
    """``2 E|x - y| - E|x - x'| - E|y - y'|`` of every row's two samples, unbiased: 0 on average where they agree."""
    within = x.shape[1] * (x.shape[1] - 1)
    between = torch.cdist(x, y).mean((1, 2))
    return 2 * between - (torch.cdist(x, x).sum((1, 2)) + torch.cdist(y, y).sum((1, 2))) / within
