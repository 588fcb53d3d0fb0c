"""CUDA graphs: one launch replays every kernel of ``act``, and both copies. Needs a GPU; has not run on one yet.

The noise is among the inputs, which travel in one piece: drawn in the graph it could not be the same for every engine,
nor for an episode whatever batch it is decided in.
"""

from __future__ import annotations

import contextlib
import math
from typing import NamedTuple

import torch
from torch import Tensor

from flowpolicy.core.compilation import complaint, from_compiler, own_code
from flowpolicy.core.errors import ConfigError
from flowpolicy.nets.layers import whole_operators
from flowpolicy.policy.engines.engine import Program
from flowpolicy.policy.graph import ActGraph
from flowpolicy.policy.policy import Policy

_ALIGNED = 64  # bytes: kernels read vectors of numbers
_WARM = 3


@torch.inference_mode()
def build(policy: Policy, nfe: int, batch: int, device: torch.device, *, compile: bool = False) -> Program:
    """Capture ``act`` once over fixed buffers: all inputs in one copy, the chunk in another, one wait behind them.

    Layers call torch's own operators: a third of the kernels that their parts, which only derivatives need, would be.
    Compiled, which takes a minute, the kernels between two products become one.

    Raises:
        ConfigError: something in the policy cannot be captured, or not be compiled.

    """
    if (flow := policy.config.sampler.flow) and (reason := flow.sampling.guidance.waits):
        raise ConfigError(f"no CUDA graph can hold this policy: {reason}", fix="the engine 'eager'")
    graph, sizes = ActGraph(policy, nfe).to(device), policy.shapes.buffers(batch)
    act = torch.compile(own_code(graph.forward), fullgraph=True, dynamic=False) if compile else graph
    host = packed([torch.from_numpy(value) for value in sizes.inputs], pinned=True)
    there = host.memory.to(device)
    inputs = views(there, host.views)
    chunk = torch.from_numpy(sizes.chunk).pin_memory()
    stream, done = torch.cuda.Stream(device), torch.cuda.Event()

    def decide() -> None:
        there.copy_(host.memory, non_blocking=True)
        chunk.copy_(act(*inputs), non_blocking=True)

    captured = torch.cuda.CUDAGraph()
    try:
        with contextlib.nullcontext() if compile else whole_operators():
            # Capture fails on what is created lazily (library handles, workspaces): run first, on the same stream.
            stream.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(stream):
                for _ in range(_WARM):
                    decide()
            stream.synchronize()
            with torch.cuda.graph(captured, stream=stream):
                decide()
    except Exception as error:
        if not isinstance(error, RuntimeError) and not from_compiler(error):
            raise
        raise ConfigError(
            f"no CUDA graph can hold this policy: {complaint(error)}",
            fix="the engine 'cuda_graph'" if compile else "the engine 'eager'",
        ) from error

    def run() -> None:
        with torch.cuda.stream(stream):
            captured.replay()
            done.record(stream)
        done.synchronize()

    read = sizes.reading([value.numpy() for value in host.views])
    return Program(read._replace(chunk=chunk.numpy()), run)


class Packed(NamedTuple):
    """Tensors side by side in one piece of memory."""

    memory: Tensor
    """Bytes."""
    views: list[Tensor]
    """The tensors, parts of it."""


def packed(tensors: list[Tensor], *, pinned: bool) -> Packed:
    """Copies of ``tensors`` in one piece, which one transfer moves; page-locked, so that it need not stop, if asked."""
    size = sum(_ALIGNED * math.ceil(value.nbytes / _ALIGNED) for value in tensors)
    memory = torch.zeros(size, dtype=torch.uint8, pin_memory=pinned)
    found = views(memory, tensors)
    for view, value in zip(found, tensors, strict=True):
        view.copy_(value)
    return Packed(memory, found)


def views(memory: Tensor, like: list[Tensor]) -> list[Tensor]:
    """Parts of ``memory`` with the types and shapes of tensors that were packed."""
    found, start = [], 0
    for value in like:
        found.append(memory[start : start + value.nbytes].view(value.dtype).view(value.shape))
        start += _ALIGNED * math.ceil(value.nbytes / _ALIGNED)
    return found
