"""Faults over loopback: after each the server answers an honest client as before."""

import asyncio
import contextlib
import gc
import os
import random
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from flowpolicy.core.errors import ServingError
from flowpolicy.serve.client import LateError, PolicyClient
from flowpolicy.serve.protocol import pack, unpack

from .conftest import GOOD, SumEngine, costing, make_model, observe, serving, until

OBS = observe()
ROOT = Path(__file__).parents[2]


def check_alive(running):
    with running.client() as client:
        assert client.act(observe(), 5000).chunk.shape == (4, 2)


def test_an_oversized_message_ends_its_connection_only():
    with serving(message_mb=0.01) as running:
        with connect(running.url, compression=None) as raw:
            raw.recv(5)
            raw.send(bytes(20_000))
            with pytest.raises(ConnectionClosed) as closed:
                raw.recv(5)
        assert closed.value.rcvd.code == 1009
        check_alive(running)


def drain(raw):
    while True:
        raw.recv(5)


def test_a_client_that_sends_only_faults_is_disconnected():
    with serving(faults=4) as running, connect(running.url, compression=None) as raw:
        raw.recv(5)
        for _ in range(3):
            raw.send(b"\xc1")
            raw.recv(5)
        raw.send(pack({**GOOD, "obs": OBS}))  # a good one in between forgives
        assert unpack(raw.recv(5), 1 << 20)["type"] == "chunk"
        for _ in range(4):
            raw.send(b"\xc1")
        with pytest.raises(ConnectionClosed):
            drain(raw)
        check_alive(running)


def test_the_token_must_be_shown_and_right():
    with serving(token="correct horse") as running:
        for token in ("", "correct hors", "correct horses", "wrong", "x" * 5000):
            with pytest.raises(ServingError, match="does not accept the token") as refusal:
                running.client(token=token)
            assert refusal.value.code == "token"
        with running.client(token="correct horse") as client:
            assert client.act(observe(), 5000).chunk.shape == (4, 2)
        assert running.made.metrics.total("unauthorized") == 5


def test_a_web_page_cannot_connect(server):
    with pytest.raises(Exception, match="403"), connect(server.url, origin="http://evil.example"):
        pass
    check_alive(server)


def test_one_client_too_many_is_turned_away():
    with serving(max_clients=1) as running:
        with running.client(), pytest.raises(ServingError) as refusal:
            running.client()
        assert refusal.value.code == "crowded"
        until(lambda: not running.made._robots)
        check_alive(running)


