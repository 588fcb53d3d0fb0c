"""What sampling a batch costs, as a share of the update that it feeds."""

from __future__ import annotations

import dataclasses
import math
import tempfile
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table

from flowpolicy.bench.timing import spread
from flowpolicy.core import keys
from flowpolicy.core.columns import Columns
from flowpolicy.core.devices import settle
from flowpolicy.core.protocols import Agent, BatchSource
from flowpolicy.core.seed import torch_generator
from flowpolicy.core.spec import ActionSpec, Contract, ImageSpec, ObservationSpec, Spec
from flowpolicy.core.streams import Layout
from flowpolicy.data.dataset import Dataset
from flowpolicy.data.drawn_ahead import DrawnAhead
from flowpolicy.data.frame_conversion import QUALITY
from flowpolicy.data.frames import PLACE, FrameStore, JpegFrames, RawFrames, encode_jpeg
from flowpolicy.data.normalize import Normalizer
from flowpolicy.envs import find_env
from flowpolicy.train.experiment import Experiment, make_sampler

_LENGTH = 250
_PICTURE = (84, 84, 3)


def bench_data(
    experiments: Mapping[str, Experiment], *, rows: int = 1_000_000, rounds: int = 30, calls: int = 32, threads: int = 1
) -> dict[str, Any]:
    """Alternate draws of experiments, from random data of their environments' sizes, with the updates that they feed.

    Args:
        experiments: what is measured, under its name; with pictures as their ``data.frame_store`` keeps them.
        rows: time steps of the data, in episodes of 250.
        rounds: alternated rounds, after one that is not counted.
        calls: draws and updates per round and experiment: one block of batches of 64 rows.
        threads: torch threads.

    Returns:
        ``entries``: for every name the kind of batch, its size, median and quartiles over the rounds of ``sample_ms``
        and ``update_ms`` (of one) and of ``share``, sampling over the sum of both; and the settings. On a CPU this is
        processor time, which leaves out who else computes; on a GPU it is time on the wall. Batches with pictures are
        drawn where they are asked for, and then once more as a training draws them, a batch ahead in a thread:
        ``own_ms`` is the processor time of the thread that takes the updates, ``own_share`` what it is of an update.

    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        work = {name: _assembled(experiment, rows) for name, experiment in experiments.items()}
        seconds: dict[str, list[tuple[float, ...]]] = {name: [] for name in work}
        for _ in range(rounds + 1):
            for name, (source, agent) in work.items():
                seconds[name].append(_round(source, agent, calls, experiments[name].device))
    finally:
        torch.set_num_threads(before)
    entries = {
        name: {
            "batches": experiment.agent.needs,
            "batch_size": experiment.batch_size,
            "history": experiment.agent.history,
            "chunk": experiment.agent.chunk,
            **_figures(np.array(seconds[name][1:]) / calls),
        }
        for name, experiment in experiments.items()
    }
    return {"rows": rows, "rounds": rounds, "calls": calls, "threads": threads, "entries": entries}


def data_table(result: dict[str, Any]) -> Table:
    """The result of :func:`bench_data` for the console."""
    table = Table(title=f"random data of {result['rows']:,} rows, threads {result['threads']}")
    for column in ("", "batch", "sampling", "update", "share of sampling", "quartiles", "read ahead"):
        table.add_column(column, justify="left" if not column else "right")
    for name, entry in result["entries"].items():
        share = {key: 100 * value for key, value in entry["share"].items()}
        table.add_row(
            name,
            f"{entry['batch_size']} {entry['batches']}",
            f"{entry['sample_ms']['median']:.3f} ms",
            f"{entry['update_ms']['median']:.2f} ms",
            f"{share['median']:.2f} %",
            f"{share['low']:.2f} - {share['high']:.2f}",
            f"{100 * entry['own_share']['median']:.2f} %" if "own_share" in entry else "",
        )
    return table


def _assembled(experiment: Experiment, rows: int) -> tuple[BatchSource, Agent]:
    """Sampler and agent as a training puts them together."""
    config, spec = experiment.agent, find_env(experiment.env).spec()
    if cameras := experiment.data.cameras:
        states = {key: spec.observation[key] for key in experiment.data.obs_keys or spec.observation}
        images = {f"{camera}_image": ImageSpec(_PICTURE, camera=camera) for camera in cameras}
        spec = dataclasses.replace(spec, observation=states | images)
    contract = Contract(spec, config.history, config.chunk, config.execute, config.nfe)
    sizes = Layout(spec.observation).widths
    agent = config.build(
        contract,
        Normalizer(sizes, spec.action.size),
        steps=10**6,
        seed=0,
        compile=experiment.compile == "on",
        device=experiment.device,
    )
    data = random_dataset(spec.observation, spec.action.size, rows, jpeg=experiment.data.frame_store == "jpeg")
    return make_sampler(experiment, data, getattr(agent, "streams", None), getattr(agent, "crops", None)), agent


def _round(source: BatchSource, agent: Agent, calls: int, device: str) -> tuple[float, ...]:
    """Seconds of ``calls`` draws and of as many updates; and of the draws' own thread where another one reads."""
    ahead = source if isinstance(source, DrawnAhead) and source.reads else None
    draw = ahead.sampler.draw if ahead else source.draw
    batches, noise = (torch_generator(0, "bench", name, device=device) for name in ("batches", "noise"))
    drawn = updated = 0.0
    for _ in range(calls):
        start = _now(device)
        batch = draw(batches)
        middle = _now(device)
        agent.update(batch, noise)
        drawn, updated = drawn + middle - start, updated + _now(device) - middle
    if ahead is None:
        return drawn, updated
    own = 0.0
    for _ in range(calls):
        start = time.thread_time()
        batch = ahead.draw(batches)
        own += time.thread_time() - start
        agent.update(batch, noise)
    return drawn, updated, own


