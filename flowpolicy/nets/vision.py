"""Encoder of pictures and states: pictures become a few numbers each before anything flat sees them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from flowpolicy.core.errors import CheckpointError, ConfigError
from flowpolicy.core.files import read_tensors
from flowpolicy.core.ranges import Natural, Range
from flowpolicy.core.spec import ImageSpec, ObservationSpec
from flowpolicy.core.streams import STATES, Crop, Layout
from flowpolicy.nets.backbones import Backbone, ResNet, ResNetTrunk, SmallConv
from flowpolicy.nets.encoder import EncoderOutput, StateEncoder, projection


@dataclasses.dataclass(frozen=True)
class VisionEncoder:
    """Encoder of pictures and low-dimensional observations."""

    backbone: Backbone = SmallConv()
    """Network of each camera: conv, resnet, vit or impala."""
    width: Annotated[int, Range(0, 2**15)] = 256
    """Size of the hidden layer and of the projection of everything; 0 passes states and pictures' features through."""
    crop: Annotated[float, Range(0, 1, above=True)] = 76 / 84
    """Side of what is seen over the side of the picture: in training a window at random, in acting the middle."""
    shift: Natural = 0
    """Pixels by which the window may reach over the edge in training, where the outermost pixels repeat; with
    ``crop`` 1 it is the shift of DrQ."""
    share: bool = False
    """One network for all cameras instead of one each."""
    weights: str = ""
    """File of weights (safetensors, names as of torchvision's resnet18) that a ResNet of width 64 begins with."""

    def build(self, observation: Mapping[str, ObservationSpec], history: int) -> VisionProjection:
        """The encoder of histories of ``history`` observations.

        Raises:
            ConfigError: there is no picture among them, or one that it cannot read.

        """
        return VisionProjection(self, observation, history)

    def crops(self, observation: Mapping[str, ObservationSpec]) -> dict[str, Crop]:
        """The window of every picture that is seen, by key."""
        sides = {
            key: (round(self.crop * each.height), round(self.crop * each.width))
            for key, each in images_of(observation).items()
        }
        return {key: Crop(*size, self.shift) for key, size in sides.items()}

    @property
    def bare(self) -> VisionEncoder:
        """The same without a projection: what a critic sees by."""
        return dataclasses.replace(self, width=0)


def images_of(observation: Mapping[str, ObservationSpec]) -> dict[str, ImageSpec]:
    """The streams of pictures that an encoder of pictures reads.

    Raises:
        ConfigError: there is none, or one is no stream of (height, width, 3) uint8.

    """
    found = {}
    for key, each in observation.items():
        if each.kind == "state":
            continue
        if not isinstance(each, ImageSpec) or each.channels != "last" or each.shape[2] != 3 or each.dtype != "uint8":
            raise ConfigError(
                f"the encoder of pictures cannot read the observation '{key}': {each.shape} of {each.dtype}",
                expected="(height, width, 3) of uint8",
            )
        found[key] = each
    if not found:
        raise ConfigError(
            f"the encoder of pictures is given states alone: {', '.join(observation)}",
            expected="pictures among the observations",
            fix="name cameras: --data.cameras NAME ...; or --agent.encoder state",
        )
    return found


Encoder = StateEncoder | VisionEncoder
ENCODERS: dict[str, Encoder] = {"state": StateEncoder(), "vision": VisionEncoder()}
"""Encoders by name, with their defaults; ``--agent.encoder NAME`` picks one."""


