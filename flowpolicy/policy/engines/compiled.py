"""``torch.compile`` of the whole of ``act``, with static shapes."""

from __future__ import annotations

import torch

from flowpolicy.policy.engines.engine import Program, Shapes
from flowpolicy.policy.graph import ActGraph
from flowpolicy.policy.policy import Policy


def build(policy: Policy, nfe: int, batch: int, device: torch.device) -> Program:
    """Compile for one batch size: one graph without breaks, or an error."""
    graph = ActGraph(policy, nfe).to(device)
    compiled = torch.compile(graph, fullgraph=True, dynamic=False)
    obs, noise, chunk = Shapes(policy.contract, policy.config.candidates).buffers(batch)
    first, second, target = (torch.from_numpy(buffer) for buffer in (obs, noise, chunk))

    @torch.inference_mode()
    def run() -> None:
        target.copy_(compiled(first.to(device), second.to(device)))

    return Program(obs, noise, chunk, run)
