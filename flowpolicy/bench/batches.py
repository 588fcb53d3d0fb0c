"""What sampling a batch costs, alone and as a share of one update."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from tensordict import TensorDict

from flowpolicy.core import keys
from flowpolicy.core.devices import settle
from flowpolicy.core.seed import torch_generator
from flowpolicy.core.spec import ActionSpec, ObservationSpec, Spec
from flowpolicy.data.dataset import Dataset
from flowpolicy.data.windows import WindowSampler


def bench_data(
    update: Callable[[TensorDict], object],
    *,
    rows: int = 1_000_000,
    obs: int = 39,
    action: int = 28,
    history: int = 2,
    chunk: int = 16,
    batch_size: int = 256,
    repeats: int = 200,
    device: str = "cpu",
) -> dict[str, Any]:
    """Time the sampling of a batch from random data, alternating with the update it feeds.

    Args:
        update: one gradient step on a batch.
        rows: time steps of the data, in episodes of 250.
        obs: width of the observation.
        action: number of action dimensions.
        history: observations per window.
        chunk: actions per window.
        batch_size: windows per batch.
        repeats: batches timed, after a tenth as many that are not.
        device: where the batch is wanted.

    Returns:
        Median and quartiles of the sampling time and the median of the update, in milliseconds, and
        ``share``: sampling over the sum of both.

    """
    sampler = WindowSampler(_random_dataset(rows, obs, action), history, chunk, batch_size, device)
    generator = torch_generator(0, "bench", "batch", device=device)
    drawn, updated = [], []
    for repeat in range(-(repeats // 10), repeats):
        start = _now(device)
        batch = sampler.draw(generator)
        middle = _now(device)
        update(batch)
        if repeat >= 0:
            drawn.append(middle - start)
            updated.append(_now(device) - middle)
    low, median, high = (1e3 * torch.tensor(drawn).quantile(torch.tensor([0.25, 0.5, 0.75]))).tolist()
    update_ms = 1e3 * float(torch.tensor(updated).median())
    return {
        "sample_ms": median,
        "sample_ms_p25": low,
        "sample_ms_p75": high,
        "update_ms": update_ms,
        "share": median / (median + update_ms),
        "rows": rows,
        "batch_size": batch_size,
        "chunk": chunk,
    }


def data_table(result: dict[str, Any]) -> Table:
    """The result of :func:`bench_data` for the console."""
    title = f"{result['rows']:,} rows, batch {result['batch_size']}, chunk {result['chunk']}"
    table = Table("", "median", "quartiles", title=title)
    quartiles = f"{result['sample_ms_p25']:.3f} - {result['sample_ms_p75']:.3f} ms"
    table.add_row("sampling a batch", f"{result['sample_ms']:.3f} ms", quartiles)
    table.add_row("update", f"{result['update_ms']:.2f} ms", "")
    table.add_row("share of sampling", f"{100 * result['share']:.2f} %", "")
    return table


def _random_dataset(rows: int, obs: int, action: int, length: int = 250) -> Dataset:
    """Episodes of ``length`` steps filled with noise."""
    generator = torch_generator(0, "bench", "data")
    episode = torch.arange(rows) // length
    steps = TensorDict(
        {
            keys.OBS: TensorDict({"state": torch.randn(rows, obs, generator=generator)}, batch_size=[rows]),
            keys.ACTION: torch.randn(rows, action, generator=generator),
            keys.EPISODE: episode,
        },
        batch_size=[rows],
    )
    return Dataset(
        steps=steps,
        lengths=episode.bincount(),
        names=tuple(f"episode_{i}" for i in range(int(episode[-1]) + 1)),
        spec=Spec({"state": ObservationSpec((obs,))}, ActionSpec(action)),
        env_args={},
        path=Path("random"),
        sha256="",
        filter_key="",
    )


def _now(device: str) -> float:
    """Seconds, once the device has finished what it was given."""
    settle(device)
    return time.perf_counter()
