"""Joints or the tool's pose, steps or places: what an action moves, and which words are refused."""

import dataclasses

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from flowpolicy.core.errors import ConfigError, ContractError
from flowpolicy.core.spec import UNSTATED
from flowpolicy.data.controllers import action_of
from flowpolicy.real_robot.arm.action_conventions import (
    ACTIONS,
    action_named,
    convention_of,
    read_rotations,
    write_rotations,
)
from flowpolicy.real_robot.arm.kinematics import rotation_vector
from flowpolicy.real_robot.arm.models.franka import FR3

from ..simulated import HOME, LIMITS

DT = 0.05
OSC = {
    "env_name": "Lift",
    "type": 1,
    "env_kwargs": {
        "control_freq": 20,
        "controller_configs": {
            "body_parts": {
                "right": {
                    "type": "OSC_POSE",
                    "input_type": "delta",
                    "input_ref_frame": "base",
                    "output_max": [0.05, 0.05, 0.05, 0.5, 0.5, 0.5],
                    "kp": 150,
                    "damping_ratio": 1,
                }
            }
        },
    },
}
"""What a RoboMimic file of robosuite's Lift states (layout of 1.5)."""


def pose(q):
    return FR3.chain.forward(q, LIMITS.tool)


def spoken(name):
    return convention_of(action_named(name, FR3), LIMITS)


def wander(seed, rows=8):
    """Joint positions that a decision might hold, and what was commanded before."""
    rng = np.random.default_rng(seed)
    start = HOME + rng.uniform(-0.2, 0.2, 7)
    steps = 0.012 * rng.standard_normal((rows, 7)).cumsum(0) / np.arange(1, rows + 1)[:, None]
    return start, steps


@pytest.mark.parametrize("name", [name for name in ACTIONS if name != "osc"])
def test_what_is_written_is_read_back_to_a_tenth_of_a_millimetre_and_milliradian(name):
    convention = spoken(name)
    for seed in range(6):
        start, steps = wander(seed)
        path = start + steps.cumsum(0)
        now = np.concatenate([start[None], path[:-1]])
        rows = convention.actions(now, steps, np.full(8, 0.08), DT)
        spec = action_named(name, FR3)
        assert rows.shape == (8, spec.size)
        assert (rows >= spec.low).all() and (rows <= spec.high).all()
        asked = convention.joints(rows, start, np.zeros(7), DT)
        assert asked.told == ""
        np.testing.assert_array_equal(asked.gripper, 0.08)
        for found, wanted in zip(asked.q, path, strict=True):
            one, other = pose(found), pose(wanted)
            assert np.linalg.norm(one.position - other.position) < 1e-4
            assert np.linalg.norm(rotation_vector(one.rotation, other.rotation)) < 1e-4


def test_recordings_of_joint_steps_are_what_they_were():
    start, steps = wander(0)
    rows = spoken("joint-delta").actions(np.tile(start, (8, 1)), steps, np.full(8, 0.04), DT)
    np.testing.assert_array_equal(rows[:, :7], steps)
    again = spoken("joint-delta").joints(rows, start, np.zeros(7), DT)
    np.testing.assert_array_equal(again.q, start + rows[:, :-1].cumsum(0))


def test_rotations_are_right_handed_in_the_order_of_the_data_formats():
    quarter = Rotation.from_euler("z", 90, degrees=True).as_matrix()[None]
    np.testing.assert_allclose(write_rotations(quarter, "axis-angle"), [[0, 0, np.pi / 2]], atol=1e-12)
    np.testing.assert_allclose(write_rotations(quarter, "quaternion x y z w"), [[0, 0, 0.5**0.5, 0.5**0.5]], atol=1e-12)
    # x goes to y: the first two *rows*, as pytorch3d, robomimic and diffusion_policy have it.
    np.testing.assert_allclose(write_rotations(quarter, "6d, first two rows"), [[0, -1, 0, 1, 0, 0]], atol=1e-12)
    some = Rotation.random(200, random_state=0).as_matrix()
    for words in ("axis-angle", "quaternion x y z w", "6d, first two rows"):
        for place in (False, True):
            np.testing.assert_allclose(
                read_rotations(write_rotations(some, words, place=place), words), some, atol=1e-9
            )
    # A network's six numbers are no rotation yet.
    bent = read_rotations(write_rotations(some, "6d, first two rows") * 3.0 + 0.05, "6d, first two rows")
    np.testing.assert_allclose(bent @ bent.transpose(0, 2, 1), np.tile(np.eye(3), (200, 1, 1)), atol=1e-9)
    # Where a hand over a table points, down, places change without a jump.
    down = Rotation.from_euler("x", 180, degrees=True)
    sway = (Rotation.from_rotvec(np.linspace([-0.2, -0.1, 0], [0.2, 0.1, 0], 21)) * down).as_matrix()
    for words in ("axis-angle", "quaternion x y z w"):
        assert np.abs(np.diff(write_rotations(sway, words, place=True), axis=0)).max() < 0.05


def test_a_step_moves_along_the_axes_of_its_frame_and_turns_about_them():
    start = pose(HOME)
    turn = np.array([0.0, 0.0, 0.1])
    for name, frame in (("pose-delta", np.eye(3)), ("pose-delta-tool", start.rotation)):
        row = np.concatenate([[0.02, 0.0, 0.0], turn, [0.08]])[None]
        after = pose(spoken(name).joints(row, HOME, np.zeros(7), 0.2).q[0])
        np.testing.assert_allclose(after.position - start.position, frame @ [0.02, 0, 0], atol=1e-5)
        np.testing.assert_allclose(rotation_vector(start.rotation, after.rotation), frame @ turn, atol=1e-5)
    # The hand points down: its z axis and the base's are opposite, and taking one for the other turns the wrong way.
    np.testing.assert_allclose(start.rotation[:, 2], [0, 0, -1], atol=1e-9)


