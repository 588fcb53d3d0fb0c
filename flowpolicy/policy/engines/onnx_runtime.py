"""ONNX Runtime, on the CPU, by CUDA or by TensorRT. Needs no torch; the extra ``onnx`` brings the runtime of a CPU.

Those of a GPU come with the package onnxruntime-gpu, and have not met one yet.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from flowpolicy.core.errors import CheckpointError, ConfigError, MissingExtraError
from flowpolicy.policy.engines.engine import Buffers, Program
from flowpolicy.policy.package import Package

OUTPUT = "chunk"
"""Name of the output in a graph; the inputs are called as :attr:`Buffers.named` calls them."""


PROVIDERS = {"onnx": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
"""What the runtime calls the engines of a GPU."""


def build(package: Package, batch: int, threads: int, name: str = "onnx", device: str = "cpu") -> Program:
    """A session over fixed buffers: nothing is allocated or copied per call but the runtime's own scratch.

    On a GPU the runtime itself copies the buffers there and back.
    """
    model, buffers, runtime = package.read(batch), package.shapes.buffers(batch), _runtime()
    if device == "cpu":
        place: list[Any] = ["CPUExecutionProvider"]
        runs = [_bound(runtime, package, model, buffers, threads, place, prepack=prepack) for prepack in (True, False)]
        return Program(buffers, min(runs, key=_seconds))
    require_provider(name)
    place = [(PROVIDERS[name], {"device_id": int(device.partition(":")[2] or 0)})]
    return Program(buffers, _bound(runtime, package, model, buffers, threads, place, prepack=True))


def require_provider(name: str) -> None:
    """Raise ConfigError where the installed runtime cannot run the engine ``name`` on a GPU."""
    found = _runtime().get_available_providers()
    if PROVIDERS[name] not in found:
        raise ConfigError(
            f"the engine '{name}' on a GPU needs ONNX Runtime's {PROVIDERS[name]}, and the installed one has "
            + ", ".join(found),
            fix="pip install onnxruntime-gpu in the place of onnxruntime; or the engine 'cuda_graph', which needs none",
        )


def _runtime() -> Any:
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise MissingExtraError("onnxruntime", "onnx") from error
    return onnxruntime


def _bound(
    onnxruntime: Any,
    package: Package,
    model: bytes,
    buffers: Buffers,
    threads: int,
    place: list[Any],
    *,
    prepack: bool,
) -> Callable[[], object]:
    wanted = place[0] if isinstance(place[0], str) else place[0][0]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.enable_cpu_mem_arena = False  # 2 % faster at these sizes (measured)
    # Threads that spin between two decisions take a core from the robot's control loop.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Weights rearranged for blocks of rows: faster for long chunks, 10 % slower where the input is one row (measured).
    options.add_session_config_entry("session.disable_prepacking", str(int(not prepack)))
    try:
        session = onnxruntime.InferenceSession(model, options, providers=place)
    except Exception as error:  # the runtime's own errors derive from no common class
        raise CheckpointError(f"{package.folder} holds no ONNX model: {error}", fix="export the run again") from error
    if session.get_providers()[0] != wanted:  # the runtime goes on by the CPU where its libraries do not load
        raise ConfigError(
            f"ONNX Runtime's {wanted} does not start here",
            expected="the libraries that it was built with: CUDA, cuDNN and, for TensorRT, TensorRT",
            fix="the engine 'cuda_graph', which needs none of them",
        )
    found = [(value.name, tuple(value.shape)) for value in (*session.get_inputs(), *session.get_outputs())]
    inputs = buffers.named
    due = [(name, value.shape) for name, value in (*inputs.items(), (OUTPUT, buffers.chunk))]
    if found != due:
        raise CheckpointError(
            f"the model in {package.folder} has other inputs and outputs than its contract: {found}",
            expected=str(due),
            fix="export the run again",
        )
    binding = session.io_binding()
    for name, value in inputs.items():
        binding.bind_input(name, "cpu", 0, value.dtype, value.shape, value.ctypes.data)
    binding.bind_output(OUTPUT, "cpu", 0, np.float32, buffers.chunk.shape, buffers.chunk.ctypes.data)
    return _bare_call(session, binding)


def _bare_call(session: Any, binding: Any) -> Callable[[], object]:
    """The call inside the runtime's wrapper, which takes 2 % of a small decision; the wrapper where that is another."""
    bare = getattr(getattr(session, "_sess", None), "run_with_iobinding", None)
    bound = getattr(binding, "_iobinding", None)
    if bare is None or bound is None:
        return functools.partial(session.run_with_iobinding, binding)
    return functools.partial(bare, bound, None)


def _seconds(run: Any) -> float:
    """The best of a few calls, each after the other: the quieter of two sessions must not win by a disturbance."""
    for _ in range(3):
        run()
    best = float("inf")
    for _ in range(20):
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return best
