"""Faulty messages over loopback: each is refused with its reason, and the connection goes on."""

import msgpack
import numpy as np
import pytest
from websockets.sync.client import connect

from flowpolicy.serve.protocol import pack, unpack

from .conftest import GOOD, observe


def refused(running, message):
    """The answer to a message sent as it is; the connection must survive it."""
    with connect(running.url, compression=None) as raw:
        raw.recv(5)
        raw.send(message if isinstance(message, bytes | str) else pack(message))
        answer = unpack(raw.recv(5), 1 << 20)
        raw.send(pack({**GOOD, "obs": observe()}))
        assert unpack(raw.recv(5), 1 << 20)["type"] == "chunk"
    return answer


def array(dtype="float32", shape=(2, 3), data=bytes(24)):
    return {"dtype": dtype, "shape": list(shape), "data": data}


OBS = observe()
NAN, INF = (np.full((2, 2), value) for value in (np.nan, np.inf))


@pytest.mark.parametrize(
    ("code", "obs"),
    [
        ("shape", {}),
        ("shape", {"state": OBS["state"]}),
        ("shape", {**OBS, "camera": OBS["goal"]}),
        ("shape", {**OBS, "state": OBS["state"][:1]}),
        ("shape", {**OBS, "state": OBS["state"][None]}),
        ("shape", {**OBS, "state": [1.0, 2.0]}),
        ("shape", {**OBS, "state": array("object")}),
        ("shape", {**OBS, "state": array("<V8")}),
        ("shape", {**OBS, "state": array(data=bytes(23))}),
        ("shape", {**OBS, "state": array(shape=(2, -3))}),
        ("shape", {**OBS, "state": array(shape=(2**40, 2**40))}),
        ("shape", {**OBS, "state": array(shape=(True, 6))}),
        ("shape", {**OBS, "state": array(shape=[1] * 9)}),
        ("shape", {**OBS, "state": {**array(), "order": "F"}}),
        ("shape", 7),
        ("nan", {**OBS, "goal": NAN}),
        ("nan", {**OBS, "goal": INF}),
        ("nan", {**OBS, "goal": np.full((2, 2), 1e300)}),
    ],
)
def test_a_wrong_observation_is_refused_with_its_number(server, code, obs):
    answer = refused(server, {**GOOD, "obs": obs})
    assert (answer["type"], answer["code"], answer["id"]) == ("error", code, 5)


@pytest.mark.parametrize(
    ("code", "change"),
    [
        ("malformed", {"type": "shutdown"}),
        ("malformed", {"type": None}),
        ("malformed", {"id": -1}),
        ("malformed", {"id": "5"}),
        ("malformed", {"id": True}),
        ("malformed", {"id": 2**60}),
        ("malformed", {"seed": 1.5}),
        ("malformed", {"budget_ms": 0}),
        ("malformed", {"budget_ms": float("nan")}),
        ("malformed", {"budget_ms": 1e12}),
        ("malformed", {"budget_ms": "soon"}),
        ("malformed", {"priority": 1}),
        ("shape", {"noise": np.zeros((1, 4, 3), np.float32)}),
        ("nan", {"noise": np.full((1, 4, 2), np.nan, np.float32)}),
        ("shape", {"prefix": np.zeros((3, 2), np.float32)}),
        ("nan", {"prefix": np.full((1, 2), np.inf, np.float32)}),
        ("schema", {"schema": 2}),
        ("schema", {"schema": "1"}),
        ("schema", {"schema": True}),
    ],
)
def test_a_wrong_entry_is_refused(server, code, change):
    answer = refused(server, {**GOOD, "obs": OBS, **change})
    assert (answer["type"], answer["code"]) == ("error", code)


@pytest.mark.parametrize(
    "data",
    [
        "text",
        b"",
        b"\xc1",
        bytes(300),
        b"\x91" * 5000,
        msgpack.packb([1, 2]),
        msgpack.packb({1: 2}),
        msgpack.packb({"schema": 1, "x": msgpack.ExtType(4, b"pickle")}),
        msgpack.packb({"schema": 1, **{str(i): i for i in range(100)}}),
        msgpack.packb({"schema": 1, "type": "act" * 5000}),
        pack({**GOOD, "obs": OBS})[:-7],
        pack({**GOOD, "obs": OBS}) + b"\x00",
    ],
    ids=range(12),
)
def test_a_malformed_message_is_refused(server, data):
    answer = refused(server, data)
    assert (answer["type"], answer["code"], answer["id"]) == ("error", "malformed", None)
