"""Turns of the server: read every socket that has something, then refuse, compute and answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from flowpolicy.serve.dispatcher import Batch, Dispatcher


class EngineLoop:
    """Runs a dispatcher in the running event loop; the engine computes in a thread, or, when it is fast, in the loop.

    Args:
        dispatcher: decides.
        clock: monotonic seconds.
        clients: how many requests may come together.
        inline_s: batches that take less are computed in the event loop.

    """

    def __init__(
        self, dispatcher: Dispatcher, clock: Callable[[], float], clients: Callable[[], int], inline_s: float
    ) -> None:
        self.dispatcher, self._clock, self._clients, self._inline_s = dispatcher, clock, clients, inline_s
        self._loop = asyncio.get_running_loop()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="flowpolicy-engine")
        self._due: asyncio.Handle | None = None
        self._alarm: asyncio.TimerHandle | None = None
        self._closing = False
        self.died: asyncio.Future[None] = self._loop.create_future()
        """Holds what a turn died of, which it should not."""

    def wake(self) -> None:
        """Something was read: have a turn when everything that can be read now is read."""
        if self._due is None:
            self._due = self._loop.call_soon(self._turn)

    def _again(self) -> None:
        # The loop looks at the sockets before its next round, and reads them after what is already due in it: a second
        # round lets the turn see what came during the computation.
        self._due = self._loop.call_soon(self._round)

    def _round(self) -> None:
        self._due = self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._due = None
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        if self._closing:
            self.dispatcher.close()
            return
        try:
            chosen = self.dispatcher.choose(self._clock(), self._clients())
            if isinstance(chosen, Batch):
                self._compute(chosen)
            elif chosen is not None:
                self._alarm = self._loop.call_later(chosen, self.wake)
        except BaseException as error:
            self._die(error)
            raise

    def _compute(self, batch: Batch) -> None:
        if batch.model.table.seconds(batch.nfe, len(batch.requests)) >= self._inline_s:
            self._thread.submit(batch.compute).add_done_callback(
                lambda done: self._loop.call_soon_threadsafe(self._end, batch, done.result, done)
            )
            return
        self._end(batch, batch.compute)

    def _end(self, batch: Batch, result: Callable[[], np.ndarray], _: object = None) -> None:
        try:
            try:
                chunks = result()
            except Exception as error:
                self.dispatcher.fail(batch, error, self._clock())
            else:
                self.dispatcher.finish(batch, chunks, self._clock())
            if self._due is None and self.dispatcher.waiting:
                self._again()
        except BaseException as error:
            self._die(error)
            raise

    def _die(self, error: BaseException) -> None:
        if not self.died.done():
            self.died.set_exception(error)

    async def close(self) -> None:
        """Answer what waits with an error, end the batch under way, and stop the engine's thread."""
        self._closing = True
        self.dispatcher.close()
        await self._loop.run_in_executor(None, self._thread.shutdown)
        await asyncio.sleep(0)  # the answers of the batch that just ended
