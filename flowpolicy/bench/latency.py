"""Latency of whole decisions: engine x batch x threads, over the bare products of the same weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from flowpolicy.bench.lerobot import PROGRAM, lerobot_settings
from flowpolicy.bench.products import Convolution, Product, convolutions, products, weight_bytes
from flowpolicy.core.errors import ConfigError, FlowPolicyError
from flowpolicy.core.files import require_program
from flowpolicy.policy.engines import ENGINES, FORMATS
from flowpolicy.policy.exporting import export
from flowpolicy.policy.policy import Policy

FLOORS, READ = ("products, NumPy", "products, torch"), "one read of the weights"
ENCODER = "convolutions, torch"
"""The part of both floors that a policy sees pictures by; the rest of them is the trunk's."""
PEER_STEPS = (10, 100)


def bench_latency(
    run: Path,
    engines: Sequence[str] = ENGINES,
    batches: Sequence[int] = (1,),
    threads: Sequence[int] = (1,),
    *,
    nfe: int | None = None,
    calls: int = 2000,
    rounds: int = 10,
    peer_python: str = "",
) -> dict[str, Any]:
    """Time decisions of a run's policy with every engine, in alternated rounds with the floor.

    Each entry lives in a process of its own. A decision goes from observation arrays and noise to the chunk in
    environment units. The floor is the faster of NumPy's and torch's bare products of the same shapes and threads; of a
    policy that sees, torch's convolutions are added to both, and stand in an entry of their own. The
    peer is LeRobot's diffusion policy for the same observations and chunk.

    Args:
        run: run or checkpoint folder.
        engines: which to measure; one that cannot run is reported with the reason.
        batches: batch sizes.
        threads: numbers of threads; all are combined.
        nfe: network evaluations per chunk; the contract's unless given.
        calls: timed calls per entry; a tenth of it where a call takes over 10 ms.
        rounds: number of alternated rounds.
        peer_python: Python with lerobot; no peer unless given.

    Returns:
        ``entries``: a row per entry, batch and threads with p50, p99, p99.9 (microseconds), ``ratio_p50`` over the
        floor, ``ratio_read`` over one read of the weights, ``peak_memory_mb`` and ``load_s``. ``best``: engine, p50,
        p99, ratio_p50 of the fastest at the first batch size and number of threads. ``left_out``: engine -> reason.

    """
    if peer_python:
        require_program(peer_python, "--peer-python")
    policy, left_out, rows = Policy.load(run), dict[str, str](), list[dict[str, Any]]()
    nfe = policy.contract.nfe if nfe is None else nfe
    found = {batch: products(policy, nfe, batch) for batch in batches}
    seen = {batch: convolutions(policy, nfe, batch) for batch in batches}
    for count in threads:
        with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
            workers: dict[str, _Worker] = {}
            for name in engines:
                try:
                    settings = _prepared(policy, run, name, Path(scratch), nfe, batches, count)
                    workers[name] = stack.enter_context(_worker({**settings, "threads": count}))
                except FlowPolicyError as error:
                    left_out[name] = error.what
            if not workers:
                raise ConfigError(f"no engine can run {run}", expected=f"another one; left out: {left_out}")
            for name, settings, python in _others(policy, found, seen, peer_python):
                workers[name] = stack.enter_context(_worker({**settings, "threads": count}, python))
            for batch in batches:
                rows += _measure(workers, batch, count, calls, rounds)
    return {
        "best": _best(rows, batches[0], threads[0]),
        "unit": "microseconds",
        "entries": rows,
        "left_out": left_out,
        "nfe": nfe,
        "parameters": policy.parameters_count,
        "weight_mb": weight_bytes(found[batches[0]]) / 2**20,
    }


def _best(rows: list[dict[str, Any]], batch: int, threads: int) -> dict[str, Any]:
    rows = [row for row in rows if (row["batch"], row["threads"]) == (batch, threads) and row["entry"] in ENGINES]
    best = min(rows, key=lambda row: float(row["p50"]))
    return {"engine": best["entry"], **{key: best[key] for key in ("p50", "p99", "ratio_p50")}}


