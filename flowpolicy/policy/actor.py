"""What a policy is made of: the config that rebuilds it, and its networks."""

from __future__ import annotations

import dataclasses
from collections import ChainMap
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flowpolicy.core.errors import ConfigError
from flowpolicy.core.spec import Contract
from flowpolicy.flows.axes.registry import TAGS
from flowpolicy.flows.axes.spec import Sampling
from flowpolicy.nets.committed import CommittedNet
from flowpolicy.nets.critic import CriticConfig
from flowpolicy.nets.encoder import EncoderOutput, StateEncoder
from flowpolicy.nets.flow_nets import DecoratorNet, MapNet, OneStepNet, VelocityNet
from flowpolicy.nets.mlp import MLP
from flowpolicy.nets.plain import Plain
from flowpolicy.nets.segment import SegmentNet
from flowpolicy.nets.source import SourceNet
from flowpolicy.nets.transformer import Transformer
from flowpolicy.nets.unet import UNet

Net = MLP | UNet | Transformer | Plain
NETS: dict[str, Net] = {"mlp": MLP(), "plain": Plain(), "unet": UNet(), "transformer": Transformer()}
"""Trunks by name, with their defaults; ``--agent.net NAME`` picks one."""

Sampler = Literal["map", "euler", "midpoint", "heun", "direct", "squashed", "one_step", "flow"]
SINGLE = ("direct", "squashed", "one_step")
"""Samplers that are one evaluation by nature."""


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
    'flow' does what ``flow`` says."""
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
        if self.prefix and (self.decorated or self.sampler == "one_step"):
            raise ConfigError("a decorated or one_step policy cannot continue a prefix", expected="prefix 0")


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
        sizes = [int(torch.Size(spec.shape).numel()) for spec in contract.spec.observation.values()]
        self.keys = tuple(contract.spec.observation)
        self.obs_size, action = contract.history * sum(sizes), contract.spec.action.size
        self.encoder = config.encoder.build(self.obs_size)
        flow = config.flow
        cond = self.encoder.size + (flow.source.inputs if flow else 0) + (contract.chunk if config.prefix else 0)
        kind = MapNet if flow and flow.two_time else _NETWORKS.get(config.sampler, VelocityNet)
        sizes_of_net = {"action": action, "chunk": contract.chunk, "cond": cond}
        modes = flow.target.modes if flow else 0
        net = SegmentNet(config.net, **sizes_of_net, modes=modes) if modes else kind(config.net, **sizes_of_net)
        self.net = CommittedNet(net, contract.chunk) if config.prefix else net
        # The refiner is told the last velocity beside the condition.
        self.refiner = (
            VelocityNet(config.refiner, action, contract.chunk, cond + contract.chunk * action)
            if config.refiner
            else None
        )
        self.source = SourceNet(self.encoder.size, contract.chunk, action) if flow and flow.source.conditioned else None
        self.null = nn.Parameter(torch.zeros(self.encoder.size)) if flow and flow.guidance.null else None
        self.decorator = (
            DecoratorNet(config.net, action, contract.chunk, self.encoder.size) if config.decorated else None
        )
        self.critic = config.critic.build(self.obs_size, contract.chunk * action) if config.critic else None

    def flatten(self, obs: dict[str, Tensor]) -> Float[Tensor, "b n"]:
        """Observation histories, name -> (b, o, *shape), as one row each."""
        return torch.cat([obs[key].flatten(2) for key in self.keys], dim=-1).flatten(1)

    def condition(self, obs: dict[str, Tensor]) -> EncoderOutput:
        """Condition vector and encoder feature of *normalised* observations, name -> (b, o, *shape)."""
        output: EncoderOutput = self.encoder(self.flatten(obs))
        return output
