"""``torch.compile`` of the whole of ``act``, with static shapes."""

from __future__ import annotations

import torch

from flowpolicy.policy.engines.engine import Program
from flowpolicy.policy.graph import ActGraph
from flowpolicy.policy.policy import Policy


def build(policy: Policy, nfe: int, batch: int, device: torch.device) -> Program:
    """Compile for one batch size: one graph without breaks, or an error."""
    graph = ActGraph(policy, nfe).to(device)
    compiled = torch.compile(graph, fullgraph=True, dynamic=False)
    buffers = policy.shapes.buffers(batch)
    inputs = [torch.from_numpy(value) for value in buffers.inputs]
    target = torch.from_numpy(buffers.chunk)

    @torch.inference_mode()
    def run() -> None:
        target.copy_(compiled(*(value.to(device) for value in inputs)))

    return Program(buffers, run)
