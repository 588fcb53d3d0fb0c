"""What a policy is made of: the config that rebuilds it, and its networks."""

from __future__ import annotations

import dataclasses
from collections import ChainMap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flowpolicy.core.errors import CheckpointError, ConfigError, nearest
from flowpolicy.core.files import read_tensors
from flowpolicy.core.spec import Contract
from flowpolicy.flows.axes.registry import TAGS
from flowpolicy.flows.axes.spec import Sampling
from flowpolicy.nets.committed import CommittedNet
from flowpolicy.nets.critic import CriticConfig
from flowpolicy.nets.encoder import EncoderOutput, StateEncoder
from flowpolicy.nets.flow_nets import DecoratorNet, MapNet, OneStepNet, VelocityNet
from flowpolicy.nets.mlp import MLP
from flowpolicy.nets.plain import Plain
from flowpolicy.nets.source import SourceNet
from flowpolicy.nets.transformer import Transformer
from flowpolicy.nets.unet import UNet

Net = MLP | UNet | Transformer | Plain
NETS: dict[str, Net] = {"mlp": MLP(), "plain": Plain(), "unet": UNet(), "transformer": Transformer()}
"""Trunks by name, with their defaults; ``--agent.net NAME`` picks one."""

Sampler = Literal["map", "euler", "midpoint", "heun", "direct", "squashed", "one_step", "mip", "flow"]
SINGLE = ("direct", "squashed", "one_step")
"""Samplers that are one evaluation by nature."""
REFINING = 0.9
"""Flow time at which the sampler 'mip' asks for the second time (arXiv 2512.01809)."""


@dataclasses.dataclass(frozen=True)
class PolicyConfig:
    """What :meth:`Policy.load` must know to rebuild the network."""

    net: Net
    """Trunk over the action chunk."""
    encoder: StateEncoder
    """Encoder of the observation history."""
    sampler: Sampler
    """'map' jumps with a flow map; 'euler', 'midpoint', 'heun' integrate a velocity; 'one_step' asks a network once,
    with the noise; 'direct' (regression, mean of a Gaussian) without, and 'squashed' passes that through tanh;
    'mip' asks without noise, and again with what it was told; 'flow' does what ``flow`` says."""
    candidates: int = 1
    """N chunks are generated and the one that the critic values most is taken; needs ``critic`` where above 1."""
    critic: CriticConfig | None = None
    """Critic that chooses among the candidates."""
    decorated: bool = False
    """Whether a residual is added to the clamped chunk, for one more evaluation (Fisher Decorator)."""
    prefix: int = 0
    """The most committed actions that the network was trained to continue (real-time chunking); 0 for none."""
    flow: Sampling | None = None
    """Source, solver, schedule and guidance of a policy of the flow laboratory; needs the sampler 'flow'."""
    refiner: Net | None = None
    """Trunk of the small network that refines velocities in the steps R of the solver 'plan'."""

    def __post_init__(self) -> None:
        if (self.sampler == "flow") != (self.flow is not None):
            raise ConfigError(f"the sampler '{self.sampler}' with flow={self.flow}", expected="both or neither")
        if self.candidates < 1 or (self.candidates > 1) != (self.critic is not None):
            raise ConfigError(
                f"a policy with {self.candidates} candidates and {'a' if self.critic else 'no'} critic",
                expected="1 candidate and no critic, or several and a critic that chooses",
            )
        if self.flow and (self.prefix or self.decorated or self.candidates > 1):
            raise ConfigError(
                "a policy of the flow laboratory with a prefix, a decorator or a critic",
                expected="its guidance alone",
            )
        if self.prefix and (self.decorated or self.sampler in ("one_step", "mip")):
            raise ConfigError("a decorated, one_step or mip policy cannot continue a prefix", expected="prefix 0")


KINDS: ChainMap[str, type] = ChainMap(
    {
        "policy": PolicyConfig,
        "state_encoder": StateEncoder,
        "critic": CriticConfig,
        **{name: type(net) for name, net in NETS.items()},
    },
    TAGS,
)


_NETWORKS: dict[Sampler, Callable[..., MapNet | OneStepNet | VelocityNet]] = {
    "map": MapNet,
    "one_step": OneStepNet,
}


class Actor(nn.Module):
    """Encoder, network and, where it chooses among candidates, critic: the part of a policy that is trained.

    Args:
        config: network and sampler.
        contract: decides observation, history, chunk and action sizes.

    """

    def __init__(self, config: PolicyConfig, contract: Contract) -> None:
        super().__init__()
        self.sizes = {key: int(torch.Size(spec.shape).numel()) for key, spec in contract.spec.observation.items()}
        self.keys, self.history = tuple(self.sizes), contract.history
        self.obs_size, action = contract.history * sum(self.sizes.values()), contract.spec.action.size
        self.encoder = config.encoder.build(self.obs_size)
        flow = config.flow
        cond = self.encoder.size + (flow.source.inputs if flow else 0) + (contract.chunk if config.prefix else 0)
        kind = MapNet if flow and flow.two_time else _NETWORKS.get(config.sampler, VelocityNet)
        more = {"outputs": flow.target.outputs(action)} if flow and flow.target.integrates else {}
        net = kind(config.net, action=action, chunk=contract.chunk, cond=cond, **more)
        self.net = CommittedNet(net, contract.chunk) if config.prefix else net
        # The refiner is told the last velocity beside the condition.
        self.refiner = (
            VelocityNet(config.refiner, action, contract.chunk, cond + contract.chunk * action)
            if config.refiner
            else None
        )
        self.source = SourceNet(self.encoder.size, contract.chunk, action) if flow and flow.source.conditioned else None
        if flow:
            self.hidings(flow.guidance.hides)  # raises where an observation does not exist
        self.null = nn.Parameter(torch.zeros(self.encoder.size)) if flow and flow.guidance.null else None
        self.decorator = (
            DecoratorNet(config.net, action, contract.chunk, self.encoder.size) if config.decorated else None
        )
        self.critic = config.critic.build(self.obs_size, contract.chunk * action) if config.critic else None

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
        rows = [[float(key not in names or key == kept) for key in self.keys] for kept in ("", *names)]
        widths = torch.tensor(list(self.sizes.values()))
        masks = torch.tensor(rows if names else []).reshape(-1, len(widths))
        return masks.repeat_interleave(widths, dim=1).repeat(1, self.history)

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
