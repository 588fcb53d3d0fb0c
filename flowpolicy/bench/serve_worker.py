"""Robots of the serving benchmark, and a server with them in one process whose time is its own processor time.

Beside other work a server meets its deadlines as the machine's scheduler pleases. Here the event loop's clock counts
the processor time that the server uses, its system calls among it, skips to the next request when there is nothing to
do, and stands still while the robots write and read: what is measured is a core of the server's own, whoever else runs.

A program of its own, so that it can run another version of flowpolicy: it uses no more of it than ``flowpolicy.serve``.
"""

from __future__ import annotations

import asyncio
import gc
import json
import selectors
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgpack
import numpy as np
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.uri import parse_uri

from flowpolicy.core.errors import ServingError
from flowpolicy.serve.protocol import pack, unpack

_FIRST = 2**40
"""Number of a robot's first request: large, so that every number takes as many bytes."""
_SENT = -1234.5678
_LIMIT = 64 << 20
GRACE_S = 1.0
"""What is not answered so long after the last request is not answered."""


class LoadRobot:
    """A robot that sends one packed message again and again, and counts what comes back.

    Args:
        url: of the server.
        number: its own.
        budget_s: deadline of every request.
        clock: monotonic seconds.

    """

    def __init__(self, url: str, number: int, budget_s: float, clock: Callable[[], float]) -> None:
        self.budget_s, self.clock = budget_s, clock
        self.asked: dict[int, float] = {}
        """When each request was sent that is not answered."""
        self.counts: Counter[str] = Counter()
        self.chunks: list[float] = []
        self.refusals: list[float] = []
        """Milliseconds to chunks, in time or not, and to refusals."""
        address = urlsplit(url)
        self.socket = socket.create_connection((address.hostname or "", address.port or 0), 10)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._protocol, self._next = ClientProtocol(parse_uri(url), max_size=_LIMIT), _FIRST
        self._protocol.send_request(self._protocol.connect())
        self._unsent = b"".join(self._protocol.data_to_send())
        self._send()
        hello = None
        while hello is None:
            data = self.socket.recv(1 << 16)
            if not data:
                raise ServingError("lost", f"{url} closed the connection of robot {number}", fix="raise --max-clients")
            self._protocol.receive_data(data)
            hello = next((event for event in self._protocol.events_received() if isinstance(event, Frame)), None)
        self._pack(unpack(bytes(hello.data), _LIMIT), number)
        self.socket.setblocking(False)

    def _pack(self, hello: dict[str, Any], number: int) -> None:
        random, contract = np.random.default_rng(number), hello["contract"]
        obs = {}
        for key, of in contract["spec"]["observation"].items():
            shape = (contract["history"], *of["shape"])
            seen = of.get("kind") == "image"
            obs[key] = (
                random.integers(0, 256, shape, np.uint8) if seen else random.normal(size=shape).astype(np.float32)
            )
        message = {"type": "act", "id": _FIRST, "budget_ms": 1e3 * self.budget_s, "obs": obs, "seed": number}
        stamped = "sent_ms" in hello.get("optional", ())
        self._message = bytearray(pack({**message, "sent_ms": _SENT} if stamped else message))
        self._id_at = self._message.index(struct.pack(">BQ", 0xCF, _FIRST)) + 1
        self._sent_at = self._message.index(struct.pack(">Bd", 0xCB, _SENT)) + 1 if stamped else 0

    def ask(self, now: float) -> None:
        """Send the next request, as of ``now``, unless the server has not even read an earlier one."""
        if self._unsent:
            self._send()
        number = self._next
        self._next += 1
        if self._unsent:
            self.counts["not read"] += 1
            return
        struct.pack_into(">Q", self._message, self._id_at, number)
        if self._sent_at:
            struct.pack_into(">d", self._message, self._sent_at, 1e3 * now)
        self._protocol.send_binary(bytes(self._message))
        self._unsent = b"".join(self._protocol.data_to_send())
        self.asked[number] = now
        self._send()

    def _send(self) -> None:
        try:
            self._unsent = self._unsent[self.socket.send(self._unsent) :]
        except BlockingIOError:
            return
        except OSError as error:
            raise ServingError("lost", f"the server ended a connection ({type(error).__name__})") from error

    def read(self) -> None:
        """Take what came."""
        data = self.socket.recv(1 << 16)
        if not data:
            raise ServingError("lost", "the server ended a connection")
        now = self.clock()
        self._protocol.receive_data(data)
        for event in self._protocol.events_received():
            if isinstance(event, Frame) and event.opcode is Opcode.BINARY:
                self._count(msgpack.unpackb(event.data), now)

    def _count(self, answer: dict[str, Any], now: float) -> None:
        wait = now - self.asked.pop(answer["id"])
        kind = answer["type"]
        if kind == "chunk":
            self.chunks.append(1e3 * wait)
            self.counts["in_time" if wait <= self.budget_s else "late"] += 1
            return
        self.counts[answer["code"] if kind == "error" else kind] += 1
        if kind == "error" and answer["code"] == "overloaded":
            self.refusals.append(1e3 * wait)


