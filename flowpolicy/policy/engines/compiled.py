"""``torch.compile`` of the whole of ``act``, with static shapes."""

from __future__ import annotations

import torch

from flowpolicy.core.compilation import complaint, from_compiler, own_code
from flowpolicy.core.errors import ConfigError
from flowpolicy.policy.engines.engine import Program
from flowpolicy.policy.graph import ActGraph
from flowpolicy.policy.policy import Policy


def build(policy: Policy, nfe: int, batch: int, device: torch.device) -> Program:
    """Compile for one batch size: one graph without breaks.

    Raises:
        ConfigError: PyTorch's compiler cannot, or lacks a C++ compiler.

    """
    graph = ActGraph(policy, nfe).to(device)
    compiled = torch.compile(own_code(graph.forward), fullgraph=True, dynamic=False)
    buffers = policy.shapes.buffers(batch)
    inputs = [torch.from_numpy(value) for value in buffers.inputs]
    target = torch.from_numpy(buffers.chunk)

    @torch.inference_mode()
    def run() -> None:
        target.copy_(compiled(*(value.to(device) for value in inputs)))

    try:
        run()
    except Exception as error:
        if not from_compiler(error):
            raise
        raise ConfigError(
            f"the engine 'compile' cannot compile this policy for {batch} rows: {complaint(error)}",
            expected="a C++ compiler, and operations of PyTorch",
            fix="--engine onnx, or eager",
        ) from error
    return Program(buffers, run)
