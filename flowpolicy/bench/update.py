"""Gradient steps of the agents, over each other and over the bare matrix products of the same shapes.

Times the real ``update`` of :mod:`flowpolicy.agents`: random draws, compiled loss and gradient, clipping, AdamW
and the averaging of the weights. On a CPU in processor time, so that others may compute beside it.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from rich.table import Table
from torch import Tensor, nn

from flowpolicy.agents.cloning.dm1 import DM1
from flowpolicy.agents.cloning.flow_bc import FlowBC
from flowpolicy.bench.first_call import first_calls
from flowpolicy.bench.timing import alternate, spread
from flowpolicy.core import keys
from flowpolicy.core.columns import Columns
from flowpolicy.core.devices import find_device, settle
from flowpolicy.core.errors import ConfigError
from flowpolicy.core.seed import torch_generator
from flowpolicy.core.spec import ActionSpec, Contract, ObservationSpec, Spec
from flowpolicy.data.normalize import Normalizer
from flowpolicy.flows.dispersive import Dispersive
from flowpolicy.nets.encoder import StateEncoder
from flowpolicy.nets.layers import whole_operators
from flowpolicy.nets.mlp import MLP

OBS_SIZE, ACTION_SIZE, CHUNK = 8, 4, 5
"""With these the velocity network has 45 inputs and 20 outputs, about those of RoboMimic lift."""

FLOW, MEANFLOW, PRODUCTS = "flow matching step", "MeanFlow step", "bare matrix products"


def bench_update(
    threads: int = 1,
    rounds: int = 30,
    calls: int = 10,
    batch_size: int = 256,
    net: MLP | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """Time compiled updates of flow BC and MeanFlow with the same network, in alternated rounds.

    Args:
        threads: torch threads.
        rounds: number of alternated rounds.
        calls: updates per round and entry.
        batch_size: rows per batch.
        net: trunk; an MLP of 4 x 512 unless given.
        device: where; on a GPU the clock stops when the work is done, not when it is launched.

    Returns:
        ``ms`` (per entry: median, low, high of one call), ``ratios`` (the same, of the ratio inside each round),
        ``first_call_s`` (see :func:`flowpolicy.bench.first_call.first_calls`) and the settings.

    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return _bench(threads, rounds, calls, batch_size, net or MLP(), str(find_device(device)))
    finally:
        torch.set_num_threads(before)


def _bench(threads: int, rounds: int, calls: int, batch_size: int, net: MLP, device: str) -> dict[str, Any]:
    sizes: dict[str, Any] = {"net": net, "encoder": StateEncoder(width=0), "chunk": CHUNK, "execute": CHUNK}
    configs = {FLOW: FlowBC(**sizes), MEANFLOW: DM1(**sizes, dispersive=Dispersive(weight=0.0))}
    agents = {name: make_agent(config, device=device) for name, config in configs.items()}
    batch = random_batch(configs[FLOW], OBS_SIZE, ACTION_SIZE, batch_size).to(device)
    work = {name: updates(agent, batch, device) for name, agent in agents.items()}
    first = {name: first_calls(config, OBS_SIZE, ACTION_SIZE, batch_size, device) for name, config in configs.items()}
    work[PRODUCTS] = matrix_products(agents[FLOW].actor.net, batch_size)
    wait = functools.partial(settle, device)
    alternate(work, 1, calls, wait)
    clock = time.process_time if device == "cpu" else time.perf_counter
    seconds = alternate(work, rounds, calls, wait, clock)
    pairs = ((MEANFLOW, FLOW), (FLOW, PRODUCTS), (MEANFLOW, PRODUCTS))
    return {
        "threads": threads,
        "batch_size": batch_size,
        "net": f"MLP {net.depth} x {net.width}",
        "ms": {name: spread(1e3 * values) for name, values in seconds.items()},
        "ratios": {f"{a} / {b}": spread(seconds[a] / seconds[b]) for a, b in pairs},
        "first_call_s": first,
    }


def matrix_products(network: nn.Module, batch_size: int) -> Callable[[], None]:
    """The matrix products of one gradient step of ``network``, and nothing else, into memory that is reused.

    For each linear layer the output, the gradient of the weight and, except for the first, of the input.
    """
    layers = [module.weight.detach() for module in network.modules() if isinstance(module, nn.Linear)]
    products: list[tuple[Tensor, Tensor, Tensor]] = []
    for index, weight in enumerate(layers):
        outputs, inputs = weight.shape
        x, grad = torch.randn(batch_size, inputs).to(weight), torch.randn(batch_size, outputs).to(weight)
        products.append((x, weight.T, torch.empty_like(grad)))
        products.append((grad.T, x, torch.empty_like(weight)))
        if index:
            products.append((grad, weight, torch.empty_like(x)))

    def run() -> None:
        for left, right, out in products:
            torch.mm(left, right, out=out)

    return run


