"""The whole of ``act`` as one function of two tensors, for compilers and exporters."""

from __future__ import annotations

import copy
import itertools
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flowpolicy.core.errors import ConfigError
from flowpolicy.core.streams import STATES, Streams
from flowpolicy.nets.mlp import ResidualMLP
from flowpolicy.nets.plain import PlainMLP
from flowpolicy.nets.transformer import ChunkTransformer
from flowpolicy.nets.trunk import Trunk
from flowpolicy.nets.unet import ChunkUNet
from flowpolicy.policy.committed import Committed
from flowpolicy.policy.policy import Policy


class ActGraph(nn.Module):
    """Normalise, encode, generate, unnormalise: what :meth:`Policy.act_from` computes, in one number of evaluations.

    Pictures are inputs of uint8 as the camera gives them: cropping, casting and scaling are part of the graph. The
    states are one input, as the policy packs them, so that a graph has one normalising step instead of one per key
    and nothing to put side by side. What is linear twice in a row is multiplied out beforehand, in float64: the
    normaliser's scale into the layers that see observations, see also :func:`fold_encoder`. Equal to the policy to
    round-off.

    Args:
        policy: copied; the original stays as it is.
        nfe: network evaluations per chunk.

    Raises:
        ConfigError: the policy draws more than the noise at the start, see :meth:`Policy.require_plain_noise`.

    """

    offset: Tensor
    limit: Tensor

    def __init__(self, policy: Policy, nfe: int) -> None:
        super().__init__()
        policy.require_plain_noise()
        if reason := policy.config.sampler.interpreted:
            raise ConfigError(f"no graph can hold this policy: {reason}", fix="--engine eager")
        self.policy, self.nfe = copy.deepcopy(policy), nfe
        scaling = [policy.normalizer.observation(key) for key in policy.actor.layout.widths]
        empty = torch.zeros(0)
        self.register_buffer("offset", torch.cat([affine.offset for affine in scaling] or [empty]))
        self.register_buffer("limit", torch.cat([affine.limit / affine.scale for affine in scaling] or [empty]))
        self.names = tuple(policy.shapes.buffers(1).named)
        fold_encoder(self.policy)
        if scaling:
            fold_scale(self.policy, torch.cat([affine.scale for affine in scaling]).repeat(policy.contract.history))

    def forward(self, *inputs: Tensor) -> Float[Tensor, "b h a"]:
        """Chunks in environment units.

        Args:
            inputs: what :attr:`names` says, in that order: ``obs`` (b, o, n), the states of the contract side by side
                in its order, oldest first; ``noise`` (b k, h, a), the k candidates of a row after each other; of a
                policy that continues a prefix ``committed`` (b, h, a), actions in environment units, and ``length``
                (b,), how many there are, which may be left out together; then pictures by key, (b, o, h, w, c) uint8.

        """
        bare = len(inputs) < len(self.names)
        names = [name for name in self.names if not bare or name not in ("committed", "length")]
        given = dict(zip(names, inputs, strict=True))
        committed, noise = None, given["noise"]
        if "committed" in given:
            committed = Committed(given["committed"], given["length"], given["length"])
        streams: Streams = {}
        if "obs" in given:
            streams[STATES] = (given["obs"] - self.offset).clamp(-self.limit, self.limit)
        for key in self.policy.actor.layout.pictures:
            streams[key] = given[key]
        chunk = self.policy.normalizer.unaction(self.policy.decide(streams, noise, self.nfe, committed))
        return chunk if committed is None else committed.impose(chunk)

    def example(self, batch: int) -> tuple[Tensor, ...]:
        """Zero inputs of the shapes for ``batch`` rows."""
        inputs = self.policy.shapes.buffers(batch).inputs
        return tuple(torch.from_numpy(value).to(self.offset.device) for value in inputs)


def fold_encoder(policy: Policy) -> None:
    """Let the encoder end with its last nonlinearity.

    The projection's last layer ``P g + p`` meets the trunks' first one ``W [.., f, obs] + w`` with nothing between:
    ``W_f (P g + p) = (W_f P) g + W_f p``. One product less per decision.
    """
    project = policy.actor.encoder.project
    if not len(project) or policy.actor.null is not None:
        return  # what stands for no observation is compared with the encoder's output, so that must stay what it is
    last = cast(nn.Linear, project[-1])
    for inlet in _inlets(policy):
        weight, bias = inlet.weight.data, inlet.bias.data
        start = weight.shape[1] - policy.actor.encoder.size
        feature = weight[:, start : start + last.out_features]
        bias.copy_(bias.double() + feature.double() @ last.bias.double())
        feature.copy_(feature.double() @ last.weight.double())
    policy.actor.encoder.project = nn.Sequential(*itertools.islice(project, len(project) - 1))


def fold_scale(policy: Policy, scale: Float[Tensor, " n"]) -> None:
    """Let every layer that sees states expect them before the multiplication by ``scale``.

    What pictures became stands behind the states of a condition, and has no scale.
    """
    actor, states = policy.actor, len(scale)
    inputs = actor.encoder.inputs
    place = slice(-inputs, -inputs + states or None)
    if actor.null is not None:
        null = actor.null.data[place]
        null.copy_(null.double() / scale.double())
    seeing = [inlet.weight.data[:, place] for inlet in _inlets(policy)]
    if len(actor.encoder.project):
        seeing.append(cast(nn.Linear, actor.encoder.project[0]).weight.data[:, :states])
    if actor.critic is not None:
        first: Any = actor.critic.layers[0]
        seeing.append(first.linear.weight.data[:, :states].mT)
    for weight in seeing:
        weight.copy_(weight.double() * scale.double())


def _inlets(policy: Policy) -> list[nn.Linear]:
    actor = policy.actor
    nets = [actor.net, actor.decorator, actor.refiner]
    source = [] if actor.source is None else [actor.source.inlet]
    return [conditioned(net.trunk) for net in nets if net is not None] + source


def conditioned(trunk: Trunk) -> nn.Linear:
    """The one layer of a trunk that sees the condition; its last columns are the condition's."""
    if isinstance(trunk, ResidualMLP):
        return trunk.inlet
    if isinstance(trunk, PlainMLP):
        return cast(nn.Linear, trunk.layers[0])
    return cast("ChunkUNet | ChunkTransformer", trunk).embed
