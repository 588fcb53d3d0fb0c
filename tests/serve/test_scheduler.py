"""The scheduler against a clock of its own: no test waits, none depends on the machine."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowpolicy.core.errors import ConfigError
from flowpolicy.serve.scheduler import BatchPlan, DeadlineScheduler, LatencyTable, measure_latency

TABLE = LatencyTable({(n, b): 0.001 * n + 0.0005 * b for n in (1, 2, 4, 8) for b in (1, 2, 4, 8)})
EXACT = DeadlineScheduler(TABLE, margin_s=0.0, window_s=0.0)


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
    assert scheduler.admits(0.0, [], 0.02), "nine of ten batches are as fast as ever"
    assert scheduler.plan(0.0, [0.02]) == BatchPlan(0, 1, 1), "it may still be in time"
    assert scheduler.plan(0.0, [0.0009]) == BatchPlan(late=1)
    for _ in range(100):
        table.observe(1, 1, 0.03)
    assert table.typical(1, 2) == pytest.approx(0.06)
    assert not scheduler.admits(0.0, [], 0.02), "now most are slow"
    for _ in range(200):
        table.observe(1, 1, 0.0011)
    assert [table.expected(1, 2), table.typical(1, 2)] == pytest.approx([0.0022, 0.0022])
    assert scheduler.admits(0.0, [], 0.02)


def test_as_many_evaluations_as_the_deadline_allows():
    for nfe in (1, 2, 4, 8):
        assert EXACT.plan(10.0, [10.0 + cost(nfe, 1) + 1e-9]) == BatchPlan(0, 1, nfe)
    assert EXACT.plan(10.0, [10.0 + cost(1, 1) - 1e-9]) == BatchPlan(late=1)
    assert EXACT.plan(0.0, []) == BatchPlan(late=0)


def test_a_batch_shrinks_before_a_deadline_is_missed_and_never_below_one():
    tight, loose = cost(1, 2) + 1e-9, 1.0
    assert EXACT.plan(0.0, [tight, loose, loose, loose]) == BatchPlan(0, 2, 1)
    assert EXACT.plan(0.0, [cost(1, 1) + 1e-9, loose]) == BatchPlan(0, 1, 1)


def test_more_evaluations_never_cost_a_waiting_request_its_deadline():
    # Eight fit in a batch; the ninth must still be held by a batch of its own after it.
    ninth = cost(1, 8) + cost(1, 1) + 1e-9
    assert EXACT.plan(0.0, [ninth] * 9) == BatchPlan(0, 8, 1)
    assert EXACT.plan(0.0, [cost(8, 8) + cost(1, 1) + 1e-9] * 9) == BatchPlan(0, 8, 8)


def test_it_waits_for_company_only_with_time_to_spare():
    scheduler = DeadlineScheduler(TABLE, margin_s=0.0, window_s=0.002)
    assert scheduler.plan(0.0, [1.0], waited=0.0005, expected=4) == BatchPlan(0, wait=pytest.approx(0.0015))
    assert scheduler.plan(0.0, [1.0], waited=0.002, expected=4) == BatchPlan(0, 1, 8)
    assert scheduler.plan(0.0, [1.0], waited=0.0, expected=1) == BatchPlan(0, 1, 8)
    quick = DeadlineScheduler(LatencyTable({(1, 1): 2e-4, (1, 2): 3e-4}), margin_s=0.0, window_s=0.002)
    assert quick.plan(0.0, [1.0], waited=0.0, expected=4) == BatchPlan(0, 1, 1), (
        "waiting would take longer than it saves"
    )
    assert scheduler.plan(0.0, [1.0] * 4, waited=0.0, expected=4).rows == 4
    assert scheduler.plan(0.0, [cost(8, 8)], waited=0.0, expected=4).wait == 0.0


def test_admission_counts_who_waits_and_when_the_engine_is_free():
    full = [1.0] * 8
    assert EXACT.admits(0.0, full, cost(1, 8) + cost(1, 1) + 1e-9 + 1.0)
    assert not EXACT.admits(0.0, [0.005] * 8, 0.0051)
    assert EXACT.admits(0.0, [0.005] * 7, 0.0051)
    assert not EXACT.admits(0.004, [], 0.005)
    assert EXACT.admits(0.003, [], 0.005)


@given(st.floats(0.0, 0.02), st.floats(0.0, 0.02), st.integers(1, 12))
def test_more_slack_never_means_fewer_evaluations(slack, more, waiting):
    first, second = (EXACT.plan(0.0, [deadline] * waiting) for deadline in (slack, slack + more))
    assert second.nfe >= first.nfe


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.floats(0.0, 0.01), st.floats(0.0001, 0.05)), min_size=1, max_size=40), st.floats(0, 0.003))
def test_with_exact_latencies_whoever_is_admitted_is_in_time(trace, margin):
    """Arrivals with random gaps and budgets against an engine that takes what the table says."""
    scheduler = DeadlineScheduler(TABLE, margin_s=margin, window_s=0.0)
    arrivals = np.cumsum([gap for gap, _ in trace])
    queue, now, index, answered = [], 0.0, 0, 0
    while index < len(trace) or queue:
        if not queue:
            now = max(now, arrivals[index])
        # While a batch is computed others arrive; the server knows when it expects to be free.
        while index < len(trace) and arrivals[index] <= now:
            deadline = float(arrivals[index] + trace[index][1])
            if scheduler.admits(max(now, float(arrivals[index])), sorted(queue), deadline):
                queue.append(deadline)
            index += 1
        queue.sort()
        plan = scheduler.plan(now, queue)
        assert plan.late == 0
        if plan.rows:
            end = now + TABLE.seconds(plan.nfe, plan.rows)
            assert all(end <= deadline for deadline in queue[: plan.rows])
            answered, queue, now = answered + plan.rows, queue[plan.rows :], end
    assert answered <= len(trace)
