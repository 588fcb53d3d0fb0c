"""The load generator counts what robots get. No test looks at how fast."""

import io

from rich.console import Console

from flowpolicy.bench.server_load import bench_serve, serve_table

from ..serve.conftest import SumEngine, make_model, serving


def test_every_request_that_is_due_is_accounted_for():
    with serving(make_model(SumEngine())) as running:
        result = bench_serve(running.url, clients=3, rate_hz=20.0, seconds=0.5, budget_ms=5_000.0)
    assert result["due"] == 30
    assert sum(result["outcomes"].values()) == 30
    assert result["missed"] == 30 - result["in_time"]
    assert result["in_time"] > 0
    assert result["round_trip_ms"]["p50"] <= result["round_trip_ms"]["max"]
    assert result["server_cpu_ms"] > 0 and 1 <= result["rows_per_batch"] <= 3
    assert set(result["answer_ms"]) == {"first third", "last third"}
    text = io.StringIO()
    Console(file=text, width=100).print(serve_table(result))
    assert "3 robots at 20 Hz" in text.getvalue() and "all answers, refusals too" in text.getvalue()


def test_a_deadline_that_cannot_be_held_is_missed():
    with serving(make_model(SumEngine(seconds=0.05))) as running:
        result = bench_serve(running.url, clients=1, rate_hz=10.0, seconds=0.5, budget_ms=5.0)
    assert result["missed"] == result["due"] == 5
    assert set(result["outcomes"]) <= {"late", "overloaded", "skipped"}
