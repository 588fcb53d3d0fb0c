"""Encoders of the observation history. They see no flow time: once per batch is enough.

An encoder's config has ``build(observation, history)``, which gives a module with ``size`` (numbers of the condition)
and ``forward(streams) -> EncoderOutput``; what it makes of the streams is its own affair. The one that reads pictures
is :class:`flowpolicy.nets.vision.VisionEncoder`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flowpolicy.core.errors import ConfigError
from flowpolicy.core.ranges import Range
from flowpolicy.core.spec import ObservationSpec
from flowpolicy.core.streams import STATES, Layout
from flowpolicy.nets.layers import LayerNorm, gelu


class EncoderOutput(NamedTuple):
    """What an encoder gives."""

    cond: Float[Tensor, "b c"]
    """Condition of the flow network."""
    features: dict[str, Tensor]
    """What the dispersive regulariser acts on, (b, f) each: the projection of states, or what every camera sees."""


@dataclasses.dataclass(frozen=True)
class StateEncoder:
    """Encoder of low-dimensional observations."""

    width: Annotated[int, Range(0, 2**15)] = 256
    """Size of the hidden layer and of the projection; 0 passes the observations through."""

    def build(self, observation: Mapping[str, ObservationSpec], history: int) -> StateProjection:
        """The encoder of histories of ``history`` observations.

        Raises:
            ConfigError: there is a picture among them.

        """
        for key, spec in observation.items():
            if spec.kind != "state":
                states = [name for name, other in observation.items() if other.kind == "state"]
                raise ConfigError(
                    f"the state encoder cannot read the observation '{key}', a picture of shape {spec.shape}",
                    expected="observations of kind 'state', which are numbers side by side",
                    fix=f"--agent.encoder vision; or leave it out: --data.obs-keys {' '.join(states) or 'KEY ...'}",
                )
        return StateProjection(self, Layout(observation), history)

    @property
    def bare(self) -> StateEncoder:
        """The same without a projection: what a critic sees by."""
        return dataclasses.replace(self, width=0)


class StateProjection(nn.Module):
    """``cond = [projection, observations]`` with ``projection = Linear(gelu(norm(Linear(obs))))``.

    The observations stay in the condition, so that nothing is lost to the trunk; the regulariser sees the
    projection alone, because distances between raw observations have no gradient. Safe under ``torch.compile``.
    """

    def __init__(self, config: StateEncoder, layout: Layout, history: int) -> None:
        super().__init__()
        self.layout, self.inputs = layout, history * layout.size
        self.size = config.width + self.inputs
        self.project = nn.Sequential() if config.width == 0 else projection(self.inputs, config.width)

    def forward(self, streams: Mapping[str, Tensor]) -> EncoderOutput:
        """Encode normalised observation histories, name -> (b, o, *shape), packed or not."""
        obs = self.layout.pack(streams)[STATES].flatten(1)
        if not len(self.project):
            return EncoderOutput(obs, {STATES: obs})
        feature = self.project(obs)
        return EncoderOutput(torch.cat([feature, obs], dim=1), {STATES: feature})


class _Gelu(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return gelu(x)


def projection(obs: int, width: int) -> nn.Sequential:
    """``Linear(gelu(norm(Linear(obs))))``."""
    return nn.Sequential(nn.Linear(obs, width), LayerNorm(width), _Gelu(), nn.Linear(width, width))
