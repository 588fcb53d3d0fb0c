"""What the processes of a session tell each other: record types, and the rings they travel in."""

from __future__ import annotations

import functools
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from flowpolicy.core.errors import ConfigError
from flowpolicy.real_robot.arm.arm_model import ArmModel
from flowpolicy.real_robot.arm.models import find_arm
from flowpolicy.real_robot.bridge.shared_ring import Records, Ring, no_session
from flowpolicy.real_robot.drivers.driver_protocols import ActionChunk

ROWS = 64
"""Largest number of rows in a chunk."""
TASK = 16
"""Numbers that describe what an episode is about, e.g. the goal."""
WORDS, NAME, TOLD = 240, 24, 120
_ARM = "arm"
"""File of a session that names its arm."""


@functools.cache
def tick_type(joints: int) -> np.dtype[Any]:
    """One tick of the bridge of an arm with so many joints. Times in s, joints in rad, openings in m.

    ``chunk`` is the decision that is followed and ``t_obs`` its observation's time; ``disagreement`` is how far, in
    rad, the chunks ask to be from where the arm is held (shadow runs). The last row counts since the start of the
    session: ticks without a chunk, references clipped to the workspace, steps that the guard refused, chunks rejected,
    late ticks, decisions of the policy that missed their period, and chunks accepted.
    """
    return np.dtype(
        [
            ("t_mono", "f8"),
            ("t_wall", "f8"),
            ("t_robot", "f8"),
            *((name, "f8", joints) for name in ("q", "dq", "tau", "tau_ext", "q_ref", "q_cmd", "dq_cmd")),
            ("width", "f8"),
            ("width_ref", "f8"),
            ("grasped", "f8"),
            ("task", "f8", TASK),
            ("state", "i8"),
            ("episode", "i8"),
            ("chunk", "i8"),
            ("t_obs", "f8"),
            ("rows_left", "i8"),
            ("success_rate", "f8"),
            ("speed", "f8"),
            ("lateness", "f8"),
            ("compute", "f8"),
            ("disagreement", "f8"),
            *((name, "i8") for name in ("starved", "clipped", "refused", "rejected", "late", "missed", "chunks")),
        ]
    )


@functools.cache
def chunk_type(joints: int) -> np.dtype[Any]:
    """One decision for an arm with so many joints.

    ``inputs`` is the newest observation that it was made on, flat: of states, as far as it fits. ``rows`` 0 is a bare
    sign of life; with ``told`` it says why the arm must hold. Beside rows ``told`` is a warning.
    """
    return np.dtype(
        [
            ("seq", "i8"),
            ("t_obs", "f8"),
            ("t_infer", "f8"),
            ("t0", "f8"),
            ("dt", "f8"),
            ("frozen", "i8"),
            ("missed", "i8"),
            ("rows", "i8"),
            ("q", "f8", (ROWS, joints)),
            ("gripper", "f8", ROWS),
            ("inputs", "f8", 64),
            ("told", f"S{TOLD}"),
        ]
    )


COMMAND = np.dtype([("name", f"S{NAME}"), ("number", "i8"), ("value", "f8", TASK)])
"""A wish of the operator: aim (``value`` is where home leads from now on, rad), home, start, guide (start, and a hand
leads), stop, recover, rearm, open (the gripper), quit; begin (``number`` of the episode, ``value`` what it is about),
task (new ``value``), end (``number`` one of :data:`OUTCOMES`)."""

OUTCOMES = {1: "success", 0: "failure", -1: "discarded", -2: "unlabelled"}
"""What an episode came to, by the number of its end."""

EVENT = np.dtype([("t_mono", "f8"), ("t_wall", "f8"), ("kind", f"S{NAME}"), ("text", f"S{WORDS}")])
"""Something worth keeping: a transition, a rejection, a fault."""

RECORDER = np.dtype([("t_mono", "f8"), ("rows", "i8"), ("lost", "i8"), ("episodes", "i8"), ("failed", f"S{WORDS}")])
"""How the recorder fares: ticks written and lost, whole episodes, and what failed, empty if nothing did."""

DEVICE = np.dtype(
    [
        ("t_mono", "f8"),
        ("held", "i8"),
        ("follows", "i8"),
        ("twist", "f8", 6),
        ("joints", "f8", TASK),
        ("closed", "i8"),
        ("told", f"S{WORDS}"),
    ]
)
"""One look at a teaching device: when, whether the deadman's button is held and the arm follows, what it asks for
(shares of the full speed; joints in rad), whether the gripper should be closed, and what is wrong."""

TYPED = np.dtype([("t_mono", "f8"), ("paused", "i8"), ("key", "S8")])
"""A sign of life of the session's terminal: when, whether the person has paused the teaching, and what was typed."""

FRAMES = 32
"""Pictures that the ring of a camera keeps."""