def test_robosuites_steps_move_the_tool_as_robosuites_arm_moves():
    convention = convention_of(action_of(OSC, 7), LIMITS)
    rows = np.zeros((40, 7))
    rows[:, 0], rows[:, 6] = 0.5, -1.0
    rows[20:, 6] = 1.0
    asked = convention.joints(rows, HOME, np.zeros(7), DT)
    tools = np.array([pose(q).position for q in asked.q]) - pose(HOME).position
    # x'' = kp (goal - x) - 2 sqrt(kp) x' the goal 0.025 m ahead of the tool at each step, in small steps.
    speed, at, path = 0.0, 0.0, []
    for _ in range(40):
        goal = at + 0.025
        for _ in range(2000):
            speed += DT / 2000 * (150.0 * (goal - at) - 2.0 * 150.0**0.5 * speed)
            at += DT / 2000 * speed
        path.append(at)
    np.testing.assert_allclose(tools[:, 0], path, rtol=0.05, atol=1e-3)
    np.testing.assert_allclose(tools[:, 1:], 0.0, atol=1e-4)
    # Much less than the 0.025 m that the step names, and what a plain reading of the words would move it by.
    assert 0.2 < (tools[30, 0] - tools[20, 0]) / (10 * 0.025) < 0.45
    np.testing.assert_array_equal(asked.gripper, [0.08] * 20 + [0.0] * 20)
    np.testing.assert_array_equal(convention.joints(10.0 * rows, HOME, np.zeros(7), DT).gripper, asked.gripper)


def test_a_motion_written_in_robosuites_steps_is_about_the_motion_that_they_make():
    convention = spoken("osc")
    times = DT * np.arange(41)
    sway = HOME + 0.15 * (1 - np.cos(2 * np.pi * times / 2.0))[:, None] * np.array([0.5, 0.3, 0, 0.2, 0, 0, 0.4])
    rows = convention.actions(sway[:-1], np.diff(sway, axis=0), np.full(40, 0.0), DT)
    assert np.abs(rows[:, :6]).max() < 1.0
    np.testing.assert_array_equal(rows[:, 6], 1.0)
    made = convention.joints(rows, sway[0], np.zeros(7), DT).q
    away = [np.linalg.norm(pose(a).position - pose(b).position) for a, b in zip(made, sway[1:], strict=True)]
    reach = max(np.linalg.norm(pose(q).position - pose(HOME).position) for q in sway)
    assert max(away) < 0.1 * reach


def test_what_is_out_of_reach_is_slowed_and_told():
    row = np.concatenate([[0.02, 0, 0, 0, 0, 0], [0.08]])
    asked = spoken("pose-delta").joints(np.tile(row, (60, 1)), HOME, np.zeros(7), DT)
    assert "of what is asked for" in asked.told
    assert (asked.q >= LIMITS.q_low).all() and (asked.q <= LIMITS.q_high).all()
    assert np.abs(np.diff(asked.q, axis=0)).max() <= DT * 1.5
    assert np.abs(np.diff(asked.q[-5:], axis=0)).max() < 0.02


def test_words_that_are_none_of_a_conventions_are_refused():
    for name in ACTIONS:
        convention_of(action_named(name, FR3), LIMITS)
    with pytest.raises(ConfigError, match="pose-delta"):
        action_named("pose-delt", FR3)
    osc, delta, place = (action_named(name, FR3) for name in ("osc", "pose-delta", "pose-quaternion"))
    assert action_of(OSC, 7) == osc  # the words of RoboMimic's files, as the reader says them
    for wrong, field in (
        (dataclasses.replace(osc, frame="world"), "frame: 'world' against 'base'"),
        (dataclasses.replace(osc, frame="tool"), "frame: 'tool' against 'base'"),
        (dataclasses.replace(osc, convention="absolute"), "convention"),
        (dataclasses.replace(osc, rotation="euler x y z"), "rotation"),
        (dataclasses.replace(osc, units=UNSTATED), "units"),
        (dataclasses.replace(osc, gripper="last dimension: +1 opens"), "gripper"),
        (dataclasses.replace(osc, controller="OSC_POSE, variable impedance"), "controller"),
        (dataclasses.replace(delta, frame="world"), "frame"),
        (dataclasses.replace(delta, frame=UNSTATED), "frame"),
        (dataclasses.replace(delta, rotation="axis-angle, left-handed"), "rotation"),
        (dataclasses.replace(place, rotation="quaternion w x y z"), "rotation: 'quaternion w x y z' against"),
        (dataclasses.replace(place, size=7), "rotation"),
        (dataclasses.replace(action_named("pose-6d", FR3), rotation="6d, first two columns"), "rotation"),
    ):
        with pytest.raises(ContractError, match="does not understand") as raised:
            convention_of(wrong, LIMITS)
        assert field in raised.value.what
    # Another scale and stiffness of robosuite's controller are read, not taken for the usual ones.
    soft = dataclasses.replace(
        osc, units="1 stands for 0.02 m, 0.2 rad per step", controller=osc.controller.replace("150", "60")
    )
    row = np.array([[1.0, 0, 0, 0, 0, 0, -1]] * 10)
    usual, other = (convention_of(one, LIMITS).joints(row, HOME, np.zeros(7), DT).q[-1] for one in (osc, soft))
    assert np.abs(other - HOME).max() < 0.5 * np.abs(usual - HOME).max()
