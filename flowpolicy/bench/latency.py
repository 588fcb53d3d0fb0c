"""One-step latency of a policy over the bare matrix-vector products of the same weights."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from rich.table import Table
from torch import nn

from flowpolicy.core.seed import torch_generator
from flowpolicy.policy.policy import Policy

TORCH, NUMPY = "matrix-vector products, torch", "matrix-vector products, NumPy"
EAGER, COMPILED = "policy, eager", "policy, compiled"


def bench_latency(policy: Policy, calls: int = 2000, rounds: int = 10, threads: int = 1) -> dict[str, Any]:
    """Time ``policy.act`` for one observation with one network evaluation.

    Measured from the observation tensors to the chunk in environment units: normaliser, encoder, network and the
    draw of the noise. Rounds alternate with the bare products.

    Args:
        policy: a policy that acts in one evaluation.
        calls: timed calls per entry, over all rounds.
        rounds: number of alternated rounds.
        threads: torch threads. NumPy's BLAS keeps the number it was started with (``OMP_NUM_THREADS``).

    Returns:
        ``us`` (per entry: p50, p99, p99.9 in microseconds), ``bound`` (the entry with the fastest bare products),
        ``ratios`` (p50 of each policy entry over the bound), ``first_call_s`` of the compiled entry, ``threads``
        and ``parameters``.

    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return _bench(policy, calls, rounds, threads)
    finally:
        torch.set_num_threads(before)


def _bench(policy: Policy, calls: int, rounds: int, threads: int) -> dict[str, Any]:
    weights = [module.weight.detach() for module in policy.actor.modules() if isinstance(module, nn.Linear)]
    eager, compiled = _act(policy), _act(_compiled(policy))
    start = time.perf_counter()
    compiled()
    first = time.perf_counter() - start
    work = {EAGER: eager, COMPILED: compiled, TORCH: _torch_products(weights), NUMPY: _numpy_products(weights)}
    for call in work.values():
        _time(call, 20)
    samples: dict[str, list[np.ndarray]] = {name: [] for name in work}
    for _ in range(rounds):
        for name, call in work.items():
            samples[name].append(_time(call, max(1, calls // rounds)))
    us = {name: _percentiles(np.concatenate(values)) for name, values in samples.items()}
    bound = min((TORCH, NUMPY), key=lambda name: us[name]["p50"])
    return {
        "threads": threads,
        "parameters": sum(weight.numel() for weight in weights),
        "us": us,
        "bound": bound,
        "ratios": {name: us[name]["p50"] / us[bound]["p50"] for name in (EAGER, COMPILED)},
        "first_call_s": {COMPILED: first},
    }


def latency_table(result: dict[str, Any]) -> Table:
    """The result of :func:`bench_latency` for the console."""
    table = Table(title=f"{result['parameters']:,} weights, batch 1, {result['threads']} thread(s), microseconds")
    table.add_column("")
    for column in ("p50", "p99", "p99.9", f"p50 over {result['bound']}"):
        table.add_column(column, justify="right")
    for name, value in result["us"].items():
        ratio = result["ratios"].get(name)
        percentiles = [f"{value[key]:.0f}" for key in ("p50", "p99", "p99.9")]
        table.add_row(name, *percentiles, "" if ratio is None else f"{ratio:.2f}")
    return table


def _act(policy: Policy) -> Callable[[], object]:
    generator = torch_generator(0, "bench", "latency")
    obs = {
        name: torch.randn(1, policy.contract.history, *spec.shape, generator=generator)
        for name, spec in policy.contract.spec.observation.items()
    }
    return lambda: policy.act(obs, generator, 1)


def _compiled(policy: Policy) -> Policy:
    """A copy with compiled encoder and network; ``act`` itself counts evaluations, which would recompile."""
    policy = copy.deepcopy(policy)
    policy.actor.encoder.compile(dynamic=False)
    policy.actor.net.compile(dynamic=False)
    return policy


def _torch_products(weights: list[torch.Tensor]) -> Callable[[], object]:
    inputs = [torch.randn(weight.shape[1]) for weight in weights]
    outputs = [torch.empty(weight.shape[0]) for weight in weights]

    @torch.inference_mode()
    def run() -> None:
        for weight, x, out in zip(weights, inputs, outputs, strict=True):
            torch.mv(weight, x, out=out)

    return run


def _numpy_products(weights: list[torch.Tensor]) -> Callable[[], object]:
    matrices = [weight.cpu().numpy() for weight in weights]
    inputs = [np.ones(matrix.shape[1], dtype=matrix.dtype) for matrix in matrices]
    outputs = [np.empty(matrix.shape[0], dtype=matrix.dtype) for matrix in matrices]

    def run() -> None:
        for matrix, x, out in zip(matrices, inputs, outputs, strict=True):
            np.dot(matrix, x, out=out)

    return run


def _time(call: Callable[[], object], calls: int) -> np.ndarray:
    seconds = np.empty(calls)
    for index in range(calls):
        start = time.perf_counter()
        call()
        seconds[index] = time.perf_counter() - start
    return seconds


def _percentiles(seconds: np.ndarray) -> dict[str, float]:
    p50, p99, p999 = np.quantile(1e6 * seconds, [0.5, 0.99, 0.999])
    return {"p50": float(p50), "p99": float(p99), "p99.9": float(p999)}