def _figures(seconds: np.ndarray) -> dict[str, dict[str, float]]:
    """Figures of (rounds, 2 or 3) seconds of one draw, of one update, and of one draw in its own thread."""
    drawn, updated, *more = seconds.T
    figures = {
        "sample_ms": spread(1e3 * drawn),
        "update_ms": spread(1e3 * updated),
        "share": spread(drawn / (drawn + updated)),
    }
    return figures | {
        name: values
        for own in more
        for name, values in (("own_ms", spread(1e3 * own)), ("own_share", spread(own / (own + updated))))
    }


def random_dataset(observation: Mapping[str, ObservationSpec], action: int, rows: int, jpeg: bool = False) -> Dataset:
    """Episodes of 250 steps filled with noise, pictures black: a file with holes, which takes no room on the disk.

    Args:
        observation: names and shapes.
        action: number of action dimensions.
        rows: time steps.
        jpeg: pictures are JPEGs instead, all the same one of smooth colours with noise: about 4 kB.

    """
    generator = torch_generator(0, "bench", "data")
    states = {name: each for name, each in observation.items() if each.kind == "state"}
    obs = {name: torch.randn(rows, *each.shape, generator=generator) for name, each in states.items()}
    lengths = torch.full((-(-rows // _LENGTH),), _LENGTH)
    lengths[-1] = rows - _LENGTH * (len(lengths) - 1)
    steps = {
        keys.OBS: Columns(obs),
        keys.ACTION: 2 * torch.rand(rows, action, generator=generator) - 1,
        keys.REWARD: torch.randn(rows, generator=generator),
        keys.MASK: torch.ones(rows),
    }
    return Dataset(
        steps=Columns(steps),
        lengths=lengths,
        names=tuple(f"episode_{i}" for i in range(len(lengths))),
        spec=Spec(dict(observation), ActionSpec(action)),
        env_args={},
        path=Path("random"),
        sha256="",
        filter_key="",
        frames={
            name: (_coded if jpeg else _black)(rows, each)
            for name, each in observation.items()
            if isinstance(each, ImageSpec)
        },
    )


def _black(rows: int, image: ImageSpec) -> RawFrames:
    with tempfile.NamedTemporaryFile() as file:  # open frames need its name no more
        file.truncate(rows * math.prod(image.shape))
        return RawFrames(Path(file.name), (rows, *image.shape))


def _coded(rows: int, image: ImageSpec) -> FrameStore:
    y, x = np.mgrid[: image.height, : image.width]
    smooth = np.stack([255 * x / image.width, 255 * y / image.height, 128 + 60 * np.sin(x / 5 + y / 9)], axis=-1)
    noise = np.random.default_rng(0).normal(0, 4, smooth.shape)
    data = encode_jpeg((smooth + noise).clip(0, 255).astype(np.uint8), QUALITY)
    with tempfile.NamedTemporaryFile() as file, tempfile.NamedTemporaryFile() as places:
        Path(file.name).write_bytes(data)
        Path(places.name).write_bytes(rows * PLACE.pack(0, len(data), zlib.crc32(data)))
        return JpegFrames(Path(file.name), Path(places.name), (rows, *image.shape), len(data))


def _now(device: str) -> float:
    """Seconds: of the processor, or on the wall once a GPU has finished what it was given."""
    if device == "cpu":
        return time.process_time()
    settle(device)
    return time.perf_counter()
