"""AOTInductor package (``.pt2``): the compiled ``act`` as native code, without the compiler at load."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

from flowpolicy.core.errors import CheckpointError
from flowpolicy.policy.engines.engine import Program
from flowpolicy.policy.graph import ActGraph
from flowpolicy.policy.package import Package


def write(graph: ActGraph, batch: int, path: Path) -> None:
    """Compile ``graph`` for one batch size and for the threads that torch has now; needs a C++ compiler."""
    with torch.no_grad():
        program = torch.export.export(graph, graph.example(batch))
        torch._inductor.aoti_compile_and_package(program, package_path=str(path))


def build(package: Package, batch: int) -> Program:
    """Load the package of one batch size.

    It is native code for the kind of machine that wrote it, and is run as such: load only what you exported.
    """
    buffers = package.shapes.buffers(batch)
    with tempfile.TemporaryDirectory() as folder:  # the loader unpacks what it is given, beside it
        copy = Path(folder) / package.files[str(batch)]
        copy.write_bytes(package.read(batch))
        try:
            loader: Any = torch._inductor.aoti_load_package(str(copy), run_single_threaded=True).loader
        except RuntimeError as error:
            raise CheckpointError(
                f"{package.folder} cannot be loaded here: {error}", fix="export again on this machine"
            ) from error
    inputs = [torch.from_numpy(value) for value in buffers.inputs]
    target = torch.from_numpy(buffers.chunk)

    @torch.inference_mode()
    def run() -> None:
        target.copy_(loader.run(inputs)[0])

    return Program(buffers, run)
