"""What the numbers of an action mean to an arm: joints or the tool's pose, steps or places, and which words say so.

Every convention becomes rows of joint positions here, through the inverse kinematics where it speaks of the tool. This
is done where chunks are made (the policy's process, without torch), so that the bridge's one envelope guards them all
and its loop stays short. A contract whose words are not exactly those of a convention is refused: a rotation that is
read in another order or frame moves an arm all the same.
"""

from __future__ import annotations

import dataclasses
import math
import re
from typing import NamedTuple, Protocol, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from typing_extensions import override

from flowpolicy.core.errors import ConfigError, ContractError, nearest
from flowpolicy.core.spec import UNSTATED, ActionSpec
from flowpolicy.real_robot.arm.arm_model import ArmAction, ArmModel
from flowpolicy.real_robot.arm.differential_ik import DifferentialIk
from flowpolicy.real_robot.arm.envelope_limits import EnvelopeLimits
from flowpolicy.real_robot.arm.kinematics import rotation_vector

Array = NDArray[np.float64]

AXIS_ANGLE, SIX_D, QUATERNION = "axis-angle", "6d, first two rows", "quaternion x y z w"
"""Rotations: a rotation vector in rad, right-handed; the first two rows of the matrix, one after the other (Zhou et al.
2019, in the order of pytorch3d, robomimic and diffusion_policy); a unit quaternion with the real part last."""
_SIZES = {AXIS_ANGLE: 3, SIX_D: 6, QUATERNION: 4}
_WORDS = {6: "six", 7: "seven"}
_RATE = 20.0
_OSC_UNITS = re.compile(r"1 stands for ([\d.]+) m, ([\d.]+) rad per step")
_OSC = re.compile(r"OSC_POSE, stiffness kp ([\d.]+), damping ratio ([\d.]+)")
_OSC_GRIPPER = "last dimension: -1 opens, +1 closes"
_SUBSTEPS = 10  # of a row, in which robosuite's controller is followed: 5 ms at 20 Hz


class JointRows(NamedTuple):
    """What rows of actions ask of the joints."""

    q: Array
    """(h, n) rad."""
    gripper: Array
    """(h,) opening, m."""
    told: str
    """Why the arm is slower than asked for; empty if it is not."""


class ActionConvention(Protocol):
    """How an arm reads actions, and how a recording writes them."""

    size: int
    """Numbers of an action."""

    def joints(self, rows: Array, q: Array, dq: Array, dt: float) -> JointRows:
        """Joint rows of action rows (h, a): row i is where the arm should be i + 1 periods later.

        Args:
            rows: in the units of the contract.
            q: (n,) commanded when the observation was made, rad.
            dq: (n,) the same, rad/s.
            dt: period of a row, s.

        """

    def actions(self, now: Array, steps: Array, gripper: Array, dt: float) -> Array:
        """Action rows (h, a) that say what a recording holds: how far the joints are led in each period.

        Args:
            now: (h, n) commanded at the beginning of each row, rad.
            steps: (h, n) how far the decision in force leads by its end, rad.
            gripper: (h,) opening there, m.
            dt: period of a row, s.

        """


class JointActions(ActionConvention):
    """Places of the joints, or steps of them, and the gripper's opening.

    Args:
        joints: number of joints.
        steps: whether rows are steps, each from the row before.

    """

    def __init__(self, joints: int, steps: bool) -> None:
        self.size, self._steps = joints + 1, steps

    @override
    def joints(self, rows: Array, q: Array, dq: Array, dt: float) -> JointRows:
        wanted = q + rows[:, :-1].cumsum(0) if self._steps else rows[:, :-1]
        return JointRows(wanted, rows[:, -1], "")

    @override
    def actions(self, now: Array, steps: Array, gripper: Array, dt: float) -> Array:
        return np.concatenate([steps if self._steps else now + steps, gripper[:, None]], axis=1)


