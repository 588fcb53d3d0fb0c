"""A policy server under load: how many answers come in time, from a few robots to several times what it bears.

Robots ask at a fixed rate whatever comes back. All of them are one thread that sends packed messages, so that what is
measured is the server and not the robots. Time is the processor time of the server
(:mod:`flowpolicy.bench.serve_worker`), which other work on the machine does not stretch; or that of the wall, with
server and robots in a process and on a core each, which needs a quiet machine.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import re
import selectors
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from flowpolicy.bench import serve_worker
from flowpolicy.bench.serve_worker import GRACE_S, LoadRobot, load_figures, requests_due
from flowpolicy.core.errors import FlowPolicyError, ServingError

Measure = Callable[[Sequence[int], int], list[dict[str, Any]]]
"""Numbers of robots, and a seed, to the figures of each."""


@contextlib.contextmanager
def served(run: Path, flags: Sequence[str] = (), before: Path | None = None) -> Iterator[str]:
    """``flowpolicy serve RUN`` in its own process on a free port of this machine; yields its address.

    Args:
        run: what is served.
        flags: of the command.
        before: folder in which another version of flowpolicy is installed, which then serves.

    """
    command = [sys.executable, "-m", "flowpolicy", "serve", str(run), "--port", "0", *flags]
    environment = _environment(before)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            if _cores():
                os.sched_setaffinity(process.pid, {_cores()[0]})
            line = process.stdout.readline() if process.stdout else ""
            found = re.search(r"at (ws://\S+)", line)
            if not found:
                raise ServingError("lost", f"the server did not start: {line!r}", fix=f"flowpolicy serve {run}")
            yield found[1]
        finally:
            process.terminate()


def _cores() -> list[int]:
    """Cores of this machine where server and robots can have one each; none otherwise."""
    if not hasattr(os, "sched_getaffinity"):
        return []
    cores = sorted(os.sched_getaffinity(os.getppid()))
    return cores if len(cores) > 1 else []


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
    """A core without the server, and no garbage collected meanwhile."""
    gc.collect()
    gc.freeze()
    gc.disable()
    own = os.sched_getaffinity(0) if _cores() else set()
    try:
        if own:
            os.sched_setaffinity(0, _cores()[1:])
        yield
    finally:
        if own:
            os.sched_setaffinity(0, own)
        gc.enable()
        gc.unfreeze()


def bench_serve(
    servers: Mapping[str, Measure], *, robots: Sequence[int], rate_hz: float, rounds: int
) -> dict[str, Any]:
    """Let more and more robots ask, and count what they get.

    Args:
        servers: name -> how it is measured; they are measured in turns.
        robots: numbers of robots.
        rate_hz: requests per second of each.
        rounds: over which medians are taken.

    """
    found: dict[str, list[list[dict[str, Any]]]] = {name: [] for name in servers}
    for number in range(rounds):
        for name, measure in servers.items():
            found[name].append(measure(robots, number))
    return {
        "rate_hz": rate_hz,
        "rounds": rounds,
        "servers": {
            name: _summary([_medians(of) for of in zip(*by_round, strict=True)]) for name, by_round in found.items()
        },
    }


def in_processor_time(run: Path, before: Path | None, **order: Any) -> Measure:
    """Measure a server in its own processor time, in a process of its own.

    Args:
        run: what is served.
        before: folder in which another version of flowpolicy is installed, which then serves.
        order: what else :mod:`flowpolicy.bench.serve_worker` is told.

    """

    def measure(robots: Sequence[int], seed: int) -> list[dict[str, Any]]:
        told = json.dumps({**order, "run": str(run.resolve()), "robots": list(robots), "seed": seed})
        command = [sys.executable, serve_worker.__file__, told]
        done = subprocess.run(command, env=_environment(before), capture_output=True, text=True, check=False)
        if done.returncode:
            raise FlowPolicyError(f"the server ended: {done.stderr.strip()[-500:]}", fix="--engine numpy")
        found: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
        return found

    return measure


def in_wall_time(url: str, *, rate_hz: float, seconds: float, budget_ms: float) -> Measure:
    """Measure a server that runs in another process.

    Args:
        url: of the server.
        rate_hz: requests per second of each robot.
        seconds: how long each number of robots asks.
        budget_ms: deadline of every request, by the robots' own clock.

    """

    def measure(robots: Sequence[int], seed: int) -> list[dict[str, Any]]:
        return [_load(url, count, rate_hz, seconds, budget_ms, seed) for count in robots]

    return measure


def _load(url: str, count: int, rate_hz: float, seconds: float, budget_ms: float, seed: int) -> dict[str, Any]:
    """One number of robots for a while."""
    robots = [LoadRobot(url, number, budget_ms / 1000, time.monotonic) for number in range(count)]
    due = requests_due(count, rate_hz, seconds, seed)
    before = server_figures(url)
    with selectors.DefaultSelector() as selector, _undisturbed():
        for robot in robots:
            selector.register(robot.socket, selectors.EVENT_READ, robot)
        start = time.monotonic() + 0.05
        for offset, number in due:
            while (left := start + offset - time.monotonic()) > 0:
                _read(selector, left)
            robots[number].ask(time.monotonic())
            if number % 8 == 0:  # who is behind must read too
                _read(selector, 0.0)
        wall, end = time.monotonic() - start, time.monotonic() + GRACE_S
        while any(robot.asked for robot in robots) and (left := end - time.monotonic()) > 0:
            _read(selector, left)
    after = server_figures(url)
    batches, rows = (after[name] - before[name] for name in ("batches", "rows"))
    figures = load_figures(robots, wall, after["cpu_s"] - before["cpu_s"])
    return {**figures, "rows_per_batch": rows / max(1.0, batches)}


def _read(selector: selectors.BaseSelector, seconds: float) -> None:
    for key, _ in selector.select(seconds):
        key.data.read()


def _environment(before: Path | None) -> dict[str, str]:
    """Of a server's process: which version of flowpolicy it imports."""
    path = {} if before is None else {"PYTHONPATH": str(before.resolve())}
    return {**os.environ, "PYTHONSAFEPATH": "1", **path}


