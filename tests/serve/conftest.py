"""A server on loopback with an engine whose answers are known, in a thread of its own."""

import asyncio
import dataclasses
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest

from flowpolicy.core.spec import ActionSpec, Contract, ObservationSpec, Spec
from flowpolicy.serve.client import PolicyClient
from flowpolicy.serve.model import Model
from flowpolicy.serve.scheduler import LatencyTable
from flowpolicy.serve.server import PolicyServer
from flowpolicy.serve.server_config import ServerConfig

GOOD = {"type": "act", "id": 5, "budget_ms": 5000.0, "seed": 0}
"""A request but for its observation."""

CONTRACT = Contract(Spec({"state": ObservationSpec((3,)), "goal": ObservationSpec((2,))}, ActionSpec(2)), 2, 4, 2, 1)


class SumEngine:
    """Every action is the sum of the observations times ``gain``, plus the noise."""

    name, candidates, prefix = "sum", 1, 2

    def __init__(self, nfe=1, seconds=0.0, contract=CONTRACT, gain=1.0):
        self.nfe, self.seconds, self.contract, self.gain = nfe, seconds, contract, gain
        self.batches, self.block = [], None

    def noise(self, rows, rng):
        return rng.standard_normal((rows, self.contract.chunk, 2), dtype=np.float32)

    def act(self, obs, noise, actions, lengths):
        self.batches.append(len(noise))
        if self.block is not None:
            self.block.wait(20)
        if self.seconds:
            time.sleep(self.seconds)
        total = obs["state"].sum((1, 2)) + obs["goal"].sum((1, 2))
        chunk = (self.gain * total[:, None, None] + noise).astype(np.float32)
        rows = np.arange(chunk.shape[1]) < lengths[:, None]
        return np.where(rows[..., None], actions, chunk)


def make_model(*engines, checkpoint="step_1"):
    return Model.prepare(engines or (SumEngine(),), checkpoint, (1, 2, 4), rounds=2)


def costing(seconds):
    """A model whose table says so, seconds by evaluations; its engines take no time, so that no test waits."""
    model = Model.prepare([SumEngine(nfe=nfe) for nfe in seconds], "step_1", (1,), rounds=1)
    return dataclasses.replace(model, table=LatencyTable({(nfe, 1): cost for nfe, cost in seconds.items()}))


class Running:
    """What a test needs of a server in another thread."""

    def __init__(self, server):
        self.server, self.loop, self.port = server, None, 0
        self.ready, self.over = threading.Event(), None
        self.thread = threading.Thread(target=lambda: asyncio.run(self._main()), daemon=True)

    async def _main(self):
        self.loop, self.over = asyncio.get_running_loop(), asyncio.Event()
        async with self.server().running() as self.port:
            self.ready.set()
            await self.over.wait()

    @property
    def url(self):
        return f"ws://127.0.0.1:{self.port}"

    def client(self, **options):
        return PolicyClient(self.url, **options)

    def call(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(10)


@contextmanager
def serving(model=None, token="", load=None, clock=time.monotonic, **options):
    """A running server; ``running.made`` is the PolicyServer."""
    config = ServerConfig(port=0, **{"margin_ms": 0.0, "window_ms": 0.0, "inline_ms": 0.0, "stall_s": 0.3, **options})

    def make():
        running.made = PolicyServer(model or make_model(), config, token, load, clock)
        return running.made

    running = Running(make)
    running.thread.start()
    assert running.ready.wait(10)
    try:
        yield running
    finally:
        running.loop.call_soon_threadsafe(running.over.set)
        running.thread.join(10)
        assert not running.thread.is_alive(), "the server does not stop"


@pytest.fixture
def server():
    with serving() as running:
        yield running


def observe(seed=0):
    random = np.random.default_rng(seed)
    return {"state": random.normal(size=(2, 3)).astype(np.float32), "goal": random.normal(size=(2, 2))}


def total(obs):
    return sum(float(np.float32(value).sum()) for value in obs.values())


def until(condition, seconds=10.0):
    """Wait for another thread to make ``condition`` true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.005)