def requests_due(count: int, rate_hz: float, seconds: float, seed: int) -> list[tuple[float, int]]:
    """(second, robot) of every request, ascending: a fixed rate, at phases drawn once."""
    phases = np.random.default_rng(seed).uniform(0, 1 / rate_hz, count)
    ticks = np.arange(int(seconds * rate_hz)) / rate_hz
    return sorted((float(tick + phase), number) for number, phase in enumerate(phases) for tick in ticks)


def load_figures(robots: Sequence[LoadRobot], wall: float, used: float) -> dict[str, Any]:
    """What the robots got in ``wall`` seconds, of which the server's processor worked for ``used``."""
    for robot in robots:
        robot.counts["unanswered"] += len(robot.asked)
        robot.socket.close()
    counts = sum((robot.counts for robot in robots), Counter[str]())
    asked = counts.total()
    return {
        "robots": len(robots),
        "offered_hz": asked / wall,
        "goodput_hz": counts["in_time"] / wall,
        "in_time": counts["in_time"] / asked,
        "outcomes": {name: number / asked for name, number in counts.items() if number},
        "worst_robot_in_time": min(robot.counts["in_time"] / max(1, robot.counts.total()) for robot in robots),
        "chunk_ms": _quantiles([wait for robot in robots for wait in robot.chunks]),
        "refusal_ms": _quantiles([wait for robot in robots for wait in robot.refusals]),
        "server_cpu_ms": 1e3 * used / asked,
        "server_cpu_ms_per_answer": 1e3 * used / max(1, counts["in_time"]),
        "server_core": used / wall,
    }


