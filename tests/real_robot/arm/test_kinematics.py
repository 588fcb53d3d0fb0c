"""Kinematics against the maker's pose, geometry by hand and finite differences."""

import numpy as np
import pytest

from flowpolicy.real_robot.arm.kinematics import quaternion, tool_speed
from flowpolicy.real_robot.arm.models.franka import FR3
from flowpolicy.real_robot.arm.models.ur5e import UR5E
from flowpolicy.real_robot.bridge.ring_records import tick_type
from flowpolicy.real_robot.session.observations import observe, observe_all

RNG = np.random.default_rng(0)
SAMPLES = {arm: RNG.uniform(arm.limits.q_min, arm.limits.q_max, (50, arm.joints)) for arm in (FR3, UR5E)}
both = pytest.mark.parametrize("arm", SAMPLES, ids=lambda arm: arm.name)


def test_stretched_and_ready_poses():
    # All joints at zero: straight up to the elbow's height, the wrist 0.088 m out, looking down.
    pose = FR3.chain.forward(np.zeros(7))
    np.testing.assert_allclose(pose.position, [0.088, 0.0, 0.333 + 0.316 + 0.384 - FR3.chain.flange], atol=1e-12)
    np.testing.assert_allclose(pose.rotation, np.diag([1.0, -1.0, -1.0]), atol=1e-12)
    # The ready pose as the client's model and an independent program report it: z 0.590.
    ready = FR3.chain.forward(np.array(FR3.home))
    np.testing.assert_allclose(ready.position, [0.3069, 0.0, 0.5903], atol=2e-4)
    longer = FR3.chain.forward(np.array(FR3.home), 0.1)
    np.testing.assert_allclose(longer.position - ready.position, [0, 0, -0.1], atol=1e-9)


def test_a_ur5e_at_zero_upright_and_at_home():
    d1, d4, d5, d6, a2, a3 = 0.1625, 0.1333, 0.0997, 0.0996, -0.425, -0.3922  # as published
    pose = UR5E.chain.forward(np.zeros(6))
    np.testing.assert_allclose(pose.position, [a2 + a3, -d4 - d6, d1 - d5], atol=1e-12)
    upright = UR5E.chain.forward(np.array([0.0, -np.pi / 2, 0.0, -np.pi / 2, 0.0, 0.0]))
    np.testing.assert_allclose(upright.position, [0.0, -d4 - d6, d1 - a2 - a3 + d5], atol=1e-12)
    home = UR5E.chain.forward(np.array(UR5E.home), 0.1)
    np.testing.assert_allclose(home.position, [-a3 + d5, -d4, d1 - a2 - d6 - 0.1], atol=1e-12)
    np.testing.assert_allclose(home.rotation, np.diag([1.0, -1.0, -1.0]), atol=1e-12)


def test_a_ur5e_is_its_published_table_in_the_standard_convention():
    d, a = (0.1625, 0.0, 0.0, 0.1333, 0.0997, 0.0996), (0.0, -0.425, -0.3922, 0.0, 0.0, 0.0)
    alpha = (np.pi / 2, 0.0, 0.0, np.pi / 2, -np.pi / 2, 0.0)
    for q in SAMPLES[UR5E]:
        whole = np.eye(4)
        for joint in range(6):
            (c, s), (ca, sa) = ((np.cos(x), np.sin(x)) for x in (q[joint], alpha[joint]))
            whole = whole @ [
                [c, -s * ca, s * sa, a[joint] * c],
                [s, c * ca, -c * sa, a[joint] * s],
                [0.0, sa, ca, d[joint]],
                [0.0, 0.0, 0.0, 1.0],
            ]
        pose = UR5E.chain.forward(q)
        np.testing.assert_allclose(pose.position, whole[:3, 3], atol=1e-12)
        np.testing.assert_allclose(pose.rotation, whole[:3, :3], atol=1e-12)


@both
def test_the_first_joint_turns_about_the_base(arm):
    q = SAMPLES[arm][0].copy()
    before = arm.chain.forward(q)
    q[0] += 0.7
    turn = np.array([[np.cos(0.7), -np.sin(0.7), 0], [np.sin(0.7), np.cos(0.7), 0], [0, 0, 1]])
    np.testing.assert_allclose(arm.chain.forward(q).position, turn @ before.position, atol=1e-12)
    np.testing.assert_allclose(arm.chain.forward(q).rotation, turn @ before.rotation, atol=1e-12)


