"""Messages between robot and policy server, version 1, and their explicit validation. No pickle, no torch.

Every message is one MessagePack map with ``schema`` and ``type``. An array is a map of ``dtype``, ``shape`` and
``data`` (C order, little endian).

========  ========  ==================================================================================
from      type      other entries
========  ========  ==================================================================================
server    hello     contract, checkpoint, engine, nfes, prefix, candidates, limits, optional [name], and
                    instruction, which is followed where a request says none, of a policy that takes them
client    act       id, budget_ms, obs {name: array (o, *shape)}, seed; optional noise, prefix (n, a), and
                    sent_ms and instruction where hello names them among its optional entries
server    chunk     id, chunk (h, a), nfe, checkpoint, queue_ms, compute_ms
server    late      id, late_ms: no chunk, the budget had run out
server    error     id (or nil), code, what, expected, fix
========  ========  ==================================================================================

A request is looked at twice: :func:`asked` reads number and budget, which is all that refusing it needs, and
:func:`request_from` decodes and checks the arrays of one that is computed. Every request is answered once, and a newer
one of its connection ends it with the code 'superseded'.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from flowpolicy.core.errors import ConfigError, MissingExtraError, ServingError
from flowpolicy.core.spec import Spec
from flowpolicy.policy.inputs import require_followed, require_told, told

try:
    import msgpack
except ModuleNotFoundError as error:
    raise MissingExtraError("msgpack", "serve") from error

SCHEMA = 1
DTYPES = {name: np.dtype(name).newbyteorder("<") for name in ("float32", "float64", "uint8", "int32", "int64")}
"""Types that an array may have on the wire."""
_FLOAT = DTYPES["float32"]
_ENCODED = {np.dtype(name): (name, wire) for name, wire in DTYPES.items()}
OPTIONAL = ("sent_ms", "instruction")
"""Entries of a request that this version understands and an earlier one would refuse: hello names them."""
MAX_DIMENSIONS = 6
MAX_ENTRIES = 64
"""Entries of a map, and so observation keys."""
MAX_TEXT = 4096
MAX_ID = 2**53
MAX_BUDGET_MS = 60_000.0


def pack(message: Mapping[str, Any]) -> bytes:
    """Encode a message; arrays of a type outside :data:`DTYPES` are a ServingError."""
    encoded: bytes = msgpack.packb({"schema": SCHEMA, **message}, default=_encode)
    return encoded


def unpack(data: bytes | str, limit: int) -> dict[str, Any]:
    """Decode a message of this schema; its arrays are still maps, see :func:`array_from`.

    Args:
        data: one WebSocket message.
        limit: largest number of bytes.

    Raises:
        ServingError: code 'malformed', or 'schema' where the version is another one.

    """
    if isinstance(data, str):
        raise ServingError("malformed", "a text message", expected="a binary MessagePack map")
    if len(data) > limit:
        raise ServingError("malformed", f"a message of {len(data)} bytes", expected=f"at most {limit}")
    try:
        message = msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            max_str_len=MAX_TEXT,
            max_bin_len=limit,
            max_array_len=MAX_TEXT,
            max_map_len=MAX_ENTRIES,
            max_ext_len=0,
        )
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        what = f"not a MessagePack map: {type(error).__name__} {error}"
        raise ServingError("malformed", what[:200], expected="one map per message") from error
    if not isinstance(message, dict) or not set(map(type, message)) <= {str}:
        raise ServingError("malformed", f"a {type(message).__name__}", expected="a map with names as keys")
    if not _whole(message.get("schema")) or message["schema"] != SCHEMA:
        raise ServingError(
            "schema",
            f"schema version {message.get('schema')!r}"[:100],
            expected=f"{SCHEMA}",
            fix="use client and server of the same flowpolicy version",
        )
    return message


def error_message(id_: int | None, error: ServingError) -> dict[str, Any]:
    """An 'error' message."""
    return {
        "type": "error",
        "code": error.code,
        "what": error.what,
        "expected": error.expected,
        "fix": error.fix,
        "id": id_,
    }


class Refusal:
    """An 'error' message that many requests are answered with, packed but for their number.

    Args:
        error: what it says.

    """

    def __init__(self, error: ServingError) -> None:
        self._packed = pack(error_message(None, error))[:-1]  # nil takes one byte

    def of(self, id_: int) -> bytes:
        """For the request with this number."""
        return self._packed + b"\xcf" + id_.to_bytes(8)  # MessagePack's uint 64


def _encode(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        name, wire = _ENCODED.get(value.dtype) or (value.dtype.name, DTYPES.get(value.dtype.name))
        if wire is None:
            raise ServingError("shape", f"an array of {value.dtype}", expected=f"one of {', '.join(DTYPES)}")
        return {"dtype": name, "shape": value.shape, "data": value.astype(wire, copy=False).tobytes()}
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"a message cannot hold a {type(value).__name__}")


def array_from(value: Any, where: str) -> np.ndarray:
    """Decode one array, read-only; the shape must account for every byte.

    Raises:
        ServingError: code 'shape', naming ``where``.

    """
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data"}:
        raise ServingError("shape", f"{where} is no array", expected="a map of dtype, shape and data")
    name, shape, data = value["dtype"], value["shape"], value["data"]
    if not isinstance(name, str) or name not in DTYPES:
        raise ServingError("shape", f"{where}: dtype {name!r}"[:200], expected=f"one of {', '.join(DTYPES)}")
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS or not all(_whole(side) for side in shape):
        raise ServingError("shape", f"{where}: shape {shape!r}"[:200], expected=f"up to {MAX_DIMENSIONS} whole numbers")
    if not isinstance(data, bytes) or math.prod(shape) * DTYPES[name].itemsize != len(data):
        size = len(data) if isinstance(data, bytes) else type(data).__name__
        raise ServingError("shape", f"{where}: {shape} of {name} in {size} bytes"[:200], expected="as many as it takes")
    return np.frombuffer(data, dtype=DTYPES[name]).reshape(shape)


@dataclasses.dataclass(frozen=True)
class InputForm:
    """What a policy takes, derived from its contract: the shapes that a request is checked against."""

    obs: dict[str, tuple[int, ...]]
    """Observation key -> (o, *shape)."""
    noise: tuple[int, int, int]
    """(candidates, chunk, action)."""
    prefix: int = 0
    """Most committed actions."""
    pictures: frozenset[str] = frozenset()
    """Keys whose arrays are pictures, of uint8."""
    told: Instructions | None = None
    """Of a policy that takes an instruction."""


@dataclasses.dataclass(frozen=True)
class Instructions:
    """What a policy that takes instructions can be told in a request."""

    spec: Spec
    """Of its contract, whose ``instructions`` are the texts."""
    usual: str = ""
    """What it does when a request does not say; empty where every request must."""

    def rows(self, text: str, history: int) -> dict[str, np.ndarray]:
        """Observation -> (o, n) float32 of a text, the same at all moments that a decision sees.

        Raises:
            ServingError: code 'instruction': it is unknown, or there is none and several are known.

        """
        try:
            given = told(require_followed(text or self.usual, self.spec), self.spec)
        except ConfigError as error:
            fix = error.fix if text else "say it in the request, client.act(..., instruction='TEXT'), or to all: "
            fix += "" if text else "flowpolicy serve --instruction TEXT"
            raise ServingError("instruction", error.what, expected=error.expected, fix=fix) from error
        return {key: np.tile(row, (history, 1)) for key, row in given.items()}


@dataclasses.dataclass(frozen=True)
class ActRequest:
    """A request that was found good."""

    id: int
    """Number of the request within its client; the answer carries it."""
    budget_ms: float
    """Time from arrival within which the answer is of use."""
    obs: dict[str, np.ndarray]
    """name -> (o, *shape) float32, finite."""
    seed: int
    """Seeds the noise, together with ``id``."""
    noise: np.ndarray | None = None
    """(candidates, h, a) float32, instead of seeded noise."""
    prefix: np.ndarray | None = None
    """(n, a) float32 committed actions in environment units."""


class Asked(NamedTuple):
    """A request of which all but the arrays was found good."""

    id: int
    """Number of the request within its client; the answer carries it."""
    budget_ms: float
    """Time from arrival within which the answer is of use."""
    sent_ms: float | None
    """When it was sent, by the client's own monotonic clock; None where the client does not say."""
    message: Mapping[str, Any]
    """All of it; its arrays are not decoded."""


