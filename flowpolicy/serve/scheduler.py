"""Deadlines: how many rows to compute together and in how many evaluations, and whom to turn away.

Every function takes the time as an argument, so that the server's monotonic clock and a test's clock do alike. The
idea follows the latency-aware switch of StreamDiffusionV2 (arXiv 2511.07399); the rules are our own.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from flowpolicy.core.errors import ConfigError

_TIMER_S = 0.001
"""Resolution of an event loop's timers: a shorter wait would last so long."""
_RECENT = 128
"""Batches that tell how much the machine is disturbed."""


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

    def __init__(self, measured: Mapping[tuple[int, int], float], stretches: Iterable[float] = ()) -> None:
        self._recent: deque[float] = deque(stretches, maxlen=_RECENT)
        self._follow()
        self.nfes = sorted({nfe for nfe, _ in measured})
        self.batches = sorted({rows for _, rows in measured})
        if not measured or len(measured) != len(self.nfes) * len(self.batches):
            raise ConfigError(f"a latency table of {sorted(measured)}", expected="every nfe with every number of rows")
        table = np.array([[measured[nfe, rows] for rows in self.batches] for nfe in self.nfes])
        table = np.minimum.accumulate(table[::-1, ::-1], axis=0)
        self._table = np.minimum.accumulate(table, axis=1)[::-1, ::-1]

    @property
    def largest(self) -> int:
        """Most rows of one batch."""
        return self.batches[-1]

    def seconds(self, nfe: int, rows: int) -> float:
        """Undisturbed time of a batch of ``rows``: the entry of the next measured size. Less is not to be had."""
        column = next(i for i, batch in enumerate(self.batches) if batch >= rows)
        return float(self._table[self.nfes.index(nfe), column])

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


@dataclasses.dataclass(frozen=True)
class BatchPlan:
    """What to do with the queue now; its requests are in order of their deadlines."""

    late: int
    """Leading requests whose deadline not even an undisturbed machine could hold: answer them as late."""
    rows: int = 0
    """Requests after those to compute now, together; 0 waits or has nothing to do."""
    nfe: int = 0
    """Network evaluations per chunk."""
    wait: float = 0.0
    """Seconds for which it pays to wait for more requests; 0 computes now."""


@dataclasses.dataclass(frozen=True)
class DeadlineScheduler:
    """Earliest deadline first; as many evaluations as every deadline in the queue allows.

    A request that only a disturbed machine would fail is tried, with the fewest evaluations: it may still be in time.
    """

    table: LatencyTable
    """What a batch costs."""
    margin_s: float = 0.002
    """Reserve for what the table does not hold: answering, and a machine that is not quiet."""
    window_s: float = 0.001
    """Longest time that a request waits for others to share its batch; never longer than its computation takes."""

    def plan(self, now: float, deadlines: Sequence[float], waited: float = 0.0, expected: int = 1) -> BatchPlan:
        """Decide.

        Args:
            now: seconds of the clock that the deadlines are counted in.
            deadlines: of all waiting requests, ascending.
            waited: seconds since the oldest of them arrived.
            expected: requests that may come together (connected clients).

        """
        least, most = self.table.nfes[0], self.table.nfes[-1]
        late = sum(now + self.table.seconds(least, 1) > deadline for deadline in deadlines)
        waiting = deadlines[late:]
        if not waiting:
            return BatchPlan(late)
        rows = min(len(waiting), self.table.largest)
        # Company saves a computation at most, so waiting longer than one takes cannot pay.
        window = min(self.window_s, self.table.expected(most, 1))
        spare = window - waited if window >= _TIMER_S else 0.0
        if (
            spare > 0
            and rows < min(expected, self.table.largest)
            and now + spare + self._cost(most, self.table.largest) <= waiting[0]
        ):
            return BatchPlan(late, wait=spare)
        for nfe in reversed(self.table.nfes):
            if self._holds(now, waiting, nfe, rows):
                return BatchPlan(late, rows, nfe)
        while rows > 1 and now + self._cost(least, rows) > waiting[0]:
            rows -= 1
        return BatchPlan(late, rows, least)

    def admits(self, free: float, deadlines: Sequence[float], new: float) -> bool:
        """Whether a request with the deadline ``new`` can join without making any deadline fail.

        Args:
            free: when the engine is next free.
            deadlines: of the waiting requests.
            new: deadline of the one that asks.

        """
        return self._drains(free, sorted([*deadlines, new]), self.table.typical)

    def _holds(self, now: float, deadlines: Sequence[float], nfe: int, rows: int) -> bool:
        end = now + self._cost(nfe, rows)
        return end <= deadlines[0] and self._drains(end, deadlines[rows:], self.table.expected)

    def _drains(self, now: float, deadlines: Sequence[float], seconds: Callable[[int, int], float]) -> bool:
        """Whether full batches with the fewest evaluations hold every deadline."""
        least, largest = self.table.nfes[0], self.table.largest
        for first in range(0, len(deadlines), largest):
            now += seconds(least, min(largest, len(deadlines) - first)) + self.margin_s
            if now > deadlines[first]:
                return False
        return True

    def _cost(self, nfe: int, rows: int) -> float:
        return self.table.expected(nfe, rows) + self.margin_s
