"""CUDA graphs: one launch replays every kernel of ``act``. Needs a GPU; never measured on one, see the README."""

from __future__ import annotations

import torch

from flowpolicy.policy.engines.engine import Buffers, Program
from flowpolicy.policy.graph import ActGraph
from flowpolicy.policy.policy import Policy


@torch.inference_mode()
def build(policy: Policy, nfe: int, batch: int, device: torch.device) -> Program:
    """Capture ``act`` once over fixed device buffers.

    The host side is page-locked, so that both copies run in the stream without a stop. The only wait is for the
    event behind the copy of the chunk to the host.
    """
    graph = ActGraph(policy, nfe).to(device)
    sizes = policy.shapes.buffers(batch)
    host = [torch.from_numpy(buffer).pin_memory() for buffer in (*sizes.inputs, sizes.chunk)]
    inputs = [buffer.to(device) for buffer in host[:-1]]
    # Capture fails on what is created lazily (library handles, workspaces): run first, on a stream of its own.
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(3):
            graph(*inputs)
    stream.synchronize()
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured, stream=stream):
        output = graph(*inputs)
    done = torch.cuda.Event()

    @torch.inference_mode()
    def run() -> None:
        with torch.cuda.stream(stream):
            for source, target in zip(host, inputs, strict=False):
                target.copy_(source, non_blocking=True)
            captured.replay()
            host[-1].copy_(output, non_blocking=True)
            done.record(stream)
        done.synchronize()

    obs, noise, *committed, chunk = (buffer.numpy() for buffer in host)
    return Program(Buffers(obs, noise, chunk, *committed), run)
