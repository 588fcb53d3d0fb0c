"""The policy as it is trained: the reference of every other engine."""

from __future__ import annotations

import torch

from flowpolicy.policy.committed import Committed
from flowpolicy.policy.engines.engine import Program
from flowpolicy.policy.policy import Policy


def build(policy: Policy, nfe: int, batch: int, device: torch.device) -> Program:
    """:meth:`Policy.act_from`, unchanged."""
    buffers = policy.shapes.buffers(batch)
    views = {key: torch.from_numpy(view) for key, view, _ in policy.shapes.views(buffers.obs)}
    views |= {key: torch.from_numpy(pixels) for key, pixels in buffers.pictures.items()}
    noise = torch.from_numpy(buffers.noise)
    target = torch.from_numpy(buffers.chunk)

    def run() -> None:
        placed = {key: view.to(device) for key, view in views.items()}
        bound = None
        if buffers.committed is not None and buffers.length is not None:
            action, length = (torch.from_numpy(value).to(device) for value in (buffers.committed, buffers.length))
            bound = Committed(action, length, length)
        target.copy_(policy.act_from(placed, noise.to(device), nfe, bound))

    return Program(buffers, run)
