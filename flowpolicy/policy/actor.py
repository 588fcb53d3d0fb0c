"""What a policy is made of: the config that rebuilds it, and its networks."""

from __future__ import annotations

import dataclasses
from collections import ChainMap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from flowpolicy.core.errors import CheckpointError
from flowpolicy.core.files import read_tensors
from flowpolicy.core.spec import Contract
from flowpolicy.core.streams import STATES, Layout, Streams
from flowpolicy.data.normalize import Normalizer
from flowpolicy.flows.axes.registry import TAGS
from flowpolicy.nets.backbones import BACKBONES
from flowpolicy.nets.critic import Critic, CriticConfig
from flowpolicy.nets.flow_nets import DecoratorNet, VelocityNet
from flowpolicy.nets.mlp import MLP
from flowpolicy.nets.plain import Plain
from flowpolicy.nets.source import SourceNet
from flowpolicy.nets.transformer import Transformer
from flowpolicy.nets.unet import UNet
from flowpolicy.nets.vision import ENCODERS, Encoder
from flowpolicy.policy.samplers import SAMPLERS, Sampler, Sizes
from flowpolicy.policy.samplers import Net as Net

NETS: dict[str, Net] = {"mlp": MLP(), "plain": Plain(), "unet": UNet(), "transformer": Transformer()}
"""Trunks by name, with their defaults; ``--agent.net NAME`` picks one."""


@dataclasses.dataclass(frozen=True)
class PolicyConfig:
    """What :meth:`Policy.load` must know to rebuild the networks."""

    net: Net
    """Trunk over the action chunk."""
    encoder: Encoder
    """Encoder of the observation history."""
    sampler: Sampler
    """How a chunk is made."""


KINDS: ChainMap[str, type] = ChainMap(
    {
        "policy": PolicyConfig,
        **{f"{name}_encoder": type(encoder) for name, encoder in ENCODERS.items()},
        **{f"backbone/{name}": type(backbone) for name, backbone in BACKBONES.items()},
        "critic": CriticConfig,
        **SAMPLERS,
        **{name: type(net) for name, net in NETS.items()},
    },
    TAGS,
)
"""Tags of the config classes of a policy."""


class Actor(nn.Module):
    """Encoder and the networks of a sampler: the part of a policy that is trained.

    Args:
        config: networks and sampler.
        contract: decides observation, history, chunk and action sizes.

    """

    net: Any
    """What generates chunks; of which kind, the sampler knows."""

    def __init__(self, config: PolicyConfig, contract: Contract) -> None:
        super().__init__()
        observation, history = contract.spec.observation, contract.history
        self.layout = Layout(observation)
        self.keys = self.layout.keys
        self.encoder = config.encoder.build(observation, history)
        self.refiner: VelocityNet | None = None
        self.source: SourceNet | None = None
        self.null: nn.Parameter | None = None
        self.decorator: DecoratorNet | None = None
        self.critic: Critic | None = None
        sizes = Sizes(
            observation, history, self.encoder.size, contract.chunk, contract.spec.action.size, see=config.encoder
        )
        for name, part in config.sampler.build(config.net, sizes).items():
            setattr(self, name, part)
        self.layout.hidings(config.sampler.hides)  # raises where an observation does not exist

    def streams(self, normalizer: Normalizer, obs: Mapping[str, Tensor]) -> Streams:
        """What encoder, critic and sampler read: states normalised and packed, pictures as they were taken.

        Args:
            normalizer: of the policy.
            obs: name -> (b, o, *shape) in environment units; or what this gave before, which stays as it is.

        """
        named: dict[str, Any] = dict(obs)
        if STATES not in named:
            named = {key: named[key] for key in self.layout.pictures if key in named} | normalizer.obs(named)
        return self.layout.pack(named)


def load_strictly(module: nn.Module, path: Path) -> None:
    """Load a file of weights into a module that has exactly those; CheckpointError otherwise."""
    try:
        module.load_state_dict(read_tensors(path), strict=True)
    except RuntimeError as error:
        raise CheckpointError(
            f"{path} does not fit the network of config.json: {error}",
            fix="use the flowpolicy version that wrote the checkpoint (contract.json names it)",
        ) from error
