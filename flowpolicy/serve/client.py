"""A robot's side of the policy server. Needs numpy, msgpack and websockets; no torch."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from flowpolicy.core.errors import MissingExtraError, ServingError
from flowpolicy.serve.protocol import array_from, pack, unpack

try:
    from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI
    from websockets.sync.client import connect
except ModuleNotFoundError as error:
    raise MissingExtraError("websockets", "serve") from error

_LIMIT = 64 << 20
"""Largest answer that is read, bytes."""


class LateError(ServingError):
    """No chunk within the budget. The robot goes on with what it has, or holds."""

    def __init__(self, what: str) -> None:
        super().__init__("late", what, fix="allow a longer budget, or serve with fewer evaluations")


class Reply(NamedTuple):
    """A chunk that came in time."""

    chunk: np.ndarray
    """(h, a) float32, environment units."""
    id: int
    """Number of the request; with the client's seed it names the noise."""
    nfe: int
    """Network evaluations that the server chose."""
    checkpoint: str
    """Which weights answered."""
    queue_ms: float
    """Time in the server before the computation."""
    compute_ms: float
    """Time of the computation."""
    round_trip_ms: float
    """From the call to the chunk, by the client's clock."""


class PolicyClient:
    """One connection to a policy server; one request at a time, from one thread.

    It never connects again by itself: a robot whose policy was away must first decide what the pause means for it,
    to hold, stop or go on. One that goes on makes a new client, which takes a few milliseconds, and compares its
    contract; meanwhile its queue holds what the last chunk planned::

        try:
            reply = policy.act(obs, budget_ms=20)
        except LateError:
            pass  # go on with the last chunk
        except ServingError as error:
            if error.code != "lost":
                raise
            policy.close()
            policy = PolicyClient(url, token)  # raises 'lost' while nobody answers

    Args:
        url: such as 'ws://127.0.0.1:8765'.
        token: what the server wants to see, if it wants one.
        seed: of the noise. Noise depends on (seed, request number) alone, so the same seed and observations give
            the same chunks, up to the rounding of a batch, whoever else is served.
        timeout_s: for connecting, and on top of the budget for an answer.
        clock: monotonic seconds.

    Raises:
        ServingError: code 'lost' (nobody answers), 'token', 'crowded' or 'schema'.

    """

    def __init__(
        self,
        url: str,
        token: str = "",
        *,
        seed: int = 0,
        timeout_s: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.seed, self.timeout_s, self.clock = seed, timeout_s, clock
        self._next = 0
        if not (token.isascii() and token.isprintable()):
            raise ServingError("token", "the token holds what an HTTP header cannot", expected="printable ASCII")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._open = contextlib.ExitStack()
        try:
            self._connection = self._open.enter_context(
                connect(
                    url,
                    additional_headers=headers,
                    compression=None,
                    max_size=_LIMIT,
                    open_timeout=timeout_s,
                    close_timeout=1,
                    proxy=None,
                )
            )
        except InvalidStatus as error:
            raise _rejected(error.response.status_code, url) from error
        except InvalidURI as error:
            raise ServingError(
                "address", f"'{url}' is no address of a policy server", expected="ws://HOST:PORT"
            ) from error
        except (OSError, TimeoutError, InvalidHandshake) as error:
            raise _lost(f"no policy server answers at {url} ({type(error).__name__})") from error
        try:
            self.hello = self._read(timeout_s)
            if self.hello.get("type") != "hello":
                raise ServingError("schema", f"{url} greets with {self.hello.get('type')!r}", expected="'hello'")
        except ServingError:
            self.close()
            raise

    @property
    def contract(self) -> dict[str, Any]:
        """The policy's contract, as in ``contract.json``: compare it with the robot before anything moves."""
        contract: dict[str, Any] = self.hello["contract"]
        return contract

    @property
    def prefix(self) -> int:
        """Most committed actions that the policy continues."""
        return int(self.hello["prefix"])

    def act(
        self,
        obs: Mapping[str, np.ndarray | Sequence[bytes]],
        budget_ms: float,
        *,
        prefix: np.ndarray | None = None,
        noise: np.ndarray | None = None,
        instruction: str = "",
    ) -> Reply:
        """Ask for a chunk.

        Args:
            obs: name -> (o, *shape), environment units, oldest first; exactly the keys of the contract, of which an
                instruction may be left out. Pictures are
                uint8 as the camera gives them, or a list of o JPEG files (bytes), of the size that the contract says.
            budget_ms: time within which the chunk is of use.
            prefix: (n, a) actions that the robot executes meanwhile, n at most :attr:`prefix`; the chunk begins
                with them.
            noise: (k, h, a), instead of noise seeded by this client's seed and the number of the request.
            instruction: what is to be done, one of the texts of the contract, for a policy that was trained on several;
                unless given what the server was told, and the only one that there is.

        Returns:
            A chunk that came within the budget.

        Raises:
            LateError: it did not. A chunk that comes later is dropped, never returned for another request.
            ServingError: refused ('shape', 'nan', 'instruction', 'overloaded', ...), or 'lost': the connection is
                gone, make a new client.

        """
        number, start = self._next, self.clock()
        self._next += 1
        message = {"type": "act", "id": number, "budget_ms": budget_ms, "obs": _sent(obs), "seed": self.seed}
        given = {"prefix": prefix, "noise": noise, "instruction": instruction or None}
        message |= {name: value for name, value in given.items() if value is not None}
        if "sent_ms" in self.hello.get("optional", ()):  # the server then knows how long the request waited to be read
            message["sent_ms"] = 1e3 * start
        try:
            self._connection.send(pack(message))
        except (ConnectionClosed, OSError) as error:
            raise _lost("the policy server closed the connection") from error
        while True:
            left = budget_ms / 1000 - (self.clock() - start) + self.timeout_s
            answer = self._read(max(left, 0.0))
            # An error without a number is about a message that could not be read: with one request at a time, this.
            if answer.get("id") in (number, None):
                return self._judge(answer, number, 1e3 * (self.clock() - start), budget_ms)

    def _judge(self, answer: dict[str, Any], number: int, round_trip: float, budget: float) -> Reply:
        kind = answer.get("type")
        if kind == "error":
            words = [str(answer.get(name, "")) for name in ("code", "what")]
            raise ServingError(*words, expected=str(answer.get("expected", "")), fix=str(answer.get("fix", "")))
        if kind == "late":
            raise LateError(f"the server was {answer.get('late_ms', 0.0):.1f} ms late for a budget of {budget:g} ms")
        if kind != "chunk":
            raise ServingError("schema", f"an answer of type {kind!r}", expected="chunk, late or error")
        if round_trip > budget:
            raise LateError(f"the chunk took {round_trip:.1f} ms with a budget of {budget:g} ms")
        chunk = array_from(answer["chunk"], "chunk")
        if not np.isfinite(chunk).all():
            raise ServingError("nan", "the chunk holds NaN or infinity")
        return Reply(
            chunk,
            number,
            nfe=answer["nfe"],
            checkpoint=answer["checkpoint"],
            queue_ms=answer["queue_ms"],
            compute_ms=answer["compute_ms"],
            round_trip_ms=round_trip,
        )

    def _read(self, timeout: float) -> dict[str, Any]:
        try:
            return unpack(self._connection.recv(timeout), _LIMIT)
        except TimeoutError as error:
            raise LateError("the server did not answer") from error
        except (ConnectionClosed, OSError) as error:
            raise _lost("the policy server closed the connection") from error

    def close(self) -> None:
        """Close the connection; may be called twice."""
        self._open.close()

    def __enter__(self) -> PolicyClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _lost(what: str) -> ServingError:
    return ServingError("lost", what, fix="look whether 'flowpolicy serve' runs, then make a new client")


def _rejected(status: int, url: str) -> ServingError:
    if status == 401:
        return ServingError("token", f"{url} does not accept the token", fix="give the token of --token-file")
    if status == 503:
        return ServingError("crowded", f"{url} has no room for another client", fix="raise --max-clients")
    return ServingError("lost", f"{url} answers with HTTP status {status}", expected="a policy server")


def _sent(obs: Mapping[str, np.ndarray | Sequence[bytes]]) -> dict[str, Any]:
    """Observations as they are packed: arrays, and lists of JPEG under that name."""
    return {key: {"jpeg": list(value)} if isinstance(value, list | tuple) else value for key, value in obs.items()}
