"""Steps of bounded jerk: what is reached is reachable, what lies a little beyond is not."""

import numpy as np
import pytest

from flowpolicy.real_robot.arm.braking import Motion, advance
from flowpolicy.real_robot.arm.reachable import reachable

DT, JERK = 0.004, np.full(7, 80.0)


def start(rng, count):
    return Motion(*(rng.uniform(-1, 1, (count, 7)) * scale for scale in (2.0, 1.0, 4.0)))


def pieces(now, jerks, shares):
    """State after pieces of constant jerk, ``shares`` (..., k) of the tick."""
    for k in range(jerks.shape[-1]):
        now = advance(now, jerks[..., k], DT * shares[..., k])
    return now


@pytest.mark.parametrize("kind", ["constant", "bang", "random"])
def test_whatever_bounded_jerk_leads_to_is_reachable(kind):
    rng = np.random.default_rng(0)
    now = start(rng, 3000)
    count = {"constant": 1, "bang": 3, "random": 6}[kind]
    jerks = 80.0 * (
        rng.choice([-1.0, 1.0], (3000, 7, count)) if kind == "bang" else rng.uniform(-1, 1, (3000, 7, count))
    )
    shares = rng.dirichlet(np.ones(count), (3000, 7))
    assert reachable(now, pieces(now, jerks, shares), JERK, DT).all()


def test_the_extremes_are_those_of_two_switches_and_beyond_them_nothing_is_reachable():
    rng = np.random.default_rng(1)
    now = start(rng, 2000)
    sign = rng.choice([-1.0, 1.0], (2000, 7, 1))
    shares = rng.dirichlet(2.0 * np.ones(3), (2000, 7))
    edge = pieces(now, 80.0 * sign * np.array([1.0, -1.0, 1.0]), shares)
    # With acceleration and velocity given, +-+ reaches furthest: a thousandth of the largest step more is too far.
    beyond = 1e-3 * 80.0 * DT**3 * sign[..., 0]
    assert reachable(now, edge, JERK, DT).all()
    assert not reachable(now, edge._replace(q=edge.q + beyond), JERK, DT).any()
    one = pieces(now, 80.0 * np.ones((2000, 7, 1)), np.ones((2000, 7, 1)))
    for field, step in (("q", 80.0 * DT**3), ("v", 80.0 * DT**2), ("a", 80.0 * DT)):
        off = one._replace(**{field: getattr(one, field) + 1e-3 * step})
        assert not reachable(now, off, JERK, DT).any()
    assert not reachable(now, Motion(*[np.full((2000, 7), np.nan)] * 3), JERK, DT).any()