@both
def test_jacobian_equals_finite_differences(arm):
    pose = arm.chain.forward(SAMPLES[arm], 0.1)
    for joint in range(arm.joints):
        ahead = SAMPLES[arm] + 1e-6 * np.eye(arm.joints)[joint]
        numeric = (arm.chain.forward(ahead, 0.1).position - pose.position) / 1e-6
        np.testing.assert_allclose(pose.levers[:, joint], numeric, atol=5e-6)
        spin = (arm.chain.forward(ahead).rotation - pose.rotation) / 1e-6 @ pose.rotation.swapaxes(1, 2)
        angular = np.stack([spin[:, 2, 1], spin[:, 0, 2], spin[:, 1, 0]], -1)
        np.testing.assert_allclose(pose.axes[:, joint], angular, atol=5e-6)


@both
def test_tool_speed_of_the_base_joint(arm):
    pose = arm.chain.forward(np.array(arm.home))
    linear, angular = tool_speed(pose, 2.0 * np.eye(arm.joints)[0])
    assert linear == pytest.approx(2.0 * np.hypot(*pose.position[:2]))
    assert angular == pytest.approx(2.0)


def test_quaternion_rotates_like_the_matrix():
    for rotation in FR3.chain.forward(SAMPLES[FR3]).rotation:
        x, y, z, w = quaternion(rotation)
        v = RNG.normal(size=3)
        u = np.array([x, y, z])
        turned = v + 2 * w * np.cross(u, v) + 2 * np.cross(u, np.cross(u, v))
        np.testing.assert_allclose(turned, rotation @ v, atol=1e-12)
        assert x >= 0


def test_a_quaternion_changes_little_where_the_tool_points_nearly_straight_down():
    down = np.array(FR3.home)
    for joint in range(7):
        # Joints 1 and 7 turn the hand about the vertical, by up to 1.5 rad from home; the others tilt it.
        width = 1.5 if joint in (0, 6) else 0.3
        way = down + np.linspace(-width, width, 101)[:, None] * np.eye(7)[joint]
        turned = [quaternion(rotation) for rotation in FR3.chain.forward(way).rotation]
        assert np.abs(np.diff(turned, axis=0)).max() < 0.02


def test_the_sign_of_a_quaternion_follows_the_row_before():
    ticks = np.zeros(200, tick_type(FR3.joints))
    ticks["q"] = FR3.home
    ticks["q"][:, 0] += np.linspace(0.0, 2.7, 200)
    ticks["q"][:, 6] -= np.linspace(0.0, 2.7, 200)  # the flange turns by 5.4 rad in all
    rows = observe_all(ticks, "robot0_eef_quat", FR3, 0.1)
    assert np.abs(np.diff(rows, axis=0)).max() < 0.03
    assert rows[0, 0] > 0 > rows[-1, 0]
    alone = observe(ticks[-1], "robot0_eef_quat", FR3, 0.1)
    np.testing.assert_allclose(alone, -rows[-1], atol=1e-12)
    np.testing.assert_allclose(observe(ticks[-1], "robot0_eef_quat", FR3, 0.1, rows[-2]), rows[-1], atol=1e-12)


@both
def test_inverse_reaches_the_pose_and_refuses_what_is_out_of_reach(arm):
    home = np.array(arm.home)
    rotation = arm.chain.forward(home).rotation
    low, high = np.array(arm.limits.q_min) + 0.1, np.array(arm.limits.q_max) - 0.1
    for position in RNG.uniform([0.35, -0.3, 0.1], [0.65, 0.3, 0.4], (20, 3)):
        q = arm.chain.inverse(position, rotation, home, tool=0.1034, low=low, high=high)
        assert q is not None
        pose = arm.chain.forward(q, 0.1034)
        np.testing.assert_allclose(pose.position, position, atol=1e-4)
        np.testing.assert_allclose(pose.rotation, rotation, atol=1e-3)
        assert (q >= low).all() and (q <= high).all()
    assert arm.chain.inverse(np.array([1.5, 0, 0.3]), rotation, home, tool=0.1034, low=low, high=high) is None


@both
def test_one_arm_and_many_are_the_same_formulas(arm):
    q = SAMPLES[arm]
    many = arm.chain.forward(q, 0.1034)
    for row, angles in enumerate(q):
        for one, all_ in zip(arm.chain.forward(angles, 0.1034), many, strict=True):
            np.testing.assert_allclose(one, all_[row], atol=1e-14)


@both
def test_no_joint_moves_the_tool_faster_than_its_reach(arm):
    levers = np.linalg.norm(arm.chain.forward(SAMPLES[arm], 0.1034).levers, axis=-1)
    assert 0.5 * arm.chain.reach(0.1034) < levers.max() <= arm.chain.reach(0.1034)
