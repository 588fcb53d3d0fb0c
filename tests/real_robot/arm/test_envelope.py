"""No sequence of proposals leaves the limits: adversarial steps of the guard, looked at from outside."""

import dataclasses

import numpy as np
import pytest

from flowpolicy.real_robot.arm.braking import Motion, advance
from flowpolicy.real_robot.arm.envelope import Envelope
from flowpolicy.real_robot.arm.envelope_limits import policy_limits
from flowpolicy.real_robot.arm.models.franka import FER, FR3
from flowpolicy.real_robot.arm.models.ur5e import UR5E

DT = 0.004
LIMITS = policy_limits(FR3, table=0.0, tool=0.1034)
HOME = np.array(FR3.home)


def resting_arms(envelope, count, rng):
    """Random resting states from which the guard lets an arm start."""
    arm = envelope.limits.arm
    q = np.empty((0, arm.joints))
    while len(q) < count:
        tried = np.array(arm.home) + rng.uniform(-1.2, 1.2, (8 * count, arm.joints))
        tried = np.clip(tried, envelope.low, envelope.high)
        rest = Motion(tried, np.zeros_like(tried), np.zeros_like(tried))
        q = np.concatenate([q, tried[envelope.admissible(rest)]])
    return Motion(q[:count], np.zeros((count, arm.joints)), np.zeros((count, arm.joints)))


class Adversary:
    """Proposals: full jerk in kept directions, random jerk, jerk beyond the limit, jumps, not-a-number, full swings
    within a tick."""

    def __init__(self, count, envelope, rng):
        self.rng, self.jerk, self.most = rng, envelope.jerk, envelope.acceleration
        self.kind = np.arange(count) % 7
        self.push = rng.choice([-1.0, 1.0], (count, len(self.jerk)))

    def propose(self, now):
        rng, count = self.rng, len(self.kind)
        turned = rng.random((count, len(self.jerk))) < 0.01
        self.push = np.where(turned, -self.push, self.push)
        kept = self.jerk * self.push
        drawn = self.jerk * rng.uniform(-1, 1, (count, len(self.jerk)))
        jerk = np.select([(self.kind == k)[:, None] for k in (0, 1, 2)], [kept, drawn, 0.3 * kept], kept)
        # A quarter of a sampled acceleration must not pass the limit, or every arm would brake all the time.
        jerk = np.where(np.abs(now.a + jerk * DT) > self.most, 0.0, jerk)
        jerk = np.where((self.kind == 3)[:, None], 1.3 * jerk, jerk)
        ahead = advance(now, jerk, DT)
        swing = now
        for sign, share in ((1.0, 0.25), (-1.0, 0.5), (1.0, 0.25)):
            swing = advance(swing, sign * self.jerk * self.push, share * DT)
        bang = (self.kind == 6)[:, None] & (rng.random((count, len(self.jerk))) < 0.5)
        ahead = Motion(*(np.where(bang, s, a) for s, a in zip(swing, ahead, strict=True)))
        rare = rng.random(count) < 0.2
        q = np.where(((self.kind == 4) & rare)[:, None], now.q + rng.normal(size=(count, len(self.jerk))), ahead.q)
        v = np.where(((self.kind == 5) & rare)[:, None], np.nan, ahead.v)
        return Motion(q, v, ahead.a)


def worst(path, envelope):
    """Largest excess over every limit, measured on commanded positions (t, n, 7) alone."""
    limits = envelope.limits
    v = np.diff(path, axis=0) / DT
    a, j = np.diff(v, axis=0) / DT, np.diff(v, n=2, axis=0) / DT**2
    below, above = limits.arm.limits.speed_towards_ends(0.5 * (path[1:] + path[:-1]))
    tool = np.stack([limits.arm.chain.forward(row, limits.tool).position for row in path])
    speed = np.linalg.norm(np.diff(tool, axis=0), axis=-1) / DT
    return {
        "position": max((envelope.low - path).max(), (path - envelope.high).max()),
        "velocity": (np.abs(v) - envelope.velocity).max(),
        "acceleration": (np.abs(a) - envelope.acceleration).max(),
        "jerk": (np.abs(j) - envelope.jerk).max(),
        "speed near ends": max((-v - below).max(), (v - above).max()),
        "box": max((envelope.box_low - tool).max(), (tool - envelope.box_high).max()),
        "tool speed": (speed - limits.translation).max(),
    }


def attack(limits, arms, steps, seed):
    rng = np.random.default_rng(seed)
    envelope = Envelope(limits, DT)
    now = resting_arms(envelope, arms, rng)
    adversary = Adversary(arms, envelope, rng)
    path, refusals = [now.q] * 3, 0
    for _ in range(steps):
        now, refused = envelope.guard(now, adversary.propose(now))
        path.append(now.q)
        refusals += int(refused.sum())
    return worst(np.stack(path), envelope), refusals / (arms * steps), np.stack(path)


def require_within(excess):
    # Of differences of positions of about 1 rad, whose last bit is 2e-16 rad: rounding, and nothing else.
    tolerance = {"jerk": 1e-3, "acceleration": 1e-6, "velocity": 1e-9, "position": 1e-9}
    for name, value in excess.items():
        assert value <= tolerance.get(name, 0.0), (name, value)