class PoseActions(ActionConvention):
    """Places of the tool in the base frame, or steps of it in the base's axes or its own, and the gripper's opening.

    Steps are added to what the row before asked for. A step in the base frame turns from the left (R' = D R), one in
    the tool's from the right (R' = R D), and moves along the tool's axes before the turn.

    Args:
        ik: inverse kinematics of the arm.
        steps: whether rows are steps.
        frame: 'base' or 'tool'.
        rotation: one of the words above.

    """

    def __init__(self, ik: DifferentialIk, steps: bool, frame: str, rotation: str) -> None:
        self._ik, self._steps, self._frame, self._rotation = ik, steps, frame, rotation
        self.size = 3 + _SIZES[rotation] + 1

    @override
    def joints(self, rows: Array, q: Array, dq: Array, dt: float) -> JointRows:
        pose = self._ik.pose(q)
        at, turned = pose.position, pose.rotation
        turns = read_rotations(rows[:, 3:-1], self._rotation)
        found, told = [], ""
        for place, turn in zip(rows[:, :3], turns, strict=True):
            if not self._steps:
                at, turned = place, turn
            elif self._frame == "tool":
                at, turned = at + turned @ place, turned @ turn
            else:
                at, turned = at + place, turn @ turned
            q, why = self._ik.towards(q, at, turned, dt)
            told = why or told
            found.append(q)
        return JointRows(np.stack(found), rows[:, -1], told)

    @override
    def actions(self, now: Array, steps: Array, gripper: Array, dt: float) -> Array:
        to = self._ik.pose(now + steps)
        places, turns = to.position, to.rotation
        if self._steps:
            begin = self._ik.pose(now)
            places = to.position - begin.position
            back = begin.rotation.transpose(0, 2, 1)
            if self._frame == "tool":
                places, turns = np.einsum("hij,hj->hi", back, places), back @ to.rotation
            else:
                turns = to.rotation @ back
        words = write_rotations(turns, self._rotation, place=not self._steps)
        return np.concatenate([places, words, gripper[:, None]], axis=1)


class OscActions(ActionConvention):
    """Steps as robosuite's controller OSC_POSE takes them, and as its arm would follow them.

    A 1 stands for a distance and an angle, the goal is that far from where the tool *is*, and the tool goes there like
    a damped mass, without arriving within the step.

    What robosuite's arm would do in free space is followed row by row, so that a policy moves this arm as fast as it
    moved that one: with stiffness 150 and damping ratio 1 a step of 1 moves the tool by about a third of what it names.

    Args:
        ik: inverse kinematics of the arm.
        metres: that 1 stands for.
        radians: that 1 stands for.
        stiffness: kp, 1/s^2.
        damping: ratio; 1 is critical.
        width: opening of the open hand, m.

    """

    size = 7

    def __init__(
        self, ik: DifferentialIk, metres: float, radians: float, stiffness: float, damping: float, width: float
    ) -> None:
        self._ik, self._metres, self._radians, self._width = ik, metres, radians, width
        self._kp, self._kd = stiffness, 2.0 * damping * math.sqrt(stiffness)

    @override
    def joints(self, rows: Array, q: Array, dq: Array, dt: float) -> JointRows:
        pose = self._ik.pose(q)
        at, turned = pose.position, pose.rotation
        speed, turning = pose.levers.T @ dq, pose.axes.T @ dq
        found, told, short = [], "", dt / _SUBSTEPS
        for row in np.clip(rows, -1.0, 1.0):
            goal = at + self._metres * row[:3]
            wanted = Rotation.from_rotvec(self._radians * row[3:6]).as_matrix() @ turned
            for _ in range(_SUBSTEPS):
                speed = speed + short * (self._kp * (goal - at) - self._kd * speed)
                turning = turning + short * (self._kp * rotation_vector(turned, wanted) - self._kd * turning)
                at = at + short * speed
                turned = Rotation.from_rotvec(short * turning).as_matrix() @ turned
            q, why = self._ik.towards(q, at, turned, dt)
            told = why or told
            found.append(q)
        return JointRows(np.stack(found), np.where(rows[:, 6] > 0.0, 0.0, self._width), told)

    @override
    def actions(self, now: Array, steps: Array, gripper: Array, dt: float) -> Array:
        # What a motion at its speed and acceleration takes, at most 1 in size.
        begin, to = self._ik.pose(now), self._ik.pose(now + steps)
        turns = to.rotation @ begin.rotation.transpose(0, 2, 1)
        speed = np.concatenate([to.position - begin.position, Rotation.from_matrix(turns).as_rotvec()], axis=1) / dt
        change = np.gradient(speed, dt, axis=0) if len(speed) > 1 else np.zeros_like(speed)
        # The goal stands still while the tool comes nearer: by half a step in the mean.
        asked = ((self._kd * speed + change) / self._kp + 0.5 * dt * speed) / np.repeat(
            [self._metres, self._radians], 3
        )
        closes = np.where(gripper < 0.5 * self._width, 1.0, -1.0)
        return np.concatenate([np.clip(asked, -1.0, 1.0), closes[:, None]], axis=1)


