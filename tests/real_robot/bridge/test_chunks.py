"""Chunks with absolute times: interpolation, seams, lateness, real-time chunking, ensembles."""

import numpy as np
import pytest

from flowpolicy.real_robot.bridge.chunks import Scheduler, freeze, hermite
from flowpolicy.real_robot.drivers.driver_protocols import ActionChunk

TICK = 0.004


def chunk(value, seq=1, t0=0.0, rows=8, dt=0.05, frozen=0):
    q = np.broadcast_to(np.asarray(value, dtype=float), (rows, 7)) if np.ndim(value) < 2 else np.asarray(value)
    return ActionChunk(seq, t0 - dt, t0, dt, q, np.linspace(0.0, 0.07, len(q)), frozen)


def test_hermite_is_exact_on_a_parabola_inside_and_passes_through_the_rows():
    times = 0.05 * np.arange(8)
    curve = np.repeat((times**2)[:, None], 7, axis=1)
    for t in np.linspace(0.05, 0.29, 30):
        q, dq = hermite(chunk(curve), t)
        assert q[0] == pytest.approx(t**2, abs=1e-12)
        assert dq[0] == pytest.approx(2 * t, abs=1e-9)
    for row, t in enumerate(times):
        np.testing.assert_allclose(hermite(chunk(curve), t)[0], curve[row], atol=1e-12)
    end, at_rest = hermite(chunk(curve), 0.35)
    np.testing.assert_allclose(at_rest, 0.0, atol=1e-12)
    assert end[0] == pytest.approx(curve[-1, 0])


def test_velocity_is_the_derivative_of_position_everywhere():
    rng = np.random.default_rng(0)
    scheduler = Scheduler("crossfade", TICK)
    scheduler.push(chunk(rng.normal(size=(8, 7))), 0.0)
    scheduler.push(chunk(rng.normal(size=(8, 7)), 2, t0=0.1), 0.12)
    for t in np.linspace(0.125, 0.44, 100):
        before, now, after = (scheduler.sample(t + h) for h in (-1e-7, 0.0, 1e-7))
        np.testing.assert_allclose(now.dq, (after.q - before.q) / 2e-7, atol=1e-4 * max(1, np.abs(now.dq).max()))


def pair(mode, frozen=0):
    scheduler = Scheduler(mode, TICK)
    assert scheduler.push(chunk(1.0), 0.0) == ""
    assert scheduler.push(chunk(2.0, 2, t0=0.1, frozen=frozen), 0.15) == ""
    return scheduler


def test_latest_jumps_at_once():
    scheduler = pair("latest")
    assert scheduler.seam == pytest.approx(1.0)
    assert scheduler.sample(0.15).q[0] == 2.0


def test_crossfade_keeps_two_ticks_then_blends_over_100_ms():
    scheduler = pair("crossfade")
    assert scheduler.sample(0.157).q[0] == 1.0
    assert scheduler.sample(0.158 + 0.05).q[0] == pytest.approx(1.5)
    assert scheduler.sample(0.158 + 0.025).q[0] == pytest.approx(1.5 - 0.5 * np.cos(np.pi / 4))
    assert scheduler.sample(0.26).q[0] == 2.0


def test_rtc_changes_over_at_the_last_frozen_row():
    scheduler = pair("rtc", frozen=3)
    assert scheduler.sample(0.199).q[0] == 1.0
    assert scheduler.sample(0.201).q[0] == 2.0


def test_ensemble_weights_the_oldest_most():
    scheduler = pair("ensemble")
    weights = np.exp([0.0, -0.01])
    assert scheduler.sample(0.2).q[0] == pytest.approx((weights * [1, 2]).sum() / weights.sum())
    assert scheduler.sample(0.42).q[0] == 2.0


def test_late_rows_are_dropped_and_late_chunks_refused():
    scheduler = Scheduler("crossfade", TICK)
    assert "late" in scheduler.push(chunk(1.0), 0.345)
    assert scheduler.sample(0.345) is None
    assert scheduler.push(chunk(1.0), 0.335) == ""
    assert scheduler.rows_left(0.31) == 1
    assert "period" in scheduler.push(chunk(1.0, dt=-0.1), 0.0)


def test_a_chunk_that_ended_is_starved_and_rests():
    scheduler = Scheduler("crossfade", TICK)
    scheduler.push(chunk(1.0), 0.0)
    assert not scheduler.sample(0.35).starved
    late = scheduler.sample(0.351)
    assert late.starved
    assert not late.dq.any()
    scheduler.clear()
    assert scheduler.sample(0.1) is None


def test_the_gripper_takes_the_nearest_row():
    scheduler = Scheduler("crossfade", TICK)
    scheduler.push(chunk(1.0), 0.0)
    assert scheduler.sample(0.12).gripper == pytest.approx(0.02)
    assert scheduler.sample(0.13).gripper == pytest.approx(0.03)


def test_freeze_commits_what_falls_due_before_the_chunk_arrives():
    old = chunk(np.arange(8.0)[:, None] * np.ones(7))
    new = chunk(np.full((8, 7), 9.0), 2, t0=0.1)
    frozen = freeze(new, old, latency=0.12)
    # Three rows of 50 ms cover 120 ms; row 0 of the new chunk is row 2 of the old one.
    assert frozen.frozen == 3
    np.testing.assert_array_equal(frozen.q[:4, 0], [2, 3, 4, 9])
    assert freeze(new, None, 0.1) is new
    assert freeze(chunk(1.0, 2, t0=9.0), old, 0.1).frozen == 0
