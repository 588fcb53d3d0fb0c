"""Small transformer over the steps of a chunk."""

from __future__ import annotations

import dataclasses
import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flowpolicy.core.errors import ConfigError
from flowpolicy.core.ranges import Depth, Few, Width
from flowpolicy.nets.layers import LayerNorm, gelu
from flowpolicy.nets.trunk import FlowOutput, Trunk


@dataclasses.dataclass(frozen=True)
class Transformer:
    """Transformer with one token per step of the chunk (DiT, Peebles and Xie 2023, arXiv 2212.09748)."""

    width: Width = 128
    """Size of the tokens; a multiple of ``heads``."""
    depth: Depth = 3
    """Number of blocks."""
    heads: Few = 4
    """Attention heads."""

    def __post_init__(self) -> None:
        if self.heads < 1 or self.width % self.heads or self.depth < 1:
            raise ConfigError(
                f"Transformer(width={self.width}, depth={self.depth}, heads={self.heads})",
                expected="at least one block and one head, and a width that is a multiple of heads",
            )

    def build(self, action: int, chunk: int, cond: int, time: int) -> ChunkTransformer:
        """The trunk for chunks of ``chunk`` actions of size ``action``."""
        return ChunkTransformer(self, action, chunk, cond, time)


class ChunkTransformer(Trunk):
    """Blocks modulated by (time, condition) through adaptive layer norm.

    The modulation starts at zero ("adaLN-zero"), so every block begins as the identity, and so does the last
    layer, see :class:`flowpolicy.nets.mlp.ResidualMLP`. Attention is written out: torch's fused kernel has no
    forward derivative on a CPU. Safe under ``torch.func.jvp`` and ``torch.compile``, also both at once.
    """

    def __init__(self, config: Transformer, action: int, chunk: int, cond: int, time: int) -> None:
        super().__init__()
        width = config.width
        self.embed = nn.Linear(time + cond, width)
        self.inlet = nn.Linear(action, width)
        self.position = nn.Parameter(0.02 * torch.randn(chunk, width))
        self.blocks = nn.ModuleList(_Block(width, config.heads) for _ in range(config.depth))
        self.modulate = nn.Linear(width, 2 * width)
        self.norm = LayerNorm(width)
        self.outlet = nn.Linear(width, action)
        for layer in (self.modulate, self.outlet):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Float[Tensor, "b h a"], time: Float[Tensor, "b e"], cond: Float[Tensor, "b c"]) -> FlowOutput:
        """Output for chunks x at times with features ``time``."""
        embedding = gelu(self.embed(torch.cat([time, cond], dim=1)))
        tokens = trunk = self.blocks[0](self.inlet(x) + self.position, embedding)
        for block in self.blocks[1:]:
            tokens = block(tokens, embedding)
        scale, shift = self.modulate(embedding).unsqueeze(1).chunk(2, dim=2)
        value = self.outlet(self.norm(tokens) * (1 + scale) + shift)
        return FlowOutput(value, {"trunk": trunk.flatten(1)})


class _Block(nn.Module):
    """Attention and a two-layer MLP, both behind an adaptive layer norm and a gate."""

    def __init__(self, width: Width, heads: Few) -> None:
        super().__init__()
        self.heads = heads
        self.modulate = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.modulate.weight)
        nn.init.zeros_(self.modulate.bias)
        self.norm1, self.norm2 = LayerNorm(width), LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.mix = nn.Linear(width, width)
        self.widen = nn.Linear(width, 4 * width)
        self.narrow = nn.Linear(4 * width, width)

    def forward(self, x: Float[Tensor, "b h d"], embedding: Float[Tensor, "b d"]) -> Float[Tensor, "b h d"]:
        scale1, shift1, gate1, scale2, shift2, gate2 = self.modulate(embedding).unsqueeze(1).chunk(6, dim=2)
        x = x + gate1 * self._attend(self.norm1(x) * (1 + scale1) + shift1)
        output: Tensor = x + gate2 * self.narrow(gelu(self.widen(self.norm2(x) * (1 + scale2) + shift2)))
        return output

    def _attend(self, x: Float[Tensor, "b h d"]) -> Float[Tensor, "b h d"]:
        query, key, value = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        weights = (query @ key.transpose(2, 3) / math.sqrt(query.shape[3])).softmax(3)
        mixed: Tensor = self.mix((weights @ value).transpose(1, 2).flatten(2))
        return mixed
