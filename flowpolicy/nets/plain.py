"""Plain MLP over the flattened chunk: the network of the FQL family."""

from __future__ import annotations

import dataclasses
import itertools
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from flowpolicy.core.ranges import Depth, Width
from flowpolicy.nets.layers import gelu
from flowpolicy.nets.trunk import FlowOutput, Trunk


@dataclasses.dataclass(frozen=True)
class Plain:
    """MLP without normalisation and without shortcuts: actor and behaviour flow of the FQL family."""

    width: Width = 512
    """Size of every hidden layer."""
    depth: Depth = 4
    """Number of hidden layers."""

    def build(self, action: int, chunk: int, cond: int, time: int) -> PlainMLP:
        """The trunk for chunks of ``chunk`` actions of size ``action``."""
        return PlainMLP(self, action, chunk, cond, time)


class PlainMLP(Trunk):
    """``W gelu(W ... gelu(W [x, time, cond]))``, weights uniform with the variance 2 / (in + out) of Glorot.

    The condition is multiplied apart from the rest: a solver asks again and again for the same condition, and the
    compiler then does that product once. Safe under ``torch.func.jvp`` and ``torch.compile``.
    """

    def __init__(self, config: Plain, action: int, chunk: int, cond: int, time: int) -> None:
        super().__init__()
        self.moving = chunk * action + time
        widths = [self.moving + cond, *[config.width] * config.depth, chunk * action]
        self.layers = nn.ModuleList(_glorot(a, b) for a, b in itertools.pairwise(widths))

    def forward(self, x: Float[Tensor, "b h a"], time: Float[Tensor, "b e"], cond: Float[Tensor, "b c"]) -> FlowOutput:
        """Output for chunks x at times with features ``time``."""
        inlet, *layers = cast("list[nn.Linear]", list(self.layers))
        fixed = functional.linear(cond, inlet.weight[:, self.moving :], inlet.bias)
        moving = torch.cat([x.flatten(1), time], dim=1)
        hidden = fixed + functional.linear(moving, inlet.weight[:, : self.moving])
        first = hidden = gelu(hidden)
        for layer in layers[:-1]:
            hidden = gelu(layer(hidden))
        return FlowOutput(layers[-1](hidden).reshape(x.shape), {"trunk": first})


def _glorot(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
