"""The shortest stop against numerical integration, Ruckig and its own consistency in time."""

import numpy as np
import pytest
import ruckig

from flowpolicy.real_robot.arm.braking import Motion, advance, along, extent, stop

A, J = np.full(7, 4.0), np.full(7, 80.0)
RNG = np.random.default_rng(1)
STATES = Motion(RNG.normal(size=(400, 7)), RNG.uniform(-1, 1, (400, 7)), RNG.uniform(-4, 4, (400, 7)))


def test_it_ends_at_rest_and_never_exceeds_the_limits():
    stopping = stop(STATES, A, J)
    end = along(stopping, stopping.duration)
    np.testing.assert_allclose(end.v, 0.0, atol=1e-12)
    np.testing.assert_allclose(end.a, 0.0, atol=1e-12)
    for t in np.linspace(0, stopping.duration.max(), 60):
        assert (np.abs(along(stopping, t).a) <= A + 1e-9).all()


def test_textbook_stop():
    # From 1 rad/s without acceleration: v/a + a/j seconds, v/2 of that as distance.
    stopping = stop(Motion(*(np.full(7, x) for x in (0.0, 1.0, 0.0))), A, J)
    np.testing.assert_allclose(stopping.duration, 1 / 4 + 4 / 80)
    np.testing.assert_allclose(along(stopping, 10.0).q, 0.5 * (1 / 4 + 4 / 80))


def test_it_is_as_short_as_ruckigs():
    for row in range(40):
        inp, trajectory = ruckig.InputParameter(7), ruckig.Trajectory(7)
        inp.control_interface = ruckig.ControlInterface.Velocity
        inp.synchronization = ruckig.Synchronization.No
        inp.current_position, inp.current_velocity, inp.current_acceleration = (list(x[row]) for x in STATES)
        inp.target_velocity, inp.target_acceleration = [0.0] * 7, [0.0] * 7
        inp.max_velocity, inp.max_acceleration, inp.max_jerk = [9.0] * 7, list(A), list(J)
        ruckig.Ruckig(7).calculate(inp, trajectory)
        mine = stop(Motion(*(x[row] for x in STATES)), A, J)
        np.testing.assert_allclose(mine.duration, trajectory.independent_min_durations, atol=1e-9)
        np.testing.assert_allclose(along(mine, 9.0).q, trajectory.at_time(9.0)[0], atol=1e-9)


def test_what_remains_of_a_stop_is_a_stop():
    stopping = stop(STATES, A, J)
    later = along(stopping, 0.03)
    np.testing.assert_allclose(stop(later, A, J).duration, np.maximum(stopping.duration - 0.03, 0.0), atol=1e-9)
    np.testing.assert_allclose(along(stop(later, A, J), 9.0).q, along(stopping, 9.0).q, atol=1e-9)


def test_extent_bounds_the_path_tightly():
    stopping = stop(STATES, A, J)
    lowest, highest = extent(stopping, along(stopping, stopping.duration).q)
    path = np.stack([along(stopping, t).q for t in np.linspace(0, stopping.duration.max(), 3000)])
    np.testing.assert_allclose(path.min(0), lowest, atol=1e-6)
    np.testing.assert_allclose(path.max(0), highest, atol=1e-6)


def test_advance_is_a_cubic():
    moved = advance(Motion(np.zeros(7), np.ones(7), np.ones(7)), np.full(7, 6.0), 2.0)
    assert (moved.q[0], moved.v[0], moved.a[0]) == pytest.approx((2 + 2 + 8, 1 + 2 + 12, 13))
