"""What makes numbers of one picture: convolutions or a small transformer, and how their map is summed up.

Each is a config with ``build(height, width)``, which gives a module from (n, 3, height, width) in [-1, 1] to
(n, ``feature``). None of them has a BatchNorm: averaged weights (EMA) and a batch's own statistics do not go together.
"""

from __future__ import annotations

import dataclasses

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from flowpolicy.core.errors import ConfigError
from flowpolicy.core.ranges import Few, Width
from flowpolicy.nets.layers import LayerNorm, gelu


@dataclasses.dataclass(frozen=True)
class SmallConv:
    """Three strided convolutions and key-points: what two CPU cores can train."""

    width: Width = 32
    """Channels of the first convolution; the others have twice as many."""
    keypoints: Few = 32
    """Maps of which the expected position is taken."""
    feature: Width = 64
    """Numbers that come out."""

    def build(self, height: int, width: int) -> nn.Module:
        """The network for pictures of one size."""
        require_map(self, min(height, width), 8)
        narrow, wide = self.width, 2 * self.width
        return nn.Sequential(
            nn.Conv2d(3, narrow, 8, 4, padding=2),
            nn.ReLU(),
            nn.Conv2d(narrow, wide, 4, 2, padding=1),
            nn.ReLU(),
            nn.Conv2d(wide, wide, 3, padding=1),
            nn.ReLU(),
            *_keypoints(wide, self.keypoints, self.feature),
        )


@dataclasses.dataclass(frozen=True)
class ResNet:
    """ResNet18 with GroupNorm in the place of BatchNorm, and key-points (He et al. 2016; robomimic's encoder)."""

    width: Width = 16
    """Channels of the first stage: 64 is ResNet18; 16, a fifteenth of its weights, trains on a CPU."""
    keypoints: Few = 32
    """Maps of which the expected position is taken."""
    feature: Width = 64
    """Numbers that come out."""

    def build(self, height: int, width: int) -> nn.Module:
        """The network for pictures of one size."""
        require_map(self, min(height, width), 32)
        return nn.Sequential(ResNetTrunk(self.width), *_keypoints(8 * self.width, self.keypoints, self.feature))