def asked(message: Mapping[str, Any]) -> Asked:
    """Check a message of type 'act' but for its arrays.

    Raises:
        ServingError: 'malformed'.

    """
    entries = message.keys()
    if message.get("type") != "act":
        raise ServingError("malformed", f"type {message.get('type')!r}"[:100], expected="'act'")
    if not entries <= _KNOWN or not entries >= _NEEDED:
        raise ServingError("malformed", f"entries {sorted(message)}"[:200], expected="id, budget_ms, obs, seed")
    for name in ("id", "seed"):
        value = message[name]
        if type(value) is not int or not 0 <= value <= MAX_ID:
            raise ServingError("malformed", f"{name} is {value!r}"[:100], expected="a whole number to 2**53")
    budget, sent = message["budget_ms"], message.get("sent_ms")
    if type(budget) not in _REAL or not 0 < budget <= MAX_BUDGET_MS:
        raise ServingError("malformed", f"budget_ms is {budget!r}"[:100], expected=f"above 0, up to {MAX_BUDGET_MS:g}")
    if sent is not None and (type(sent) not in _REAL or not -MAX_ID < sent < MAX_ID):
        raise ServingError("malformed", f"sent_ms is {sent!r}"[:100], expected="milliseconds of the client's clock")
    if type(text := message.get("instruction", "")) is not str:
        raise ServingError("malformed", f"instruction is {text!r}"[:100], expected="a text")
    return Asked(message["id"], float(budget), sent, message)


