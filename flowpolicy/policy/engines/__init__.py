"""Engines: ways to compute ``act``, all with the same result."""

from __future__ import annotations

import functools
import importlib.util
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from flowpolicy.core.errors import ConfigError, FlowPolicyError, nearest
from flowpolicy.policy.engines.engine import TOLERANCE as TOLERANCE
from flowpolicy.policy.engines.engine import Engine as Engine
from flowpolicy.policy.engines.engine import Program, Shapes, drawn
from flowpolicy.policy.package import Format, Package, is_package, open_package

if TYPE_CHECKING:
    from flowpolicy.policy.policy import Policy

EngineName = Literal["numpy", "onnx", "aotinductor", "compile", "cuda_graph", "compiled_graph", "tensorrt", "eager"]
FORMATS: dict[EngineName, Format] = {"numpy": "numpy", "onnx": "onnx", "aotinductor": "pt2", "tensorrt": "onnx"}
"""Engines that run a package, and its format; the others run the policy itself."""
ENGINES: tuple[EngineName, ...] = (
    "numpy",
    "onnx",
    "aotinductor",
    "compile",
    "cuda_graph",
    "compiled_graph",
    "tensorrt",
    "eager",
)
ON_A_GPU: tuple[EngineName, ...] = ("cuda_graph", "eager")
"""What 'auto' measures on a GPU: ready within seconds. The others take a compiler's minute, or copy and launch kernel
by kernel."""
GPU_ALONE: tuple[EngineName, ...] = ("cuda_graph", "compiled_graph", "tensorrt")
"""Engines that a CPU cannot run."""
CPU_ALONE: tuple[EngineName, ...] = ("numpy", "aotinductor")
"""Engines that a GPU cannot run."""


def load_engine(
    path: Path | str,
    engine: str = "auto",
    *,
    among: Sequence[EngineName] | None = None,
    batches: Sequence[int] = (),
    threads: int = 1,
    nfe: int | None = None,
    device: str = "cpu",
) -> Engine:
    """A policy ready to act: loaded, compiled where needed, and warmed up.

    A run or checkpoint folder works with every engine; for engines that run an exported package, the policy is first
    exported to a temporary folder. An export folder works only with the engine of its format; 'numpy' and 'onnx' then
    need no torch.

    Args:
        path: run, checkpoint or export folder.
        engine: one of :data:`ENGINES`, or 'auto': measures every engine that this policy and installation allow, at the
            smallest batch, and keeps the fastest; on a GPU those of :data:`ON_A_GPU`.
        among: what 'auto' measures on a CPU; all of them unless given.
        batches: batch sizes to prepare; those of the export, or 1, unless given.
        threads: threads per decision. The torch engines set torch's number for the whole process, and 'numpy' that
            of NumPy's matrix products.
        nfe: network evaluations per chunk; the contract's, or the export's, unless given.
        device: 'cpu' or a CUDA device; not every engine runs on both (:data:`CPU_ALONE`, :data:`GPU_ALONE`).

    Raises:
        CheckpointError: a file is missing, truncated or altered.
        ConfigError: the engine does not exist or cannot run this policy here.
        MissingExtraError: a package is not installed.

    """
    if engine != "auto" and engine not in ENGINES:
        raise ConfigError(f"unknown engine '{engine}'", expected=nearest(engine, ["auto", *ENGINES]))
    if threads < 1 or any(batch < 1 for batch in batches):
        raise ConfigError(f"threads {threads}, batches {tuple(batches)}", expected="at least 1 each")
    if device != "cpu" and engine not in FORMATS:
        _require_torch(f"the device '{device}'")
        from flowpolicy.core.devices import find_device

        find_device(device)
    loader = _Loader(Path(path), tuple(sorted(set(batches))), threads, nfe, device)
    if engine != "auto":
        return loader.load(engine)
    measured: dict[str, float | str] = {}
    loaded: dict[str, Engine] = {}
    names = ON_A_GPU if device.startswith("cuda") else ENGINES if among is None else among
    for name in names:
        try:
            loaded[name] = loader.load(name)
            measured[name] = median_seconds(loaded[name])
        except FlowPolicyError as error:
            measured[name] = error.what
    if not loaded:
        raise ConfigError(
            f"no engine can run {path}", expected="\n    ".join(f"{name}: {why}" for name, why in measured.items())
        )
    chosen = loaded[min(loaded, key=lambda name: measured[name])]
    chosen.measured = measured
    return chosen


def median_seconds(engine: Engine, calls: int = 50) -> float:
    """Median duration of a decision at the smallest batch, after a few to warm up."""
    batch = engine.batches[0]
    random = np.random.default_rng(0)
    obs = drawn(engine.contract, batch, random)
    noise, seconds = engine.noise(batch, random), np.zeros(calls)
    for index in range(-5, calls):
        start = time.perf_counter()
        engine.act(obs, noise)
        seconds[index] = time.perf_counter() - start
    return float(np.median(seconds))


