"""One entry of ``bench latency`` in a process of its own: so that memory is its own and nothing else runs in it.

Speaks lines: it answers ``ready {...}`` when loaded; to ``BATCH CALLS`` it answers with the seconds of so many calls,
to ``memory`` with the largest resident size so far, in KiB.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from flowpolicy.core.errors import FlowPolicyError


def main(settings: dict[str, Any]) -> None:
    """Load the entry and answer until the input ends."""
    start = time.perf_counter()
    calls = engine_calls(settings) if settings["kind"] == "engine" else floor_calls(settings)
    answer("ready", {"load_s": time.perf_counter() - start})
    for line in sys.stdin:
        if line.strip() == "memory":
            answer("memory", peak_kib())
        else:
            batch, count = map(int, line.split())
            answer("seconds", timed(calls[batch], count))


def peak_kib() -> int:
    """Largest resident size of this process so far. What getrusage says begins at the size of the parent."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])


def answer(word: str, value: Any) -> None:
    """One line for the parent."""
    sys.stdout.write(f"{word} {json.dumps(value)}\n")
    sys.stdout.flush()


def timed(call: Callable[[], object], count: int) -> list[float]:
    """Seconds of each call, after a few that bring code and weights back into the caches."""
    for _ in range(5):
        call()
    seconds = np.empty(count)
    for index in range(count):
        start = time.perf_counter()
        call()
        seconds[index] = time.perf_counter() - start
    rounded: list[float] = np.round(seconds, 9).tolist()
    return rounded


def engine_calls(settings: dict[str, Any]) -> dict[int, Callable[[], object]]:
    """Whole decisions by batch size: from observation arrays and noise to the chunk."""
    from flowpolicy.policy import load_engine
    from flowpolicy.policy.engines.engine import drawn

    engine = load_engine(
        settings["path"],
        settings["engine"],
        batches=settings["batches"],
        threads=settings["threads"],
        nfe=settings["nfe"],
    )
    random = np.random.default_rng(0)

    def decision(batch: int) -> Callable[[], object]:
        obs = drawn(engine.contract, batch, random)
        noise = engine.noise(batch, random)
        return lambda: engine.act(obs, noise)

    return {batch: decision(batch) for batch in settings["batches"]}


def floor_calls(settings: dict[str, Any]) -> dict[int, Callable[[], object]]:
    """Bare products, or one read of the weights, by batch size."""
    import torch

    from flowpolicy.bench.products import numpy_products, one_read, torch_convolutions, torch_products, weight_bytes
    from flowpolicy.policy.engines.blas import set_blas_threads

    torch.set_num_threads(settings["threads"])
    set_blas_threads(settings["threads"])
    make: dict[str, Callable[[Any], Callable[[], object]]] = {
        "products, NumPy": numpy_products,
        "products, torch": torch_products,
        "one read of the weights": lambda found: one_read(weight_bytes(found)),
    }
    calls: dict[int, Callable[[], object]] = {}
    for batch, found in settings["products"].items():
        seen = torch_convolutions(settings.get("convolutions", {}).get(batch, []))
        if settings["entry"] == "convolutions, torch":
            calls[int(batch)] = seen
        else:
            calls[int(batch)] = _both(make[settings["entry"]](found), seen, settings["entry"])
    return calls


def _both(products: Callable[[], object], convolutions: Callable[[], object], entry: str) -> Callable[[], object]:
    """The products, and before them the convolutions that a decision needs as well."""
    if not entry.startswith("products"):
        return products

    def run() -> None:
        convolutions()
        products()

    return run


if __name__ == "__main__":
    try:
        main(json.loads(sys.argv[1]))
    except FlowPolicyError as error:
        answer("failed", str(error))