@dataclasses.dataclass(frozen=True)
class TokenTransformer:
    """Patches, one transformer block and a spatial embedding: the encoder of DM1 and DPPO, after IBRL.

    Without what they add to the spatial embedding, proprioception and dropout: the feature is of the picture alone.
    """

    width: Width = 128
    """Numbers of a token."""
    heads: Few = 4
    """Attention heads."""
    depth: Few = 1
    """Transformer blocks."""
    feature: Width = 128
    """Numbers that come out."""

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ConfigError(f"tokens of {self.width} numbers with {self.heads} heads", expected="a multiple of them")

    def build(self, height: int, width: int) -> nn.Module:
        """The network for pictures of one size."""
        rows, columns = (((side - 8) // 4 + 1 - 3) // 2 + 1 for side in (height, width))
        require_map(self, min(height, width), 16)
        return TokenNet(self, rows * columns)


@dataclasses.dataclass(frozen=True)
class Impala:
    """IMPALA's residual convolutions (Espeholt et al. 2018), as FQL and OGBench see."""

    widths: tuple[int, ...] = (16, 32, 32)
    """Channels of the stages, each of which halves the picture."""
    blocks: Few = 1
    """Residual blocks of a stage."""
    feature: Width = 512
    """Numbers that come out."""

    def build(self, height: int, width: int) -> nn.Module:
        """The network for pictures of one size."""
        require_map(self, min(height, width), 2 ** len(self.widths))
        layers: list[nn.Module] = []
        channels = 3
        for stage in self.widths:
            layers += [nn.Conv2d(channels, stage, 3, padding=1), nn.MaxPool2d(3, 2, padding=1)]
            layers += [ImpalaBlock(stage) for _ in range(self.blocks)]
            channels, height, width = stage, (height + 1) // 2, (width + 1) // 2
        return nn.Sequential(*layers, nn.ReLU(), nn.Flatten(), nn.Linear(channels * height * width, self.feature))


Backbone = SmallConv | ResNet | TokenTransformer | Impala
BACKBONES: dict[str, Backbone] = {
    "conv": SmallConv(),
    "resnet": ResNet(),
    "vit": TokenTransformer(),
    "impala": Impala(),
}
"""Backbones by name, with their defaults; ``--agent.encoder.backbone NAME`` picks one."""


class SpatialSoftmax(nn.Module):
    """Expected position of every map, (n, k, h, w) -> (n, 2 k): x from left to right, then y from top to bottom.

    Positions run from -1 to 1 over the centres of the map's pixels (Finn et al. 2016, arXiv 1509.06113).
    """

    def forward(self, maps: Float[Tensor, "n k h w"]) -> Float[Tensor, "n k2"]:
        """All expected positions."""
        weights = maps.flatten(2).softmax(2).view(maps.shape)
        x = (weights.sum(2) * _positions(maps, maps.shape[3])).sum(2)
        y = (weights.sum(3) * _positions(maps, maps.shape[2])).sum(2)
        return torch.cat([x, y], dim=1)


def _positions(like: Tensor, count: int) -> Float[Tensor, " c"]:
    return torch.linspace(-1, 1, count, dtype=like.dtype, device=like.device)


def _keypoints(channels: int, keypoints: int, feature: int) -> list[nn.Module]:
    # No offsets: a softmax does not see them.
    maps = nn.Conv2d(channels, keypoints, 1, bias=False)
    return [maps, SpatialSoftmax(), nn.Linear(2 * keypoints, feature)]


def _norm(channels: int) -> nn.GroupNorm:
    """Groups of 16 channels where there are so many."""
    return nn.GroupNorm(max(1, channels // 16), channels)


class ResNetTrunk(nn.Module):
    """Everything of a ResNet18 but its pooling and its classes. Its parts are called as torchvision calls them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, padding=3, bias=False)
        self.bn1 = _norm(width)
        self.layer1 = _stage(width, width, 1)
        self.layer2 = _stage(width, 2 * width, 2)
        self.layer3 = _stage(2 * width, 4 * width, 2)
        self.layer4 = _stage(4 * width, 8 * width, 2)

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n c i j"]:
        """The last map."""
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, padding=1)
        found: Tensor = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return found


def _stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(BasicBlock(inputs, outputs, stride), BasicBlock(outputs, outputs, 1))


class BasicBlock(nn.Module):
    """Two convolutions beside the identity, or beside a projection where the size changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = _norm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = _norm(outputs)
        same = stride == 1 and inputs == outputs
        self.downsample = (
            None if same else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), _norm(outputs))
        )

    def forward(self, x: Tensor) -> Tensor:
        """A map of the block's size."""
        aside = x if self.downsample is None else self.downsample(x)
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + aside)


class ImpalaBlock(nn.Module):
    """``x + conv(relu(conv(relu(x))))``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """A map of the block's size."""
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))


class TokenNet(nn.Module):
    """Two convolutions to tokens, blocks with the norm before each part, and for every channel a look at all tokens."""

    def __init__(self, config: TokenTransformer, tokens: int) -> None:
        super().__init__()
        width = config.width
        self.patches = nn.Sequential(nn.Conv2d(3, width, 8, 4), nn.ReLU(), nn.Conv2d(width, width, 3, 2))
        self.position = nn.Parameter(0.02 * torch.randn(1, tokens, width))
        self.blocks = nn.Sequential(*(TokenBlock(width, config.heads) for _ in range(config.depth)))
        self.norm = LayerNorm(width)
        self.look = nn.Sequential(nn.Linear(tokens, config.feature), LayerNorm(config.feature), nn.ReLU())
        self.weight = nn.Parameter(torch.randn(width, config.feature))

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n f"]:
        """One feature per picture."""
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.position
        channels = self.norm(self.blocks(tokens)).transpose(1, 2)
        # Summed as in the published code, but scaled to the variance of one channel: there are as many as numbers.
        return (self.look(channels) * self.weight).sum(1) * self.weight.shape[0] ** -0.5


class TokenBlock(nn.Module):
    """Attention and a wide layer, each beside the identity."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = LayerNorm(width), LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Float[Tensor, "n t w"]) -> Float[Tensor, "n t w"]:
        """The tokens after the block."""
        split = self.qkv(self.norm1(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(split[0], split[1], split[2])
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        return x + self.down(gelu(self.up(self.norm2(x))))


def require_map(config: object, side: int, least: int) -> None:
    """Raise ConfigError unless pictures are large enough for a backbone."""
    if side < least:
        raise ConfigError(
            f"pictures of {side} pixels for the backbone {type(config).__name__}", expected=f"at least {least} pixels"
        )
