"""The scheduler against a clock of its own: no test waits, none depends on the machine."""

from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowpolicy.core.errors import ConfigError
from flowpolicy.serve.scheduler import BatchPlan, DeadlineScheduler, LatencyTable, Sifted, measure_latency

TABLE = LatencyTable({(n, b): 0.001 * n + 0.0005 * b for n in (1, 2, 4, 8) for b in (1, 2, 4, 8)})
EXACT = DeadlineScheduler(TABLE, margin_s=0.0, window_s=0.0)


class Asks(NamedTuple):
    deadline: float
    served: float = 0.0
    arrival: float = 0.0


def asks(*deadlines):
    return [Asks(deadline) for deadline in deadlines]


def plan(deadlines, scheduler=EXACT, now=0.0, **options):
    return scheduler.plan(now, asks(*deadlines), **options)


def admits(scheduler, start, waiting, new):
    """Whether all who wait, and one more, are kept."""
    sifted = scheduler.sift(0.0, start, asks(*waiting, new))
    return len(sifted.kept) == len(waiting) + 1


def cost(nfe, rows):
    return 0.001 * nfe + 0.0005 * (1 << (rows - 1).bit_length())


def test_the_table_is_the_next_larger_batch_without_disturbances():
    assert TABLE.seconds(2, 3) == pytest.approx(0.004)
    disturbed = LatencyTable({(1, 1): 0.5, (1, 2): 0.002, (2, 1): 0.003, (2, 2): 0.004})
    assert [disturbed.seconds(1, 1), disturbed.seconds(2, 1)] == [0.002, 0.003]
    slow = LatencyTable({(1, 1): 0.5, (2, 1): 0.003})
    assert slow.seconds(1, 1) == 0.003
    with pytest.raises(ConfigError, match="every nfe"):
        LatencyTable({(1, 1): 0.1, (2, 2): 0.1})


def test_the_table_is_measured_with_the_clock_it_is_given():
    now = [0.0]

    def call(rows):
        now[0] += 0.01 * rows

    table = measure_latency({1: call}, (1, 4), lambda: now[0], rounds=5)
    assert [table.seconds(1, 1), table.seconds(1, 4)] == pytest.approx([0.01, 0.04])
    assert table.expected(1, 4) == pytest.approx(0.04)
    assert table.to_json() == {"1": {"1": 10.0, "4": 40.0}}


def test_a_busy_machine_stretches_what_is_expected_and_is_forgotten_when_it_is_over():
    table = LatencyTable({(1, 1): 0.001, (1, 2): 0.002})
    for _ in range(90):
        table.observe(1, 1, 0.001)
    for _ in range(10):
        table.observe(1, 1, 0.03)
    assert [table.seconds(1, 2), table.expected(1, 2)] == pytest.approx([0.002, 0.06])
    scheduler = DeadlineScheduler(table, margin_s=0.0, window_s=0.0)
    assert admits(scheduler, 0.0, [0.02], 0.02), "nine of ten batches are as fast as ever"
    assert plan([0.02], scheduler) == BatchPlan(1, 1), "it may still be in time"
    assert scheduler.sift(0.0, 0.0, asks(0.0009)).late == asks(0.0009)
    for _ in range(100):
        table.observe(1, 1, 0.03)
    assert table.typical(1, 2) == pytest.approx(0.06)
    assert not admits(scheduler, 0.0, [0.02], 0.021), "now most are slow"
    assert scheduler.sift(0.0, 0.0, asks(0.02, 0.021)) == Sifted(asks(0.021), [], asks(0.02), 1), "the newest is tried"
    for _ in range(200):
        table.observe(1, 1, 0.0011)
    assert [table.expected(1, 2), table.typical(1, 2)] == pytest.approx([0.0022, 0.0022])
    assert admits(scheduler, 0.0, [0.02], 0.021)


def test_as_many_evaluations_as_the_deadline_allows():
    for nfe in (1, 2, 4, 8):
        assert plan([10.0 + cost(nfe, 1) + 1e-9], now=10.0) == BatchPlan(1, nfe)
    assert EXACT.sift(10.0, 10.0, asks(10.0 + cost(1, 1) - 1e-9)).late
    assert plan([]) == BatchPlan()


def test_a_batch_shrinks_before_a_deadline_is_missed_and_never_below_one():
    tight, loose = cost(1, 2) + 1e-9, 1.0
    assert plan([tight, loose, loose, loose]) == BatchPlan(2, 1)
    assert plan([cost(1, 1) + 1e-9, loose]) == BatchPlan(1, 1)


def test_more_evaluations_never_cost_a_waiting_request_its_deadline():
    # Eight fit in a batch; the ninth must still be held by a batch of its own after it.
    ninth = cost(1, 8) + cost(1, 1) + 1e-9
    assert plan([ninth] * 9) == BatchPlan(8, 1)
    assert plan([cost(8, 8) + cost(1, 1) + 1e-9] * 9) == BatchPlan(8, 8)


