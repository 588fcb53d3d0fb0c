"""What one device says of flowpolicy, in one command and a bounded time: written for a GPU that is lent for minutes.

Sections go in the order of importance, every item is guarded, and the record is written anew after each: whatever cuts
the command off, what was measured is there. On a CPU the same command is a rehearsal of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import platform
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table

from flowpolicy.agents.base.agent import TrainedAgent
from flowpolicy.agents.base.captured_update import CapturedUpdate, obstacle
from flowpolicy.agents.base.company import Company
from flowpolicy.bench.batches import random_dataset
from flowpolicy.configs.presets import PRESETS
from flowpolicy.core.devices import Precision, find_device, multiplying, settle
from flowpolicy.core.files import write_json
from flowpolicy.core.protocols import BatchSource, Metrics
from flowpolicy.core.seed import first_weights, torch_generator
from flowpolicy.core.spec import ActionSpec, Contract, ImageSpec, ObservationSpec, Spec
from flowpolicy.data.dataset import Dataset
from flowpolicy.data.normalize import Normalizer
from flowpolicy.data.transitions import TransitionSampler
from flowpolicy.data.windows import WindowSampler
from flowpolicy.nets.encoder import StateEncoder
from flowpolicy.nets.mlp import MLP
from flowpolicy.nets.transformer import Transformer
from flowpolicy.nets.unet import UNet
from flowpolicy.nets.vision import Encoder, VisionEncoder
from flowpolicy.policy import Policy, load_engine
from flowpolicy.policy.actor import Net, PolicyConfig
from flowpolicy.policy.engines.engine import drawn
from flowpolicy.policy.samplers import MAP
from flowpolicy.train.compiling import operators

OBS, ACTION = 28, 5
"""Sizes of OGBench's cube."""
_OFFLINE = ("fql", "iql", "rebrac", "mean-flow-q", "fisher", "ifql", "qc")
AGENTS = (*(f"{name}-cube-single" for name in _OFFLINE), "dm1-lift", "flow-bc-lift", "regression-lift")
TOGETHER = ("fql-cube-single", "iql-cube-single", "fisher-cube-single")
SECTIONS = ("facts", "plumbing", "latency", "seeds", "updates", "tests")
_SPEC = Spec({"state": ObservationSpec((OBS,))}, ActionSpec(ACTION))
_CAMERAS = {f"{camera}_image": ImageSpec((84, 84, 3), camera=camera) for camera in ("front", "wrist")}
_SEEN = Spec({**_SPEC.observation, **_CAMERAS}, ActionSpec(ACTION))


@dataclasses.dataclass(frozen=True)
class Build:
    """An agent that is measured, its batches and its random streams."""

    agent: TrainedAgent
    source: BatchSource
    batches: torch.Generator
    noise: torch.Generator

    def update(self) -> Metrics:
        """One update on a fresh batch."""
        return self.agent.update(self.source.draw(self.batches), self.noise)

    def captured(self) -> CapturedUpdate:
        """The same as one CUDA graph."""
        streams = [self.batches, self.noise]
        return CapturedUpdate([self.agent], self.source, lambda: [self.update()], streams)


