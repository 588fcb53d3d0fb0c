"""Frames however they come: cut, joined, in fragments; what a connection does when nothing comes any more."""

import asyncio
import contextlib
import itertools
import socket

import pytest
from websockets.frames import Frame, Opcode
from websockets.sync.client import connect

from flowpolicy.serve.protocol import pack, unpack

from .conftest import GOOD, observe, serving, until

OBS = observe()


def request(number):
    return pack({**GOOD, "id": number, "obs": OBS})


def masked(data, opcode=Opcode.BINARY, fin=True):
    return Frame(opcode, data, fin).serialize(mask=True)


class Wire:
    """A WebSocket whose bytes are the test's."""

    def __init__(self, running):
        self._open = contextlib.ExitStack()
        self._raw = self._open.enter_context(connect(running.url, compression=None))
        self._raw.recv(5)
        self.socket = self._raw.socket

    def send(self, data):
        self.socket.sendall(data)

    def answers(self, count):
        return [unpack(self._raw.recv(5), 1 << 20) for _ in range(count)]

    def close(self):
        self._open.close()


@pytest.fixture
def wire(server):
    made = Wire(server)
    yield made
    made.close()


def test_frames_may_be_cut_anywhere(server, wire):
    data = masked(request(1)) + masked(b"", Opcode.PING) + masked(b"\xc1") + masked(request(2))
    for cut in itertools.chain(range(1, 14), range(len(data) // 2, len(data) // 2 + 12), (len(data) - 1,)):
        wire.send(data[:cut])
        server.call(_on_the_loop())  # the first part is read
        wire.send(data[cut:])
        answers = {answer["id"]: answer for answer in wire.answers(3)}
        assert set(answers) == {1, 2, None}
        assert answers[2]["type"] == "chunk"
        assert answers[None]["code"] == "malformed"


async def _on_the_loop(*calls):
    await asyncio.sleep(0.002)
    for call in calls:
        call()


def test_a_message_may_come_in_fragments_with_others_between_its_frames(wire):
    data = request(7)
    wire.send(masked(data[:100], fin=False) + masked(b"alive?", Opcode.PING))
    wire.send(masked(data[100:200], Opcode.CONT, fin=False))
    wire.send(masked(data[200:], Opcode.CONT))
    (answer,) = wire.answers(1)
    assert (answer["type"], answer["id"]) == ("chunk", 7)
    wire.send(masked(request(8)))
    assert wire.answers(1)[0]["type"] == "chunk"


def test_frames_of_every_length_are_answered(wire):
    for size in (0, 1, 125, 126, 127, 65_535, 65_536, 200_000):
        wire.send(masked(bytes(size)))
        assert wire.answers(1)[0]["code"] == "malformed"
    wire.send(masked(request(1)))
    assert wire.answers(1)[0]["type"] == "chunk"


def test_the_limit_holds_for_short_frames_too():
    with serving(message_mb=300 / 2**20) as running:
        wire = Wire(running)
        wire.send(masked(bytes(300)))
        assert wire.answers(1)[0]["code"] == "malformed"
        wire.send(masked(bytes(301)))
        until(lambda: not running.made._robots)
        wire.close()


def test_who_does_not_answer_a_ping_is_ended_and_who_does_is_not(server):
    raw = socket.create_connection(("127.0.0.1", server.port))
    raw.sendall(
        b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    with raw, server.client() as client:
        until(lambda: len(server.made._robots) == 2)
        silent, lively = sorted(
            (robot.connection for robot in server.made._robots),
            key=lambda one: one._transport.get_extra_info("peername") != raw.getsockname(),
        )
        for _ in range(2):
            server.call(_on_the_loop(silent.ping, lively.ping))
            until(lambda: lively.lively)
        until(lambda: len(server.made._robots) == 1)
        assert client.act(OBS, 5000).chunk.shape == (4, 2)
