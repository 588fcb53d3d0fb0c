"""The whole of ``act`` as one function of two tensors, for compilers and exporters."""

from __future__ import annotations

import copy
import itertools
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flowpolicy.core.errors import ConfigError
from flowpolicy.nets.mlp import ResidualMLP
from flowpolicy.nets.plain import PlainMLP
from flowpolicy.nets.transformer import ChunkTransformer
from flowpolicy.nets.trunk import Trunk
from flowpolicy.nets.unet import ChunkUNet
from flowpolicy.policy.policy import Policy


class ActGraph(nn.Module):
    """Normalise, encode, generate, unnormalise: what :meth:`Policy.act_from` computes, in one number of evaluations.

    The observation keys are one input, so that a graph has one normalising step instead of one per key. What is
    linear twice in a row is multiplied out beforehand, in float64: the normaliser's scale into the layers that see
    observations, see also :func:`fold_encoder`. Equal to the policy to round-off.

    Args:
        policy: copied; the original stays as it is.
        nfe: network evaluations per chunk.

    Raises:
        ConfigError: the policy continues committed actions, or is one of the flow laboratory.

    """

    offset: Tensor
    limit: Tensor

    def __init__(self, policy: Policy, nfe: int) -> None:
        super().__init__()
        if policy.config.prefix or policy.config.flow is not None:
            raise ConfigError(
                "this policy cannot become one graph yet: it "
                + ("continues committed actions" if policy.config.prefix else "acts by the flow laboratory's solvers"),
                fix="use Policy.load, which runs it as it is",
            )
        self.policy, self.nfe = copy.deepcopy(policy), nfe
        scaling = [policy.normalizer.observation(key) for key in policy.actor.keys]
        self.register_buffer("offset", torch.cat([affine.offset for affine in scaling]))
        self.register_buffer("limit", torch.cat([affine.limit / affine.scale for affine in scaling]))
        fold_encoder(self.policy)
        fold_scale(self.policy, torch.cat([affine.scale for affine in scaling]).repeat(policy.contract.history))

    def forward(self, obs: Float[Tensor, "b o n"], noise: Float[Tensor, "bk h a"]) -> Float[Tensor, "b h a"]:
        """Chunks in environment units.

        Args:
            obs: observation histories, oldest first; the keys of the contract side by side in its order, each flat.
            noise: initial noise; the k candidates of a row follow each other.

        """
        flat = (obs - self.offset).clamp(-self.limit, self.limit).flatten(1)
        return self.policy.normalizer.unaction(self.policy.decide(flat, noise, self.nfe))

    def example(self, batch: int) -> tuple[Tensor, Tensor]:
        """Zero inputs of the shapes for ``batch`` rows."""
        contract = self.policy.contract
        obs = torch.zeros(batch, contract.history, self.offset.numel())
        noise = torch.zeros(batch * self.policy.config.candidates, contract.chunk, contract.spec.action.size)
        return obs.to(self.offset.device), noise.to(self.offset.device)


def fold_encoder(policy: Policy) -> None:
    """Let the encoder end with its last nonlinearity.

    The projection's last layer ``P g + p`` meets the trunks' first one ``W [.., f, obs] + w`` with nothing between:
    ``W_f (P g + p) = (W_f P) g + W_f p``. One product less per decision.
    """
    project = policy.actor.encoder.project
    if not len(project):
        return
    last = cast(nn.Linear, project[-1])
    for inlet in _inlets(policy):
        weight, bias = inlet.weight.data, inlet.bias.data
        start = weight.shape[1] - policy.actor.encoder.size
        feature = weight[:, start : start + last.out_features]
        bias.copy_(bias.double() + feature.double() @ last.bias.double())
        feature.copy_(feature.double() @ last.weight.double())
    policy.actor.encoder.project = nn.Sequential(*itertools.islice(project, len(project) - 1))


def fold_scale(policy: Policy, scale: Float[Tensor, " n"]) -> None:
    """Let every layer that sees observations expect them before the multiplication by ``scale``."""
    actor = policy.actor
    seeing = [inlet.weight.data[:, -actor.obs_size :] for inlet in _inlets(policy)]
    if len(actor.encoder.project):
        seeing.append(cast(nn.Linear, actor.encoder.project[0]).weight.data)
    if actor.critic is not None:
        first: Any = actor.critic.layers[0]
        seeing.append(first.linear.weight.data[:, : actor.obs_size].mT)
    for weight in seeing:
        weight.copy_(weight.double() * scale.double())


def _inlets(policy: Policy) -> list[nn.Linear]:
    nets = [policy.actor.net, policy.actor.decorator]
    return [conditioned(net.trunk) for net in nets if net is not None]


def conditioned(trunk: Trunk) -> nn.Linear:
    """The one layer of a trunk that sees the condition; its last columns are the condition's."""
    if isinstance(trunk, ResidualMLP):
        return trunk.inlet
    if isinstance(trunk, PlainMLP):
        return cast(nn.Linear, trunk.layers[0])
    return cast("ChunkUNet | ChunkTransformer", trunk).embed
