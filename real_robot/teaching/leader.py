"""Another arm whose joints this one follows: its stream over a websocket (docs/teach.md#leader describes the wire)."""

from __future__ import annotations

import contextlib
import dataclasses
import hmac
import http
import math
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flowpolicy.core.errors import ConfigError, MissingExtraError
from flowpolicy.core.files import read_object, write_json
from flowpolicy.real_robot.arm.arm_model import ArmModel
from flowpolicy.real_robot.teaching.teaching_device import Array, DeviceError, DeviceReading, Speaks, TeachingClock

VERSION = 1
_LARGEST = 4096
"""Bytes of a packet at most."""
_MANY = 32
"""Joints of a packet at most."""
_ALIKE = (0.15, 0.6)
"""In calibration every joint is turned by 0.3 rad; between these it counts, rad."""
TURN = 0.3


class LeaderPacket(NamedTuple):
    """What a leader said."""

    heard: float
    """When, by this host's clock, s."""
    seq: int
    """Its number."""
    stamp: float
    """The leader's clock, s."""
    q: Array
    """(n,) rad, as the leader counts them."""
    held: bool
    """Whether its deadman's button is pressed."""
    grip: float
    """How far its gripper is open, 0 to 1; not-a-number without one."""


def read_packet(data: bytes | str, heard: float) -> LeaderPacket:
    """One message of the wire.

    Raises:
        ConfigError: it is none of this version; the words say why.

    """
    import msgpack

    if isinstance(data, str) or len(data) > _LARGEST:
        raise ConfigError(f"a message of {len(data)} {'letters' if isinstance(data, str) else 'bytes'}")
    try:
        said = msgpack.unpackb(data, raw=False, max_array_len=_MANY, max_map_len=16, max_str_len=64, max_ext_len=0)
    except Exception as error:  # msgpack's own, and whatever its decoder meets
        raise ConfigError(f"no MessagePack: {type(error).__name__}") from error
    if not isinstance(said, dict) or said.get("v") != VERSION:
        raise ConfigError("a message of another version", expected=f"a map with v = {VERSION}")
    q, seq, held, grip = (said.get(key) for key in ("q", "seq", "held", "grip"))
    stamp: Any = said.get("t")
    if not (isinstance(q, list) and 0 < len(q) <= _MANY and all(type(one) in (int, float) for one in q)):
        raise ConfigError("'q' is no list of numbers")
    if type(seq) is not int or type(stamp) not in (int, float) or type(held) is not bool:
        raise ConfigError("'seq', 't' or 'held' is missing or of another type")
    if grip is not None and type(grip) not in (int, float):
        raise ConfigError("'grip' is no number")
    return LeaderPacket(
        heard, seq, float(stamp), np.array(q, dtype=np.float64), held, math.nan if grip is None else float(grip)
    )


@dataclasses.dataclass(frozen=True)
class LeaderCalibration:
    """From a leader's joints to those of the arm: sign times angle plus offset."""

    signs: tuple[int, ...]
    """1 or -1 per joint."""
    offsets: tuple[float, ...]
    """rad."""

    def apply(self, q: Array) -> Array:
        """(n,) rad of the arm for (n,) rad of the leader."""
        if len(q) != len(self.signs):
            raise ConfigError(f"the leader has {len(q)} joints", expected=f"{len(self.signs)}, as it was calibrated")
        return np.array(self.signs) * q + np.array(self.offsets)

    def save(self, path: Path, arm: str) -> None:
        """Write it to a file."""
        write_json(path, {"arm": arm, **dataclasses.asdict(self)})

    @staticmethod
    def load(path: Path, arm: str) -> LeaderCalibration:
        """Read it.

        Raises:
            ConfigError: the file holds no calibration for the arm.

        """
        stored = read_object(path)
        signs, offsets = (value if isinstance(value := stored.get(key), list) else [] for key in ("signs", "offsets"))
        fine = all(sign in (1, -1) for sign in signs) and all(type(one) in (int, float) for one in offsets)
        fine = fine and 0 < len(signs) == len(offsets)
        if not fine or stored.get("arm") != arm or not np.isfinite(offsets).all():
            raise ConfigError(
                f"{path} holds no calibration of a leader for the arm '{arm}'",
                fix="make one: flowpolicy robot leader FILE",
            )
        return LeaderCalibration(tuple(signs), tuple(float(one) for one in offsets))

    @staticmethod
    def between(first: Array, second: Array, arm: ArmModel) -> LeaderCalibration:
        """From the leader's joints (n,) rad at the arm's home, and with every joint of the arm turned by 0.3 rad.

        Raises:
            ConfigError: a joint did not turn, or turned too far.

        """
        turned = second - first
        wrong = [
            f"joint {joint + 1} by {turned[joint]:+.2f} rad"
            for joint in range(len(turned))
            if not _ALIKE[0] < abs(turned[joint]) < _ALIKE[1]
        ]
        if len(turned) != arm.joints or wrong:
            raise ConfigError(
                f"between the two poses turned {', '.join(wrong) or f'{len(turned)} joints'}",
                expected=f"every one of {arm.joints} joints by about {TURN:g} rad, this way or the other",
                fix="do both poses again",
            )
        signs = np.sign(turned).astype(int)
        offsets = np.array(arm.home) - signs * first
        return LeaderCalibration(tuple(signs.tolist()), tuple(offsets.tolist()))


