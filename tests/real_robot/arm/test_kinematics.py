"""Kinematics against the maker's pose, geometry by hand and finite differences."""

import numpy as np
import pytest

from flowpolicy.real_robot.arm.kinematics import FLANGE, forward, inverse, quaternion, reach, tool_speed
from flowpolicy.real_robot.arm.limits import FR3, HOME
from flowpolicy.real_robot.bridge.ring_records import TICK
from flowpolicy.real_robot.session.observations import observe, observe_all

RNG = np.random.default_rng(0)
SAMPLES = RNG.uniform(FR3.q_min, FR3.q_max, (50, 7))


def test_stretched_and_ready_poses():
    # All joints at zero: straight up to the elbow's height, the wrist 0.088 m out, looking down.
    pose = forward(np.zeros(7))
    np.testing.assert_allclose(pose.position, [0.088, 0.0, 0.333 + 0.316 + 0.384 - FLANGE], atol=1e-12)
    np.testing.assert_allclose(pose.rotation, np.diag([1.0, -1.0, -1.0]), atol=1e-12)
    # The ready pose as the client's model and an independent program report it: z 0.590.
    ready = forward(np.array(HOME))
    np.testing.assert_allclose(ready.position, [0.3069, 0.0, 0.5903], atol=2e-4)
    np.testing.assert_allclose(forward(np.array(HOME), 0.1).position - ready.position, [0, 0, -0.1], atol=1e-9)


def test_the_first_joint_turns_about_the_base():
    q = SAMPLES[0].copy()
    before = forward(q)
    q[0] += 0.7
    turn = np.array([[np.cos(0.7), -np.sin(0.7), 0], [np.sin(0.7), np.cos(0.7), 0], [0, 0, 1]])
    np.testing.assert_allclose(forward(q).position, turn @ before.position, atol=1e-12)
    np.testing.assert_allclose(forward(q).rotation, turn @ before.rotation, atol=1e-12)


def test_jacobian_equals_finite_differences():
    pose = forward(SAMPLES, 0.1)
    for joint in range(7):
        ahead = SAMPLES + 1e-6 * np.eye(7)[joint]
        numeric = (forward(ahead, 0.1).position - pose.position) / 1e-6
        np.testing.assert_allclose(pose.levers[:, joint], numeric, atol=5e-6)
        spin = (forward(ahead).rotation - pose.rotation) / 1e-6 @ pose.rotation.swapaxes(1, 2)
        angular = np.stack([spin[:, 2, 1], spin[:, 0, 2], spin[:, 1, 0]], -1)
        np.testing.assert_allclose(pose.axes[:, joint], angular, atol=5e-6)


def test_tool_speed_of_the_base_joint():
    pose = forward(np.array(HOME))
    linear, angular = tool_speed(pose, np.array([2.0, 0, 0, 0, 0, 0, 0]))
    assert linear == pytest.approx(2.0 * np.hypot(*pose.position[:2]))
    assert angular == pytest.approx(2.0)


def test_quaternion_rotates_like_the_matrix():
    for rotation in forward(SAMPLES).rotation:
        x, y, z, w = quaternion(rotation)
        v = RNG.normal(size=3)
        u = np.array([x, y, z])
        turned = v + 2 * w * np.cross(u, v) + 2 * np.cross(u, np.cross(u, v))
        np.testing.assert_allclose(turned, rotation @ v, atol=1e-12)
        assert x >= 0


def test_a_quaternion_changes_little_where_the_tool_points_nearly_straight_down():
    down = np.array(HOME)
    for joint in range(7):
        # Joints 1 and 7 turn the hand about the vertical, by up to 1.5 rad from home; the others tilt it.
        width = 1.5 if joint in (0, 6) else 0.3
        turned = [quaternion(forward(down + x * np.eye(7)[joint]).rotation) for x in np.linspace(-width, width, 101)]
        assert np.abs(np.diff(turned, axis=0)).max() < 0.02


def test_the_sign_of_a_quaternion_follows_the_row_before():
    ticks = np.zeros(200, TICK)
    ticks["q"] = HOME
    ticks["q"][:, 0] += np.linspace(0.0, 2.7, 200)
    ticks["q"][:, 6] -= np.linspace(0.0, 2.7, 200)  # the flange turns by 5.4 rad in all
    rows = observe_all(ticks, "robot0_eef_quat", 0.1)
    assert np.abs(np.diff(rows, axis=0)).max() < 0.03
    assert rows[0, 0] > 0 > rows[-1, 0]
    alone = observe(ticks[-1], "robot0_eef_quat", 0.1)
    np.testing.assert_allclose(alone, -rows[-1], atol=1e-12)
    np.testing.assert_allclose(observe(ticks[-1], "robot0_eef_quat", 0.1, rows[-2]), rows[-1], atol=1e-12)


def test_inverse_reaches_the_pose_and_refuses_what_is_out_of_reach():
    home = np.array(HOME)
    rotation = forward(home).rotation
    low, high = np.array(FR3.q_min) + 0.1, np.array(FR3.q_max) - 0.1
    for position in RNG.uniform([0.35, -0.3, 0.1], [0.65, 0.3, 0.4], (20, 3)):
        q = inverse(position, rotation, home, tool=0.1034, low=low, high=high)
        assert q is not None
        pose = forward(q, 0.1034)
        np.testing.assert_allclose(pose.position, position, atol=1e-4)
        np.testing.assert_allclose(pose.rotation, rotation, atol=1e-3)
        assert (q >= low).all() and (q <= high).all()
    assert inverse(np.array([1.5, 0, 0.3]), rotation, home, tool=0.1034, low=low, high=high) is None


def test_one_arm_and_many_are_the_same_formulas():
    q = np.random.default_rng(3).uniform(-2.5, 2.5, (20, 7))
    many = forward(q, 0.1034)
    for row, angles in enumerate(q):
        for one, all_ in zip(forward(angles, 0.1034), many, strict=True):
            np.testing.assert_allclose(one, all_[row], atol=1e-14)


def test_no_joint_moves_the_tool_faster_than_its_reach():
    levers = np.linalg.norm(forward(SAMPLES, 0.1034).levers, axis=-1)
    assert 0.5 * reach(0.1034) < levers.max() <= reach(0.1034)
