"""The policy server: connections, tokens, limits, health, metrics and reload around the dispatcher."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hmac
import http
import json
import logging
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from flowpolicy.core.errors import ConfigError, MissingExtraError, ServingError
from flowpolicy.serve.arrival import PollClock, StampDelay
from flowpolicy.serve.connection import Callbacks, ConnectionGroup, SocketConnection
from flowpolicy.serve.dispatcher import Dispatcher
from flowpolicy.serve.engine_loop import EngineLoop
from flowpolicy.serve.metrics import ServerMetrics
from flowpolicy.serve.model import Model, prefix_of
from flowpolicy.serve.protocol import OPTIONAL, asked, error_message, pack, unpack
from flowpolicy.serve.server_config import ServerConfig, is_loopback

try:
    from websockets.datastructures import MultipleValuesError
    from websockets.http11 import Request, Response
    from websockets.server import ServerProtocol
except ModuleNotFoundError as error:
    raise MissingExtraError("websockets", "serve") from error

log = logging.getLogger("flowpolicy.serve")


class PolicyServer:
    """Serves one policy to many robots.

    Args:
        model: what to serve first.
        config: options.
        token: what clients must show; required unless ``config.host`` is a loopback address.
        load: loads the newest checkpoint, for :meth:`reload`; called in a thread.
        clock: monotonic seconds.
        polls: the selector of the event loop that it runs in, which knows when a message of a client that sends no
            stamps had arrived; without it, when it is read.

    Raises:
        ConfigError: a reachable address without a token.

    """

    def __init__(
        self,
        model: Model,
        config: ServerConfig,
        token: str = "",
        load: Callable[[], Model] | None = None,
        clock: Callable[[], float] = time.monotonic,
        polls: PollClock | None = None,
    ) -> None:
        if not token and not is_loopback(config.host):
            raise ConfigError(
                f"serving on {config.host} without a token",
                expected="a token, or --host 127.0.0.1",
                fix="put a long random word in a file and give --token-file FILE",
            )
        if not (token.isascii() and token.isprintable() and token == token.strip()):
            raise ConfigError("the token holds what an HTTP header cannot", expected="printable ASCII, no space around")
        self.config, self.metrics, self.clock = config, ServerMetrics(), clock
        self._authorization = f"Bearer {token}".encode() if token else b""
        self._load, self._start, self._polls = load, clock(), polls
        self._reloading = asyncio.Lock()
        self._robots: set[_Robot] = set()
        self._dispatcher = Dispatcher(
            model, self.metrics, margin_s=config.margin_ms / 1000, window_s=config.window_ms / 1000
        )

    @property
    def model(self) -> Model:
        """What is served now."""
        return self._dispatcher.model

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[int]:
        """Serve inside the block; yields the port."""
        config, loop, group = self.config, asyncio.get_running_loop(), ConnectionGroup()
        self._engine = EngineLoop(self._dispatcher, self.clock, lambda: len(self._robots), config.inline_ms / 1000)
        callbacks = Callbacks(self._gate, self._opened, self._lost, self._stalled)
        server = await loop.create_server(
            lambda: SocketConnection(group, callbacks, config.limit, config.stall_s), config.host, config.port
        )
        watch = asyncio.create_task(group.watch())
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            await self._engine.close()
            server.close()
            await group.close()
            await server.wait_closed()
            watch.cancel()

    async def died(self) -> None:
        """Return only if the dispatcher ends, which it should not; raises what it died of."""
        await asyncio.shield(self._engine.died)

    async def reload(self) -> bool:
        """Load the newest checkpoint and go over to it between two batches; on an error the old one stays.

        Returns:
            Whether another checkpoint is served now.

        """
        if self._load is None:
            return False
        async with self._reloading:
            try:
                model = await asyncio.get_running_loop().run_in_executor(None, self._load)
                self.model.require_same_contract(model)
            except Exception as error:
                # Whatever is wrong with the new checkpoint, the old one goes on serving.
                self.metrics.count("reloads", "result=refused")
                log.exception("the checkpoint is not reloaded", exc_info=error)
                return False
            self._dispatcher.replace(model)
            self.metrics.count("reloads", "result=done")
            log.warning("serving checkpoint %s", model.checkpoint)
            return True

    def hello(self) -> dict[str, Any]:
        """What a client is told first."""
        from flowpolicy.core.spec import contract_json

        model, engine = self.model, self.model.any_engine
        return {
            "type": "hello",
            "contract": contract_json(engine.contract),
            "checkpoint": model.checkpoint,
            "engine": engine.name,
            "nfes": sorted(model.engines),
            "candidates": engine.candidates,
            "prefix": prefix_of(engine),
            "latency_ms": model.table.to_json(),
            "limits": {"message_bytes": self.config.limit, "in_flight": 1},
            "optional": OPTIONAL,
            **({"instruction": model.instruction} if model.instruction else {}),
        }

    def _gate(self, connection: ServerProtocol, request: Request) -> Response | None:
        """Health and metrics as plain HTTP; whoever may not in is turned away before the first message."""
        if request.path == "/health":
            dead = self._engine.died.done()
            return connection.reject(
                http.HTTPStatus.SERVICE_UNAVAILABLE if dead else http.HTTPStatus.OK,
                json.dumps({"status": "dead" if dead else "ok", "checkpoint": self.model.checkpoint}) + "\n",
            )
        try:
            shown = request.headers.get("Authorization", "").encode()
        except MultipleValuesError:
            shown = b"\0"
        if self._authorization and not hmac.compare_digest(shown, self._authorization):
            self.metrics.count("unauthorized")
            return connection.reject(http.HTTPStatus.UNAUTHORIZED, "token missing or wrong\n")
        if request.path == "/metrics":
            gauges = {
                "clients": len(self._robots),
                "waiting": self._dispatcher.waiting,
                "uptime_seconds": self.clock() - self._start,
                "cpu_seconds": time.process_time(),
            }
            return connection.reject(http.HTTPStatus.OK, self.metrics.text(gauges))
        if len(self._robots) >= self.config.max_clients:
            self.metrics.count("crowded")
            return connection.reject(http.HTTPStatus.SERVICE_UNAVAILABLE, "too many clients\n")
        return None

    def _opened(self, connection: SocketConnection) -> Callable[[bytes | str], None]:
        robot = _Robot(connection, self.config.faults, self.metrics, self.clock())
        connection.robot = robot
        self._robots.add(robot)
        connection.send(pack(self.hello()))
        return functools.partial(self._receive, robot)

    def _lost(self, connection: SocketConnection) -> None:
        robot = connection.robot
        self._robots.discard(robot)
        self._dispatcher.forget(robot)

    def _stalled(self) -> None:
        self.metrics.count("disconnected", "reason=stalled")

    def _receive(self, robot: _Robot, data: bytes | str) -> None:
        message: dict[str, Any] = {}
        try:
            message = unpack(data, self.config.limit)
            request = asked(message)
        except ServingError as error:
            self.metrics.count("refused", f"code={error.code}")
            number = message.get("id")
            known = number if type(number) is int and 0 <= number < 2**63 else None
            robot.fault(pack(error_message(known, error)))
            return
        self._dispatcher.submit(request, robot, self._arrival(robot, request.sent_ms))
        self._engine.wake()

    def _arrival(self, robot: _Robot, sent_ms: float | None) -> float:
        """When a message that was just read had arrived."""
        now, polls = self.clock(), self._polls
        if sent_ms is None:
            return now if polls is None else polls.since
        stamped = now - robot.delay.of(now, sent_ms / 1000)
        return stamped if polls is None else min(stamped, polls.looked)


class _Robot:
    """A robot's connection, and how it behaves."""

    def __init__(self, connection: SocketConnection, most_faults: int, metrics: ServerMetrics, now: float) -> None:
        self.connection, self.metrics, self.served, self.delay = connection, metrics, now, StampDelay()
        self.faults, self._most_faults = 0, most_faults
        self.answer = connection.send

    def fault(self, message: bytes) -> None:
        """Answer a faulty message; too many in a row end the connection."""
        self.connection.send(message)
        self.faults += 1
        if self.faults >= self._most_faults:
            self.metrics.count("disconnected", "reason=faults")
            self.connection.abort()
