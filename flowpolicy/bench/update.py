"""Gradient steps of the agents, over each other and over the bare matrix products of the same shapes.

Times the real ``update`` of :mod:`flowpolicy.agents`: random draws, compiled loss and gradient, clipping, AdamW
and the averaging of the weights.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import torch
from rich.table import Table
from tensordict import TensorDict
from torch import Tensor, nn

from flowpolicy.agents.base.imitation import ImitationAgent
from flowpolicy.agents.cloning.dm1 import DM1
from flowpolicy.agents.cloning.flow_bc import FlowBC
from flowpolicy.bench.timing import alternate, spread
from flowpolicy.core.devices import find_device, settle
from flowpolicy.core.keys import ACTION, OBS, VALID
from flowpolicy.core.seed import torch_generator
from flowpolicy.core.spec import ActionSpec, Contract, ObservationSpec, Spec
from flowpolicy.data.normalize import Normalizer
from flowpolicy.flows.dispersive import Dispersive
from flowpolicy.nets.encoder import StateEncoder
from flowpolicy.nets.mlp import MLP

OBS_SIZE, ACTION_SIZE, CHUNK = 8, 4, 5
"""With these the velocity network has 45 inputs and 20 outputs, about those of RoboMimic lift."""

FLOW, MEANFLOW, PRODUCTS = "flow matching step", "MeanFlow step", "bare matrix products"


def bench_update(
    threads: int = 2,
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
        ``first_call_s`` (compilation included) and the settings.

    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return _bench(threads, rounds, calls, batch_size, net or MLP(), str(find_device(device)))
    finally:
        torch.set_num_threads(before)


def _bench(threads: int, rounds: int, calls: int, batch_size: int, net: MLP, device: str) -> dict[str, Any]:
    batch, first = _batch(batch_size, device), {}
    agents = {
        FLOW: make_agent(FlowBC(net=net, encoder=StateEncoder(width=0), chunk=CHUNK, execute=CHUNK), device=device),
        MEANFLOW: make_agent(
            DM1(net=net, encoder=StateEncoder(width=0), chunk=CHUNK, execute=CHUNK, dispersive=Dispersive(weight=0.0)),
            device=device,
        ),
    }
    work: dict[str, Callable[[], object]] = {}
    for name, agent in agents.items():
        work[name] = _updates(agent, batch, device)
        start = time.perf_counter()
        work[name]()
        settle(device)
        first[name] = time.perf_counter() - start
    work[PRODUCTS] = matrix_products(agents[FLOW].actor.net, batch_size)
    wait = functools.partial(settle, device)
    alternate(work, 1, calls, wait)
    seconds = alternate(work, rounds, calls, wait)
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
    table = Table(title=f"{result['net']}, batch {result['batch_size']}, {result['threads']} threads")
    for column in ("", "median", "quartiles", "first call"):
        table.add_column(column, justify="left" if not column else "right")
    for name, value in result["ms"].items():
        first = result["first_call_s"].get(name)
        quartiles = f"{value['low']:.2f} - {value['high']:.2f}"
        table.add_row(name, f"{value['median']:.2f} ms", quartiles, "" if first is None else f"{first:.1f} s")
    table.add_section()
    for name, value in result["ratios"].items():
        table.add_row(name, f"{value['median']:.2f}", f"{value['low']:.2f} - {value['high']:.2f}", "")
    return table


def make_agent(config: Any, obs: int = OBS_SIZE, action: int = ACTION_SIZE, device: str = "cpu") -> Any:
    """A fresh compiled agent for one observation of size ``obs`` and actions of size ``action``, on ``device``."""
    spec = Spec({"state": ObservationSpec((obs,))}, ActionSpec(action))
    contract = Contract(spec, config.history, config.chunk, config.execute, config.nfe)
    return config.build(contract, Normalizer({"state": obs}, action), steps=10**6, seed=0, compile=True, device=device)


def _batch(size: int, device: str) -> TensorDict:
    generator = torch_generator(0, "bench", "batch")
    return TensorDict(
        {
            OBS: {"state": torch.randn(size, 1, OBS_SIZE, generator=generator)},
            ACTION: torch.rand(size, CHUNK, ACTION_SIZE, generator=generator) * 2 - 1,
            VALID: torch.ones(size, CHUNK, dtype=torch.bool),
        },
        batch_size=[size],
    ).to(device)


def _updates(agent: ImitationAgent, batch: TensorDict, device: str) -> Callable[[], object]:
    generator = torch_generator(0, "bench", "draws", device=device)
    return lambda: agent.update(batch, generator)