@pytest.mark.parametrize("arm", [FR3, UR5E], ids=lambda arm: arm.name)
def test_half_a_million_adversarial_steps_stay_within_every_limit(arm):
    limits = policy_limits(arm, table=0.0, tool=arm.hand.length)
    excess, refused, path = attack(limits, arms=200, steps=2500, seed=0)
    require_within(excess)
    # The attack must have teeth: arms travelled, and the guard had to act, on the limits themselves.
    assert np.ptp(path, axis=0).max() > 1.0
    assert 0.05 < refused < 0.95
    assert excess["box"] > -0.005
    # A UR5e's joints turn twice round: its box ends long before their range does.
    assert excess["position"] > -1e-3 or arm is UR5E


@pytest.mark.slow
@pytest.mark.parametrize("arm", [FR3, FER, UR5E], ids=lambda arm: arm.name)
def test_half_a_million_harder_steps(arm):
    """Seed 5 is the one that was 2e-5 rad/s and 5e-5 m/s beyond before steps were held to their means."""
    excess, _, _ = attack(policy_limits(arm, table=0.05, tool=0.0), arms=4000, steps=125, seed=5)
    require_within(excess)


@pytest.mark.quick("safety")
def test_the_guard_passes_what_is_right_and_stops_what_is_not():
    envelope = Envelope(LIMITS, DT)
    rest = Motion(HOME, np.zeros(7), np.zeros(7))
    fine = advance(rest, np.full(7, 50.0), DT)
    chosen, refused = envelope.guard(rest, fine)
    assert not refused
    assert all((a == b).all() for a, b in zip(chosen, fine, strict=True))
    for wrong in (
        advance(rest, np.full(7, 81.0), DT),
        Motion(HOME + 1e-4, rest.v, rest.a),
        Motion(*[np.full(7, np.nan)] * 3),
    ):
        chosen, refused = envelope.guard(rest, wrong)
        assert refused
        np.testing.assert_array_equal(chosen.q, HOME)


def test_chunks_are_rejected_for_every_reason():
    envelope = Envelope(LIMITS, DT)
    rows, opening = np.tile(HOME, (8, 1)), np.full(8, 0.04)
    assert envelope.chunk_fault(rows, opening) == ""
    poisoned = rows.copy()
    poisoned[3, 2] = np.nan
    assert envelope.chunk_fault(poisoned, opening) == "not finite"
    jumping = rows.copy()
    jumping[4:, 0] += 0.5
    assert "jump of 0.500 rad" in envelope.chunk_fault(jumping, opening)
    far = rows.copy()
    far[:, 3] = FR3.limits.q_max[3] + 0.01
    assert "outside the joint range" in envelope.chunk_fault(far, opening)
    near = rows.copy()
    near[:, 3] = envelope.high[3] + 0.04
    assert envelope.chunk_fault(near, opening) == ""
    assert "opening" in envelope.chunk_fault(rows, np.full(8, 40.0))
    assert "shapes" in envelope.chunk_fault(rows[:, :6], opening)


def test_references_are_clipped_to_joints_and_box():
    envelope = Envelope(LIMITS, DT)
    q, dq, clipped = envelope.clip_reference(HOME, np.full(7, 9.0))
    assert not clipped
    np.testing.assert_array_equal(q, HOME)
    np.testing.assert_allclose(dq, 0.95 * envelope.velocity)
    lowered = np.array([0.0, 0.75, 0.0, -1.95, 0.0, 2.7, 0.785])  # the tool under the table
    assert FR3.chain.forward(lowered, LIMITS.tool).position[2] < 0
    q, dq, clipped = envelope.clip_reference(lowered, np.ones(7))
    assert clipped and not dq.any()
    assert FR3.chain.forward(q, LIMITS.tool).position[2] > LIMITS.box_low[2]
    q, _, clipped = envelope.clip_reference(np.array(FR3.limits.q_max), np.zeros(7))
    assert clipped and (q <= envelope.high).all()


def test_the_speed_factor_keeps_the_tool_at_its_speed():
    envelope = Envelope(LIMITS, DT)
    dq = np.array([1.0, 0, 0, 0, 0, 0, 0])
    assert envelope.speed_factor(HOME, 0.1 * dq) == 1.0
    reach = np.hypot(*FR3.chain.forward(HOME, LIMITS.tool).position[:2])
    assert envelope.speed_factor(HOME, 2.0 * dq) == pytest.approx(0.75 * min(0.5 / (2 * reach), 1.0 / 2.0))


def test_the_tables_are_of_their_own_model():
    # Values that the two data sheets do not share.
    assert (FR3.limits.acceleration[0], FER.limits.acceleration[0]) == (10.0, 15.0)
    assert (FR3.limits.q_min[5], FER.limits.q_min[5]) == (0.5445, -0.0175)
    below, above = FR3.limits.speed_towards_ends(np.array(FR3.limits.q_max) - 0.5)
    assert above[1] == pytest.approx(-0.20 + np.sqrt(2 * 2.585 * 0.5))
    assert below[0] == 2.62
    with pytest.raises(TypeError, match="missing"):
        dataclasses.replace(LIMITS).__class__(arm=FR3)
