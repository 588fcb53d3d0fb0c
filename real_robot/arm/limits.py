"""Joint limits of the FR3 and of the Panda (FER), and the narrower ones that policies are held to.

Two tables, never one: three published stacks shipped the Panda's values to users of an FR3. Sources:
docs/methods/franka-control.md#envelope.
"""

from __future__ import annotations

import dataclasses
from typing import cast

import numpy as np
from numpy.typing import NDArray

Vec7 = tuple[float, float, float, float, float, float, float]


@dataclasses.dataclass(frozen=True)
class JointLimits:
    """What the maker's data sheet allows; the robot aborts beyond it."""

    model: str
    """'FR3' or 'FER'."""
    q_min: Vec7
    """rad."""
    q_max: Vec7
    """rad."""
    velocity: Vec7
    """rad/s."""
    acceleration: Vec7
    """rad/s^2."""
    jerk: Vec7
    """rad/s^3."""
    torque: Vec7
    """Nm."""
    torque_rate: float
    """Nm/s, every joint."""
    translation: tuple[float, float, float]
    """Speed, acceleration and jerk of the end effector, m/s, m/s^2, m/s^3."""
    rotation: tuple[float, float, float]
    """The same in rad/s, rad/s^2, rad/s^3."""
    elbow: tuple[float, float, float]
    """The same of the elbow, rad/s, rad/s^2, rad/s^3."""
    speed_offset: Vec7 | None = None
    """FR3: near an end of its range a joint must be slower than -offset + sqrt(2 deceleration distance); rad/s."""
    speed_deceleration: Vec7 | None = None
    """rad/s^2, with ``speed_offset``."""

    def speed_towards_ends(self, q: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Largest speeds (..., 7) rad/s at ``q`` (..., 7) towards the lower and the upper end; both positive."""
        top = np.array(self.velocity)
        if self.speed_offset is None or self.speed_deceleration is None:
            return np.broadcast_to(top, q.shape), np.broadcast_to(top, q.shape)
        offset, twice = np.array(self.speed_offset), 2.0 * np.array(self.speed_deceleration)
        below = np.sqrt(twice * np.maximum(q - np.array(self.q_min), 0.0)) - offset
        above = np.sqrt(twice * np.maximum(np.array(self.q_max) - q, 0.0)) - offset
        return np.minimum(np.maximum(below, 0.0), top), np.minimum(np.maximum(above, 0.0), top)


FR3 = JointLimits(
    model="FR3",
    q_min=(-2.7437, -1.7837, -2.9007, -3.0421, -2.8065, 0.5445, -3.0159),
    q_max=(2.7437, 1.7837, 2.9007, -0.1518, 2.8065, 4.5169, 3.0159),
    velocity=(2.62, 2.62, 2.62, 2.62, 5.26, 4.18, 5.26),
    acceleration=(10.0,) * 7,
    jerk=(5000.0,) * 7,
    torque=(87.0, 87.0, 87.0, 87.0, 12.0, 12.0, 12.0),
    torque_rate=1000.0,
    translation=(3.0, 9.0, 4500.0),
    rotation=(2.5, 17.0, 8500.0),
    elbow=(1.5, 10.0, 5000.0),
    speed_offset=(0.30, 0.20, 0.20, 0.30, 0.35, 0.35, 0.35),
    speed_deceleration=(6.0, 2.585, 3.5, 4.0, 17.0, 5.5, 17.0),
)
"""Franka Research 3, FCI version 10: libfranka's rate_limiting.h and the URDF that the robot serves; the tighter."""

FER = JointLimits(
    model="FER",
    q_min=(-2.8973, -1.7628, -2.8973, -3.0718, -2.8973, -0.0175, -2.8973),
    q_max=(2.8973, 1.7628, 2.8973, -0.0698, 2.8973, 3.7525, 2.8973),
    velocity=(2.175, 2.175, 2.175, 2.175, 2.61, 2.61, 2.61),
    acceleration=(15.0, 7.5, 10.0, 12.5, 15.0, 20.0, 20.0),
    jerk=(7500.0, 3750.0, 5000.0, 6250.0, 7500.0, 10000.0, 10000.0),
    torque=(87.0, 87.0, 87.0, 87.0, 12.0, 12.0, 12.0),
    torque_rate=1000.0,
    translation=(1.7, 13.0, 6500.0),
    rotation=(2.5, 25.0, 12500.0),
    elbow=(2.175, 10.0, 5000.0),
)
"""Franka Emika Robot ("Panda"), FCI version 5. No server of that version is at hand: untested on the wire."""

MODELS = {"FR3": FR3, "FER": FER}
"""Tables by model."""


@dataclasses.dataclass(frozen=True)
class EnvelopeLimits:
    """What a policy may ask for. Every value is required: a limit that nobody stated is no limit."""

    joints: JointLimits
    """Data sheet of the model that is driven."""
    margin: float
    """Distance kept from the ends of every joint's range, rad."""
    velocity: Vec7
    """rad/s."""
    acceleration: Vec7
    """rad/s^2."""
    jerk: Vec7
    """rad/s^3, at the bridge's rate."""
    box_low: tuple[float, float, float]
    """Smallest x, y, z of the tool point in the base frame, m. z is the table plus its clearance."""
    box_high: tuple[float, float, float]
    """Largest x, y, z, m."""
    translation: float
    """Speed of the tool point, m/s."""
    translation_near_table: float
    """Speed that the reference is slowed to below ``near_table``, m/s."""
    near_table: float
    """Height above ``box_low`` that counts as near the table, m."""
    rotation: float
    """Angular speed of the tool, rad/s."""
    tool: float
    """Distance from flange to tool point along the flange's z axis, m."""
    chunk_beyond: float
    """A chunk that reaches further than this beyond the soft joint limits is rejected, rad."""
    chunk_jump: float
    """A chunk whose first usable row is this far from the reference, or two of whose rows are, is rejected, rad."""
    start_distance: float
    """Streaming starts only where the reference is this close to the measured position, rad."""
    leash: float
    """Largest distance between reference and measured position of a joint, rad."""
    leash_tool: float
    """The same for the tool point, m."""

    @property
    def q_low(self) -> NDArray[np.float64]:
        """(7,) soft lower limits, rad."""
        return np.array(self.joints.q_min) + self.margin

    @property
    def q_high(self) -> NDArray[np.float64]:
        """(7,) soft upper limits, rad."""
        return np.array(self.joints.q_max) - self.margin


def policy_limits(joints: JointLimits, *, table: float, tool: float) -> EnvelopeLimits:
    """The defaults for learned policies.

    Args:
        joints: table of the model that is driven.
        table: height of the table in the base frame, m.
        tool: distance from flange to tool point, m; 0.1034 for the Franka hand.

    """
    return EnvelopeLimits(
        joints=joints,
        margin=0.10,
        velocity=(1.0, 1.0, 1.0, 1.0, 1.5, 1.5, 1.5),
        acceleration=(4.0,) * 7,
        jerk=(80.0,) * 7,
        box_low=(0.25, -0.45, table + 0.01),
        box_high=(0.75, 0.45, table + 0.9),
        translation=0.5,
        translation_near_table=0.25,
        near_table=0.10,
        rotation=1.0,
        tool=tool,
        chunk_beyond=0.05,
        chunk_jump=0.30,
        start_distance=0.02,
        leash=0.15,
        leash_tool=0.06,
    )


def homing_limits(limits: EnvelopeLimits, share: float) -> EnvelopeLimits:
    """Limits on the way home, which may begin outside a policy's joint range and workspace.

    Args:
        limits: those of the policy.
        share: of the data sheet's velocities that is allowed.

    """
    velocity = np.minimum(limits.velocity, share * np.array(limits.joints.velocity))
    return dataclasses.replace(
        limits,
        margin=0.02,
        velocity=cast(Vec7, tuple(velocity.tolist())),
        box_low=(-np.inf, -np.inf, -np.inf),
        box_high=(np.inf, np.inf, np.inf),
    )


COLLISION_TORQUE, COLLISION_FORCE = 40.0, 40.0
"""Thresholds of the robot's own reflex, Nm and N; 60 for tasks with contact."""
GRIPPER_WIDTH = 0.08
"""Largest opening of the Franka hand, m."""
HOME: Vec7 = (0.0, -np.pi / 4, 0.0, -3 * np.pi / 4, 0.0, np.pi / 2, np.pi / 4)
"""The maker's ready pose, rad."""
