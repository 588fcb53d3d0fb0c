"""Guidance that combines the velocities of several conditions."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from flowpolicy.core.ranges import Inside, Positive, Share
from flowpolicy.flows.axes.guidance.method import Fields, Guidance, Situation
from flowpolicy.flows.axes.registry import Conflict, Reference, register
from flowpolicy.flows.straight import Field


@register(
    "guidance",
    "compose",
    Reference("SplitFlow: Flow Decomposition for Inversion-Free Text-to-Image Editing", "2510.25970"),
    Reference("Compositional Visual Generation with Composable Diffusion Models", "2206.01714"),
)
@dataclasses.dataclass(frozen=True)
class Compose(Guidance):
    """One velocity per named observation, composed: K of them cost K + 1 evaluations.

    Each velocity v_i is given one of the named observations and all that are not named. 'split' (SplitFlow) removes
    from v_i what opposes the full velocity v, weighs by ``softmax(cos(v_i, v) / temperature)`` and mixes ``share`` of
    the sum into v. 'product' multiplies the densities: ``v_0 + scale sum (v_i - v_0)``, v_0 without any of them
    (arXiv 2206.01714). Hidden observations read 0 after scaling.
    """

    keys: tuple[str, ...] = ()
    """Observations that are conditions of their own, by key."""
    how: Literal["split", "product"] = "split"
    """Kind of composition."""
    share: Share = 0.5
    """Of the composition in 'split'; 0 is no guidance."""
    temperature: Positive = 0.2
    """Of the weights in 'split'."""
    scale: float = 1.0
    """Of every part in 'product'."""
    dropout: Inside = 0.2
    """Share of the rows that are trained without all, or all but one, of the named observations."""

    @property
    @override
    def hides(self) -> tuple[str, ...]:
        return self.keys

    @property
    @override
    def hidden_share(self) -> float:
        return self.dropout

    @override
    def total(self, evaluations: int) -> int:
        return (1 + len(self.keys)) * evaluations

    def conflicts(self, spec: Any, setting: Any) -> Iterator[Conflict]:
        """Nothing to compose, or mean velocities, which do not compose."""
        if not self.keys or len(set(self.keys)) < len(self.keys):
            yield Conflict(
                f"{self.flag} of {'no' if not self.keys else 'repeated'} observations",
                "every named observation is a condition of its own",
                "--flow.guidance.keys KEY KEY, with keys of the training file",
            )
        if spec.solver.two_time:
            yield Conflict(
                f"{self.flag} with {spec.solver.flag}",
                "mean velocities of several conditions do not add up to that of their composition",
                "--flow.solver euler",
            )

    @override
    def field(self, fields: Fields, at: Situation) -> Field:

        def guided(x: Tensor, t: Tensor) -> Tensor:
            base = (fields.full if self.how == "split" else fields.null)(x, t)
            parts = torch.stack([part(x, t) for part in fields.parts])
            if self.how == "product":
                return base + self.scale * (parts - base).sum(0)
            return (1 - self.share) * base + self.share * self.aggregate(base, parts)

        return guided

    def aggregate(self, full: Float[Tensor, "b *d"], parts: Float[Tensor, "k b *d"]) -> Float[Tensor, "b *d"]:
        """The weighted sum of velocities that do not oppose the full one."""
        v, each = full.flatten(1), parts.flatten(2)
        along = (each * v).sum(2, keepdim=True) / v.square().sum(1, keepdim=True).clamp(min=1e-12)
        each = each - along.clamp(max=0) * v
        cosine = torch.nn.functional.cosine_similarity(each, v.unsqueeze(0), dim=2)
        weights = (cosine / self.temperature).softmax(0).unsqueeze(2)
        return (weights * each).sum(0).view_as(full)
