"""Deadlines: how many rows to compute together and in how many evaluations, and whom to turn away.

Every function takes the time as an argument, so that the server's monotonic clock and a test's clock do alike. The
idea follows the latency-aware switch of StreamDiffusionV2 (arXiv 2511.07399); the rules are our own.
"""

from __future__ import annotations

import bisect
import dataclasses
import heapq
import math
import operator
import statistics
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np

from flowpolicy.core.errors import ConfigError

_TIMER_S = 0.001
"""Resolution of an event loop's timers: a shorter wait would last so long."""
_RECENT = 128
"""Batches that tell how much the machine is disturbed."""
_BETWEEN = 32
"""Gaps between batches that tell what reading and answering take."""


class LatencyTable:
    """Seconds that a batch takes, by number of evaluations and rows; and how much longer batches took of late.

    A batch can be padded with rows and is never slower with fewer evaluations, so an entry is at most that of any
    larger batch and any larger number of evaluations. What else the machine does changes by the minute and stretches
    all batches alike, so it is one factor, followed while serving: a busy moment at the start must not make the
    server turn robots away for ever.

    Args:
        measured: (nfe, rows) -> seconds; every nfe with the same rows.
        stretches: recent durations over their entry of the table.

    """

    between: float
    """Seconds from one batch to the next while requests wait: reading, refusing and answering."""

    def __init__(self, measured: Mapping[tuple[int, int], float], stretches: Iterable[float] = ()) -> None:
        self._recent: deque[float] = deque(stretches, maxlen=_RECENT)
        self._gaps: deque[float] = deque(maxlen=_BETWEEN)
        self.between = 0.0
        self._follow()
        self.nfes = sorted({nfe for nfe, _ in measured})
        self.batches = sorted({rows for _, rows in measured})
        if not measured or len(measured) != len(self.nfes) * len(self.batches):
            raise ConfigError(f"a latency table of {sorted(measured)}", expected="every nfe with every number of rows")
        table = np.array([[measured[nfe, rows] for rows in self.batches] for nfe in self.nfes])
        table = np.minimum.accumulate(table[::-1, ::-1], axis=0)
        table = np.minimum.accumulate(table, axis=1)[::-1, ::-1]
        column = [next(i for i, most in enumerate(self.batches) if most >= rows) for rows in range(self.largest + 1)]
        self._seconds = {nfe: table[i, column].tolist() for i, nfe in enumerate(self.nfes)}

    @property
    def largest(self) -> int:
        """Most rows of one batch."""
        return self.batches[-1]

    def seconds(self, nfe: int, rows: int) -> float:
        """Undisturbed time of a batch of ``rows``: the entry of the next measured size. Less is not to be had."""
        return self._seconds[nfe][rows]

    def expected(self, nfe: int, rows: int) -> float:
        """Time that a batch takes now, in 19 of 20 cases: what a promise about one batch is made on."""
        return self._high * self.seconds(nfe, rows)

    def typical(self, nfe: int, rows: int) -> float:
        """Time that a batch takes now, in half of the cases: what a queue is judged by.

        A machine that stops now and then would otherwise turn away requests that it could have answered.
        """
        return self._middle * self.seconds(nfe, rows)

    def observe(self, nfe: int, rows: int, seconds: float) -> None:
        """Take the duration of a batch into account."""
        self._recent.append(seconds / self.seconds(nfe, rows))
        self._follow()

    def observe_between(self, seconds: float) -> None:
        """Take into account how long requests that waited, waited for the engine's next batch after its last one."""
        self._gaps.append(seconds)
        self.between = statistics.median(self._gaps)

    def _follow(self) -> None:
        ordered = sorted(self._recent) or [1.0]
        self._middle, self._high = (max(1.0, ordered[int(share * len(ordered))]) for share in (0.5, 0.95))

    def to_json(self) -> dict[str, dict[str, float]]:
        """Undisturbed milliseconds as ``{nfe: {rows: ms}}``."""
        return {
            str(nfe): {str(rows): round(1e3 * self.seconds(nfe, rows), 3) for rows in self.batches} for nfe in self.nfes
        }