def test_a_client_that_stops_reading_is_disconnected():
    with serving(faults=10**6, message_mb=64) as running:
        raw = socket.create_connection(("127.0.0.1", running.port))
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.sendall(
            b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        until(lambda: running.made._robots)
        frame = b"\x82\x81\x00\x00\x00\x00\xc1"  # one faulty byte, answered with an error of some hundred bytes
        good = pack({**GOOD, "obs": OBS})
        long = b"\x82\xfe" + len(good).to_bytes(2, "big") + bytes(4) + good
        with pytest.raises(OSError, match=r"(?i)reset|broken pipe"):
            raw.sendall((frame + long) * 200_000)
        raw.close()
        until(lambda: not running.made._robots)
        assert running.made.metrics.counts["disconnected", "reason=stalled"] >= 1
        check_alive(running)


def test_a_client_that_leaves_in_the_middle_of_a_request_leaves_nothing_behind():
    engine = SumEngine()
    with serving(make_model(engine)) as running:
        engine.block, engine.batches = threading.Event(), []
        sockets = [connect(running.url, compression=None) for _ in range(3)]
        raws = [raw.__enter__() for raw in sockets]
        for raw in raws:
            raw.recv(5)
            raw.send(pack({**GOOD, "obs": OBS}))
            until(lambda: engine.batches == [1])
        until(lambda: running.made._dispatcher.waiting == 2)
        for raw in raws:
            raw.socket.shutdown(socket.SHUT_RDWR)
        until(lambda: running.made._dispatcher.waiting == 0)
        engine.block.set()
        until(lambda: not running.made._robots)
        engine.block = None
        check_alive(running)
        assert engine.batches == [1, 1]


def test_a_late_chunk_is_called_late_and_never_given_to_the_next_request():
    engine = SumEngine()
    with serving(make_model(engine)) as running, running.client(timeout_s=0.2) as client:
        engine.block = threading.Event()
        with pytest.raises(LateError, match="did not answer"):
            client.act(observe(1), 100)
        engine.block.set()
        noise = np.zeros((1, 4, 2), np.float32)
        reply = client.act({key: 0 * value for key, value in observe().items()}, 5000, noise=noise)
        assert reply.id == 1
        assert not reply.chunk.any()
        assert running.made.metrics.total("late") == 1


def test_a_jump_of_the_clock_makes_requests_late_and_nothing_else(monkeypatch):
    engine, jump = SumEngine(), [0.0]
    with serving(make_model(engine), clock=lambda: time.monotonic() + jump[0]) as running, running.client() as client:
        monkeypatch.setattr(time, "time", lambda: 0.0)  # the wall clock falls back to 1970: nobody looks at it
        assert client.act(observe(), 5000).chunk.shape == (4, 2)
        engine.block, engine.batches = threading.Event(), []
        jumping = threading.Thread(
            target=lambda: (until(lambda: engine.batches == [1]), jump.__setitem__(0, 3600.0), engine.block.set())
        )
        jumping.start()
        with pytest.raises(LateError, match=r"3\d{6}"):
            client.act(observe(), 5000)
        jumping.join(10)
        assert client.act(observe(), 5000).chunk.shape == (4, 2)


class Failing(SumEngine):
    def act(self, obs, noise, *committed):
        if (obs["goal"] == 9).all():
            raise RuntimeError("CUDA error")
        chunk = super().act(obs, noise, *committed)
        return chunk * np.nan if (obs["goal"] == 8).all() else chunk


@pytest.mark.parametrize("inline_ms", [0.0, 1e4], ids=["in a thread", "in the loop"])
def test_an_engine_that_fails_or_gives_nan_is_an_error_and_not_the_end(inline_ms):
    with serving(make_model(Failing()), inline_ms=inline_ms) as running, running.client() as client:
        for value in (9, 8):
            with pytest.raises(ServingError) as refusal:
                client.act({**OBS, "goal": np.full((2, 2), value, np.float32)}, 5000)
            assert refusal.value.code == "internal"
            assert client.act(observe(), 5000).chunk.shape == (4, 2)


def test_what_cannot_be_answered_beside_others_is_refused_while_they_are_computed():
    with serving(costing({1: 20.0})) as running, running.client() as first, running.client() as second:
        running.made.model.any_engine.block = threading.Event()
        asking = threading.Thread(target=first.act, args=(OBS, 60_000))
        asking.start()
        until(lambda: running.made.model.any_engine.batches[-1:] == [1] and running.made._dispatcher._computing)
        with pytest.raises(ServingError) as refusal:
            second.act(OBS, 25_000)
        assert refusal.value.code == "overloaded"
        running.made.model.any_engine.block.set()
        asking.join(10)
        assert running.made.metrics.total("chunks") == 1


def test_a_server_that_stops_ends_the_batch_under_way_and_tells_the_others():
    engine = SumEngine()
    with serving(make_model(engine)) as running, contextlib.ExitStack() as stack:
        engine.block, engine.batches = threading.Event(), []
        raws = [stack.enter_context(connect(running.url, compression=None)) for _ in range(3)]
        for raw in raws:
            raw.recv(5)
        ask = pack({**GOOD, "budget_ms": 20_000.0, "obs": OBS})
        raws[0].send(ask)
        until(lambda: engine.batches == [1])
        raws[1].send(ask)
        until(lambda: running.made._dispatcher.waiting == 1)
        running.loop.call_soon_threadsafe(running.over.set)
        assert unpack(raws[1].recv(5), 1 << 20)["code"] == "closing"
        raws[2].send(ask)
        assert unpack(raws[2].recv(5), 1 << 20)["code"] == "closing"
        engine.block.set()
        assert unpack(raws[0].recv(5), 1 << 20)["type"] == "chunk"
        for raw in raws:
            with pytest.raises(ConnectionClosed) as closed:
                raw.recv(5)
            assert closed.value.rcvd.code == 1001


def test_a_newer_request_of_a_connection_ends_the_older_which_is_told():
    engine = SumEngine()
    with serving(make_model(engine)) as running, connect(running.url, compression=None) as raw:
        raw.recv(5)
        engine.block, engine.batches = threading.Event(), []
        for number in range(4):
            raw.send(pack({**GOOD, "id": number, "budget_ms": 20_000.0, "obs": OBS}))
            until(lambda n=number: running.made.metrics.total("requests") == n + 1)
            until(lambda: engine.batches == [1])
        answers = [unpack(raw.recv(5), 1 << 20) for _ in range(2)]
        assert [(a["type"], a["code"], a["id"]) for a in answers] == [("error", "superseded", n) for n in (1, 2)]
        engine.block.set()
        answers = [unpack(raw.recv(5), 1 << 20) for _ in range(2)]
        assert [(a["type"], a["id"]) for a in answers] == [("chunk", 0), ("chunk", 3)]


SERVER = """
    import asyncio, time, sys
    from tests.serve.conftest import SumEngine, make_model
    from flowpolicy.serve.server_config import ServerConfig
    from flowpolicy.serve.server import PolicyServer

    async def main():
        engine = SumEngine()
        model = make_model(engine)
        engine.seconds = 30
        async with PolicyServer(model, ServerConfig(port=0)).running() as port:
            print(port, flush=True)
            await asyncio.Event().wait()

    asyncio.run(main())
"""


def test_a_server_killed_in_the_middle_of_a_request_is_lost_at_once():
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    code = textwrap.dedent(SERVER)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment) as process:
        client = PolicyClient(f"ws://127.0.0.1:{process.stdout.readline().strip()}")
        threading.Timer(0.5, process.kill).start()
        with pytest.raises(ServingError) as refusal:
            client.act(observe(), 60_000)
        assert refusal.value.code == "lost"
        with pytest.raises(ServingError) as refusal:
            client.act(observe(), 60_000)
        assert refusal.value.code == "lost"
        client.close()


