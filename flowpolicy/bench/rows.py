"""What a row costs in files of more and more rows: to the first batch, in memory, and in every batch after that."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
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


def bench_rows(
    rows: Sequence[int], *, rounds: int = 30, load: bool = False, limits_mb: Sequence[int] = (1 << 20, 0)
) -> dict[str, Any]:
    """Draw from data of HalfCheetah's sizes and of more and more rows in turn, and load files of them.

    Args:
        rows: of the data.
        rounds: alternated rounds of 32 batches of 256.
        load: also make D4RL files of so many rows, load them, and draw from them.
        limits_mb: of memory for these, see :class:`~flowpolicy.data.dataset.DataConfig`; 0 maps every file.

    Returns:
        ``entries``: for every number of rows and way to hold them ('random' data without a file, and with ``load``
        'memory' and 'mapped'), and for every kind of batch median and quartiles of ``sample_us`` (processor
        microseconds per row) and of ``ratio``, to the fewest rows in the same round. With ``load`` also the loads in a
        process of their own, 'cold', which has seen nothing of the file, and 'warm' after it.

    """
    before, rows = torch.get_num_threads(), sorted(rows)
    torch.set_num_threads(1)
    try:
        data = {count: random_dataset({"state": ObservationSpec((_OBS,))}, _ACTION, count) for count in rows}
        drawn = _drawn(data, rounds)
        entries = [{"rows": count, "held": "random", **drawn[count]} for count in rows]
        del data
        if load:
            with tempfile.TemporaryDirectory(prefix="flowpolicy-rows-") as scratch:
                files = {count: write_rows(Path(scratch) / f"{count}.hdf5", count) for count in rows}
                for limit in limits_mb:
                    entries += _of_files(files, limit, f"{scratch}/cache-{limit}", rounds)
    finally:
        torch.set_num_threads(before)
    return {"rounds": rounds, "calls": _CALLS, "batch_size": _BATCH, "entries": entries}


def _of_files(files: dict[int, Path], limit: int, cache: str, rounds: int) -> list[dict[str, Any]]:
    """Entries of files that are loaded with one limit of memory."""
    loads = {count: _apart(file, limit, cache) for count, file in files.items()}
    with _cache_in(cache), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = {count: load_dataset(DataConfig(path=str(file), memory_limit_mb=limit)) for count, file in files.items()}
    drawn = _drawn(data, rounds)
    return [
        {"rows": count, "held": "memory" if limit else "mapped", "file_mb": file.stat().st_size / 1e6}
        | loads[count]
        | drawn[count]
        for count, file in files.items()
    ]


@contextlib.contextmanager
def _cache_in(folder: str) -> Iterator[None]:
    kept = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = folder
    try:
        yield
    finally:
        os.environ.pop("XDG_CACHE_HOME")
        if kept is not None:
            os.environ["XDG_CACHE_HOME"] = kept


def rows_table(result: dict[str, Any]) -> Table:
    """The result of :func:`bench_rows` for the console."""
    table = Table(title=f"batches of {result['batch_size']}, processor time")
    for column in ("rows", "held", "cold", "warm", "own MiB", "mapped MiB", "transitions, us a row", "windows"):
        table.add_column(column, justify="right")
    for entry in result["entries"]:
        loads = ("", "", "", "")
        if "cold" in entry:
            cold, warm = entry["cold"], entry["warm"]
            first = (f"{cold['first_batch_s']:.2f} s", f"{warm['first_batch_s']:.2f} s")
            loads = (*first, f"{cold['own_mib']:.0f}", f"{cold['mapped_mib']:.0f}")
        kinds = (entry["transitions"], entry["windows"])
        batches = (f"{each['sample_us']['median']:.3f} (x {each['ratio']['median']:.2f})" for each in kinds)
        table.add_row(f"{entry['rows']:,}", entry["held"], *loads, *batches)
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


def _apart(file: Path, limit: int, cache: str) -> dict[str, Any]:
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


def _load_twice(file: Path, limit: int, cache: str, answer: Connection) -> None:
    warnings.simplefilter("ignore")
    with _cache_in(cache):
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


def _drawn(data: dict[int, Dataset], rounds: int) -> dict[int, dict[str, Any]]:
    """Seconds of draws from every dataset in turn, in one process."""
    samplers = {count: row_samplers(each, Normalizer.fit(each, NormalizerConfig())) for count, each in data.items()}
    few, drawn = min(data), {count: dict[str, Any]() for count in data}
    for kind in ("transitions", "windows"):
        streams = {count: torch_generator(0, "bench", "rows", kind) for count in data}

        def draw(count: int, kind: str = kind, streams: dict[int, torch.Generator] = streams) -> None:
            samplers[count][kind].draw(streams[count])

        work = {str(count): functools.partial(draw, count) for count in data}
        seconds = alternate(work, rounds + 1, _CALLS, clock=time.process_time)
        for count in data:
            each = seconds[str(count)][1:]
            drawn[count][kind] = {
                "sample_us": spread(1e6 * each / _BATCH),
                "ratio": spread(each / seconds[str(few)][1:]),
            }
    return drawn