def measure_latency(
    calls: Mapping[int, Callable[[int], object]],
    batches: Sequence[int],
    clock: Callable[[], float],
    rounds: int = 40,
) -> LatencyTable:
    """Time a warmed-up engine: the fastest call of each kind is what it takes undisturbed.

    Args:
        calls: nfe -> a function that computes a batch of the given number of rows.
        batches: numbers of rows.
        clock: monotonic seconds.
        rounds: timed calls per entry, after two that are not counted.

    """
    times: dict[tuple[int, int], list[float]] = {}
    for nfe, call in calls.items():
        for rows in batches:
            times[nfe, rows] = []
            for _ in range(rounds + 2):
                start = clock()
                call(rows)
                times[nfe, rows].append(clock() - start)
    fastest = {key: max(min(seconds[2:]), 1e-6) for key, seconds in times.items()}
    table = LatencyTable(fastest)
    for (nfe, rows), seconds in times.items():
        for one in seconds[2:]:
            table.observe(nfe, rows, one)
    return table


_deadline = operator.attrgetter("deadline")


class Due(Protocol):
    """What the scheduler looks at of a request."""

    @property
    def arrival(self) -> float:
        """When it arrived."""

    @property
    def deadline(self) -> float:
        """When its answer is of no use any more."""

    @property
    def served(self) -> float:
        """When its robot was last given a chunk, or connected."""


Request = TypeVar("Request", bound=Due)


class Sifted(NamedTuple, Generic[Request]):
    """The queue, sorted out."""

    kept: list[Request]
    """In order of their deadlines, which can all be held."""
    late: list[Request]
    """Whose deadline not even an idle and undisturbed machine could hold."""
    shed: list[Request]
    """Whose deadline this one cannot hold beside the others."""
    rows: int
    """Most rows of a batch that holds the deadlines of those kept."""


@dataclasses.dataclass(frozen=True)
class BatchPlan:
    """What to do with the requests that were kept; they are in order of their deadlines."""

    rows: int = 0
    """Leading requests to compute now, together; 0 waits or has nothing to do."""
    nfe: int = 0
    """Network evaluations per chunk."""
    wait: float = 0.0
    """Seconds for which it pays to wait for more requests; 0 computes now."""