_NEEDED = {"schema", "type", "id", "budget_ms", "obs", "seed"}
_KNOWN = _NEEDED | {"noise", "prefix", *OPTIONAL}
_REAL = (int, float)


def request_from(request: Asked, form: InputForm) -> ActRequest:
    """Decode and check the arrays of a request.

    Raises:
        ServingError: 'shape' (keys, shapes, types), 'nan' (not finite) or 'instruction' (unknown, or not said).

    """
    message = request.message
    prefix = _optional(message, "prefix")
    if prefix is not None:
        action = form.noise[2]
        if prefix.ndim != 2 or prefix.shape[1] != action or prefix.shape[0] > form.prefix:
            raise ServingError(
                "shape",
                f"prefix has the shape {prefix.shape}",
                expected=f"(n, {action}) with n at most {form.prefix}",
                fix="train with a longer --agent.prefix, or compute faster",
            )
    noise = _optional(message, "noise")
    if noise is not None and noise.shape != form.noise:
        raise ServingError("shape", f"noise has the shape {noise.shape}", expected=str(form.noise))
    obs = _observation(_with_instruction(message, form), form)
    return ActRequest(request.id, request.budget_ms, obs, message["seed"], noise, prefix)


def _observation(value: Any, form: InputForm) -> dict[str, np.ndarray]:
    if not isinstance(value, dict) or set(value) != set(form.obs):
        keys = sorted(map(str, value)) if isinstance(value, dict) else type(value).__name__
        raise ServingError("shape", f"observation keys {keys}"[:200], expected=f"exactly {sorted(form.obs)}")
    obs = {}
    for name, shape in form.obs.items():
        if name in form.pictures:
            from flowpolicy.serve.picture_codec import pictures_from

            obs[name] = pictures_from(value[name], shape, name)
            continue
        array = _plain(value[name], shape)
        if array is None:
            array = array_from(value[name], f"observation {name}")
            if array.shape != shape:
                raise ServingError(
                    "shape", f"observation {name} has the shape {array.shape}", expected=f"{shape}, oldest first"
                )
            array = _finite(array, f"observation {name}")
        obs[name] = array
    if form.told is not None:
        for name in form.told.spec.instructions:
            try:
                require_told(name, obs[name])
            except ConfigError as error:
                raise ServingError(
                    "instruction", error.what, expected=error.expected, fix="send the text: 'instruction'"
                ) from error
    return obs


def _with_instruction(message: Mapping[str, Any], form: InputForm) -> Any:
    """The observations of a message, with what its instruction makes of them where they do not say it themselves."""
    obs, text = message["obs"], message.get("instruction", "")
    if form.told is None and text:
        raise ServingError("instruction", f"the instruction '{text}'"[:200] + " to a policy that takes none")
    if form.told is None or not isinstance(obs, dict):
        return obs
    keys = form.told.spec.instructions.keys()
    if keys <= obs.keys() and not text:
        return obs
    if both := keys & obs.keys():
        raise ServingError("instruction", f"a text, and the observation {', '.join(both)}", expected="one of the two")
    rows = form.told.rows(text, form.obs[next(iter(keys))][0])
    return obs | {key: {"dtype": "float32", "shape": row.shape, "data": row.tobytes()} for key, row in rows.items()}


def _plain(value: Any, shape: tuple[int, ...]) -> np.ndarray | None:
    """What nearly every observation is, in a fifth of the time: finite float32 of this very shape; None otherwise."""
    try:
        if value["dtype"] != "float32" or tuple(value["shape"]) != shape or len(value) != 3:
            return None
        array = np.frombuffer(value["data"], _FLOAT).reshape(shape)
    except (TypeError, KeyError, ValueError):
        return None  # array_from says what is wrong with it
    return array if math.isfinite(np.vdot(array, array)) else None


def _optional(message: Mapping[str, Any], name: str) -> np.ndarray | None:
    return _finite(array_from(message[name], name), name) if message.get(name) is not None else None


def _finite(array: np.ndarray, where: str) -> np.ndarray:
    number = array
    if array.dtype != np.float32:
        with np.errstate(over="ignore", invalid="ignore"):
            number = array.astype(np.float32)
    if not np.isfinite(number).all():
        raise ServingError(
            "nan",
            f"{where} holds NaN or infinity",
            expected="finite numbers",
            fix="the robot side must decide what to do",
        )
    return number


def _whole(value: Any) -> bool:
    return type(value) is int and value >= 0