def joint_delta(arm: ArmModel) -> ActionSpec:
    """The convention of recordings unless another one is named.

    Row i of a chunk, added to all rows before it and to what was commanded at the observation, is due i + 1 periods
    later. Steps, because one evaluation of a flow errs by some percent of an action's range: of a position's, that
    would be tens of millirad.
    """
    return ActionSpec(
        arm.joints + 1,
        convention="delta",
        frame="joints",
        units=f"{_WORDS.get(arm.joints, arm.joints)} steps of the commanded joint positions in rad, then the gripper's "
        "opening in m",
        rotation="none",
        gripper=_opening(arm),
        rate_hz=_RATE,
        low=-0.3,
        high=0.3,
    )


def _joint_position(arm: ArmModel) -> ActionSpec:
    words = f"{_WORDS.get(arm.joints, arm.joints)} commanded joint positions in rad, then the gripper's opening in m"
    ends = (min(arm.limits.q_min), max(arm.limits.q_max))
    return dataclasses.replace(joint_delta(arm), convention="absolute", units=words, low=ends[0], high=ends[1])


def _pose(arm: ArmModel, rotation: str, frame: str = "") -> ActionSpec:
    """Places in the base frame, or steps in a frame where one is named."""
    what = f"step of the tool point along the axes of the {frame}" if frame else "place of the tool point"
    return dataclasses.replace(
        joint_delta(arm),
        size=3 + _SIZES[rotation] + 1,
        convention="delta" if frame else "absolute",
        frame=frame or "base",
        units=f"{what} in m, its rotation, then the gripper's opening in m",
        rotation=rotation,
        low=-2.0 * math.pi,
        high=2.0 * math.pi,
    )


def _osc(arm: ArmModel) -> ActionSpec:
    """What robosuite's default controller takes, in the words of RoboMimic's files."""
    return ActionSpec(
        7,
        convention="delta",
        frame="base",
        units="1 stands for 0.05 m, 0.5 rad per step",
        rotation=AXIS_ANGLE,
        gripper=_OSC_GRIPPER,
        rate_hz=_RATE,
        low=-1.0,
        high=1.0,
        controller="OSC_POSE, stiffness kp 150, damping ratio 1",
    )


def _opening(arm: ArmModel) -> str:
    return f"last dimension: opening in m, 0 closed, {arm.hand.width:g} open"


ACTIONS: tuple[str, ...] = get_args(ArmAction)
"""Conventions by the names that the command line uses."""


def action_named(name: str, arm: ArmModel) -> ActionSpec:
    """What a contract says of the convention with this name; ConfigError where there is none."""
    if name == "joint-delta":
        return joint_delta(arm)
    if name == "joint-position":
        return _joint_position(arm)
    if name == "osc":
        return _osc(arm)
    if name not in ACTIONS:
        raise ConfigError(f"the action convention '{name}'", expected=nearest(name, ACTIONS))
    rotation = SIX_D if name.endswith("-6d") else QUATERNION if name.endswith("-quaternion") else AXIS_ANGLE
    steps = "delta" in name
    return _pose(arm, rotation, ("tool" if "-tool" in name else "base") if steps else "")


def nearest_action(stated: ActionSpec, arm: ArmModel) -> ActionSpec:
    """The convention that a contract's words come nearest to: where they differ, these are what was expected.

    Scaling and gains of robosuite's controller are the contract's own, where they can be read.
    """
    if stated.controller.startswith("OSC"):
        offered = _osc(arm)
        known = {name: getattr(stated, name) for name in ("low", "high", "rate_hz")}
        if _OSC_UNITS.fullmatch(stated.units):
            known["units"] = stated.units
        if _OSC.fullmatch(stated.controller):
            known["controller"] = stated.controller
        return dataclasses.replace(offered, **known)
    fields = ("convention", "frame", "rotation", "size", "units", "gripper")

    def alike(name: str) -> int:
        one = action_named(name, arm)
        return sum(getattr(one, field) == getattr(stated, field) for field in fields)

    found = action_named(max(ACTIONS, key=alike), arm)
    return dataclasses.replace(found, rate_hz=stated.rate_hz or found.rate_hz)


