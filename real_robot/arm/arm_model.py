"""What an arm is, as one value: joints, kinematics, limits, home, gains, hand, and who can drive it.

Everything on the robot side asks the model: a further arm is one file in :mod:`flowpolicy.real_robot.arm.models` and
its name in the table there.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flowpolicy.core.errors import ConfigError
from flowpolicy.real_robot.arm.kinematics import Chain

ArmTask = Literal["reach", "lift", "taught"]
"""reach, lift: set up and judged by themselves. taught: whatever a person teaches."""
ArmAction = Literal[
    "joint-delta",
    "joint-position",
    "pose",
    "pose-6d",
    "pose-quaternion",
    "pose-delta",
    "pose-delta-6d",
    "pose-delta-tool",
    "pose-delta-tool-6d",
    "osc",
]
"""Conventions of actions by name, see :mod:`flowpolicy.real_robot.arm.action_conventions`."""

Joints = tuple[float, ...]
"""One number per joint, from the base on."""


@dataclasses.dataclass(frozen=True)
class JointLimits:
    """What the maker's data sheet allows.

    Never another model's: three published stacks shipped the Panda's values to users of an FR3.
    """

    q_min: Joints
    """rad."""
    q_max: Joints
    """rad."""
    velocity: Joints
    """rad/s."""
    acceleration: Joints
    """rad/s^2."""
    jerk: Joints
    """rad/s^3."""
    torque: Joints
    """Nm."""
    speed_offset: Joints | None = None
    """FR3: near an end of its range a joint must be slower than -offset + sqrt(2 deceleration distance); rad/s."""
    speed_deceleration: Joints | None = None
    """rad/s^2, with ``speed_offset``."""

    def speed_towards_ends(self, q: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Largest speeds (..., n) rad/s at ``q`` (..., n) towards the lower and the upper end; both positive."""
        top = np.array(self.velocity)
        if self.speed_offset is None or self.speed_deceleration is None:
            return np.broadcast_to(top, q.shape), np.broadcast_to(top, q.shape)
        offset, twice = np.array(self.speed_offset), 2.0 * np.array(self.speed_deceleration)
        below = np.sqrt(twice * np.maximum(q - np.array(self.q_min), 0.0)) - offset
        above = np.sqrt(twice * np.maximum(np.array(self.q_max) - q, 0.0)) - offset
        return np.minimum(np.maximum(below, 0.0), top), np.minimum(np.maximum(above, 0.0), top)


@dataclasses.dataclass(frozen=True)
class Gains:
    """Joint impedance: torque = stiffness (q_ref - q) + damping (dq_ref - dq) + Coriolis."""

    stiffness: Joints
    """Nm/rad per joint, at most 1000."""
    damping: Joints
    """Nm s/rad per joint, at most 100."""

    def __post_init__(self) -> None:
        for name, values, top in (("stiffness", self.stiffness, 1000.0), ("damping", self.damping, 100.0)):
            if len(values) != len(self.stiffness) or not all(0.0 < value <= top for value in values):
                raise ConfigError(f"{name} {values}", expected=f"a value per joint above 0 and at most {top:g}")


@dataclasses.dataclass(frozen=True)
class Hand:
    """What is mounted on the flange."""

    length: float
    """From the flange to the tool point, along the flange's z axis, m."""
    width: float
    """Largest opening between the fingers, m."""


class Box(NamedTuple):
    """A box in the base frame; heights count from the table."""

    low: tuple[float, float, float]
    """Smallest x and y, and the smallest height over the table, m."""
    high: tuple[float, float, float]
    """Largest x and y, and the largest height over the table, m."""


@dataclasses.dataclass(frozen=True)
class ArmModel:
    """One model of arm.

    Raises:
        ConfigError: a value is not one per joint, the home pose is outside the joints' range, or a policy would be
            allowed more than the data sheet allows.

    """

    name: str
    """Of the model: 'FR3'. The command line says it in small letters."""
    robot: str
    """Maker and model, as contracts and recordings state them: 'Franka FR3'."""
    family: str
    """Prefix of the names of its tasks: 'franka'. Arms of one family have the same joints and the same tasks."""
    chain: Chain
    """Kinematics."""
    limits: JointLimits
    """Data sheet."""
    home: Joints
    """Pose that episodes begin at, rad; the hand points straight down."""
    gains: Gains
    """While a policy plays."""
    homing_gains: Gains
    """On the way home."""
    hand: Hand
    """The one that it is meant to carry; ``--tool`` tells another length."""
    velocity: Joints
    """What a policy may ask for, rad/s."""
    acceleration: Joints
    """The same, rad/s^2."""
    jerk: Joints
    """The same at the bridge's rate, rad/s^3."""
    workspace: Box
    """Where a policy's tool point may be."""
    goals: Box
    """Where the goals of reaching are drawn; heights in the base frame."""
    inertia: Joints
    """What a joint roughly feels, kg m^2; for the arm in NumPy."""
    drivers: tuple[str, ...]
    """Names of the drivers that can drive it."""
    tasks: tuple[ArmTask, ...]
    """What can be played on it, or on a stand-in."""

    @property
    def joints(self) -> int:
        """Number of joints."""
        return self.chain.joints

    def __post_init__(self) -> None:
        limits, n = self.limits, self.joints
        values = {
            **{name: value for name, value in vars(limits).items() if value is not None},
            **{f"own {name}": getattr(self, name) for name in ("home", "velocity", "acceleration", "jerk", "inertia")},
            "gains": self.gains.stiffness,
            "homing gains": self.homing_gains.stiffness,
        }
        if wrong := [f"{name}: {len(value)}" for name, value in values.items() if len(value) != n]:
            raise ConfigError(f"the arm {self.name} has {n} joints, but {', '.join(wrong)} values", expected="one each")
        if not all(low < at < high for low, at, high in zip(limits.q_min, self.home, limits.q_max, strict=True)):
            raise ConfigError(f"the home pose of the arm {self.name} is outside its joints' range")
        for name in ("velocity", "acceleration", "jerk"):
            if any(mine > most for mine, most in zip(getattr(self, name), getattr(limits, name), strict=True)):
                raise ConfigError(f"a policy may ask the arm {self.name} for more {name} than its data sheet allows")
