"""A proxy of the robot's protocol on loopback that loses, delays and silences packets exactly as told.

``python tests/real_robot/twin/fault_proxy.py`` listens on 127.0.0.2:1337 and talks to the twin on 127.0.0.1:1337. The
client's UDP port travels in its Connect request (bytes 14 and 15): the proxy puts its own there and relays both ways.
The kernel's ``tc netem`` is missing on many machines, and cannot lose exactly twenty packets.

Control socket, one JSON object per line on 127.0.0.1:13371; the answer holds the faults in force, the counts, and how
long the client took from a state to the next command (of the newest 60,000)::

    {"loss_command": p, "loss_state": p, "delay_command_ms": d, "delay_state_ms": d}
    {"drop_commands": n}   {"drop_states": n}   {"silence_s": t}
"""

from __future__ import annotations

import heapq
import itertools
import json
import random
import select
import socket
import socketserver
import struct
import threading
import time
from collections import deque
from typing import Any

import numpy as np

from flowpolicy.real_robot.drivers.priority import WIRE, claim_priority

ROBOT, LISTEN, CONTROL_PORT = ("127.0.0.1", 1337), ("127.0.0.2", 1337), 13371
_PORT_AT, _LARGEST, _ANSWERS = 14, 65536, 60_000


class Faults:
    """What happens to datagrams. Commands go to the robot, states come from it."""

    def __init__(self) -> None:
        self.settings = {"loss_command": 0.0, "loss_state": 0.0, "delay_command_ms": 0.0, "delay_state_ms": 0.0}
        self.counts = {"command": 0, "state": 0, "dropped_command": 0, "dropped_state": 0}
        self._answers: deque[float] = deque(maxlen=_ANSWERS)
        self._asked: float | None = None
        self._to_drop = {"command": 0, "state": 0}
        self._silent_until = 0.0
        self._random = random.Random(0)

    def set(self, request: dict[str, Any]) -> None:
        """Take over a request; raises :class:`KeyError` on an unknown word."""
        for name, value in request.items():
            if name == "silence_s":
                self._silent_until = time.perf_counter() + float(value)
            elif name in ("drop_commands", "drop_states"):
                self._to_drop[name.removeprefix("drop_").removesuffix("s")] = int(value)
            else:
                self.settings[name]
                self.settings[name] = float(value)

    def delay(self, kind: str) -> float | None:
        """Seconds that a datagram of ``kind`` waits; None if it is lost."""
        self.counts[kind] += 1
        lost = time.perf_counter() < self._silent_until or self._random.random() < self.settings[f"loss_{kind}"]
        if self._to_drop[kind] > 0:
            self._to_drop[kind] -= 1
            lost = True
        if lost:
            self.counts[f"dropped_{kind}"] += 1
            return None
        return 1e-3 * self.settings[f"delay_{kind}_ms"]

    def passed(self, kind: str) -> None:
        """Count the client's time to answer: from a state that goes to it to the first command that comes back."""
        if kind == "state":
            self._asked = time.perf_counter()
        elif self._asked is not None:
            self._answers.append(1e3 * (time.perf_counter() - self._asked))
            self._asked = None

    def report(self) -> dict[str, Any]:
        """Faults in force, datagrams so far, and the client's time to answer, ms."""
        answers = np.array(self._answers)
        found = {f"answer_p{p}_ms": round(float(np.percentile(answers, p)), 4) for p in (50, 99) if len(answers)}
        return {**self.settings, **self.counts, "answers": len(answers), **found}


class Session:
    """One client of the robot.

    Args:
        client: its connection.
        faults: what happens to its datagrams.
        robot: address to connect to.

    """

    def __init__(self, client: socket.socket, faults: Faults, robot: tuple[str, int] = ROBOT) -> None:
        self.faults, self._client = faults, client
        self._robot = socket.create_connection(robot)
        for one in (client, self._robot):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._towards_robot, self._towards_client = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in (0, 1))
        self._towards_robot.bind(("127.0.0.1", 0))
        self._towards_client.bind((client.getsockname()[0], 0))
        self._client_udp = self._robot_udp = ("", 0)
        self._open = True

    def run(self) -> None:
        """Relay until either side closes."""
        datagrams = threading.Thread(target=self._relay_datagrams, daemon=True)
        back = threading.Thread(target=self._pump, args=(self._robot, self._client), daemon=True)
        datagrams.start()
        back.start()
        self._pump(self._client, self._robot, rewrite=True)
        back.join()
        self._open = False
        datagrams.join()
        for one in (self._client, self._robot, self._towards_robot, self._towards_client):
            one.close()

    def _pump(self, source: socket.socket, sink: socket.socket, rewrite: bool = False) -> None:
        try:
            while data := source.recv(_LARGEST):
                if rewrite:
                    data, rewrite = self._rewritten(data), False
                sink.sendall(data)
        except OSError:
            pass  # the other side has gone: so does this one
        for one in (source, sink):
            try:
                one.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue

    def _rewritten(self, connect: bytes) -> bytes:
        """The Connect request with the proxy's port; remembers the client's."""
        (port,) = struct.unpack_from("<H", connect, _PORT_AT)
        self._client_udp = (self._client.getpeername()[0], port)
        own = struct.pack("<H", self._towards_robot.getsockname()[1])
        return connect[:_PORT_AT] + own + connect[_PORT_AT + 2 :]

    def _relay_datagrams(self) -> None:
        waiting: list[tuple[float, int, str, bytes]] = []
        order = itertools.count()
        while self._open:
            pause = max(0.0, min(0.05, waiting[0][0] - time.perf_counter())) if waiting else 0.05
            for one in select.select([self._towards_robot, self._towards_client], [], [], pause)[0]:
                data, sender = one.recvfrom(_LARGEST)
                kind = "state" if one is self._towards_robot else "command"
                if kind == "state":
                    self._robot_udp = sender
                else:
                    self.faults.passed(kind)
                delay = self.faults.delay(kind)
                if delay is not None:
                    heapq.heappush(waiting, (time.perf_counter() + delay, next(order), kind, data))
            while waiting and waiting[0][0] <= time.perf_counter():
                _, _, kind, data = heapq.heappop(waiting)
                if kind == "state":
                    self.faults.passed(kind)
                    self._towards_client.sendto(data, self._client_udp)
                else:
                    self._towards_robot.sendto(data, self._robot_udp)


class _Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    allow_reuse_address, daemon_threads = True, True


def serve(
    faults: Faults, listen: tuple[str, int] = LISTEN, control_port: int = CONTROL_PORT
) -> tuple[_Server, _Server]:
    """Start proxy and control socket in threads; ``shutdown`` ends each."""

    class Relay(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            Session(self.request, faults).run()

    class Control(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            for line in self.rfile:
                try:
                    faults.set(json.loads(line))
                    reply = faults.report()
                except (KeyError, ValueError) as error:
                    reply = {"error": repr(error)}
                self.wfile.write((json.dumps(reply) + "\n").encode())

    servers = _Server(listen, Relay), _Server(("127.0.0.1", control_port), Control)
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    return servers


if __name__ == "__main__":
    claim_priority(WIRE)
    serve(Faults())
    threading.Event().wait()