def test_it_waits_for_company_only_with_time_to_spare():
    scheduler = DeadlineScheduler(TABLE, margin_s=0.0, window_s=0.002)
    assert plan([1.0], scheduler, now=0.0005, expected=4) == BatchPlan(wait=pytest.approx(0.0015))
    assert plan([1.0], scheduler, now=0.002, expected=4) == BatchPlan(1, 8)
    assert plan([1.0], scheduler, expected=1) == BatchPlan(1, 8)
    quick = DeadlineScheduler(LatencyTable({(1, 1): 2e-4, (1, 2): 3e-4}), margin_s=0.0, window_s=0.002)
    assert plan([1.0], quick, expected=4) == BatchPlan(1, 1), "waiting would take longer than it saves"
    assert plan([1.0] * 4, scheduler, expected=4).rows == 4
    assert plan([cost(8, 8)], scheduler, expected=4).wait == 0.0


def test_admission_counts_who_waits_when_the_engine_is_free_and_what_is_between_two_batches():
    full = [1.0] * 8
    assert admits(EXACT, 0.0, full, cost(1, 8) + cost(1, 1) + 1e-9 + 1.0)
    assert not admits(EXACT, 0.0, [0.005] * 8, 0.0051)
    assert admits(EXACT, 0.0, [0.005] * 7, 0.0051)
    assert not admits(EXACT, 0.004, [], 0.005)
    assert admits(EXACT, 0.003, [], 0.005)
    both = cost(1, 8) + cost(1, 1) + 1e-9
    table = LatencyTable({(1, rows): cost(1, rows) for rows in (1, 2, 4, 8)})
    assert admits(DeadlineScheduler(table, 0.0, 0.0), 0.0, [0.005] * 8, both)
    table.observe_between(0.001)
    assert not admits(DeadlineScheduler(table, 0.0, 0.0), 0.0, [0.005] * 8, both)


def test_of_too_many_those_stay_who_were_answered_longest_ago_and_of_those_the_newest():
    end = cost(1, 8) + 1e-9
    crowd = [Asks(end, served=float(number)) for number in range(16)]
    sifted = EXACT.sift(0.0, 0.0, crowd[::-1])
    assert {one.served for one in sifted.kept} == set(range(8))
    assert (len(sifted.shed), sifted.rows, sifted.late) == (8, 8, [])
    alike = [Asks(end, arrival=-float(number)) for number in range(16)]
    assert {one.arrival for one in EXACT.sift(0.0, 0.0, alike).kept} == {-float(number) for number in range(8)}


def test_of_too_many_the_oldest_do_not_shrink_the_batch():
    """What only a batch of one could hold is let go, where it would cost a full one."""
    old, new = asks(*[cost(1, 1) + 1e-9] * 3), asks(*[cost(1, 8) + 1e-9] * 9)
    sifted = EXACT.sift(0.0, 0.0, [*old, *new])
    assert (sifted.kept, sifted.rows) == (new[:8], 8)
    assert EXACT.plan(0.0, sifted.kept, limit=sifted.rows) == BatchPlan(8, 1)
    small = EXACT.sift(0.0, 0.0, asks(*[cost(1, 2) + 1e-9] * 9))
    assert (len(small.kept), small.rows) == (2, 2), "a full batch would be too late for all"


@given(st.floats(0.0, 0.02), st.floats(0.0, 0.02), st.integers(1, 12))
def test_more_slack_never_means_fewer_evaluations(slack, more, waiting):
    first, second = (plan([deadline] * waiting) for deadline in (slack, slack + more))
    assert second.nfe >= first.nfe


def best(deadlines, start):
    """Most requests that batches of at most 8 can hold, by trying every number of batches of every size."""
    finite = sorted(deadline for deadline in deadlines if deadline >= start + cost(1, 1))
    return next(
        (count for count in range(len(finite), 0, -1) if EXACT._fits(start, asks(*finite[len(finite) - count :]))), 0
    )


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0.0, 0.03), min_size=1, max_size=40))
def test_with_equal_claims_nearly_as_many_are_kept_as_can_be(deadlines):
    """Those with the most time left, as many as fit, are a bound that full batches reach but for one of them."""
    sifted = EXACT.sift(0.0, 0.0, asks(*deadlines))
    assert len(sifted.kept) + len(sifted.shed) + len(sifted.late) == len(deadlines)
    assert len(sifted.kept) > best(deadlines, 0.0) - 8


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.floats(0.0, 0.01), st.floats(0.0001, 0.05)), min_size=1, max_size=40), st.floats(0, 0.003))
def test_with_exact_latencies_whoever_is_kept_is_in_time_or_refused_for_another(trace, margin):
    """Arrivals with random gaps and budgets against an engine that takes what the table says."""
    scheduler = DeadlineScheduler(TABLE, margin_s=margin, window_s=0.0)
    arrivals = np.cumsum([gap for gap, _ in trace])
    queue, now, index, answered = [], 0.0, 0, 0
    while index < len(trace) or queue:
        if not queue:
            now = max(now, float(arrivals[index]))
        while index < len(trace) and arrivals[index] <= now:
            queue.append(Asks(float(arrivals[index] + trace[index][1]), arrival=float(arrivals[index])))
            index += 1
        queue = scheduler.sift(now, now, queue).kept
        chosen = scheduler.plan(now, queue)
        if chosen.rows:
            end = now + TABLE.seconds(chosen.nfe, chosen.rows)
            held = [one for one in queue[: chosen.rows] if end <= one.deadline]
            assert len(held) == chosen.rows or chosen.rows == 1
            answered, queue, now = answered + chosen.rows, queue[chosen.rows :], end
    assert 0 <= answered <= len(trace)
