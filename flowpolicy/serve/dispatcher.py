"""The queue between clients and engine: admits, batches, computes, answers or says that it is too late."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from flowpolicy.core.errors import ServingError
from flowpolicy.serve.metrics import ServerMetrics
from flowpolicy.serve.model import Model
from flowpolicy.serve.protocol import ActRequest
from flowpolicy.serve.scheduler import DeadlineScheduler

log = logging.getLogger("flowpolicy.serve")

Answer = Callable[[dict[str, Any]], None]
"""Takes the one message that a request is answered with. Must not block."""


@dataclasses.dataclass(frozen=True)
class _Waiting:
    request: ActRequest
    owner: object
    answer: Answer
    arrival: float
    deadline: float


class Dispatcher:
    """Runs in the server's event loop; the engine computes in one thread of its own, or, when it is fast, in the loop.

    Every submitted request is answered exactly once, by a chunk in time, as late, or with an error, unless its
    owner was forgotten.

    Args:
        model: what computes.
        metrics: counts what happens.
        clock: monotonic seconds; deadlines are counted in it.
        margin_s: see :class:`flowpolicy.serve.scheduler.DeadlineScheduler`.
        window_s: likewise.
        inline_s: batches that take less are computed in the event loop.
        max_waiting: requests that may wait, whatever their deadlines.

    """

    def __init__(
        self,
        model: Model,
        metrics: ServerMetrics,
        clock: Callable[[], float],
        *,
        margin_s: float,
        window_s: float,
        inline_s: float,
        max_waiting: int,
    ) -> None:
        self.metrics, self.clock, self.max_waiting, self.inline_s = metrics, clock, max_waiting, inline_s
        self._timing = {"margin_s": margin_s, "window_s": window_s}
        self.replace(model)
        self._queue: list[_Waiting] = []
        self._free_at, self._computing = clock(), False
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="flowpolicy-engine")

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return len(self._queue)

    def replace(self, model: Model) -> None:
        """Compute with ``model`` from the next batch on; the batch under way ends with the old one."""
        self.model = model
        self.scheduler = DeadlineScheduler(model.table, **self._timing)

    def submit(self, request: ActRequest, owner: object, answer: Answer) -> None:
        """Queue a request, or answer at once that there is no time for it."""
        now = self.clock()
        deadline = now + request.budget_ms / 1000
        self.metrics.count("requests")
        deadlines = [waiting.deadline for waiting in self._queue]
        busy = bool(self._queue) or self._computing
        table = self.model.table
        hopeless = now + table.seconds(table.nfes[0], 1) > deadline
        # With nothing else to do, whatever is not hopeless is tried; otherwise it must not cost others their deadline.
        held = not busy or self.scheduler.admits(max(now, self._free_at), deadlines, deadline)
        if held and not hopeless and len(self._queue) < self.max_waiting:
            self._queue.append(_Waiting(request, owner, answer, now, deadline))
            self._queue.sort(key=lambda waiting: waiting.deadline)
            self._arrived.set()
        elif busy:
            self.metrics.count("shed")
            answer(error_message(request.id, _OVERLOADED))
        else:
            self._late(_Waiting(request, owner, answer, now, deadline), now)

    def forget(self, owner: object) -> None:
        """Drop what a client that went away still waits for."""
        self._queue = [waiting for waiting in self._queue if waiting.owner is not owner]

    async def run(self, clients: Callable[[], int]) -> None:
        """Serve the queue until cancelled; ``clients`` tells how many requests may come together."""
        while True:
            self._arrived.clear()
            if not self._queue:
                await self._arrived.wait()
                continue
            now = self.clock()
            deadlines = [waiting.deadline for waiting in self._queue]
            oldest = min(waiting.arrival for waiting in self._queue)
            plan = self.scheduler.plan(now, deadlines, now - oldest, clients())
            late, batch = self._queue[: plan.late], self._queue[plan.late : plan.late + plan.rows]
            self._queue = self._queue[plan.late + plan.rows :]
            for waiting in late:
                self._late(waiting, now)
            if batch:
                await self._compute(batch, plan.nfe, now)
                if self._queue:  # a computation in the loop must not keep answers from being written
                    await asyncio.sleep(0)
            elif plan.wait:
                await _wait(self._arrived, plan.wait)

    async def close(self) -> None:
        """Answer what waits with an error and stop the engine's thread."""
        waiting, self._queue = self._queue, []
        for one in waiting:
            one.answer(error_message(one.request.id, ServingError("closing", "the server stops")))
        await asyncio.get_running_loop().run_in_executor(None, self._thread.shutdown)

    async def _compute(self, batch: list[_Waiting], nfe: int, start: float) -> None:
        model, self._computing = self.model, True
        self._free_at = start + model.table.typical(nfe, len(batch)) + self.scheduler.margin_s
        requests = [waiting.request for waiting in batch]
        try:
            if model.table.seconds(nfe, len(batch)) < self.inline_s:
                chunks = model.act(nfe, requests)
            else:
                chunks = await asyncio.get_running_loop().run_in_executor(self._thread, model.act, nfe, requests)
        except Exception as error:
            # Whatever an engine raises, the robots must hear of it and the server go on.
            refusal = error if isinstance(error, ServingError) else ServingError("internal", f"{type(error).__name__}")
            log.exception("a batch of %d failed", len(batch), exc_info=error)
            self.metrics.count("failures", by=len(batch))
            for waiting in batch:
                waiting.answer(error_message(waiting.request.id, refusal))
            return
        finally:
            end = self.clock()
            self._free_at, self._computing = end, False
        model.table.observe(nfe, len(batch), end - start)
        self.metrics.time("compute", end - start)
        self.metrics.count("batches", f"rows={len(batch)}")
        for waiting, chunk in zip(batch, chunks, strict=True):
            if end > waiting.deadline:
                self._late(waiting, end)
                continue
            self.metrics.count("chunks", f"nfe={nfe}")
            self.metrics.time("answer", end - waiting.arrival)
            waiting.answer(
                {
                    "type": "chunk",
                    "id": waiting.request.id,
                    "chunk": chunk,
                    "nfe": nfe,
                    "checkpoint": model.checkpoint,
                    "queue_ms": 1e3 * (start - waiting.arrival),
                    "compute_ms": 1e3 * (end - start),
                }
            )

    def _late(self, waiting: _Waiting, now: float) -> None:
        self.metrics.count("late")
        # Negative: turned away before the deadline, which the policy could not have held.
        waiting.answer({"type": "late", "id": waiting.request.id, "late_ms": 1e3 * (now - waiting.deadline)})


_OVERLOADED = ServingError(
    "overloaded",
    "the server has more requests than it can answer in time",
    fix="allow more time, ask less often, or start a second server",
)


def error_message(id_: int | None, error: ServingError) -> dict[str, Any]:
    """An 'error' message."""
    return {
        "type": "error",
        "id": id_,
        "code": error.code,
        "what": error.what,
        "expected": error.expected,
        "fix": error.fix,
    }


async def _wait(event: asyncio.Event, seconds: float) -> None:
    timer = asyncio.get_running_loop().call_later(seconds, event.set)
    await event.wait()
    timer.cancel()
