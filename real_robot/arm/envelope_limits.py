"""What a policy may ask of an arm: narrower than the data sheet, every value stated.

Where the values come from: docs/methods/franka-control.md#envelope.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from flowpolicy.real_robot.arm.arm_model import ArmModel, Joints


@dataclasses.dataclass(frozen=True)
class EnvelopeLimits:
    """What a policy may ask for. Every value is required: a limit that nobody stated is no limit."""

    arm: ArmModel
    """The model that is driven."""
    margin: float
    """Distance kept from the ends of every joint's range, rad."""
    velocity: Joints
    """rad/s."""
    acceleration: Joints
    """rad/s^2."""
    jerk: Joints
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
        """(n,) soft lower limits, rad."""
        return np.array(self.arm.limits.q_min) + self.margin

    @property
    def q_high(self) -> NDArray[np.float64]:
        """(n,) soft upper limits, rad."""
        return np.array(self.arm.limits.q_max) - self.margin


def policy_limits(arm: ArmModel, *, table: float, tool: float) -> EnvelopeLimits:
    """The defaults for learned policies.

    Args:
        arm: the model that is driven.
        table: height of the table in the base frame, m.
        tool: distance from flange to tool point, m; 0.1034 for the Franka hand.

    """
    (x_low, y_low, lowest), (x_high, y_high, highest) = arm.workspace
    return EnvelopeLimits(
        arm=arm,
        margin=0.10,
        velocity=arm.velocity,
        acceleration=arm.acceleration,
        jerk=arm.jerk,
        box_low=(x_low, y_low, table + lowest),
        box_high=(x_high, y_high, table + highest),
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
    velocity = np.minimum(limits.velocity, share * np.array(limits.arm.limits.velocity))
    return dataclasses.replace(
        limits,
        margin=0.02,
        velocity=tuple(velocity.tolist()),
        box_low=(-np.inf, -np.inf, -np.inf),
        box_high=(np.inf, np.inf, np.inf),
    )
