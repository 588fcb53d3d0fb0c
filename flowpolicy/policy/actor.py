"""What a policy is made of: the config that rebuilds it, and its networks."""

from __future__ import annotations

import dataclasses
from collections import ChainMap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flowpolicy.core.errors import CheckpointError, ConfigError, nearest
from flowpolicy.core.files import read_tensors
from flowpolicy.core.spec import Contract
from flowpolicy.flows.axes.registry import TAGS
from flowpolicy.nets.critic import Critic, CriticConfig
from flowpolicy.nets.encoder import EncoderOutput, StateEncoder
from flowpolicy.nets.flow_nets import DecoratorNet, VelocityNet
from flowpolicy.nets.mlp import MLP
from flowpolicy.nets.plain import Plain
from flowpolicy.nets.source import SourceNet
from flowpolicy.nets.transformer import Transformer
from flowpolicy.nets.unet import UNet
from flowpolicy.policy.samplers import SAMPLERS, Sampler, Sizes
from flowpolicy.policy.samplers import Net as Net

NETS: dict[str, Net] = {"mlp": MLP(), "plain": Plain(), "unet": UNet(), "transformer": Transformer()}
"""Trunks by name, with their defaults; ``--agent.net NAME`` picks one."""


@dataclasses.dataclass(frozen=True)
class PolicyConfig:
    """What :meth:`Policy.load` must know to rebuild the networks."""

    net: Net
    """Trunk over the action chunk."""
    encoder: StateEncoder
    """Encoder of the observation history."""
    sampler: Sampler
    """How a chunk is made."""


KINDS: ChainMap[str, type] = ChainMap(
    {
        "policy": PolicyConfig,
        "state_encoder": StateEncoder,
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
        self.sizes = {key: int(torch.Size(spec.shape).numel()) for key, spec in contract.spec.observation.items()}
        self.keys, self.history = tuple(self.sizes), contract.history
        self.obs_size = contract.history * sum(self.sizes.values())
        self.encoder = config.encoder.build(self.obs_size)
        self.refiner: VelocityNet | None = None
        self.source: SourceNet | None = None
        self.null: nn.Parameter | None = None
        self.decorator: DecoratorNet | None = None
        self.critic: Critic | None = None
        sizes = Sizes(self.obs_size, self.encoder.size, contract.chunk, contract.spec.action.size)
        for name, part in config.sampler.build(config.net, sizes).items():
            setattr(self, name, part)
        self.hidings(config.sampler.hides)  # raises where an observation does not exist

    def flatten(self, obs: dict[str, Tensor]) -> Float[Tensor, "b n"]:
        """Observation histories, name -> (b, o, *shape), as one row each."""
        return torch.cat([obs[key].flatten(2) for key in self.keys], dim=-1).flatten(1)

    def hidings(self, names: Sequence[str]) -> Float[Tensor, "k n"]:
        """Factors of flat observations that hide the named ones: all of them, then all but each; none without names.

        Raises:
            ConfigError: there is no such observation.

        """
        for name in names:
            if name not in self.sizes:
                raise ConfigError(f"the guidance hides the observation '{name}'", expected=nearest(name, self.keys))
        step = [
            [float(key not in names or key == kept) for key, width in self.sizes.items() for _ in range(width)]
            for kept in ("", *names)
        ]
        masks = torch.tensor(step if names else []).reshape(-1, sum(self.sizes.values()))
        return masks.repeat(1, self.history)

    def condition(self, obs: dict[str, Tensor]) -> EncoderOutput:
        """Condition vector and encoder feature of *normalised* observations, name -> (b, o, *shape)."""
        output: EncoderOutput = self.encoder(self.flatten(obs))
        return output


def load_strictly(module: nn.Module, path: Path) -> None:
    """Load a file of weights into a module that has exactly those; CheckpointError otherwise."""
    try:
        module.load_state_dict(read_tensors(path), strict=True)
    except RuntimeError as error:
        raise CheckpointError(
            f"{path} does not fit the network of config.json: {error}",
            fix="use the flowpolicy version that wrote the checkpoint (contract.json names it)",
        ) from error