def test_nobody_listens():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(ServingError) as refusal:
        PolicyClient(f"ws://127.0.0.1:{port}")
    assert refusal.value.code == "lost"


def fuzz(running, rounds, seed):
    """Mutations of a good message, one connection after the other; every one is answered or its connection ends."""
    stream, good = random.Random(seed), pack({**GOOD, "obs": OBS})
    done = 0
    while done < rounds:
        with connect(running.url, compression=None) as raw:
            raw.recv(5)
            try:
                for _ in range(min(12, rounds - done)):
                    data = bytearray(good)
                    for _ in range(stream.choice((1, 1, 2, 8, 40))):
                        data[stream.randrange(len(data))] = stream.randrange(256)
                    if stream.random() < 0.2:
                        data = data[: stream.randrange(len(data))]
                    if stream.random() < 0.1:
                        data = bytearray(stream.randbytes(stream.randrange(200)))
                    done += 1
                    raw.send(bytes(data))
                    assert unpack(raw.recv(5), 1 << 20)["type"] in ("chunk", "late", "error")
            except ConnectionClosed:
                continue


@pytest.mark.parametrize("rounds", [400, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(1200)])])
def test_fuzzed_messages_leave_no_trace(rounds):
    with serving(make_model()) as running:
        fuzz(running, 100, seed=1)
        gc.collect()
        until(lambda: not running.made._robots)
        tasks = len(running.call(_tasks()))
        before, descriptors = len(gc.get_objects()), len(list(Path("/proc/self/fd").iterdir()))
        fuzz(running, rounds, seed=2)
        until(lambda: not running.made._robots)
        gc.collect()
        assert len(running.call(_tasks())) == tasks
        assert len(list(Path("/proc/self/fd").iterdir())) <= descriptors + 1
        assert len(gc.get_objects()) < before + 2000
        check_alive(running)
        assert running.made.metrics.total("refused") > rounds / 3


async def _tasks():
    return asyncio.all_tasks()
