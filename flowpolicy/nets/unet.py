"""One-dimensional U-Net over the steps of a chunk."""

from __future__ import annotations

import dataclasses
import itertools

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flowpolicy.core.errors import ConfigError
from flowpolicy.core.ranges import Depth, Few, Width
from flowpolicy.nets.layers import Conv, GroupNorm, gelu
from flowpolicy.nets.trunk import FlowOutput, Trunk

_GROUPS = 8


@dataclasses.dataclass(frozen=True)
class UNet:
    """U-Net along the chunk, for long chunks (Chi et al. 2023, arXiv 2303.04137, section III-A)."""

    width: Width = 64
    """Channels of the first level; each further level doubles them. A multiple of 8."""
    levels: Depth = 3
    """Number of resolutions; each halves the length."""
    kernel: Few = 3
    """Odd size of the convolutions."""

    def __post_init__(self) -> None:
        if self.width < 1 or self.width % _GROUPS or self.levels < 1 or self.kernel % 2 == 0:
            raise ConfigError(
                f"UNet(width={self.width}, levels={self.levels}, kernel={self.kernel})",
                expected=f"a width that is a multiple of {_GROUPS}, at least one level, an odd kernel",
            )

    def build(self, action: int, chunk: int, cond: int, time: int) -> ChunkUNet:
        """The trunk for chunks of any length; ``chunk`` does not enter the weights."""
        return ChunkUNet(self, action, cond, time)


class ChunkUNet(Trunk):
    """Residual blocks with feature-wise modulation by (time, condition), down and up again with skips.

    Lengths round up on the way down and are cropped on the way up, so every chunk length works without padding.
    The last layer starts at zero, see :class:`flowpolicy.nets.mlp.ResidualMLP`. Safe under ``torch.func.jvp`` and
    ``torch.compile``, also both at once: convolutions and norms are written out.
    """

    def __init__(self, config: UNet, action: int, cond: int, time: int) -> None:
        super().__init__()
        sizes = [config.width * 2**level for level in range(config.levels)]
        embedding = 4 * config.width
        self.embed = nn.Linear(time + cond, embedding)
        self.inlet = Conv(action, sizes[0], config.kernel)

        def block(inputs: int, outputs: int) -> _Block:
            return _Block(inputs, outputs, embedding, config.kernel)

        self.first = block(sizes[0], sizes[0])
        self.shrink = nn.ModuleList(Conv(size, size, 3, stride=2) for size in sizes[:-1])
        self.down = nn.ModuleList(block(a, b) for a, b in itertools.pairwise(sizes))
        self.middle = block(sizes[-1], sizes[-1])
        self.up = nn.ModuleList(block(a + b, a) for a, b in zip(sizes[-2::-1], sizes[:0:-1], strict=True))
        self.norm = GroupNorm(_GROUPS, sizes[0])
        self.outlet = nn.Linear(sizes[0], action)
        nn.init.zeros_(self.outlet.weight)
        nn.init.zeros_(self.outlet.bias)

    def forward(self, x: Float[Tensor, "b h a"], time: Float[Tensor, "b e"], cond: Float[Tensor, "b c"]) -> FlowOutput:
        """Output for chunks x at times with features ``time``."""
        embedding = gelu(self.embed(torch.cat([time, cond], dim=1)))
        trunk = hidden = self.first(self.inlet(x), embedding)
        skips = []
        for shrink, block in zip(self.shrink, self.down, strict=True):
            skips.append(hidden)
            hidden = block(shrink(hidden), embedding)
        hidden = self.middle(hidden, embedding)
        for block in self.up:
            skip = skips.pop()
            grown = hidden.unsqueeze(2).expand(-1, -1, 2, -1).flatten(1, 2)[:, : skip.shape[1]]
            hidden = block(torch.cat([skip, grown], dim=2), embedding)
        return FlowOutput(self.outlet(gelu(self.norm(hidden))), {"trunk": trunk.flatten(1)})


class _Block(nn.Module):
    """Two convolutions with a residual; the embedding scales and shifts between them (FiLM, arXiv 1709.07871)."""

    def __init__(self, inputs: int, outputs: int, embedding: int, kernel: Few) -> None:
        super().__init__()
        self.conv1 = Conv(inputs, outputs, kernel)
        self.norm1 = GroupNorm(_GROUPS, outputs)
        self.film = nn.Linear(embedding, 2 * outputs)
        self.conv2 = Conv(outputs, outputs, kernel)
        self.norm2 = GroupNorm(_GROUPS, outputs)
        self.residual = nn.Identity() if inputs == outputs else nn.Linear(inputs, outputs)

    def forward(self, x: Float[Tensor, "b l i"], embedding: Float[Tensor, "b e"]) -> Float[Tensor, "b l o"]:
        scale, shift = self.film(embedding).unsqueeze(1).chunk(2, dim=2)
        hidden = gelu(self.norm1(self.conv1(x))) * (1 + scale) + shift
        shortcut: Tensor = self.residual(x)
        return shortcut + gelu(self.norm2(self.conv2(hidden)))
