"""From motions of the tool to motions of the joints: exact inside, slow and told where the arm cannot follow."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from flowpolicy.core.errors import ConfigError
from flowpolicy.real_robot.arm.differential_ik import DifferentialIk, IkConfig, in_base
from flowpolicy.real_robot.arm.envelope_limits import policy_limits
from flowpolicy.real_robot.arm.kinematics import rotation_vector
from flowpolicy.real_robot.arm.models import find_arm

DT = 0.004


def ik_of(name, **config):
    return DifferentialIk(policy_limits(find_arm(name), table=0.0, tool=0.1034), IkConfig(**config))


def goals(ik, count, seed):
    """Joint positions whose tool is inside the workspace."""
    rng, limits, found = np.random.default_rng(seed), ik.limits, []
    while len(found) < count:
        q = rng.uniform(limits.q_low, limits.q_high)
        place = ik.pose(q).position
        if ((place > limits.box_low) & (place < limits.box_high)).all():
            found.append(q)
    return found


def off(ik, q, pose):
    """m and rad."""
    at = ik.pose(q)
    return np.linalg.norm(at.position - pose.position), np.linalg.norm(rotation_vector(at.rotation, pose.rotation))


def test_a_rotation_vector_is_the_logarithm_for_every_angle():
    rng = np.random.default_rng(0)
    for angle in (0.0, 1e-9, 1e-4, 0.5, 3.0, np.pi - 1e-5, np.pi):
        for _ in range(20):
            axis = rng.standard_normal(3)
            vector = angle * axis / np.linalg.norm(axis)
            now = Rotation.random(random_state=rng.integers(1000)).as_matrix()
            # Turned about axes of the base frame: from the left.
            wanted = Rotation.from_rotvec(vector).as_matrix() @ now
            found = rotation_vector(now, wanted)
            again = Rotation.from_rotvec(found).as_matrix() @ now
            np.testing.assert_allclose(again, wanted, atol=1e-7)
            if angle < np.pi - 1e-4:
                np.testing.assert_allclose(found, vector, atol=1e-7)


@pytest.mark.parametrize("name", ["fr3", "ur5e"])
def test_what_is_solved_is_where_it_was_asked_for(name):
    ik = ik_of(name)
    for q in goals(ik, 60, 1):
        pose = ik.pose(q)
        found = ik.solve(pose.position, pose.rotation, np.array(ik.limits.arm.home))
        assert found is not None
        assert (found >= ik.limits.q_low).all() and (found <= ik.limits.q_high).all()
        away, turned = off(ik, found, pose)
        assert away < 1e-4 and turned < 1e-4
    assert ik.solve(np.array([1.5, 0.0, 0.5]), np.eye(3), np.array(ik.limits.arm.home), tries=2) is None


def test_steps_lead_to_goals_within_a_tenth_of_a_millimetre_and_no_joint_is_too_fast():
    ik = ik_of("fr3")
    home, rng, top = np.array(ik.limits.arm.home), np.random.default_rng(2), np.array(ik.limits.velocity)
    for _ in range(10):
        near = home + rng.uniform(-0.4, 0.4, 7)
        pose, q = ik.pose(near), home
        for _ in range(200):
            before = q
            q, told = ik.towards(q, pose.position, pose.rotation, 0.02)
            assert (np.abs(q - before) <= 0.02 * 0.9 * top + 1e-12).all()
        away, turned = off(ik, q, pose)
        assert away < 1e-4 and turned < 1e-4
        assert told == ""


def test_a_twist_moves_the_tool_by_it_in_the_base_frame_and_in_its_own():
    ik, rng = ik_of("fr3"), np.random.default_rng(3)
    for _ in range(50):
        q = np.array(ik.limits.arm.home) + rng.uniform(-0.3, 0.3, 7)
        pose, own = ik.pose(q), 0.05 * rng.standard_normal(6)
        step = ik.step(q, in_base(own, pose.rotation), 1e-4)
        after = ik.pose(q + 1e-4 * step.dq)
        moved = np.concatenate([after.position - pose.position, rotation_vector(pose.rotation, after.rotation)]) / 1e-4
        np.testing.assert_allclose(
            np.concatenate([pose.rotation.T @ moved[:3], pose.rotation.T @ moved[3:]]), own, atol=2e-4
        )
        assert step.share == pytest.approx(1.0, abs=1e-3)
        assert step.told == ""


def test_the_null_space_returns_to_the_posture_and_leaves_the_tool_alone():
    ik = ik_of("fr3")
    home = np.array(ik.limits.arm.home)
    pose = ik.pose(home)
    bent = ik.solve(pose.position, pose.rotation, home + np.array([0.6, 0, -0.6, 0, 0, 0, 0]))
    away, q = np.abs(bent - home).max(), bent
    assert away > 0.3
    for tick in range(2500):
        sign = 1.0 if tick // 250 % 2 else -1.0  # to and fro: at rest nothing moves
        q = q + DT * ik.step(q, np.array([0.0, 0.05 * sign, 0, 0, 0, 0]), DT).dq
    assert np.abs(q - home).max() < 0.45 * away
    assert np.linalg.norm(ik.pose(q).position - pose.position) < 1e-3  # what many steps of a curve add up to
    still = ik.step(q, np.zeros(6), DT)
    np.testing.assert_array_equal(still.dq, 0.0)


@pytest.mark.parametrize("goal", [[1.5, 0.0, 0.5], [0.0, 0.0, 1.6], [0.05, 0.0, 0.3], [0.3, 0.0, -0.5]])
def test_out_of_reach_it_comes_to_rest_nearby_and_says_so(goal):
    ik = ik_of("fr3")
    q, rotation, said = np.array(ik.limits.arm.home), ik.pose(np.array(ik.limits.arm.home)).rotation, set()
    before = np.linalg.norm(ik.pose(q).position - goal)
    for _ in range(500):
        last = q
        q, told = ik.towards(q, np.array(goal), rotation, 0.02)
        said.add(told.partition(": ")[2])
        assert (q >= ik.limits.q_low).all() and (q <= ik.limits.q_high).all()
    assert np.linalg.norm(ik.pose(q).position - goal) < before
    assert np.abs(q - last).max() < 1e-3
    assert any("singular" in words or "end of its range" in words for words in said)


def test_stretched_out_it_slows_down_instead_of_swerving():
    ik = ik_of("fr3")
    q, start, shares = np.array(ik.limits.arm.home), ik.pose(np.array(ik.limits.arm.home)), []
    for _ in range(1000):
        step = ik.step(q, np.array([0.2, 0, 0, 0, 0, 0]), DT)
        q, moved = q + DT * step.dq, step
        shares.append(step.share)
    end = ik.pose(q)
    assert shares[0] > 0.99 and shares[-1] < 0.1
    assert "singular" in moved.told
    assert np.abs(moved.dq).max() < 0.1
    assert end.position[0] > start.position[0] + 0.35
    assert np.abs((end.position - start.position)[1:]).max() < 0.05


def test_any_twist_from_any_posture_keeps_speeds_and_ranges():
    ik, rng = ik_of("fr3"), np.random.default_rng(5)
    low, high, top = ik.limits.q_low, ik.limits.q_high, np.array(ik.limits.velocity)
    for _ in range(600):
        q = rng.uniform(low, high)
        corner = rng.random(7) < 0.3
        q[corner] = np.where(rng.random(7) < 0.5, low, high)[corner]
        step = ik.step(q, rng.standard_normal(6) * 10.0 ** rng.uniform(-6, 4), DT)
        assert np.isfinite(step.dq).all() and (np.abs(step.dq) <= top).all()
        ahead = q + DT * step.dq
        assert (ahead >= low - 1e-9).all() and (ahead <= high + 1e-9).all()
        assert 0.0 <= step.share <= 1.0
    for wrong in (np.full(6, np.nan), np.zeros(3)):
        with pytest.raises(ConfigError, match="6 finite numbers"):
            ik.step(q, wrong, DT)
    with pytest.raises(ConfigError, match="speed"):
        IkConfig(speed=0.0)
