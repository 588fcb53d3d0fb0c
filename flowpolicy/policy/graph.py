"""The whole of ``act`` as one function of two tensors, for compilers and exporters."""

from __future__ import annotations

import copy
import itertools
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flowpolicy.nets.mlp import ResidualMLP
from flowpolicy.nets.plain import PlainMLP
from flowpolicy.nets.transformer import ChunkTransformer
from flowpolicy.nets.trunk import Trunk
from flowpolicy.nets.unet import ChunkUNet
from flowpolicy.policy.policy import Policy


class ActGraph(nn.Module):
    """Normalise, encode, generate, unnormalise: what :meth:`Policy.act_from` computes, in one number of evaluations.

    The observation keys are one input, so that a graph has one normalising step instead of one per key. What is
    linear twice in a row is multiplied out beforehand, see :func:`fold_encoder`. Equal to the policy to round-off.

    Args:
        policy: copied; the original stays as it is.
        nfe: network evaluations per chunk.

    """

    offset: Tensor
    scale: Tensor
    limit: Tensor

    def __init__(self, policy: Policy, nfe: int) -> None:
        super().__init__()
        self.policy, self.nfe = fold_encoder(policy), nfe
        scaling = [policy.normalizer.observation(key) for key in policy.actor.keys]
        for name in ("offset", "scale", "limit"):
            self.register_buffer(name, torch.cat([getattr(affine, name) for affine in scaling]))

    def forward(self, obs: Float[Tensor, "b o n"], noise: Float[Tensor, "bk h a"]) -> Float[Tensor, "b h a"]:
        """Chunks in environment units.

        Args:
            obs: observation histories, oldest first; the keys of the contract side by side in its order, each flat.
            noise: initial noise; the k candidates of a row follow each other.

        """
        flat = ((obs - self.offset) * self.scale).clamp(-self.limit, self.limit).flatten(1)
        return self.policy.normalizer.unaction(self.policy.decide(flat, noise, self.nfe))

    def example(self, batch: int) -> tuple[Tensor, Tensor]:
        """Zero inputs of the shapes for ``batch`` rows."""
        contract = self.policy.contract
        obs = torch.zeros(batch, contract.history, self.offset.numel())
        noise = torch.zeros(batch * self.policy.config.candidates, contract.chunk, contract.spec.action.size)
        return obs.to(self.offset.device), noise.to(self.offset.device)


def fold_encoder(policy: Policy) -> Policy:
    """A copy whose encoder ends with its last nonlinearity.

    The projection's last layer ``P g + p`` meets the trunks' first one ``W [.., f, obs] + w`` with nothing between:
    ``W_f (P g + p) = (W_f P) g + W_f p``, multiplied in float64. One product less per decision.
    """
    policy = copy.deepcopy(policy)
    project = policy.actor.encoder.project
    if not len(project):
        return policy
    last = cast(nn.Linear, project[-1])
    for net in (policy.actor.net, policy.actor.decorator):
        if net is None:
            continue
        inlet, size = conditioned(cast(Trunk, net.trunk)), policy.actor.encoder.size
        weight, bias = inlet.weight.data, inlet.bias.data
        columns = slice(weight.shape[1] - size, weight.shape[1] - size + last.out_features)
        feature = weight[:, columns].double()
        bias.copy_(bias.double() + feature @ last.bias.double())
        weight[:, columns] = (feature @ last.weight.double()).to(weight)
    policy.actor.encoder.project = nn.Sequential(*itertools.islice(project, len(project) - 1))
    return policy


def conditioned(trunk: Trunk) -> nn.Linear:
    """The one layer of a trunk that sees the condition; its last columns are the condition's."""
    if isinstance(trunk, ResidualMLP):
        return trunk.inlet
    if isinstance(trunk, PlainMLP):
        return cast(nn.Linear, trunk.layers[0])
    return cast("ChunkUNet | ChunkTransformer", trunk).embed