def _medians(of: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Medians over rounds, and the extremes of the goodput."""
    medians: dict[str, Any] = {}
    for name, value in of[0].items():
        if isinstance(value, dict):
            keys = dict.fromkeys(key for one in of for key in one[name])
            default = 0.0 if name == "outcomes" else np.nan
            medians[name] = {key: float(np.nanmedian([one[name].get(key, default) for one in of])) for key in keys}
        else:
            medians[name] = type(value)(np.median([one[name] for one in of]))
    goodput = [one["goodput_hz"] for one in of]
    return {**medians, "goodput_range_hz": [min(goodput), max(goodput)]}


def _summary(loads: list[dict[str, Any]]) -> dict[str, Any]:
    """The most answers in time, and what is left of them when twice as many are asked for."""
    offered, goodput = ([load[name] for load in loads] for name in ("offered_hz", "goodput_hz"))
    peak = max(goodput)
    measured = peak > 0 and min(offered) <= 2 * peak <= max(offered)
    return {
        "peak_goodput_hz": peak,
        "left_at_twice": float(np.interp(2 * peak, offered, goodput)) / peak if measured else None,
        "robots_99_in_time": max((load["robots"] for load in loads if load["in_time"] >= 0.99), default=0),
        "loads": loads,
    }


def serve_table(result: dict[str, Any]) -> Table:
    """The figures as a table."""
    clock = "of the wall" if result["clock"] == "wall" else "of the server's processor"
    table = Table(
        title=f"Robots at {result['rate_hz']:g} Hz, deadline {result['budget_ms']:g} ms; time {clock}; "
        f"medians of {result['rounds']} times {result['seconds']:g} s"
    )
    columns = ("robots", "asked/s", "in time/s", "least - most", "in time", "refused", "late", "p50 / p99 ms")
    for name in ("", *columns, "refusal p50 / p99 ms", "CPU ms/request", "rows/batch"):
        table.add_column(name, justify="right" if name else "left")
    captions = []
    for name, server in result["servers"].items():
        for load in server["loads"]:
            outcomes = load["outcomes"]
            refused = outcomes.get("overloaded", 0.0) + outcomes.get("superseded", 0.0)
            table.add_row(
                name,
                str(load["robots"]),
                f"{load['offered_hz']:.0f}",
                f"{load['goodput_hz']:.0f}",
                " - ".join(f"{value:.0f}" for value in load["goodput_range_hz"]),
                f"{load['in_time']:.1%}",
                f"{refused:.1%}",
                f"{1 - load['in_time'] - refused:.1%}",
                " / ".join(f"{value:.1f}" for value in load["chunk_ms"].values()),
                " / ".join(f"{value:.1f}" for value in load["refusal_ms"].values()),
                f"{load['server_cpu_ms']:.3f}",
                f"{load['rows_per_batch']:.2f}",
            )
        left = server["left_at_twice"]
        told = "twice of that was not asked for" if left is None else f"{left:.0%} of it when asked for twice of that"
        table.add_section()
        captions.append(
            f"{name}: at most {server['peak_goodput_hz']:.0f}/s in time, {told}; "
            f"99 % in time for {server['robots_99_in_time']} robots"
        )
    table.caption = "\n".join(captions)
    return table
