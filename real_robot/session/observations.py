"""What a policy sees, computed in one place for the recorder and for the policy process. NumPy only."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from flowpolicy.core.errors import ContractError, nearest
from flowpolicy.real_robot.arm.arm_model import ArmModel
from flowpolicy.real_robot.arm.kinematics import Pose, quaternion
from flowpolicy.real_robot.bridge.shared_ring import Records

_Pose = Callable[[], Pose]
_OBSERVATIONS: dict[str, Callable[[Records, _Pose], NDArray[np.float64]]] = {
    "robot0_joint_pos": lambda tick, pose: tick["q"],
    "robot0_joint_vel": lambda tick, pose: tick["dq"],
    "robot0_eef_pos": lambda tick, pose: pose().position,
    "robot0_eef_quat": lambda tick, pose: quaternion(pose().rotation),
    # Half the opening per finger, mirrored: the convention of RoboMimic's files.
    "robot0_gripper_qpos": lambda tick, pose: np.array([0.5, -0.5]) * tick["width"],
    "goal": lambda tick, pose: tick["task"][:3],
    # The vector from tool to cube belongs to it, as in robosuite's Lift: a network need not subtract to the millimetre.
    # Its turn does not: it is placed straight, and a range of thousandths, scaled to [-1, 1], would be mere noise.
    "object": lambda tick, pose: np.concatenate([tick["task"][:3], tick["task"][:3] - pose().position]),
}


def observe(
    tick: Records, key: str, arm: ArmModel, tool: float, before: NDArray[np.floating] | None = None
) -> NDArray[np.float64]:
    """One observation (d,) of a tick record.

    Args:
        tick: the record.
        key: which observation.
        arm: whose joints they are.
        tool: distance from flange to tool point, m.
        before: the same observation one row earlier, whose sign a quaternion keeps; None at the start of an episode.

    Raises:
        ContractError: the robot gives no such observation.

    """
    if key not in _OBSERVATIONS:
        raise ContractError(f"the robot gives no observation '{key}'", expected=nearest(key, _OBSERVATIONS))
    value = np.asarray(_OBSERVATIONS[key](tick, lambda: arm.chain.forward(tick["q"], tool)), dtype=np.float64)
    flipped = key == "robot0_eef_quat" and before is not None and float(value @ before) < 0.0
    return -value if flipped else value


def observe_all(ticks: Records, key: str, arm: ArmModel, tool: float) -> NDArray[np.float64]:
    """The observations (n, d) of an episode's rows."""
    rows: list[NDArray[np.float64]] = []
    for tick in ticks:
        rows.append(observe(tick, key, arm, tool, rows[-1] if rows else None))
    return np.stack(rows)
