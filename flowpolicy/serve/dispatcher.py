"""The queue between connections and engine: who is computed next, with whom, and who is told that there is no time.

It knows no event loop and no thread: the time is an argument, and :mod:`flowpolicy.serve.engine_loop` runs it.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import Protocol

import numpy as np

from flowpolicy.core.errors import ServingError
from flowpolicy.serve.metrics import ServerMetrics
from flowpolicy.serve.model import Model
from flowpolicy.serve.protocol import ActRequest, Asked, Refusal, pack, request_from
from flowpolicy.serve.scheduler import DeadlineScheduler

log = logging.getLogger("flowpolicy.serve")


_BURST_S = 0.1
"""Overload that lasts longer is no burst, after which there will be time for whoever can wait."""
_AHEAD = 2
"""Batches for which requests are then kept: a longer queue would not answer more of them, only each of them later."""


class Robot(Protocol):
    """Whom a request comes from: one connection."""

    served: float
    """When it was last given a chunk, or connected: who was served longest ago comes first when not all can be."""
    faults: int
    """Faulty messages since its last chunk."""

    def answer(self, message: bytes) -> None:
        """Send the one message that a request is answered with. Must not block."""

    def fault(self, message: bytes) -> None:
        """Send the answer to a request whose arrays are wrong."""


@dataclasses.dataclass(eq=False, slots=True)
class Waiting:
    """A request that waits."""

    asked: Asked
    robot: Robot
    arrival: float
    deadline: float

    @property
    def served(self) -> float:
        """When its robot was last given a chunk."""
        return self.robot.served


@dataclasses.dataclass(frozen=True)
class Batch:
    """Requests that are computed together."""

    model: Model
    nfe: int
    waiting: list[Waiting]
    requests: list[ActRequest]
    start: float

    def compute(self) -> np.ndarray:
        """Their chunks (b, h, a)."""
        return self.model.act(self.nfe, self.requests)


class Dispatcher:
    """Takes requests, forms batches, answers.

    At most one request of a connection waits: a newer one takes its place. Every request is answered exactly once, by a
    chunk in time, as late, or with an error, unless its robot was forgotten.

    Args:
        model: what computes.
        metrics: counts what happens.
        margin_s: see :class:`flowpolicy.serve.scheduler.DeadlineScheduler`.
        window_s: likewise.

    """

    def __init__(self, model: Model, metrics: ServerMetrics, *, margin_s: float, window_s: float) -> None:
        self.metrics = metrics
        self._timing = {"margin_s": margin_s, "window_s": window_s}
        self.replace(model)
        self._queue: dict[Robot, Waiting] = {}
        self._computing: Batch | None = None
        self._free_at = 0.0
        self._left: float | None = None
        self._crowded: float | None = None

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return len(self._queue)

    def replace(self, model: Model) -> None:
        """Compute with ``model`` from the next batch on; the batch under way ends with the old one."""
        self.model = model
        self.scheduler = DeadlineScheduler(model.table, **self._timing)

    def submit(self, asked: Asked, robot: Robot, arrival: float) -> None:
        """Queue a request that arrived at ``arrival``; an older one of the same robot is told that it is over."""
        self.metrics.count("requests")
        older = self._queue.pop(robot, None)
        if older is not None:
            self.metrics.count("superseded")
            robot.answer(_SUPERSEDED.of(older.asked.id))
        self._queue[robot] = Waiting(asked, robot, arrival, arrival + asked.budget_ms / 1000)

    def forget(self, robot: Robot) -> None:
        """Drop what a robot that went away still waits for."""
        self._queue.pop(robot, None)

    def choose(self, now: float, clients: int) -> Batch | float | None:
        """Refuse what cannot be answered in time, and choose what to compute.

        Args:
            now: monotonic seconds.
            clients: how many requests may come together.

        Returns:
            A batch to compute, which :meth:`finish` or :meth:`fail` must end; or seconds after which to ask again,
            unless something happens before; or None.

        """
        busy = self._computing is not None
        start = max(now, self._free_at) if busy else now
        lasting = self._crowded is not None and now - self._crowded > _BURST_S
        sifted = self.scheduler.sift(now, start, self._queue.values(), _AHEAD if lasting else None)
        if sifted.shed:
            self._crowded = now if self._crowded is None else self._crowded
        elif len(sifted.kept) <= sifted.rows:
            self._crowded = None
        for waiting in sifted.late:
            del self._queue[waiting.robot]
            self._late(waiting, now)
        for waiting in sifted.shed:
            del self._queue[waiting.robot]
            self.metrics.count("shed")
            waiting.robot.answer(_OVERLOADED.of(waiting.asked.id))
        if busy:
            return None
        left, self._left = self._left, None
        plan = self.scheduler.plan(now, sifted.kept, clients, sifted.rows)
        if not plan.rows:
            return plan.wait or None
        if left is not None:
            self.model.table.observe_between(now - left)
        return self._batch(sifted.kept[: plan.rows], plan.nfe, now)

    def finish(self, batch: Batch, chunks: np.ndarray, end: float) -> None:
        """Answer a batch that was computed at ``end``."""
        self._over(end)
        model, seconds = batch.model, end - batch.start
        model.table.observe(batch.nfe, len(batch.waiting), seconds)
        self.metrics.time("compute", seconds)
        self.metrics.count("batches", f"rows={len(batch.waiting)}")
        for waiting, chunk in zip(batch.waiting, chunks, strict=True):
            if end > waiting.deadline:
                self._late(waiting, end)
                continue
            self.metrics.count("chunks", f"nfe={batch.nfe}")
            self.metrics.time("answer", end - waiting.arrival)
            waiting.robot.served, waiting.robot.faults = end, 0
            message = {
                "type": "chunk",
                "id": waiting.asked.id,
                "chunk": chunk,
                "nfe": batch.nfe,
                "checkpoint": model.checkpoint,
                "queue_ms": 1e3 * (batch.start - waiting.arrival),
                "compute_ms": 1e3 * seconds,
            }
            waiting.robot.answer(pack(message))

    def fail(self, batch: Batch, error: Exception, end: float) -> None:
        """Answer a batch whose computation raised something: the robots must hear of it and the server go on."""
        self._over(end)
        refusal = error if isinstance(error, ServingError) else ServingError("internal", f"{type(error).__name__}")
        log.error("a batch of %d failed", len(batch.waiting), exc_info=error)
        self.metrics.count("failures", by=len(batch.waiting))
        for waiting in batch.waiting:
            waiting.robot.answer(Refusal(refusal).of(waiting.asked.id))

    def close(self) -> None:
        """Answer what waits with an error."""
        queue, self._queue = self._queue, {}
        for waiting in queue.values():
            waiting.robot.answer(_CLOSING.of(waiting.asked.id))

    def _batch(self, chosen: list[Waiting], nfe: int, start: float) -> Batch | float:
        """Decode the arrays; those of whom they are wrong are told, and the others computed."""
        good, requests = [], []
        for waiting in chosen:
            del self._queue[waiting.robot]
            try:
                requests.append(request_from(waiting.asked, self.model.form))
                good.append(waiting)
            except ServingError as error:
                self.metrics.count("refused", f"code={error.code}")
                waiting.robot.fault(Refusal(error).of(waiting.asked.id))
        if not good:
            return 0.0
        batch = Batch(self.model, nfe, good, requests, start)
        self._computing = batch
        self._free_at = start + self.model.table.typical(nfe, len(good))
        return batch

    def _over(self, end: float) -> None:
        self._computing, self._free_at = None, end
        self._left = end if self._queue else None

    def _late(self, waiting: Waiting, now: float) -> None:
        self.metrics.count("late")
        # Negative: turned away before the deadline, which the policy could not have held.
        late = {"type": "late", "id": waiting.asked.id, "late_ms": 1e3 * (now - waiting.deadline)}
        waiting.robot.answer(pack(late))


_OVERLOADED = Refusal(
    ServingError(
        "overloaded",
        "the server has more requests than it can answer in time",
        fix="allow more time, ask less often, or start a second server",
    )
)
_SUPERSEDED = Refusal(
    ServingError("superseded", "a newer request of this connection came", fix="one connection per robot")
)
_CLOSING = Refusal(ServingError("closing", "the server stops"))
