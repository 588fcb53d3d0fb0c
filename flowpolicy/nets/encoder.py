"""Encoders of the observation history. They see no flow time: once per batch is enough."""

from __future__ import annotations

import dataclasses
from typing import Annotated, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flowpolicy.core.ranges import Range
from flowpolicy.nets.layers import LayerNorm, gelu


class EncoderOutput(NamedTuple):
    """What an encoder gives."""

    cond: Float[Tensor, "b c"]
    """Condition of the flow network."""
    feature: Float[Tensor, "b f"]
    """Projection that the dispersive regulariser acts on."""


@dataclasses.dataclass(frozen=True)
class StateEncoder:
    """Encoder of low-dimensional observations."""

    width: Annotated[int, Range(0, 2**15)] = 256
    """Size of the hidden layer and of the projection; 0 passes the observations through."""

    def build(self, obs: int) -> StateProjection:
        """The encoder of observation histories with ``obs`` numbers in all."""
        return StateProjection(self, obs)


class StateProjection(nn.Module):
    """``cond = [projection, observations]`` with ``projection = Linear(gelu(norm(Linear(obs))))``.

    The observations stay in the condition, so that nothing is lost to the trunk; the regulariser sees the
    projection alone, because distances between raw observations have no gradient. Safe under ``torch.compile``.
    """

    def __init__(self, config: StateEncoder, obs: int) -> None:
        super().__init__()
        self.size = config.width + obs
        self.project = nn.Sequential() if config.width == 0 else _projection(obs, config.width)

    def forward(self, obs: Float[Tensor, "b n"]) -> EncoderOutput:
        """Encode flat, normalised observation histories."""
        if not len(self.project):
            return EncoderOutput(obs, obs)
        feature = self.project(obs)
        return EncoderOutput(torch.cat([feature, obs], dim=1), feature)


class _Gelu(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return gelu(x)


def _projection(obs: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(obs, width), LayerNorm(width), _Gelu(), nn.Linear(width, width))