def update_table(result: dict[str, Any]) -> Table:
    """The result of :func:`bench_update` for the console."""
    what = result.get("net") or result["agent"]
    table = Table(title=f"{what}, batch {result['batch_size']}, {result['threads']} threads, processor time")
    for column in ("", "median", "quartiles", "first call: cold", "warm cache"):
        table.add_column(column, justify="left" if not column else "right")
    for name, value in result["ms"].items():
        first = [f"{seconds:.1f} s" for seconds in result["first_call_s"].get(name, {}).values()]
        quartiles = f"{value['low']:.2f} - {value['high']:.2f}"
        table.add_row(name, f"{value['median']:.2f} ms", quartiles, *first)
    table.add_section()
    for name, value in result["ratios"].items():
        table.add_row(name, f"{value['median']:.2f}", f"{value['low']:.2f} - {value['high']:.2f}")
    if "pays_from" in result:
        pays = result["pays_from"]
        table.caption = "compiling saves nothing" if pays is None else f"compiling pays from {pays:,} updates on"
    return table


def bench_compiling(config: Any, obs: int, action: int, *, batch_size: int, rounds: int, calls: int) -> dict[str, Any]:
    """From how many updates on compiling pays for an agent, in processor seconds of one thread.

    Args:
        config: of the agent.
        obs: numbers of an observation.
        action: numbers of an action.
        batch_size: rows per batch.
        rounds: number of alternated rounds.
        calls: updates per round and entry.

    Returns:
        ``ms`` of one update (median, low, high): compiled, with torch's own operators, and with their parts;
        ``first_call_s``; ``saved_ms`` per compiled update against torch's own operators; ``pays_from``, the number of
        updates that make up for a cold compilation, None where none is saved; and the settings.

    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        batch = random_batch(config, obs, action, batch_size)
        whole = updates(make_agent(config, obs, action, compile=False), batch)

        def own_operators() -> None:
            with whole_operators():
                whole()

        work = {
            COMPILED: updates(make_agent(config, obs, action), batch),
            "torch's own operators": own_operators,
            "operators in parts": updates(make_agent(config, obs, action, compile=False), batch),
        }
        alternate(work, rounds=1, calls=3)
        seconds = alternate(work, rounds, calls, clock=time.process_time)
    finally:
        torch.set_num_threads(before)
    first = first_calls(config, obs, action, batch_size)
    saved = float(np.median(seconds["torch's own operators"] - seconds[COMPILED]))
    return {
        "agent": type(config).__name__,
        "batch_size": batch_size,
        "threads": 1,
        "ms": {name: spread(1e3 * values) for name, values in seconds.items()},
        "first_call_s": {COMPILED: first},
        "saved_ms": 1e3 * saved,
        "pays_from": round(first["cold_s"] / saved) if saved > 0 else None,
        "ratios": {f"{COMPILED} / {name}": spread(seconds[COMPILED] / seconds[name]) for name in list(work)[1:]},
    }


COMPILED = "compiled"


def make_agent(
    config: Any, obs: int = OBS_SIZE, action: int = ACTION_SIZE, device: str = "cpu", *, compile: bool = True
) -> Any:
    """A fresh agent for one observation of size ``obs`` and actions of size ``action``, on ``device``."""
    spec = Spec({"state": ObservationSpec((obs,))}, ActionSpec(action))
    contract = Contract(spec, config.history, config.chunk, config.execute, config.nfe)
    return config.build(
        contract, Normalizer({"state": obs}, action), steps=10**6, seed=0, compile=compile, device=device
    )


def random_batch(config: Any, obs: int, action: int, rows: int) -> Columns:
    """A batch as the agent of ``config`` wants it, windows or transitions: noise, actions in [-1, 1], rewards of -1."""
    generator = torch_generator(0, "bench", "batch")
    shape = (rows, config.history, obs)
    batch = {
        keys.OBS: Columns(state=torch.randn(shape, generator=generator)),
        keys.ACTION: torch.rand(rows, config.chunk, action, generator=generator) * 2 - 1,
        keys.VALID: torch.ones(rows, config.chunk, dtype=torch.bool),
    }
    if config.needs == "transitions":
        batch |= {
            keys.NEXT_OBS: Columns(state=torch.randn(shape, generator=generator)),
            keys.NEXT_ACTION: torch.rand(rows, action, generator=generator) * 2 - 1,
            keys.REWARD: -torch.ones(rows, config.horizon),
            keys.MASK: torch.ones(rows),
            keys.STEPS: torch.full((rows,), float(config.horizon)),
        }
    elif config.needs != "windows" or config.previous:
        raise ConfigError(f"the batches of {type(config).__name__} cannot be made of noise", fix="name another preset")
    return Columns(batch)


def updates(agent: Any, batch: Columns, device: str = "cpu") -> Callable[[], object]:
    """One update again and again, on the same batch."""
    generator = torch_generator(0, "bench", "draws", device=device)
    return lambda: agent.update(batch, generator)
