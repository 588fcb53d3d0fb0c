"""WebSocket connections of the server: websockets' protocol without its tasks, straight from socket to message.

The library does what RFC 6455 says: handshake, limits, fragments, control frames, closing. What it adds for asyncio
costs several times what a robot's request does, and hides when a message came. Whole binary frames of up to 64 KiB,
which is what robots send and are sent, are taken apart and put together here, in a third of the library's time:
refusing a request must cost a small part of answering it, or a server that is asked too much only refuses.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import struct
from collections.abc import Callable
from typing import Any

from flowpolicy.core.errors import MissingExtraError

try:
    from websockets.frames import CloseCode, Frame, Opcode
    from websockets.http11 import Request, Response
    from websockets.protocol import SEND_EOF, State
    from websockets.server import ServerProtocol

    try:
        from websockets.speedups import apply_mask
    except ImportError:
        from websockets.utils import apply_mask
except ModuleNotFoundError as error:
    raise MissingExtraError("websockets", "serve") from error

log = logging.getLogger("flowpolicy.serve")

_READ = 1 << 16
"""Most bytes read from one connection in a round of the loop: who sends without end keeps nobody else waiting."""
_BINARY = 0x82
"""First byte of a binary frame that is a whole message."""
_MASKED = 0x80
"""In its second byte, beside the length: what clients send is masked."""
_OPEN_S = 5.0
"""For the handshake."""
_CLOSE_S = 1.0
"""For the other side to close, after it was told to."""
_PING_S = 20.0
"""A connection on which nothing comes for so long is asked whether it lives, and ended if nothing comes for as long."""


@dataclasses.dataclass(frozen=True)
class Callbacks:
    """What a connection tells its server, and asks it."""

    gate: Callable[[ServerProtocol, Request], Response | None]
    """Looks at an HTTP request: answers it, or lets it become a WebSocket."""
    opened: Callable[[SocketConnection], Callable[[bytes | str], None]]
    """Told of a WebSocket; gives what takes its messages."""
    lost: Callable[[SocketConnection], None]
    """Told that a WebSocket is no more."""
    stalled: Callable[[], None]
    """Told that a client read nothing for too long and was disconnected."""


class SocketConnection(asyncio.BufferedProtocol):
    """One connection.

    Args:
        group: the others.
        callbacks: the server.
        limit: largest message, bytes.
        stall_s: a client that reads nothing for so long is disconnected.

    """

    def __init__(self, group: ConnectionGroup, callbacks: Callbacks, limit: int, stall_s: float) -> None:
        self._group, self._callbacks, self._stall_s, self._limit = group, callbacks, stall_s, limit
        # Browsers send their origin: no web page may steer a robot through this port.
        self._protocol = ServerProtocol(origins=[None], max_size=limit, logger=log)
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._take: Callable[[bytes | str], None] | None = None
        self._parts: list[bytes | bytearray] = []
        self._out: list[bytes] = []
        self._text = self._reading = False
        self.lively = True
        """Whether something came since the last look."""
        self.robot: Any = None
        """What the server keeps of who is at the other end."""

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the handshake."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._group.add(self)
        self._give(_OPEN_S)

    def get_buffer(self, sizehint: int) -> memoryview:
        """One buffer serves all: what is read is taken out before the next one reads."""
        return self._group.buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Handle what was read; answers are written together."""
        self.lively = self._reading = True
        try:
            taken = self._whole_frames(nbytes)
            if taken == nbytes:
                if self._out:
                    self._flush()
                return
            self._protocol.receive_data(bytes(self._group.buffer[taken:nbytes]))
            for event in self._protocol.events_received():
                if isinstance(event, Frame):
                    self._frame(event)
                elif isinstance(event, Request):
                    self._request(event)
            self._flush()
        finally:
            self._reading = False

    def eof_received(self) -> None:
        """The other side ended; asyncio closes what is left."""
        self._protocol.receive_eof()
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the server."""
        self._give(None)
        self._group.discard(self)
        if self._take is not None:
            self._take = None
            self._callbacks.lost(self)

    def pause_writing(self) -> None:
        """Read nothing more from a client that does not read, and disconnect it if that lasts."""
        with contextlib.suppress(RuntimeError):  # it is closing, and reads nothing anyway
            self._transport.pause_reading()
        if self._protocol.state is State.OPEN:
            self._give(self._stall_s, self._stalled)

    def resume_writing(self) -> None:
        """It reads again."""
        with contextlib.suppress(RuntimeError):
            self._transport.resume_reading()
        if self._protocol.state is State.OPEN:
            self._give(None)

    # What the server calls.

    def send(self, message: bytes) -> None:
        """Send a message; nothing happens on a connection that is closing."""
        if self._protocol.state is State.OPEN:
            size = len(message)
            if size >= 1 << 16:
                self._protocol.send_binary(message)
                self._out += self._protocol.data_to_send()
                if not self._reading:
                    self._flush()
                return
            head = bytes((_BINARY, size)) if size < 126 else struct.pack("!BBH", _BINARY, 126, size)
            if self._reading:
                self._out.append(head + message)
            elif not self._transport.is_closing():  # nothing else waits to be written
                self._transport.write(head + message)

    def ping(self) -> None:
        """Ask whether the other side lives, or end the connection if it was asked before and said nothing."""
        if not self.lively:
            self.abort()
        elif self._protocol.state is State.OPEN:
            self.lively = False
            self._protocol.send_ping(b"")
            self._flush()

    def close(self) -> None:
        """Say goodbye; the other side has a moment to answer."""
        if self._protocol.state is State.OPEN:
            self._protocol.send_close(CloseCode.GOING_AWAY)
            self._flush()
            self._give(_CLOSE_S)
        elif self._protocol.state is State.CONNECTING:
            self.abort()

    def abort(self) -> None:
        """End it at once."""
        self._transport.abort()

    def _request(self, request: Request) -> None:
        response = self._callbacks.gate(self._protocol, request) or self._protocol.accept(request)
        self._protocol.send_response(response)
        self._out += self._protocol.data_to_send()
        if self._protocol.state is State.OPEN:
            self._give(None)
            self._take = self._callbacks.opened(self)

    def _whole_frames(self, nbytes: int) -> int:
        """Take what can be taken without the library; returns how many of the bytes that were read."""
        taken, buffer = 0, self._group.buffer
        if self._take is None or self._parts or self._protocol.reader.buffer or self._protocol.state is not State.OPEN:
            return 0
        while nbytes - taken >= 6 and buffer[taken] == _BINARY and (size := buffer[taken + 1]) >= _MASKED:
            start, size = taken + 6, size - _MASKED
            if size >= 126:
                if size == 127 or nbytes - taken < 8:
                    break
                start, size = taken + 8, int.from_bytes(buffer[taken + 2 : taken + 4])
            if start + size > nbytes or size > self._limit:
                break
            data = apply_mask(buffer[start : start + size], bytes(buffer[start - 4 : start]))
            taken = start + size
            self._take(data)
            if self._transport.is_closing():
                return nbytes
        return taken

    def _frame(self, frame: Frame) -> None:
        if frame.opcode in (Opcode.BINARY, Opcode.TEXT):
            self._text = frame.opcode is Opcode.TEXT
        elif frame.opcode is not Opcode.CONT:
            return
        data: bytes | bytearray | memoryview = frame.data
        if not frame.fin or self._parts:
            self._parts.append(bytes(data))
            if not frame.fin:
                return
            data, self._parts = b"".join(self._parts), []
        if self._take is not None:
            self._take("" if self._text else data)  # type: ignore[arg-type]  # what the library read is no memoryview

    def _flush(self) -> None:
        writes = self._out + self._protocol.data_to_send()
        self._out.clear()
        if not writes or self._transport.is_closing():
            return
        over = writes[-1] == SEND_EOF
        data = writes[0] if len(writes) == 1 else b"".join(writes)
        if data:
            self._transport.write(data)
        if over:
            with contextlib.suppress(OSError, RuntimeError):
                self._transport.write_eof()
            self._give(_CLOSE_S)

    def _stalled(self) -> None:
        self._callbacks.stalled()
        self.abort()

    def _give(self, seconds: float | None, then: Callable[[], Any] | None = None) -> None:
        """Call ``then``, :meth:`abort` unless given, after ``seconds``; there is one such time at most."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if seconds is None else self._loop.call_later(seconds, then or self.abort)


class ConnectionGroup:
    """All connections of a server: they share the buffer that is read into, and are closed together."""

    def __init__(self) -> None:
        self.buffer = memoryview(bytearray(_READ))
        self._all: set[SocketConnection] = set()
        self._empty = asyncio.Event()
        self._empty.set()

    def add(self, connection: SocketConnection) -> None:
        """Take part."""
        self._all.add(connection)
        self._empty.clear()

    def discard(self, connection: SocketConnection) -> None:
        """Be no more."""
        self._all.discard(connection)
        if not self._all:
            self._empty.set()

    async def watch(self) -> None:
        """Disconnect who is gone without a word, until cancelled."""
        while True:
            await asyncio.sleep(_PING_S)
            for connection in tuple(self._all):
                connection.ping()

    async def close(self) -> None:
        """Close all, within a moment."""
        for connection in tuple(self._all):
            connection.close()
        await self._empty.wait()