class DeviceBench:
    """Measures a device, item by item.

    Args:
        device: 'cpu' or a CUDA device.
        out: the record, written after every item.
        seconds: when to begin nothing more.
        small: tiny networks and data, a few repeats: a rehearsal.
        about: what else the record says.

    """

    def __init__(self, device: str, out: Path | None, seconds: float, small: bool, about: dict[str, Any]) -> None:
        self.device, self.out, self.seconds, self.small = find_device(device), out, seconds, small
        self.gpu, self._begun = self.device.type == "cuda", time.monotonic()
        self.record: dict[str, Any] = {**about, "small": small, "seconds": {}}
        self.width, self.depth, self.batch = (16, 2, 16) if small else (512, 4, 256)
        self.repeats = 3 if small else 60
        self._data: Dataset = random_dataset(_SPEC.observation, ACTION, 2_000 if small else 1_000_000)

    def run(self, sections: Sequence[str] = SECTIONS) -> dict[str, Any]:
        """The record of these sections, in their order."""
        for name in sections:
            getattr(self, name)()
            if self.gpu:
                torch.cuda.empty_cache()
        self.record["total_seconds"] = round(time.monotonic() - self._begun, 1)
        self._write()
        return self.record

    def left(self) -> float:
        """Seconds before the end of the budget."""
        return self.seconds - (time.monotonic() - self._begun)

    @contextlib.contextmanager
    def item(self, section: str, name: str) -> Iterator[dict[str, Any]]:
        """One measurement, into the dictionary that is given; an error in it is a result too."""
        found: dict[str, Any] = {}
        begun = time.monotonic()
        self.record.setdefault(section, {})[name] = found
        try:
            yield found
        except Exception as error:
            found["error"] = f"{type(error).__name__}: {str(error)[:400]}"
        self.record["seconds"][f"{section}/{name}"] = round(time.monotonic() - begun, 1)
        self._write()

    def _write(self) -> None:
        if self.out is not None:
            write_json(self.out, self.record)

    # Clocks ---------------------------------------------------------------------------------------------------------

    def decisions(self, call: Callable[[], object]) -> dict[str, float]:
        """Microseconds of whole calls, each waited for: the median and the 99th percentile."""
        seconds = np.zeros(20 if self.small else 1000)
        for index in range(-5, len(seconds)):
            settle(self.device)
            start = time.perf_counter()
            call()
            settle(self.device)
            seconds[index] = time.perf_counter() - start
        p50, p99 = 1e6 * np.quantile(seconds, [0.5, 0.99])
        return {"p50_us": round(float(p50), 1), "p99_us": round(float(p99), 1)}

    def through(self, call: Callable[[], object], repeats: int | None = None) -> dict[str, float]:
        """Milliseconds per call with many in flight, and the share of them that the processor was busy."""
        count = repeats or self.repeats
        for _ in range(3):
            call()
        settle(self.device)
        start = time.perf_counter()
        for _ in range(count):
            call()
        launched = time.perf_counter() - start
        settle(self.device)
        whole = time.perf_counter() - start
        return {"ms": round(1e3 * whole / count, 4), "launch_ms": round(1e3 * launched / count, 4)}

    # What is measured -----------------------------------------------------------------------------------------------

    def build(self, preset: str, *, compile: bool = False, seed: int = 0, device: torch.device | None = None) -> Build:
        """An agent of a preset at the measured size, with batches of random data."""
        config: Any = PRESETS[preset][1].agent
        change: dict[str, Any] = {"net": dataclasses.replace(config.net, width=self.width, depth=self.depth)}
        if hasattr(config, "critic"):
            change["critic"] = dataclasses.replace(config.critic, width=self.width, depth=self.depth)
        if self.small and hasattr(config, "target_candidates"):
            change["target_candidates"] = 2
        config, place = dataclasses.replace(config, **change), device or self.device
        contract = Contract(_SPEC, config.history, config.chunk, config.execute, config.nfe)
        normalizer = Normalizer({"state": OBS}, ACTION)
        agent = config.build(contract, normalizer, steps=10**6, seed=seed, compile=compile, device=place)
        sizes = (config.history, config.chunk, self.batch)
        source: BatchSource
        if config.needs == "windows":
            source = WindowSampler(self._data, *sizes, place, previous=config.previous, streams=agent.streams)
        else:
            source = TransitionSampler(self._data, *sizes, place, horizon=config.horizon, streams=agent.streams)
        return Build(agent, source, *(torch_generator(seed, name, device=place) for name in ("batches", "noise")))

    def facts(self) -> None:
        """The machine, and what its products, its memory and its launches could do at most."""
        with self.item("facts", "machine") as found:
            found |= {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
            if self.gpu:
                about = torch.cuda.get_device_properties(self.device)
                found |= {
                    "name": about.name,
                    "cuda": torch.version.cuda,
                    "multiprocessors": about.multi_processor_count,
                    "memory_gib": round(about.total_memory / 2**30, 1),
                }
        size = 256 if self.small else 8192 if self.gpu else 2048
        every: tuple[Precision, ...] = ("fp32", "tf32", "bf16")
        for precision in every if self.gpu else every[:1]:
            with self.item("facts", f"products, {precision}") as found:
                pair = [torch.randn(size, size, device=self.device) for _ in range(2)]
                with multiplying(precision, self.device):
                    took = self.through(functools.partial(torch.mm, *pair), 10)["ms"]
                found["tflops"] = round(2e-9 * size**3 / took, 2)
        with self.item("facts", "memory and launches") as found:
            source = torch.empty((1 << 20) if self.small else (1 << 28), device=self.device)
            target, few = torch.empty_like(source), torch.zeros(8, device=self.device)
            found["copy_gb_s"] = round(8e-6 * source.numel() / self.through(lambda: target.copy_(source), 10)["ms"], 1)
            found["launch_us"] = round(1e3 * self.through(lambda: few.add_(1), 500)["ms"], 2)

    def plumbing(self) -> None:
        """Whether updates wait, agree with the CPU and resume bit for bit; whether policies are handed out whole."""
        for preset in AGENTS:
            if self.left() < 0:
                return
            with self.item("plumbing", preset) as found:
                self._plumb(preset, found)

    def _plumb(self, preset: str, found: dict[str, Any]) -> None:
        made = self.build(preset)
        made.update()
        if self.gpu:
            found["waits"] = _waits(made.update)
        state = {
            f: {k: v.detach().cpu().clone() for k, v in part.items()} for f, part in made.agent.state_dict().items()
        }
        twin = self.build(preset, device=torch.device("cpu")).agent
        twin.load_state_dict(state)
        given = made.agent.arguments(made.source.draw(made.batches), made.noise)
        loss = made.agent.loss(*given, **made.agent.switches())[0].detach()
        here = torch.utils._pytree.tree_map(lambda v: v.cpu() if isinstance(v, torch.Tensor) else v, given)
        found["loss"] = float(loss)
        found["loss_minus_cpu"] = float(loss) - float(twin.loss(*here, **twin.switches())[0].detach())
        streams = [stream.get_state() for stream in (made.batches, made.noise)]
        for _ in range(3):
            last = made.update()
        again = self.build(preset)
        again.agent.load_state_dict(state)
        for stream, value in zip((again.batches, again.noise), streams, strict=True):
            stream.set_state(value)
        for _ in range(3):
            same = again.update()
        found["resumes_bit_for_bit"] = all(torch.equal(value, same[name]) for name, value in last.items())
        policy = made.agent.policy()
        found["policy_devices"] = dict(Counter(v.device.type for v in [*policy.parameters(), *policy.buffers()]))

    def latency(self) -> None:
        """Whole decisions: NumPy observations in, NumPy chunks out."""
        width = 16 if self.small else 256
        blind: tuple[Encoder, Spec] = (StateEncoder(), _SPEC)
        nets: dict[str, tuple[Net, Encoder, Spec]] = {
            "MLP": (MLP(width=2 * width), *blind),
            "two pictures, MLP": (MLP(width=2 * width), VisionEncoder(), _SEEN),
            "transformer": (Transformer(width=width), *blind),
            "U-Net": (UNet(width=width), *blind),
        }
        with tempfile.TemporaryDirectory() as folder:
            for name, (net, encoder, spec) in nets.items():
                if self.left() < 0:
                    return
                contract = Contract(spec, 1, 16, 8, 1)
                with first_weights(0, "bench"):
                    policy = Policy(PolicyConfig(net, encoder, MAP), contract, Normalizer({"state": OBS}, ACTION))
                    for parameter in policy.parameters():
                        parameter.data.add_(0.02 * torch.randn_like(parameter))
                run = Path(folder) / name
                policy.save(run)
                for batch in (1, 8, 64):
                    self._decide(name, run, batch)

    def _decide(self, name: str, run: Path, batch: int) -> None:
        reference = None
        # A compiler's minute is spent on the smallest batch alone.
        compiled: tuple[str, ...] = ("compiled_graph",) if batch == 1 else ()
        for engine in ("eager", "cuda_graph", *compiled) if self.gpu else ("eager", "numpy"):
            if self.left() < (60 if engine in compiled else 0):
                return
            with self.item("latency", f"{name}, batch {batch}, {engine}") as found:
                loaded = load_engine(run, engine, batches=[batch], device=str(self.device))
                obs = drawn(loaded.contract, batch, np.random.default_rng(0))
                noise = loaded.noise(batch, np.random.default_rng(1))
                chunk = loaded.act(obs, noise)
                reference = chunk if reference is None else reference
                found["differs"] = float(np.abs(chunk - reference).max())
                found |= self.decisions(functools.partial(loaded.act, obs, noise))

    def seeds(self) -> None:
        """Updates of several seeds together."""
        for preset in TOGETHER:
            for count in (1, 2) if self.small else (1, 8, 32) if self.gpu else (1, 4):
                for precision in self._precisions():
                    if self.left() < 0:
                        return
                    with self.item("seeds", f"{preset}, {count} seeds, {precision}") as found:
                        builds = [self.build(preset, seed=seed) for seed in range(count)]
                        company = Company([made.agent for made in builds])
                        update = functools.partial(_together, company, builds)
                        with operators("off"), multiplying(precision, self.device):
                            found |= self.through(update)
                            if self.gpu:
                                streams = [stream for made in builds for stream in (made.batches, made.noise)]
                                whole = CapturedUpdate(company.agents, builds[0].source, update, streams)
                                found["captured"] = self.through(whole)
                        found["ms_per_seed"] = round(found["ms"] / count, 4)

    def updates(self) -> None:
        """Updates of every agent, uncompiled and compiled, draws included."""
        for compile in (False, True) if not self.small else (False,):
            for preset in AGENTS:
                for precision in self._precisions():
                    if self.left() < (60 if compile else 0):
                        return
                    with self.item("updates", f"{preset}, {'compiled' if compile else 'eager'}, {precision}") as found:
                        made, begun = self.build(preset, compile=compile), time.perf_counter()
                        with operators("on" if compile else "off"), multiplying(precision, self.device):
                            made.update()
                            settle(self.device)
                            found["first_call_s"] = round(time.perf_counter() - begun, 1)
                            found |= self.through(made.update)
                            if self.gpu and not obstacle(made.agent, made.source):
                                found["captured"] = self.through(made.captured())
                            found["draw_ms"] = self.through(functools.partial(made.source.draw, made.batches))["ms"]

    def tests(self) -> None:
        """The tests that need a GPU, where the checkout's tests are at hand."""
        if not self.gpu or not Path("tests/conftest.py").exists() or self.left() < 0:
            return
        with self.item("tests", "pytest -m gpu") as found:
            command = [
                sys.executable,
                "-m",
                "pytest",
                "-q",
                "-m",
                "gpu",
                "-p",
                "no:cacheprovider",
                "--tb=short",
                "tests",
            ]
            done = subprocess.run(command, capture_output=True, text=True, timeout=max(10.0, self.left()), check=False)
            found |= {"code": done.returncode, "told": done.stdout.splitlines()[-40:]}

    def _precisions(self) -> tuple[Precision, ...]:
        return ("fp32", "tf32", "bf16") if self.gpu else ("fp32",)


def _together(company: Company, builds: list[Build]) -> list[Metrics]:
    return company.update([made.source.draw(made.batches) for made in builds], [made.noise for made in builds])


def _waits(update: Callable[[], object]) -> str:
    """What in an update makes a GPU wait; 'nothing' where nothing does."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        update()
    except RuntimeError as error:
        return str(error).splitlines()[0]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return "nothing"


def device_table(record: dict[str, Any]) -> Table:
    """The record of a :class:`DeviceBench` for the console."""
    table = Table("section", "item", "found", title=f"{record['device']}, {record['total_seconds']} s")
    for section in SECTIONS:
        for name, found in record.get(section, {}).items():
            table.add_row(section, name, "  ".join(f"{key} {value}" for key, value in found.items()))
    return table
