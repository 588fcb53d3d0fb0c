"""What a row costs in files of more and more rows: to the first batch, in memory, and in every batch after that."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
import warnings
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from rich.table import Table

from flowpolicy.agents.cloning.dm1 import DM1
from flowpolicy.agents.offline.fql import FQL
from flowpolicy.bench.batches import random_dataset
from flowpolicy.bench.timing import alternate, spread
from flowpolicy.core.errors import FlowPolicyError
from flowpolicy.core.protocols import BatchSource
from flowpolicy.core.seed import numpy_generator, torch_generator
from flowpolicy.core.spec import Contract, ObservationSpec
from flowpolicy.data.dataset import DataConfig, Dataset, load_dataset
from flowpolicy.data.normalize import Normalizer, NormalizerConfig
from flowpolicy.nets.mlp import MLP
from flowpolicy.train.experiment import Experiment, make_sampler

_OBS, _ACTION, _EPISODE = 17, 6, 1000
_BLOCK = 1_000_000
_BATCH = 256
_CALLS = 32


def bench_rows(rows: Sequence[int], *, rounds: int = 30, limits_mb: Sequence[int] = (1 << 20, 0)) -> dict[str, Any]:
    """Load D4RL files of HalfCheetah's sizes, and draw from all of them in turn.

    Args:
        rows: of the files, which are made for this and removed.
        rounds: alternated rounds of 32 batches of 256.
        limits_mb: of memory, see :class:`~flowpolicy.data.dataset.DataConfig`; 0 maps every file.

    Returns:
        ``entries``: for every number of rows and limit the loads in a process of their own, one that has seen nothing
        of the file and one after it, and for every kind of batch median and quartiles of ``sample_us`` (processor
        microseconds per row) and of ``ratio``, to the file of the fewest rows in the same round.

    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory(prefix="flowpolicy-rows-") as scratch:
            files = {count: write_rows(Path(scratch) / f"{count}.hdf5", count) for count in sorted(rows)}
            small = random_dataset({"state": ObservationSpec((_OBS,))}, _ACTION, 2000)
            for sampler in row_samplers(small, Normalizer.fit(small, NormalizerConfig())).values():
                sampler.draw(torch_generator(0, "bench", "rows"))  # what is built once for any data
            entries = []
            for limit in limits_mb:
                cache = {"XDG_CACHE_HOME": f"{scratch}/cache-{limit}"}
                loads = {count: _apart(file, limit, cache) for count, file in files.items()}
                drawn = _drawn(files, limit, cache, rounds)
                entries += [
                    {
                        "rows": count,
                        "memory_limit_mb": limit,
                        "file_mb": file.stat().st_size / 1e6,
                        **loads[count],
                        **drawn[count],
                    }
                    for count, file in files.items()
                ]
    finally:
        torch.set_num_threads(before)
    return {"rounds": rounds, "calls": _CALLS, "batch_size": _BATCH, "entries": entries}


def rows_table(result: dict[str, Any]) -> Table:
    """The result of :func:`bench_rows` for the console."""
    table = Table(title=f"D4RL files, batches of {result['batch_size']}, processor time")
    for column in ("rows", "columns", "cold", "warm", "own MiB", "mapped MiB", "transitions, us a row", "windows"):
        table.add_column(column, justify="right")
    for entry in result["entries"]:
        cold, warm = entry["cold"], entry["warm"]
        table.add_row(
            f"{entry['rows']:,}",
            "mapped" if cold["memory_mapped"] else "in memory",
            f"{cold['first_batch_s']:.2f} s",
            f"{warm['first_batch_s']:.2f} s",
            f"{cold['own_mib']:.0f}",
            f"{cold['mapped_mib']:.0f}",
            *(
                f"{entry[kind]['sample_us']['median']:.3f} (x {entry[kind]['ratio']['median']:.2f})"
                for kind in ("transitions", "windows")
            ),
        )
    return table


def write_rows(path: Path, rows: int) -> Path:
    """A D4RL file of noise: episodes of 1,000 steps that end by time."""
    stream = numpy_generator(0, "bench", "rows")
    shapes: dict[str, tuple[int, ...]] = {"observations": (rows, _OBS), "actions": (rows, _ACTION), "rewards": (rows,)}
    with h5py.File(path, "w") as file:
        nodes = {name: file.create_dataset(name, shape, "f4") for name, shape in shapes.items()}
        for start in range(0, rows, _BLOCK):
            count = min(_BLOCK, rows - start)
            for node in nodes.values():
                node[start : start + count] = stream.uniform(-1, 1, (count, *node.shape[1:])).astype(np.float32)
        file["terminals"] = np.zeros(rows, bool)
        file["timeouts"] = np.arange(1, rows + 1) % _EPISODE == 0
    return path