def _others(
    policy: Policy, found: dict[int, list[Product]], seen: dict[int, list[Convolution]], peer_python: str
) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Name, settings and Python of the entries that are no engines: the floor, and the peer where there is one."""
    for name in (*FLOORS, READ, *([ENCODER] if any(seen.values()) else [])):
        yield name, {"kind": "floor", "entry": name, "products": found, "convolutions": seen}, ""
    for steps in PEER_STEPS if peer_python else ():
        settings = lerobot_settings(policy.contract, list(found), steps)
        yield f"LeRobot diffusion, {steps} steps", settings, peer_python


def _prepared(
    policy: Policy, run: Path, name: str, scratch: Path, nfe: int, batches: Sequence[int], threads: int
) -> dict[str, Any]:
    """Settings of an engine's worker. It loads an export, so that neither torch nor the export are in its memory."""
    path = run
    if name in FORMATS:
        path = scratch / name
        export(policy, FORMATS[name], path, nfe=nfe, batches=batches, threads=threads)
    return {"kind": "engine", "engine": name, "path": str(path), "batches": list(batches), "nfe": nfe}


def _measure(workers: dict[str, _Worker], batch: int, threads: int, calls: int, rounds: int) -> list[dict[str, Any]]:
    counts, seconds = {}, dict[str, list[float]]()
    for name, worker in workers.items():
        typical = float(np.median(worker.seconds(batch, 3)))
        counts[name] = max(1, calls // rounds // (10 if typical > 0.01 else 1))
        seconds[name] = []
    for _ in range(rounds):
        for name, worker in workers.items():
            seconds[name] += worker.seconds(batch, counts[name])
    us = {name: 1e6 * np.quantile(values, [0.5, 0.99, 0.999]) for name, values in seconds.items()}
    floor, read = min(us[name][0] for name in FLOORS), us[READ][0]
    return [
        {
            "entry": name,
            "batch": batch,
            "threads": threads,
            **{key: float(value) for key, value in zip(("p50", "p99", "p99.9"), us[name], strict=True)},
            "ratio_p50": float(us[name][0] / floor),
            "ratio_read": float(us[name][0] / read),
            "peak_memory_mb": worker.memory_mb(),
            "load_s": worker.load_s,
        }
        for name, worker in workers.items()
    ]


class _Worker:
    """A running :mod:`flowpolicy.bench.latency_worker`, or a peer's program that speaks like it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None and process.stdout is not None
        self._process, self._told, self._answers = process, process.stdin, process.stdout
        self.load_s = float(self._answer("ready")["load_s"])

    def seconds(self, batch: int, calls: int) -> list[float]:
        """Seconds of each of so many calls."""
        values: list[float] = self._ask(f"{batch} {calls}", "seconds")
        return values

    def memory_mb(self) -> float:
        """Largest resident size so far, MiB."""
        return float(self._ask("memory", "memory")) / 1024

    def _ask(self, line: str, word: str) -> Any:
        try:
            self._told.write(f"{line}\n")
            self._told.flush()
        except BrokenPipeError:
            pass  # it has ended: reported below
        return self._answer(word)

    def _answer(self, word: str) -> Any:
        for line in self._answers:
            if line.startswith(f"{word} "):
                return json.loads(line.removeprefix(word))
            if line.startswith("failed "):
                raise FlowPolicyError(json.loads(line.removeprefix("failed")))
        raise FlowPolicyError(
            f"a process of the benchmark ended with exit code {self._process.wait()}; its own message is above"
        )


@contextmanager
def _worker(settings: dict[str, Any], python: str = "") -> Iterator[_Worker]:
    program = ["-c", PROGRAM] if python else ["-m", "flowpolicy.bench.latency_worker"]
    threads = str(settings["threads"])
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
    }
    if python:
        environment.pop("PYTHONPATH", None)
        environment.pop("PYTHONSAFEPATH", None)
    process = subprocess.Popen(
        [python or sys.executable, *program, json.dumps(settings)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield _Worker(process)
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()
