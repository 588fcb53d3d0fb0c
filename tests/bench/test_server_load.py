"""The load generator counts what robots get, by either clock. No test looks at how fast."""

import io
import itertools

import pytest
from rich.console import Console

from flowpolicy.bench.serve_worker import measure, requests_due
from flowpolicy.bench.server_load import bench_serve, in_wall_time, serve_table

from ..serve.conftest import SumEngine, make_model, serving

LOAD = {"rate_hz": 20.0, "seconds": 0.5, "budget_ms": 5_000.0}


def check(load, robots):
    assert (load["robots"], load["offered_hz"]) == (robots, pytest.approx(20.0 * robots, rel=0.2))
    assert sum(load["outcomes"].values()) == pytest.approx(1.0)
    assert 0 < load["in_time"] == load["outcomes"]["in_time"]
    assert load["goodput_hz"] == pytest.approx(load["in_time"] * load["offered_hz"])
    assert load["server_cpu_ms"] > 0
    assert 1 <= load["rows_per_batch"] <= robots
    assert 0 <= load["worst_robot_in_time"] <= load["in_time"]
    assert load["chunk_ms"]["p50"] <= load["chunk_ms"]["p99"]


def test_every_request_is_accounted_for_beside_a_server_and_in_processor_time():
    with serving(make_model(SumEngine())) as running:
        wall = in_wall_time(running.url, **LOAD)
        servers = {"wall": wall, "processor": lambda robots, seed: measure(make_model(), order(robots, seed))}

        def order(robots, seed):
            return {**LOAD, "robots": robots, "seed": seed, "batches": [1, 2, 4]}

        result = bench_serve(servers, robots=[1, 2], rate_hz=20.0, rounds=2)
    for server in result["servers"].values():
        for load, robots in zip(server["loads"], (1, 2), strict=True):
            check(load, robots)
            least, most = load["goodput_range_hz"]
            assert least <= load["goodput_hz"] <= most
        assert server["peak_goodput_hz"] == max(load["goodput_hz"] for load in server["loads"])
        assert server["left_at_twice"] is None, "twice the peak was not asked for"
    text = io.StringIO()
    Console(file=text, width=200).print(serve_table({**result, **LOAD, "clock": "processor"}))
    assert "Robots at 20 Hz" in text.getvalue()
    assert "processor" in text.getvalue()


def test_what_is_left_is_read_where_twice_the_peak_is_asked_for():
    def measured(robots, seed):
        told = {"outcomes": {}, "chunk_ms": {}, "refusal_ms": {}}
        return [
            {"robots": n, "offered_hz": 10.0 * n, "goodput_hz": min(10.0 * n, 100.0 - n), "in_time": 1.0, **told}
            for n in robots
        ]

    server = bench_serve({"now": measured}, robots=[5, 10, 20], rate_hz=10.0, rounds=1)["servers"]["now"]
    assert server["peak_goodput_hz"] == 90.0
    assert server["left_at_twice"] == pytest.approx((90 - 8) / 90)


def test_a_deadline_that_cannot_be_held_is_not_held():
    model = make_model(SumEngine(seconds=0.0))
    (load,) = measure(model, {**LOAD, "budget_ms": 1e-3, "robots": [2], "seed": 0, "batches": [1, 2, 4]})
    assert load["goodput_hz"] == 0
    assert set(load["outcomes"]) <= {"late", "overloaded"}


def test_robots_ask_at_their_rate_and_at_phases_of_their_own():
    due = requests_due(3, 20.0, 0.5, seed=0)
    assert len(due) == 30
    assert due == sorted(due)
    for robot in range(3):
        times = [second for second, number in due if number == robot]
        assert [b - a for a, b in itertools.pairwise(times)] == pytest.approx([0.05] * 9)
    assert due != requests_due(3, 20.0, 0.5, seed=1)