@dataclasses.dataclass(frozen=True)
class DeadlineScheduler:
    """Earliest deadline first, and as many evaluations as every deadline in the queue allows.

    When not all deadlines can be held, the largest set is kept for which they can (Moore 1968: go through the requests
    by deadline, and whenever one cannot be held any more drop the least deserving so far). The robot that was given a
    chunk last deserves the next one least, so that no connection starves, and of two alike the older request: the newer
    one has more of its budget left. Those dropped are told at once. Batches stay full: shrinking them to save the
    oldest request costs all that come after it.
    """

    table: LatencyTable
    """What a batch costs."""
    margin_s: float = 0.002
    """Reserve before a deadline for what the table does not hold: answering, and a machine that is not quiet."""
    window_s: float = 0.001
    """Longest time that a request waits for others to share its batch; never longer than its computation takes."""

    def sift(self, now: float, start: float, waiting: Iterable[Request], batches: int | None = None) -> Sifted[Request]:
        """Sort out whose deadline can be held.

        Args:
            now: seconds of the clock that the deadlines are counted in.
            start: when the engine is next free.
            waiting: all requests, in any order.
            batches: for how many batches requests are kept where not all can be; as many as can be held unless given.

        """
        one = self.table.seconds(self.table.nfes[0], 1)
        ordered = sorted(waiting, key=_deadline)
        late = bisect.bisect_left(ordered, now + one, key=_deadline)
        hopeless = bisect.bisect_left(ordered, start + one, key=_deadline)
        kept, shed, rows = ordered[hopeless:], ordered[late:hopeless], self.table.largest
        if not self._fits(start, kept):
            rows, chosen = self._most(start, kept, batches)
            shed += [request for index, request in enumerate(kept) if index not in chosen]
            kept = [kept[index] for index in sorted(chosen)]
        return Sifted(kept, ordered[:late], shed, rows)

    def plan(self, now: float, kept: Sequence[Due], expected: int = 1, limit: int | None = None) -> BatchPlan:
        """Decide what to compute.

        Args:
            now: seconds of the clock that the deadlines are counted in.
            kept: the waiting requests that :meth:`sift` kept.
            expected: requests that may come together (connected clients).
            limit: most rows; those of the largest batch unless given.

        """
        if not kept:
            return BatchPlan()
        least, most, largest = self.table.nfes[0], self.table.nfes[-1], self.table.largest
        rows = min(len(kept), limit or largest)
        # Company saves a computation at most, so waiting longer than one takes cannot pay.
        window = min(self.window_s, self.table.expected(most, 1))
        spare = window - (now - min(request.arrival for request in kept)) if window >= _TIMER_S else 0.0
        if spare > 0 and rows < min(expected, largest) and now + spare + self._cost(most, largest) <= kept[0].deadline:
            return BatchPlan(wait=spare)
        for nfe in reversed(self.table.nfes):
            if self._holds(now, kept, nfe, rows):
                return BatchPlan(rows, nfe)
        for fewer in self._sizes(rows):
            if self._holds(now, kept, least, fewer):
                return BatchPlan(fewer, least)
        while rows > 1 and now + self.table.typical(least, rows) + self.margin_s > kept[0].deadline:
            rows -= 1
        return BatchPlan(rows, least)

    def _fits(self, start: float, kept: Sequence[Due]) -> bool:
        """Whether all deadlines are held in half of the cases."""
        if not kept:
            return True
        typical, largest = self.table.typical, self.table.largest
        if start + len(kept) // largest * typical(self.table.nfes[0], largest) > kept[-1].deadline:
            return False  # no order of whatever batches does
        for rows in self._sizes(len(kept)):
            end = start + typical(self.table.nfes[0], rows)
            if end + self.margin_s <= kept[0].deadline and self._drains(end, kept[rows:], typical):
                return True
        return False

    def _most(self, start: float, kept: Sequence[Due], most: int | None) -> tuple[int, set[int]]:
        """Rows of a batch, and the indices of the most requests whose deadlines are held in 19 of 20 cases."""
        best: tuple[int, set[int]] = (1, set())
        for size in self._sizes(len(kept)):
            batch = self.table.expected(self.table.nfes[0], size)
            # When the n-th of those kept is answered, n from 0 on.
            count = len(kept) if most is None else min(len(kept), most * size)
            ends = [start + self.margin_s + n // size * (batch + self.table.between) + batch for n in range(count)]
            ends.append(math.inf)
            heap: list[tuple[float, float, int]] = []
            for index, request in enumerate(kept):
                claim = (-request.served, request.arrival, index)
                if ends[len(heap)] > request.deadline:
                    heapq.heappushpop(heap, claim)
                else:
                    heapq.heappush(heap, claim)
            if len(heap) > len(best[1]):
                best = size, {index for _, _, index in heap}
            if len(heap) >= size:
                break
        if not best[1]:
            # Only a machine less disturbed than this one holds any: the newest is worth the attempt.
            return 1, {max(range(len(kept)), key=lambda index: (kept[index].deadline, kept[index].arrival))}
        return best

    def _sizes(self, rows: int) -> list[int]:
        """Sizes of a batch for ``rows`` requests, the largest first."""
        largest = min(rows, self.table.largest)
        return [largest, *(size for size in reversed(self.table.batches) if size < largest)]

    def _holds(self, now: float, kept: Sequence[Due], nfe: int, rows: int) -> bool:
        end = now + self.table.expected(nfe, rows)
        return end + self.margin_s <= kept[0].deadline and self._drains(end, kept[rows:], self.table.expected)

    def _drains(self, end: float, rest: Sequence[Due], seconds: Callable[[int, int], float]) -> bool:
        """Whether full batches with the fewest evaluations, after one that ends at ``end``, hold every deadline."""
        least, largest = self.table.nfes[0], self.table.largest
        for first in range(0, len(rest), largest):
            end += self.table.between + seconds(least, min(largest, len(rest) - first))
            if end + self.margin_s > rest[first].deadline:
                return False
        return True

    def _cost(self, nfe: int, rows: int) -> float:
        return self.table.expected(nfe, rows) + self.margin_s