def _quantiles(values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {}
    return dict(zip(("p50", "p99"), map(float, np.quantile(values, (0.5, 0.99))), strict=True))


class ProcessorTime(selectors.DefaultSelector):
    """The selector of the server's event loop, and its clock."""

    def __init__(self) -> None:
        super().__init__()
        self._now, self._since, self._running = 0.0, time.thread_time(), True
        self._due: list[tuple[float, int]] = []
        self._until = self.used = 0.0
        self._robots: Sequence[LoadRobot] = ()
        self._watched = selectors.DefaultSelector()
        self._over: asyncio.Future[None] | None = None

    used: float
    """Processor seconds of the server since :meth:`begin`."""

    def now(self) -> float:
        """Seconds: processor time of the server, and time in which it had nothing to do."""
        return self._now + (time.thread_time() - self._since if self._running else 0.0)

    def begin(self, robots: Sequence[LoadRobot], due: Sequence[tuple[float, int]]) -> asyncio.Future[None]:
        """Let robots ask; the future is done when all is answered, or will not be."""
        start = self.now() + 0.05
        self._due, self._robots = [(start + second, number) for second, number in reversed(due)], robots
        self._until, self.used = self._due[0][0] + GRACE_S, 0.0
        for robot in robots:
            self._watched.register(robot.socket, selectors.EVENT_READ, robot)
        self._over = asyncio.get_running_loop().create_future()
        return self._over

    def select(self, timeout: float | None = None) -> Any:
        """What arrived; the robots' turn, in which no time passes."""
        used = time.thread_time() - self._since
        self._now, self.used, self._running = self._now + used, self.used + used, False
        try:
            if self._over is None:  # robots connect: nothing is measured
                return super().select(0.001 if timeout is None else min(timeout, 0.001))
            self._play()
            if not super().select(0) and (timeout is None or timeout > 0):
                following = self._due[-1][0] if self._due else self._until
                self._now = max(self._now, following if timeout is None else min(following, self._now + timeout))
                self._play()
                if not self._due and (self._now >= self._until or not any(robot.asked for robot in self._robots)):
                    self._end(self._over)
        finally:
            self._since, self._running = time.thread_time(), True
        return super().select(0)

    def _play(self) -> None:
        for key, _ in self._watched.select(0):
            key.data.read()
        while self._due and self._due[-1][0] <= self._now:
            second, number = self._due.pop()
            self._robots[number].ask(second)

    def _end(self, over: asyncio.Future[None]) -> None:
        over.set_result(None)
        self._over = None
        for robot in self._robots:
            self._watched.unregister(robot.socket)


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self, clock: ProcessorTime) -> None:
        self._clock = clock
        super().__init__(clock)

    def time(self) -> float:
        """What timers are counted in."""
        return self._clock.now()


def measure(model: Any, order: dict[str, Any]) -> list[dict[str, Any]]:
    """Serve ``model`` to one number of robots after the other.

    Args:
        model: :class:`flowpolicy.serve.model.Model`.
        order: robots (numbers of them), rate_hz, seconds, budget_ms, seed, batches.

    """
    clock = ProcessorTime()
    with asyncio.Runner(loop_factory=lambda: _Loop(clock)) as runner:
        return runner.run(_serve(clock, model, order))


async def _serve(clock: ProcessorTime, model: Any, order: dict[str, Any]) -> list[dict[str, Any]]:
    from flowpolicy.serve.server import PolicyServer
    from flowpolicy.serve.server_config import ServerConfig

    # All in the loop: a thread's time would not be on the clock.
    config = ServerConfig(port=0, max_clients=max(order["robots"]), inline_ms=1e6, max_batch=order["batches"][-1])
    server, found = PolicyServer(model, config, clock=clock.now), []
    budget_s, loop = order["budget_ms"] / 1e3, asyncio.get_running_loop()
    async with server.running() as port:
        url = f"ws://127.0.0.1:{port}"
        for count in order["robots"]:
            robots = [
                await loop.run_in_executor(None, LoadRobot, url, number, budget_s, clock.now) for number in range(count)
            ]
            gc.collect()
            gc.freeze()
            counted = Counter(server.metrics.counts)
            await clock.begin(robots, requests_due(count, order["rate_hz"], order["seconds"], order["seed"]))
            figures = load_figures(robots, order["seconds"], clock.used)
            counted = Counter(server.metrics.counts) - counted
            batches = {int(label.partition("=")[2]): n for (name, label), n in counted.items() if name == "batches"}
            rows = sum(size * number for size, number in batches.items())
            found.append({**figures, "rows_per_batch": rows / max(1, sum(batches.values()))})
            gc.unfreeze()
    return found


def main() -> None:
    """Load and serve what is ordered on the command line, as JSON; write the figures as JSON."""
    from flowpolicy.serve.engines import load_engines
    from flowpolicy.serve.model import Model

    order = json.loads(sys.argv[1])
    engines, checkpoint = load_engines(Path(order["run"]), (), order["threads"], order["engine"], order["batches"])
    model = Model.prepare(engines, checkpoint, order["batches"], time.thread_time)  # type: ignore[arg-type]
    sys.stdout.write(json.dumps(measure(model, order)) + "\n")


if __name__ == "__main__":
    main()