def frame_type(height: int, width: int) -> np.dtype[Any]:
    """Record of one picture: number, when it was exposed (bridge's and camera's clock), when it was seen, s; pixels.

    ``told`` says what is wrong where the camera's newest picture cannot be shown; the pixels are then the last ones.
    """
    return np.dtype(
        [
            ("seq", "i8"),
            ("t_mono", "f8"),
            ("t_device", "f8"),
            ("t_seen", "f8"),
            ("rgb", "u1", (height, width, 3)),
            ("told", f"S{TOLD}"),
        ]
    )


def told(record: Records) -> str:
    """What a record of a chunk or a frame tells; empty if nothing."""
    return bytes(record["told"].item()).decode(errors="replace")


def before_told(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """What a record of chunks or frames was before it had ``told``: journals of then are still finished."""
    return np.dtype([(name, *_shape(dtype[name])) for name in dtype.names or () if name != "told"])


def _shape(dtype: np.dtype[Any]) -> tuple[Any, ...]:
    return dtype.subdtype or (dtype,)


class SessionRings:
    """The rings of one robot session, in a folder of /dev/shm.

    Args:
        name: of the session; one robot, one session.
        create: the arm that the rings are made for, in the process that starts the session; the others read there
            which arm it is.
        now: the bridge's clock.

    Raises:
        SharedMemoryError: no such session is running.

    """

    def __init__(self, name: str, *, create: ArmModel | None = None, now: Callable[[], float] = time.monotonic) -> None:
        self.name, self.folder, self._now = name, session_folder(name), now
        if create is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / _ARM).write_text(create.name.lower(), encoding="utf-8")
        self.arm = create or _arm_of(self.folder)

        def ring(key: str, dtype: np.dtype[Any], size: int) -> Ring:
            return Ring(self.folder / key, dtype, size, create=create is not None)

        self.ticks = ring("ticks", tick_type(self.arm.joints), 4096)
        self.chunks = ring("chunks", chunk_type(self.arm.joints), 64)
        self.commands, self.events = ring("commands", COMMAND, 64), ring("events", EVENT, 512)
        self.recorder = ring("recorder", RECORDER, 16)
        self.device, self.typed = ring("device", DEVICE, 256), ring("typed", TYPED, 64)

    def alive(self, told: str = "") -> None:
        """A sign of life of whoever decides, without a chunk; ``told`` says why the arm must hold, if it must."""
        record = np.zeros((), chunk_type(self.arm.joints))
        record["told"] = told.encode()[:TOLD]
        self.chunks.write(record)

    def command(self, name: str, number: int = 0, value: Any = ()) -> None:
        """Tell the bridge."""
        record = np.zeros((), COMMAND)
        record["name"], record["number"] = name.encode(), number
        record["value"][: len(value)] = value
        self.commands.write(record)

    def type(self, key: bytes, paused: bool) -> None:
        """Tell the teaching device what was typed in the terminal; without a key, that the terminal is there."""
        record = np.zeros((), TYPED)
        record["t_mono"], record["paused"], record["key"] = self._now(), paused, key
        self.typed.write(record)

    def event(self, kind: str, text: str) -> None:
        """Keep a line; the bridge only."""
        record = np.zeros((), EVENT)
        record["t_mono"], record["t_wall"] = self._now(), time.time()
        record["kind"], record["text"] = kind.encode(), text.encode()[:WORDS]
        self.events.write(record)


def _arm_of(folder: Path) -> ArmModel:
    try:
        return find_arm((folder / _ARM).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise no_session(folder) from error


def session_folder(name: str) -> Path:
    """Where the rings of a session are.

    Raises:
        ConfigError: ``name`` is none; the folder of a session is deleted when it ends.

    """
    if not re.fullmatch(r"[\w.-]+", name):
        raise ConfigError(f"the session name '{name}'", expected="letters, digits, '.', '_' and '-'")
    return Path(os.environ.get("FLOWPOLICY_SHM", "/dev/shm")) / f"flowpolicy-robot-{name}"  # noqa: S108


def pack_chunk(
    chunk: ActionChunk, *, inputs: Any = (), t_infer: float = 0.0, missed: int = 0, told: str = ""
) -> Records:
    """A chunk as a record, with a warning if there is one."""
    rows, joints = chunk.q.shape
    record = np.zeros((), chunk_type(joints))
    for name in ("seq", "t_obs", "t0", "dt", "frozen"):
        record[name] = getattr(chunk, name)
    record["rows"], record["t_infer"], record["missed"] = rows, t_infer, missed
    record["q"][:rows], record["gripper"][:rows] = chunk.q, chunk.gripper
    kept = min(len(inputs), record["inputs"].size)
    record["inputs"][:kept] = inputs[:kept]
    record["told"] = told.encode()[:TOLD]
    return record


def unpack_chunk(record: Records) -> ActionChunk:
    """Inverse of :func:`pack_chunk`."""
    rows = int(record["rows"])
    return ActionChunk(
        seq=int(record["seq"]),
        t_obs=float(record["t_obs"]),
        t0=float(record["t0"]),
        dt=float(record["dt"]),
        q=record["q"][:rows].copy(),
        gripper=record["gripper"][:rows].copy(),
        frozen=int(record["frozen"]),
    )