class VisionProjection(nn.Module):
    """``cond = [projection, states, features of camera 1, ...]``, the projection as of :class:`StateEncoder`.

    Pictures are (b, o, height, width, 3) uint8. Cropped to the middle where they are larger than what the network
    sees: batches of training hold windows at random, so that nothing here depends on a mode. Safe under
    ``torch.compile``.
    """

    def __init__(self, config: VisionEncoder, observation: Mapping[str, ObservationSpec], history: int) -> None:
        super().__init__()
        self.config, self.layout = config, Layout(observation)
        self.crops = config.crops(observation)
        sizes = {(crop.height, crop.width) for crop in self.crops.values()}
        if config.share and len(sizes) > 1:
            raise ConfigError(
                "one network for cameras whose pictures differ in size",
                expected="pictures of one size",
                fix="--agent.encoder.no-share",
            )
        shared = next(iter(self.crops.values()))
        seen = [shared] if config.share else list(self.crops.values())
        self.cameras = nn.ModuleList(config.backbone.build(crop.height, crop.width) for crop in seen)
        """One network per camera, in the order of the observations; a single one where it is shared."""
        self.inputs = history * (self.layout.size + config.backbone.feature * len(self.crops))
        self.size = config.width + self.inputs
        self.project = nn.Sequential() if config.width == 0 else projection(self.inputs, config.width)

    def forward(self, streams: Mapping[str, Tensor]) -> EncoderOutput:
        """Encode histories: states normalised (packed or not), pictures as they were taken."""
        packed = self.layout.pack(streams)
        features = {key: self.see(key, packed[key]) for key in self.crops}
        states = [packed[STATES].flatten(1)] if STATES in packed else []
        flat = torch.cat([*states, *features.values()], dim=1)
        if not len(self.project):
            return EncoderOutput(flat, features)
        return EncoderOutput(torch.cat([self.project(flat), flat], dim=1), features)

    def see(self, key: str, pictures: UInt8[Tensor, "b o h w 3"] | Float[Tensor, "b o h w 3"]) -> Float[Tensor, "b f"]:
        """What one camera's network makes of its pictures, those of a history side by side."""
        network = self.cameras[0 if self.config.share else list(self.crops).index(key)]
        features: Tensor = network(scaled(middle(pictures.flatten(0, 1), self.crops[key])))
        return features.view(len(pictures), -1)


def middle(pictures: Tensor, crop: Crop) -> Tensor:
    """(n, h, w, 3) cut to the middle of every picture, where it is larger."""
    top, left = ((have - want) // 2 for have, want in zip(pictures.shape[1:3], crop[:2], strict=True))
    return pictures[:, top : top + crop.height, left : left + crop.width]


def scaled(pictures: Tensor) -> Float[Tensor, "n 3 h w"]:
    """Numbers in [-1, 1]; the channels stay last in memory, which convolutions of few channels are faster with."""
    numbers = pictures.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.channels_last)
    return numbers * (1 / 127.5) - 1


def load_resnet(trunk: ResNetTrunk, path: Path) -> str:
    """Begin with weights that are named as torchvision names those of resnet18; says what was done with them.

    The factors and offsets of its BatchNorm become those of the GroupNorm here; its running statistics have no place.

    Raises:
        CheckpointError: the file lacks a weight, or has one of another shape.

    """
    given, wanted = read_tensors(path), trunk.state_dict()
    for name, value in wanted.items():
        if name not in given or given[name].shape != value.shape:
            has = f"of shape {tuple(given[name].shape)}" if name in given else "missing"
            raise CheckpointError(
                f"{path}: the weight {name} is {has}",
                expected=f"shape {tuple(value.shape)}: a resnet18 of torchvision, for a ResNet of width 64",
            )
    trunk.load_state_dict({name: given[name] for name in wanted})
    return f"began with {path}; its BatchNorm is a GroupNorm here, which has the factors but not the statistics"


def begin_with(encoder: nn.Module, config: Encoder) -> list[str]:
    """Give an encoder the weights that its config names; what was done, in sentences."""
    if not isinstance(config, VisionEncoder) or not config.weights:
        return []
    if not isinstance(config.backbone, ResNet):
        raise ConfigError(
            "--agent.encoder.weights with a backbone that is no ResNet", fix="--agent.encoder.backbone resnet"
        )
    trunks = [module for module in encoder.modules() if isinstance(module, ResNetTrunk)]
    return [load_resnet(trunk, Path(config.weights)) for trunk in trunks]
