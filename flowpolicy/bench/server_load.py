"""Robots that ask a policy server at a fixed rate: how many deadlines are missed."""

from __future__ import annotations

import contextlib
import gc
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from flowpolicy.core.errors import ServingError
from flowpolicy.serve.client import PolicyClient


@contextlib.contextmanager
def served(run: Path, flags: Sequence[str] = ()) -> Iterator[tuple[str, str]]:
    """``flowpolicy serve RUN`` in its own process on a free port of this machine; yields its address and engine."""
    command = [sys.executable, "-m", "flowpolicy", "serve", str(run), "--port", "0", *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline() if process.stdout else ""
            found = re.search(r"engine (\w+)\) at (ws://\S+)", line)
            if not found:
                raise ServingError("lost", f"the server did not start: {line!r}", fix=f"flowpolicy serve {run}")
            yield found[2], found[1]
        finally:
            process.terminate()


def server_figures(url: str) -> dict[str, float]:
    """What the server says of itself: CPU seconds of its process, batches, and rows computed in them."""
    with urllib.request.urlopen(url.replace("ws://", "http://", 1) + "/metrics", timeout=10) as answer:  # noqa: S310
        lines = answer.read().decode().splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines)
    batches = {
        int(name.split('"')[1]): float(value)
        for name, value in values.items()
        if name.startswith("flowpolicy_batches_total")
    }
    return {
        "cpu_s": float(values["flowpolicy_cpu_seconds"]),
        "batches": sum(batches.values()),
        "rows": sum(rows * count for rows, count in batches.items()),
    }


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Robots share this process: none may hold the interpreter, or collect garbage, while another waits."""
    interval = sys.getswitchinterval()
    gc.collect()
    gc.freeze()
    sys.setswitchinterval(1e-4)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)
        gc.unfreeze()


def bench_serve(
    url: str, *, clients: int = 8, rate_hz: float = 50.0, seconds: float = 60.0, budget_ms: float = 20.0
) -> dict[str, Any]:
    """Let robots ask at a fixed rate, at phases drawn once, and count what they get.

    A robot whose request is still under way when the next is due skips that tick: it is counted as missed too.

    Args:
        url: of the server.
        clients: robots, one connection and one thread each.
        rate_hz: requests per second of each.
        seconds: how long.
        budget_ms: deadline of every request, by the robot's own clock.

    """
    robots = [_Robot(url, number, rate_hz, seconds, budget_ms) for number in range(clients)]
    before, cpu = server_figures(url), time.process_time()
    with _undisturbed():
        start = time.monotonic() + 0.5
        threads = [threading.Thread(target=robot.run, args=(start,)) for robot in robots]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    cpu, after = time.process_time() - cpu, server_figures(url)
    counts = sum((robot.counts for robot in robots), Counter[str]())
    trips = np.concatenate([robot.round_trips for robot in robots])
    answers = np.concatenate([np.reshape(robot.answers, (-1, 2)) for robot in robots])
    due, asked = clients * int(seconds * rate_hz), max(1, len(answers))
    return {
        "clients": clients,
        "rate_hz": rate_hz,
        "seconds": seconds,
        "budget_ms": budget_ms,
        "due": due,
        "in_time": counts["in_time"],
        "missed": due - counts["in_time"],
        "outcomes": dict(counts),
        "round_trip_ms": _quantiles(trips),
        "answer_ms": {
            part: _quantiles(answers[(answers[:, 0] >= first) & (answers[:, 0] < first + seconds / 3), 1])
            for part, first in (("first third", 0.0), ("last third", 2 * seconds / 3))
        },
        "server_cpu_ms": 1e3 * (after["cpu_s"] - before["cpu_s"]) / asked,
        "robots_cpu_ms": 1e3 * cpu / asked,
        "rows_per_batch": (after["rows"] - before["rows"]) / max(1.0, after["batches"] - before["batches"]),
    }


def _quantiles(values: np.ndarray) -> dict[str, float]:
    if not len(values):
        return {}
    found = np.quantile(values, (0.5, 0.99, 0.999, 1))
    return {name: float(value) for name, value in zip(("p50", "p99", "p999", "max"), found, strict=True)}


class _Robot:
    def __init__(self, url: str, number: int, rate_hz: float, seconds: float, budget_ms: float) -> None:
        self.client = PolicyClient(url, seed=number)
        self.period, self.ticks, self.budget_ms = 1 / rate_hz, int(seconds * rate_hz), budget_ms
        self._random = np.random.default_rng(number)
        self.phase = float(self._random.uniform(0, self.period))
        spec = self.client.contract["spec"]["observation"]
        self.shapes = {key: (self.client.contract["history"], *value["shape"]) for key, value in spec.items()}
        self.counts: Counter[str] = Counter()
        self.round_trips: list[float] = []
        self.answers: list[tuple[float, float]] = []
        """Seconds since the start, and milliseconds to the answer, of whatever kind it was."""

    def run(self, start: float) -> None:
        with self.client as client:
            for tick in range(self.ticks):
                due = start + self.phase + tick * self.period
                wait = due - time.monotonic()
                if wait < -self.period:
                    self.counts["skipped"] += 1
                    continue
                if wait > 0:
                    time.sleep(wait)
                obs = {key: self._random.normal(size=shape).astype(np.float32) for key, shape in self.shapes.items()}
                asked = time.monotonic()
                try:
                    self.round_trips.append(client.act(obs, self.budget_ms).round_trip_ms)
                    self.counts["in_time"] += 1
                except ServingError as error:
                    self.counts[error.code] += 1
                    if error.code == "lost":
                        return
                self.answers.append((asked - start, 1e3 * (time.monotonic() - asked)))


def serve_table(result: dict[str, Any]) -> Table:
    """The figures as a table."""
    title = f"{result['clients']} robots at {result['rate_hz']:g} Hz for {result['seconds']:g} s"
    table = Table(title=f"{title}, deadline {result['budget_ms']:g} ms")
    table.add_column("")
    table.add_column("value", justify="right")
    for name in ("due", "in_time", "missed"):
        table.add_row(f"requests {name.replace('_', ' ')}", str(result[name]))
    for name, count in result["outcomes"].items():
        if name != "in_time":
            table.add_row(f"  of which {name}", str(count))
    for name, value in result["round_trip_ms"].items():
        table.add_row(f"chunks in time: {name}, ms", f"{value:.2f}")
    for part, values in result["answer_ms"].items():
        if values:  # were requests queued instead of refused, the last third would wait longer
            table.add_row(f"all answers, refusals too, {part}: p99, ms", f"{values['p99']:.2f}")
    table.add_row("robots per computation", f"{result['rows_per_batch']:.2f}")
    table.add_row("server's CPU per request, ms", f"{result['server_cpu_ms']:.3f}")
    table.add_row("a robot's CPU per request, ms", f"{result['robots_cpu_ms']:.3f}")
    return table