def require_token(host: str, token: str) -> None:
    """Raise :class:`ConfigError` where a leader may come from another host and shows nothing."""
    if not token and host not in ("127.0.0.1", "localhost", "::1"):
        raise ConfigError(
            f"a leader on {host} without a token could be anybody",
            fix="put a long random word in a file and give --leader-token-file FILE",
        )


class LeaderServer:
    """Listens for one leader at a time; keeps its newest packet.

    Args:
        host: address that is listened on.
        port: of it; 0 takes a free one.
        token: what a leader must show.
        clock: this host's, s.

    Raises:
        ConfigError: the address is reachable from elsewhere and no token is asked for.
        DeviceError: the port is taken.

    """

    def __init__(self, host: str, port: int, token: str, clock: Callable[[], float] = time.monotonic) -> None:
        try:
            from websockets.sync.server import serve
        except ModuleNotFoundError as error:
            raise MissingExtraError("websockets", "teach") from error
        require_token(host, token)
        self._token, self._clock, self._lock = token, clock, threading.Lock()
        self._packets: list[LeaderPacket] = []
        self._strange, self._connected = "", 0
        try:
            self._server = serve(
                self._serve, host, port, process_request=self._admit, max_size=_LARGEST, compression=None
            )
        except OSError as error:
            raise DeviceError(f"{host}:{port} cannot be listened on: {error}", fix="choose another port") from error
        self.port = int(self._server.socket.getsockname()[1])
        """That is listened on."""
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def connected(self) -> bool:
        """Whether a leader is there."""
        return self._connected > 0

    def take(self) -> tuple[list[LeaderPacket], str]:
        """Packets since the last call, and what was strange about others."""
        with self._lock:
            packets, strange = self._packets, self._strange
            self._packets, self._strange = [], ""
        return packets, strange

    def close(self) -> None:
        """Listen no more."""
        self._server.shutdown()

    def _admit(self, connection: Any, request: Any) -> Any:
        shown = request.headers.get("Authorization", "")
        if self._token and not hmac.compare_digest(shown.encode(), f"Bearer {self._token}".encode()):
            return connection.respond(http.HTTPStatus.UNAUTHORIZED, "token missing or wrong\n")
        if "Origin" in request.headers:  # no web page may steer an arm
            return connection.respond(http.HTTPStatus.FORBIDDEN, "not for browsers\n")
        return None

    def _serve(self, connection: Any) -> None:
        with self._lock:
            taken = self._connected > 0
            self._connected += not taken
        if taken:
            connection.close(1008, "another leader is connected")
            return
        try:
            for message in connection:
                heard = self._clock()
                try:
                    packet = read_packet(message, heard)
                except ConfigError as error:
                    with self._lock:
                        self._strange = f"it sent {error.what}"
                    continue
                with self._lock:
                    self._packets = [*self._packets[-63:], packet]
        except Exception as error:  # a connection that ends badly has ended
            with self._lock:
                self._strange = f"its connection broke: {type(error).__name__}"
        finally:
            with self._lock:
                self._connected -= 1


class LeaderArm:
    """A leader behind the protocol of a device.

    Args:
        listen: makes the server.
        calibration: from its joints to the arm's.
        width: of the arm's hand, m.

    """

    name, silence_s, unchanged_s, released = "leader", 0.2, math.inf, "the deadman's button is released"
    speaks: Speaks = "joints"

    def __init__(self, listen: Callable[[], LeaderServer], calibration: LeaderCalibration, width: float) -> None:
        self._listen, self._calibration, self._width = listen, calibration, width
        self._server: LeaderServer | None = None
        self._newest: LeaderPacket | None = None
        self._clock = TeachingClock()

    def open(self, now: float) -> None:
        """Listen."""
        if self._server is None:
            self._server = self._listen()
        self._forget()

    def read(self, now: float) -> DeviceReading:
        """The newest packet, if all came in order."""
        if self._server is None:
            raise DeviceError("nobody listens")
        packets, strange = self._server.take()
        if not packets and self._newest is None and not strange:
            raise DeviceError("unplugged: no leader is connected" if not self._server.connected else "it is silent")
        for packet in packets:
            told = self._clock.strange(packet.stamp, packet.heard)
            if self._newest is not None and packet.seq <= self._newest.seq:
                told = told or f"packet {packet.seq} came after packet {self._newest.seq}"
            if not np.isfinite(packet.q).all():
                told = "its joint positions are not numbers"
            strange = strange or told
            self._newest = packet
        if self._newest is None:
            raise DeviceError(strange)
        if not packets and not self._server.connected:
            self._forget()
            raise DeviceError("unplugged: its connection has ended")
        newest = self._newest
        try:
            joints = self._calibration.apply(newest.q)
        except ConfigError as error:
            raise DeviceError(error.what) from error
        opening = math.nan if math.isnan(newest.grip) else min(max(newest.grip, 0.0), 1.0) * self._width
        return DeviceReading(
            heard=newest.heard,
            moved=newest.heard,
            held=newest.held,
            twist=np.zeros(6),
            joints=joints,
            opening=opening,
            strange=strange,
        )

    def close(self) -> None:
        """Go on listening: a leader comes back by itself. The process ends the server."""

    def end(self) -> None:
        """Listen no more."""
        if self._server is not None:
            with contextlib.suppress(Exception):
                self._server.close()
            self._server = None

    def _forget(self) -> None:
        self._newest, self._clock = None, TeachingClock()