def row_samplers(dataset: Dataset, scaling: Normalizer) -> dict[str, BatchSource]:
    """The sampler of transitions for FQL, and of windows for DM1, as a training has them."""
    found: dict[str, BatchSource] = {}
    for kind, config in (("transitions", FQL(net=MLP(width=8, depth=1))), ("windows", DM1(net=MLP(width=8, depth=1)))):
        contract = Contract(dataset.spec, config.history, config.chunk, config.execute, config.nfe)
        agent = config.build(contract, scaling, steps=10, seed=0, compile=False, device="cpu")
        experiment = Experiment(config, "recorded", batch_size=_BATCH)
        found[kind] = make_sampler(experiment, dataset, getattr(agent, "streams", None))
    return found


def _apart(file: Path, limit: int, cache: dict[str, str]) -> dict[str, Any]:
    """Two loads in a process of their own, forked, so that what is imported for any data is neither time nor memory."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_load_twice, args=(file, limit, cache, there))
    process.start()
    there.close()
    try:
        found: dict[str, Any] = here.recv()
    except EOFError as error:
        raise FlowPolicyError(f"the process that loads {file.name} has died", fix="fewer rows: --sizes") from error
    process.join()
    return found


def _load_twice(file: Path, limit: int, cache: dict[str, str], answer: Connection) -> None:
    os.environ |= cache
    warnings.simplefilter("ignore")
    answer.send({when: _load(file, limit) for when in ("cold", "warm")})


def _load(file: Path, limit: int) -> dict[str, float | bool]:
    before, begun = _resident(), time.process_time()
    dataset = load_dataset(DataConfig(path=str(file), memory_limit_mb=limit))
    loaded = time.process_time()
    scaling = Normalizer.fit(dataset, NormalizerConfig())
    fitted = time.process_time()
    row_samplers(dataset, scaling)["transitions"].draw(torch_generator(0, "bench", "rows"))
    done, after = time.process_time(), _resident()
    return {
        "load_s": loaded - begun,
        "scaling_s": fitted - loaded,
        "first_batch_s": done - begun,
        "own_mib": after["RssAnon"] - before["RssAnon"],
        "mapped_mib": after["RssFile"] - before["RssFile"],
        "memory_mapped": dataset.memory_mapped,
    }


def _resident() -> dict[str, float]:
    """MiB of this process, by kind: its own, and of mapped files, which the system takes back when it must."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return {
        line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines if line.startswith(("RssAnon", "RssFile"))
    }


def _drawn(files: dict[int, Path], limit: int, cache: dict[str, str], rounds: int) -> dict[int, dict[str, Any]]:
    """Seconds of draws from every file in turn, in one process."""
    kept = os.environ.get("XDG_CACHE_HOME")
    os.environ |= cache
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = {
                count: load_dataset(DataConfig(path=str(file), memory_limit_mb=limit)) for count, file in files.items()
            }
            samplers = {
                count: row_samplers(each, Normalizer.fit(each, NormalizerConfig())) for count, each in data.items()
            }
    finally:
        os.environ.pop("XDG_CACHE_HOME")
        if kept is not None:
            os.environ["XDG_CACHE_HOME"] = kept
    few, drawn = min(files), {count: dict[str, Any]() for count in files}
    for kind in ("transitions", "windows"):
        streams = {count: torch_generator(0, "bench", "rows", kind) for count in files}

        def draw(count: int, kind: str = kind, streams: dict[int, torch.Generator] = streams) -> None:
            samplers[count][kind].draw(streams[count])

        work = {str(count): lambda count=count: draw(count) for count in files}
        seconds = alternate(work, rounds + 1, _CALLS, clock=time.process_time)
        for count in files:
            each = seconds[str(count)][1:]
            drawn[count][kind] = {
                "sample_us": spread(1e6 * each / _BATCH),
                "ratio": spread(each / seconds[str(few)][1:]),
            }
    return drawn
