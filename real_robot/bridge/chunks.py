"""From chunks with absolute times to one reference per tick (docs/methods/franka-control.md#chunks).

Row i of a chunk is due at ``t0 + i dt``. Between rows a cubic Hermite curve runs through them. When a new chunk
arrives while an old one is under way, the two disagree; the modes differ in what happens at this seam:

- ``latest``: the new chunk from now on; the follower smooths the jump.
- ``crossfade``: old to new along a half cosine over min(2 dt, 0.1 s).
- ``rtc``: the new chunk repeats ``frozen`` rows that were committed (real-time chunking, Black et al. 2025), so the
  change happens where the two agree.
- ``ensemble``: mean of all chunks that cover the time, weighted exp(-0.01 i), i = 0 the oldest (ACT, Zhao et al.
  2023).
"""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from typing import Literal, NamedTuple

import numpy as np

from flowpolicy.real_robot.drivers.driver_protocols import ActionChunk, Array

Mode = Literal["latest", "crossfade", "rtc", "ensemble"]

MARGIN = 0.010
"""A row that is due earlier than this after now is too late, s."""
_ENSEMBLE_DECAY, _ENSEMBLE_CHUNKS = 0.01, 8


class Setpoint(NamedTuple):
    """What the chunks ask for at one time."""

    q: Array
    """(n,) rad."""
    dq: Array
    """(n,) rad/s."""
    gripper: float
    """Opening, m."""
    starved: bool
    """Whether the newest chunk has ended."""


class Scheduler:
    """The chunks under way.

    Args:
        mode: what happens where a new chunk replaces an old one.
        tick: period of the bridge, s.

    """

    def __init__(self, mode: Mode, tick: float) -> None:
        self.mode, self.tick = mode, tick
        self._chunks: deque[ActionChunk] = deque(maxlen=_ENSEMBLE_CHUNKS)
        self._switch = (0.0, 0.0)  # start and end of the transition to the newest chunk
        self.seam = 0.0
        """Disagreement of the newest chunk with what it replaced, where it takes over; largest joint, rad."""

    def clear(self) -> None:
        """Forget every chunk: nothing old is resumed."""
        self._chunks.clear()

    @property
    def newest(self) -> ActionChunk | None:
        """The chunk that arrived last."""
        return self._chunks[-1] if self._chunks else None

    def rows_left(self, now: float) -> int:
        """Rows of the newest chunk that are still due."""
        if not self._chunks:
            return 0
        chunk = self._chunks[-1]
        return max(0, len(chunk.q) - max(0, math.ceil((now - chunk.t0) / chunk.dt)))

    def push(self, chunk: ActionChunk, now: float) -> str:
        """Accept a chunk at ``now`` s, or say why not."""
        if chunk.dt <= 0.0 or not math.isfinite(chunk.t0):
            return f"period {chunk.dt} s from {chunk.t0} s"
        if chunk.end < now + MARGIN:
            return f"late: its last row was due {1e3 * (now - chunk.end):.0f} ms ago"
        start, length = max(now + 2 * self.tick, chunk.t0), min(2 * chunk.dt, 0.1)
        if self.mode == "rtc":
            start, length = max(start, chunk.t0 + max(chunk.frozen - 1, 0) * chunk.dt), 0.0
        elif self.mode == "latest":
            start, length = max(now, chunk.t0), 0.0
        old = self._chunks[-1] if self._chunks and self._chunks[-1].end > start else None
        if old is None:
            self._chunks.clear()
            start, length, self.seam = now, 0.0, 0.0
        else:
            self.seam = float(np.abs(hermite(chunk, start)[0] - hermite(old, start)[0]).max())
        self._switch = (start, length)
        self._chunks.append(chunk)
        return ""

    def sample(self, t: float) -> Setpoint | None:
        """The reference at ``t`` s; None before the first chunk."""
        if not self._chunks:
            return None
        new = self._chunks[-1]
        opening = new.gripper[int(np.clip(round((t - new.t0) / new.dt), 0, len(new.gripper) - 1))]
        q, dq = self._ensemble(t) if self.mode == "ensemble" else self._blend(t)
        return Setpoint(q, dq, float(opening), t > new.end)

    def _blend(self, t: float) -> tuple[Array, Array]:
        new, (start, length) = self._chunks[-1], self._switch
        if t >= start + length or len(self._chunks) == 1:
            return hermite(new, t)
        old_q, old_dq = hermite(self._chunks[-2], t)
        if t < start:
            return old_q, old_dq
        new_q, new_dq = hermite(new, t)
        phase = math.pi * (t - start) / length
        weight, slope = 0.5 - 0.5 * math.cos(phase), 0.5 * math.pi / length * math.sin(phase)
        q = old_q + weight * (new_q - old_q)
        return q, old_dq + weight * (new_dq - old_dq) + slope * (new_q - old_q)

    def _ensemble(self, t: float) -> tuple[Array, Array]:
        covering = [chunk for chunk in self._chunks if chunk.t0 <= t <= chunk.end] or [self._chunks[-1]]
        weights = np.exp(-_ENSEMBLE_DECAY * np.arange(len(covering)))
        weights /= weights.sum()
        samples = [hermite(chunk, t) for chunk in covering]
        q, dq = (sum(w * s[k] for w, s in zip(weights, samples, strict=True)) for k in (0, 1))
        return np.asarray(q), np.asarray(dq)


def hermite(chunk: ActionChunk, t: float) -> tuple[Array, Array]:
    """Position (n,) rad and velocity (n,) rad/s of a chunk at ``t`` s.

    Slopes at inner rows are central differences (Catmull-Rom), at the last row zero: a chunk ends at rest unless
    another one takes over. Before the first row it is the first row, at rest.
    """
    rows, x = chunk.q, (t - chunk.t0) / chunk.dt
    last = len(rows) - 1
    if x <= 0.0 or x >= last:
        return rows[0 if x <= 0.0 else last], np.zeros_like(rows[0])
    i = int(x)
    f = x - i
    p1, p2 = rows[i], rows[i + 1]
    m1 = (p2 - rows[i - 1]) / 2.0 if i > 0 else p2 - p1
    m2 = (rows[i + 2] - p1) / 2.0 if i + 2 <= last else np.zeros_like(p1)
    f2, f3 = f * f, f * f * f
    q = (2 * f3 - 3 * f2 + 1) * p1 + (f3 - 2 * f2 + f) * m1 + (3 * f2 - 2 * f3) * p2 + (f3 - f2) * m2
    dq = (6 * f2 - 6 * f) * (p1 - p2) + (3 * f2 - 4 * f + 1) * m1 + (3 * f2 - 2 * f) * m2
    return q, dq / chunk.dt


def freeze(chunk: ActionChunk, previous: ActionChunk | None, latency: float) -> ActionChunk:
    """Real-time chunking for a policy that cannot inpaint: commit what falls due before the chunk can arrive.

    The first ceil(``latency`` / dt) rows are taken from ``previous``, where it still covers them.
    """
    if previous is None or previous.dt != chunk.dt:
        return chunk
    shift = round((chunk.t0 - previous.t0) / chunk.dt)
    frozen = min(math.ceil(latency / chunk.dt), len(previous.q) - shift, len(chunk.q))
    if shift < 0 or frozen <= 0:
        return chunk
    q, gripper = chunk.q.copy(), chunk.gripper.copy()
    q[:frozen] = previous.q[shift : shift + frozen]
    gripper[:frozen] = previous.gripper[shift : shift + frozen]
    return dataclasses.replace(chunk, q=q, gripper=gripper, frozen=frozen)
