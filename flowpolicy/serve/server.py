"""The policy server: connections, tokens, limits, health, metrics and reload around the dispatcher."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import http
import json
import logging
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from flowpolicy.core.errors import ConfigError, MissingExtraError, ServingError
from flowpolicy.serve.dispatcher import Dispatcher, error_message
from flowpolicy.serve.metrics import ServerMetrics
from flowpolicy.serve.model import Model, prefix_of
from flowpolicy.serve.protocol import pack, request_from, unpack
from flowpolicy.serve.server_config import ServerConfig, is_loopback

try:
    from websockets.asyncio.server import Server, ServerConnection, serve
    from websockets.datastructures import MultipleValuesError
    from websockets.exceptions import ConnectionClosed
    from websockets.http11 import Request, Response
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
        self._load, self._start = load, clock()
        self._reloading = asyncio.Lock()
        self._clients: set[_Client] = set()
        self._dispatcher = Dispatcher(
            model,
            self.metrics,
            clock,
            margin_s=config.margin_ms / 1000,
            window_s=config.window_ms / 1000,
            inline_s=config.inline_ms / 1000,
            max_waiting=config.max_waiting,
        )

    @property
    def model(self) -> Model:
        """What is served now."""
        return self._dispatcher.model

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[int]:
        """Serve inside the block; yields the port."""
        config = self.config
        engine = asyncio.create_task(self._dispatcher.run(lambda: len(self._clients)))
        engine.add_done_callback(_report)
        self._engine = engine
        server: Server = await serve(
            self._handle,
            config.host,
            config.port,
            process_request=self._gate,
            origins=[None],  # browsers send one: no web page may steer a robot through this port
            compression=None,
            max_size=config.limit,
            max_queue=16,
            open_timeout=5,
            close_timeout=1,
            ping_interval=20,
            ping_timeout=20,
            server_header=None,
            logger=log,
        )
        try:
            yield next(iter(server.sockets)).getsockname()[1]
        finally:
            await self._dispatcher.close()
            server.close(close_connections=True)
            await server.wait_closed()
            engine.cancel()
            await asyncio.gather(engine, return_exceptions=True)

    async def died(self) -> None:
        """Return only if the dispatcher ends, which it should not; raises what it died of."""
        await asyncio.shield(self._engine)

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
            "limits": {"message_bytes": self.config.limit, "in_flight": self.config.max_in_flight},
        }

    def _gate(self, connection: ServerConnection, request: Request) -> Response | None:
        """Health and metrics as plain HTTP; whoever may not in is turned away before the first message."""
        if request.path == "/health":
            dead = self._engine.done()
            return connection.respond(
                http.HTTPStatus.SERVICE_UNAVAILABLE if dead else http.HTTPStatus.OK,
                json.dumps({"status": "dead" if dead else "ok", "checkpoint": self.model.checkpoint}) + "\n",
            )
        try:
            shown = request.headers.get("Authorization", "").encode()
        except MultipleValuesError:
            shown = b"\0"
        if self._authorization and not hmac.compare_digest(shown, self._authorization):
            self.metrics.count("unauthorized")
            return connection.respond(http.HTTPStatus.UNAUTHORIZED, "token missing or wrong\n")
        if request.path == "/metrics":
            gauges = {
                "clients": len(self._clients),
                "waiting": self._dispatcher.waiting,
                "uptime_seconds": self.clock() - self._start,
                "cpu_seconds": time.process_time(),
            }
            return connection.respond(http.HTTPStatus.OK, self.metrics.text(gauges))
        if len(self._clients) >= self.config.max_clients:
            self.metrics.count("crowded")
            return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, "too many clients\n")
        return None

    async def _handle(self, connection: ServerConnection) -> None:
        client = _Client(connection, self.config, self.metrics)
        self._clients.add(client)
        writer = asyncio.create_task(client.write())
        try:
            client.send(self.hello())
            async for data in connection:
                self._receive(client, data)
        except ConnectionClosed:
            return
        finally:
            self._clients.discard(client)
            self._dispatcher.forget(client)
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)

    def _receive(self, client: _Client, data: bytes | str) -> None:
        number = None
        try:
            message = unpack(data, self.config.limit)
            if type(message.get("id")) is int and 0 <= message["id"] < 2**63:
                number = message["id"]
            if message.get("type") != "act":
                raise ServingError("malformed", f"type {message.get('type')!r}"[:100], expected="'act'")
            request = request_from(message, self.model.form)
        except ServingError as error:
            self.metrics.count("refused", f"code={error.code}")
            client.fault(error_message(number, error))
            return
        client.faults = 0
        if client.in_flight >= self.config.max_in_flight:
            self.metrics.count("shed")
            refusal = ServingError("overloaded", f"{client.in_flight} requests are unanswered", fix="wait for answers")
            client.send(error_message(request.id, refusal))
            return
        client.in_flight += 1
        self._dispatcher.submit(request, client, client.answer)


class _Client:
    """One connection: what waits to be written to it, and how it behaves."""

    def __init__(self, connection: ServerConnection, config: ServerConfig, metrics: ServerMetrics) -> None:
        self.connection, self.config, self.metrics = connection, config, metrics
        self.faults = self.in_flight = 0
        self._outbox: asyncio.Queue[bytes] = asyncio.Queue(4 * config.max_in_flight)

    def send(self, message: dict[str, Any]) -> None:
        """Queue a message; a client that lets them pile up is disconnected."""
        try:
            self._outbox.put_nowait(pack(message))
        except asyncio.QueueFull:
            self._abort()

    def answer(self, message: dict[str, Any]) -> None:
        """Queue the answer of a request."""
        self.in_flight -= 1
        self.send(message)

    def fault(self, message: dict[str, Any]) -> None:
        """Answer a faulty message; too many in a row end the connection."""
        self.send(message)
        self.faults += 1
        if self.faults >= self.config.faults:
            self.metrics.count("disconnected", "reason=faults")
            self.connection.transport.abort()

    async def write(self) -> None:
        """Write what is queued until cancelled or the connection ends."""
        with contextlib.suppress(ConnectionClosed):
            while True:
                message = await self._outbox.get()
                try:
                    async with asyncio.timeout(self.config.stall_s):
                        await self.connection.send(message)
                except TimeoutError:
                    self._abort()

    def _abort(self) -> None:
        self.metrics.count("disconnected", "reason=stalled")
        self.connection.transport.abort()


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        log.critical("the dispatcher died", exc_info=task.exception())
