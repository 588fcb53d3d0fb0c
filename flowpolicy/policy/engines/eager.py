"""The policy as it is trained: the reference of every other engine."""

from __future__ import annotations

import torch

from flowpolicy.policy.engines.engine import Program, Shapes
from flowpolicy.policy.policy import Policy


def build(policy: Policy, nfe: int, batch: int, device: torch.device) -> Program:
    """:meth:`Policy.act_from`, unchanged."""
    shapes = Shapes(policy.contract, policy.config.candidates)
    obs, noise, chunk = shapes.buffers(batch)
    views = {key: torch.from_numpy(view) for key, view, _ in shapes.views(obs)}
    source, target = torch.from_numpy(noise), torch.from_numpy(chunk)

    def run() -> None:
        placed = {key: view.to(device) for key, view in views.items()}
        target.copy_(policy.act_from(placed, source.to(device), nfe))

    return Program(obs, noise, chunk, run)
