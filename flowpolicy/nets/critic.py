"""Ensembles of value networks, evaluated as one batched product, and their targets."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flowpolicy.core.ranges import Depth, Few, Natural, Width, require_ranges
from flowpolicy.core.spec import ObservationSpec
from flowpolicy.core.streams import repeated
from flowpolicy.nets.encoder import StateProjection
from flowpolicy.nets.layers import LayerNorm, gelu, normalized
from flowpolicy.nets.vision import ENCODERS, Encoder, VisionProjection

Aggregation = Literal["mean", "min"]


@dataclasses.dataclass(frozen=True)
class CriticConfig:
    """An ensemble of value networks."""

    width: Width = 512
    """Size of every hidden layer."""
    depth: Depth = 4
    """Number of hidden layers."""
    members: Few = 2
    """Networks that enter targets, actor losses and the choice among candidates."""
    held_out: Natural = 0
    """Further networks that learn the same targets and enter nothing: their values are the honest ones."""
    aggregate: Aggregation = "mean"
    """How targets, and the choice among candidates, combine the members: 'mean' or 'min'."""
    layer_norm: bool = True
    """Normalise every hidden layer after its activation."""

    def __post_init__(self) -> None:
        require_ranges(self, "--agent.critic.")

    def build(
        self,
        observation: Mapping[str, ObservationSpec],
        history: int,
        action: int = 0,
        encoder: Encoder = ENCODERS["state"],
    ) -> Critic:
        """Q networks for observation histories and ``action`` numbers; with ``action`` 0 a value network V(obs).

        Args:
            observation: what there is.
            history: observations per decision.
            action: numbers of a chunk.
            encoder: what pictures are seen by; the members share it, and it learns with them. Its projection is left
                out.

        Raises:
            ConfigError: a picture is observed that the encoder cannot read.

        """
        return Critic(self, encoder.bare.build(observation, history), action)


class Critic(nn.Module):
    """``members + held_out`` MLPs ``W norm(gelu(W ... x))`` side by side: Q(obs, action), or V(obs).

    One product per layer serves every member, and where pictures are observed one encoder does, which is part of the
    critic. Weights are drawn uniformly with the variance 2 / (in + out) of
    Glorot, as the FQL family does (arXiv 2502.02538, code). Safe under ``torch.compile``.

    All methods take normalised observation streams, name -> (b, o, *shape), and for Q the action chunks (b, h, a).

    Args:
        config: sizes.
        encoder: what the networks see of the observations; no weights of its own but for pictures.
        action: numbers of a chunk.

    """

    def __init__(self, config: CriticConfig, encoder: StateProjection | VisionProjection, action: int) -> None:
        super().__init__()
        self.config, self.encoder, self.action = config, encoder, action
        inputs = encoder.size + action
        networks = config.members + config.held_out
        widths = [inputs, *[config.width] * config.depth]
        self.layers = nn.ModuleList(
            _Layer(networks, a, b, norm=config.layer_norm) for a, b in itertools.pairwise(widths)
        )
        self.head = _Linear(networks, config.width, 1)

    def forward(self, *inputs: Any) -> Float[Tensor, "n b"]:
        """Values of the members, then of those held out, for ``(streams, action)`` or ``(streams,)``."""
        return self._values(inputs, self.config.members + self.config.held_out, frozen=False)

    def values(self, *inputs: Any) -> Float[Tensor, "e b"]:
        """Values of the members alone. Gradients reach the inputs and not the weights: what an actor climbs."""
        return self._values(inputs, self.config.members, frozen=True)

    def all_values(self, *inputs: Any) -> Float[Tensor, "n b"]:
        """:meth:`values` of the members, then of those held out."""
        return self._values(inputs, self.config.members + self.config.held_out, frozen=True)

    def value(self, *inputs: Any) -> Float[Tensor, " b"]:
        """:meth:`values`, aggregated as the config says."""
        return self.aggregate(self.values(*inputs))

    def aggregate(self, values: Float[Tensor, "e b"]) -> Float[Tensor, " b"]:
        """Mean or minimum over the members."""
        return values.mean(0) if self.config.aggregate == "mean" else values.amin(0)

    def members_on(self, rows: Float[Tensor, "n b i"]) -> Float[Tensor, "n b"]:
        """Values where every network has :meth:`rows` of its own, as a bootstrap of the data gives them."""
        return self._apply_layers(rows, frozen=False)

    def target(self) -> Critic:
        """A copy of the members for :func:`polyak`, without those held out and without gradients."""
        target = Critic(dataclasses.replace(self.config, held_out=0), copy.deepcopy(self.encoder), self.action)
        target.to(self.head.weight).requires_grad_(False)
        polyak(target, self, 1.0)
        return target

    def rows(
        self, streams: Mapping[str, Tensor], *action: Float[Tensor, "bk h a"], frozen: bool = False
    ) -> Float[Tensor, "bk i"]:
        """What every network is shown: ``[obs, action]`` or ``[obs]``; k chunks of an observation follow each other.

        ``frozen`` keeps gradients from the weights that pictures are seen by.
        """
        with torch.no_grad() if frozen and self.encoder.layout.pictures else contextlib.nullcontext():
            cond: Tensor = self.encoder(streams).cond
        flat = [chunk.flatten(1) for chunk in action]
        if flat and len(flat[0]) != len(cond):
            cond = repeated(cond, len(flat[0]) // len(cond))
        return torch.cat([cond, *flat], dim=1)

    def _values(self, inputs: tuple[Any, ...], networks: int, *, frozen: bool) -> Tensor:
        rows = self.rows(*inputs, frozen=frozen)
        return self._apply_layers(rows.expand(networks, *rows.shape), frozen)

    def _apply_layers(self, hidden: Tensor, frozen: bool) -> Tensor:
        for layer in self.layers:
            hidden = layer(hidden, frozen)
        output: Tensor = self.head(hidden, frozen)
        return output.squeeze(2)


class _Linear(nn.Module):
    """``baddbmm``: each of n networks has its own matrix."""

    def __init__(self, networks: int, inputs: int, outputs: int) -> None:
        super().__init__()
        bound = (6 / (inputs + outputs)) ** 0.5
        self.weight = nn.Parameter(torch.empty(networks, inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(networks, 1, outputs))

    def forward(self, x: Float[Tensor, "n b i"], frozen: bool) -> Float[Tensor, "n b o"]:
        weight, bias = _pick(self.weight, x, frozen), _pick(self.bias, x, frozen)
        return torch.baddbmm(bias, x, weight)


class _Layer(nn.Module):
    def __init__(self, networks: int, inputs: int, outputs: int, *, norm: bool) -> None:
        super().__init__()
        self.linear = _Linear(networks, inputs, outputs)
        self.eps = LayerNorm(1).eps
        self.scale = nn.Parameter(torch.ones(networks, 1, outputs)) if norm else None
        self.shift = nn.Parameter(torch.zeros(networks, 1, outputs)) if norm else None

    def forward(self, x: Float[Tensor, "n b i"], frozen: bool) -> Float[Tensor, "n b o"]:
        hidden = gelu(self.linear(x, frozen))
        if self.scale is None or self.shift is None:
            return hidden
        return normalized(hidden, self.eps) * _pick(self.scale, x, frozen) + _pick(self.shift, x, frozen)


def _pick(parameter: Tensor, x: Tensor, frozen: bool) -> Tensor:
    """The parameters of the first networks, as many as ``x`` has rows of input for."""
    chosen = parameter[: x.shape[0]]
    return chosen.detach() if frozen else chosen


@torch.no_grad()
def polyak(target: nn.Module, online: nn.Module, rate: float) -> None:
    """``target += rate (online - target)`` for every parameter; networks of ``online`` that are held out are left out.

    After n steps against constant ``online``, the gap has shrunk by (1 - rate)^n.
    """
    slow: list[Tensor] = list(target.parameters())
    fast = [new[: old.shape[0]] for new, old in zip(online.parameters(), slow, strict=True)]
    torch._foreach_lerp_(slow, fast, rate)