class _Loader:
    """Where the model comes from, opened once for all engines."""

    def __init__(self, path: Path, batches: tuple[int, ...], threads: int, nfe: int | None, device: str) -> None:
        self.path, self.threads, self.nfe, self.device = path, threads, nfe, device
        self.package = open_package(path) if is_package(path) else None
        self.batches = batches or (self.package.batches if self.package else ()) or (1,)
        self._policies: dict[str, Policy] = {}

    def load(self, name: str) -> Engine:
        """The engine of this name."""
        start = time.perf_counter()
        _require_device(name, self.device)
        if FORMATS.get(name) == "onnx" and self.device != "cpu":  # type: ignore[call-overload]
            from flowpolicy.policy.engines import onnx_runtime

            onnx_runtime.require_provider(name)
        engine = self._from_package(name, FORMATS[name]) if name in FORMATS else self._from_policy(name)
        engine.load_s = time.perf_counter() - start
        return engine

    def policy(self, device: str) -> Policy:
        """The policy of a run or checkpoint, there."""
        if self.package is not None:
            raise ConfigError(f"{self.path} is an export for '{self.package.format}'", fix="name the run instead")
        if device not in self._policies:
            _require_torch("a run")
            from flowpolicy.policy.policy import Policy

            self._policies[device] = Policy.load(self.path, device=device)
        return self._policies[device]

    def _from_policy(self, name: str) -> Engine:
        policy = self.policy(self.device)
        policy.require_plain_noise()
        import torch

        from flowpolicy.policy.engines import compiled, cuda_graph, eager

        builders: dict[str, Callable[..., Program]] = {
            "eager": eager.build,
            "compile": compiled.build,
            "cuda_graph": cuda_graph.build,
            "compiled_graph": functools.partial(cuda_graph.build, compile=True),
        }
        build = builders[name]
        torch.set_num_threads(self.threads)
        nfe, device = policy.contract.nfe if self.nfe is None else self.nfe, torch.device(self.device)
        return _warm(name, policy.shapes, nfe, {batch: build(policy, nfe, batch, device) for batch in self.batches})

    def _from_package(self, name: str, form: Format) -> Engine:
        if self.package is not None:
            return self._open(name, form, self.package)
        from flowpolicy.policy.exporting import export

        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / form
            export(self.policy("cpu"), form, target, nfe=self.nfe, batches=self.batches, threads=self.threads)
            return self._open(name, form, open_package(target))

    def _open(self, name: str, form: Format, package: Package) -> Engine:
        if package.format != form:
            raise ConfigError(f"{package.folder} is an export for '{package.format}', which '{name}' cannot run")
        if self.nfe not in (None, package.nfe):
            raise ConfigError(f"nfe={self.nfe} with an export of {package.nfe}", fix=f"export again: --nfe {self.nfe}")
        lacking = [batch for batch in self.batches if package.batches and batch not in package.batches]
        if lacking:
            raise ConfigError(
                f"{package.folder} has no graph for batch {lacking}", expected=f"one of {package.batches}"
            )
        if package.threads not in (0, self.threads):
            raise ConfigError(f"threads={self.threads} with code that was compiled for {package.threads}")
        build = _builder(name, self.threads, self.device)
        return _warm(name, package.shapes, package.nfe, {batch: build(package, batch) for batch in self.batches})


def _builder(name: str, threads: int, device: str) -> Callable[[Package, int], Program]:
    if name == "aotinductor":
        _require_torch(name)
        import torch

        from flowpolicy.policy.engines import aotinductor

        torch.set_num_threads(threads)
        return aotinductor.build
    from flowpolicy.policy.engines import numpy_graph, onnx_runtime

    if name == "numpy":
        return lambda package, batch: numpy_graph.build(package, batch, threads)
    return lambda package, batch: onnx_runtime.build(package, batch, threads, name, device)


def _require_torch(what: str) -> None:
    if importlib.util.find_spec("torch") is None:
        raise ConfigError(
            f"{what} needs torch, which is not installed", fix="flowpolicy export RUN --to onnx, where torch is"
        )


def _require_device(name: str, device: str) -> None:
    if name in CPU_ALONE and device != "cpu":
        raise ConfigError(f"the engine '{name}' runs on the CPU and not on '{device}'", fix="cuda_graph, or onnx")
    if name in GPU_ALONE and not device.startswith("cuda"):
        raise ConfigError(f"the engine '{name}' runs on a CUDA device", expected="device='cuda'")


def _warm(name: str, shapes: Shapes, nfe: int, programs: dict[int, Program]) -> Engine:
    """Run every program a few times: compilers, allocators and caches do their work before the first decision."""
    for program in programs.values():
        for _ in range(3):
            program.run()
    return Engine(name, shapes, nfe, programs)