def convention_of(stated: ActionSpec, limits: EnvelopeLimits) -> ActionConvention:
    """How the arm reads the actions of a contract.

    Raises:
        ContractError: its words are not those of a convention, or leave one unsaid that decides how the arm moves.

    """
    arm = limits.arm
    offered = nearest_action(stated, arm)
    if stated.frame == "joints" and stated.size != offered.size:
        raise ContractError(
            f"the policy has actions of {stated.size} numbers for an arm with {arm.joints} joints",
            expected=f"{arm.joints + 1}: a step or a place of each joint, and the gripper's opening",
            fix="deploy the policy on the arm that it was trained for: --arm",
        )
    decisive = ("size", "convention", "frame", "units", "rotation", "gripper", "controller")
    wrong = [
        f"{field}: {getattr(stated, field)!r} against {getattr(offered, field)!r}"
        for field in decisive
        if getattr(stated, field) != getattr(offered, field)
        # What older recordings leave out of joint steps has one meaning.
        and not (getattr(stated, field) == UNSTATED and stated.frame == offered.frame == "joints")
    ]
    if wrong:
        raise ContractError(
            "the arm does not understand the policy's actions (contract against arm):\n    " + "\n    ".join(wrong),
            expected=f"one of the conventions {', '.join(ACTIONS)}: docs/franka.md",
            fix="train on data whose actions are in one of them; a word that is wrong in a file is corrected there",
        )
    steps = offered.convention == "delta"
    if offered.frame == "joints":
        return JointActions(arm.joints, steps)
    ik = DifferentialIk(limits)
    units, gains = _OSC_UNITS.fullmatch(offered.units), _OSC.fullmatch(offered.controller)
    if units and gains:
        scale, (stiffness, damping) = [float(value) for value in units.groups()], map(float, gains.groups())
        return OscActions(ik, scale[0], scale[1], stiffness, damping, arm.hand.width)
    return PoseActions(ik, steps, offered.frame, offered.rotation)


def read_rotations(values: Array, rotation: str) -> Array:
    """Matrices (h, 3, 3) of rotations (h, d) in the words of a contract.

    What a network says of a quaternion or of six numbers is made a rotation: normalised, orthogonalised row by row.
    """
    if rotation == AXIS_ANGLE:
        return np.asarray(Rotation.from_rotvec(values).as_matrix())
    if rotation == QUATERNION:
        sizes = np.linalg.norm(values, axis=1, keepdims=True)
        return np.asarray(Rotation.from_quat(np.where(sizes > 1e-6, values, [0.0, 0.0, 0.0, 1.0])).as_matrix())
    first = values[:, :3] / np.maximum(np.linalg.norm(values[:, :3], axis=1, keepdims=True), 1e-9)
    second = values[:, 3:] - (first * values[:, 3:]).sum(1, keepdims=True) * first
    second = second / np.maximum(np.linalg.norm(second, axis=1, keepdims=True), 1e-9)
    return np.stack([first, second, np.cross(first, second)], axis=1)


def write_rotations(matrices: Array, rotation: str, *, place: bool = False) -> Array:
    """Inverse of :func:`read_rotations`: a quaternion with a real part, or, of a ``place``, an x of at least 0.

    A hand over a table points down, half a turn from the base's axes, just where the real part changes its sign.
    """
    if rotation == SIX_D:
        return matrices[:, :2].reshape(len(matrices), 6)
    quaternions = np.asarray(Rotation.from_matrix(matrices).as_quat())
    side = quaternions[:, :1] if place else quaternions[:, 3:]
    quaternions = np.where(side < 0.0, -quaternions, quaternions)
    if rotation == QUATERNION:
        return quaternions
    sine = np.linalg.norm(quaternions[:, :3], axis=1, keepdims=True)
    angle = 2.0 * np.arctan2(sine, quaternions[:, 3:])  # of a place up to a whole turn
    return np.asarray(quaternions[:, :3] * np.where(sine > 1e-9, angle / np.maximum(sine, 1e-9), 2.0))
