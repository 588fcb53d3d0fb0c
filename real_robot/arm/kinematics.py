"""Forward kinematics, Jacobian and a damped inverse of the FR3 and FER, which share their geometry.

From the maker's modified Denavit-Hartenberg table. Observations use this and never the robot's own ``O_T_EE``, which
two releases of the client and one simulator report wrongly (docs/methods/franka-control.md#drivers). Arrays are
batched: (..., 7) in.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

FLANGE = 0.107
"""Distance from the frame of joint 7 to the flange, m."""
_D = (0.333, 0.0, 0.316, 0.0, 0.384, 0.0, 0.0)
_A = (0.0, 0.0, 0.0, 0.0825, -0.0825, 0.0, 0.088)
_ALPHA = (0, -1, 1, 1, -1, 1, 1)  # quarter turns about x


class Pose(NamedTuple):
    """Where the tool is and how joints move it."""

    position: Array
    """(..., 3) tool point in the base frame, m."""
    rotation: Array
    """(..., 3, 3) flange axes as columns, in the base frame."""
    axes: Array
    """(..., 7, 3) joint axes in the base frame."""
    levers: Array
    """(..., 7, 3) velocity of the tool point per joint velocity, m."""


def forward(q: Array, tool: float = 0.0) -> Pose:
    """Pose of a tool point ``tool`` m along the flange's z axis, at ``q`` (..., 7) rad."""
    q = np.asarray(q, dtype=np.float64)
    if q.ndim == 1:
        return _forward_one(q, tool)
    cos, sin = np.cos(q), np.sin(q)
    # Components come first, so that NumPy's innermost loop runs over the batch and not over three numbers.
    batch = q.shape[:-1]
    x, y, z, point = (np.zeros((3, *batch)) for _ in range(4))
    x[0] = y[1] = z[2] = 1.0
    axes, origins = np.empty((3, 7, *batch)), np.empty((3, 7, *batch))
    for joint in range(7):
        if _A[joint]:
            point = point + _A[joint] * x
        if _ALPHA[joint] == 1:
            y, z = z, -y
        elif _ALPHA[joint] == -1:
            y, z = -z, y
        c, s = cos[..., joint], sin[..., joint]
        x, y = c * x + s * y, c * y - s * x
        if _D[joint]:
            point = point + _D[joint] * z
        axes[:, joint], origins[:, joint] = z, point
    point = point + (FLANGE + tool) * z
    levers = _cross(axes, point[:, None] - origins)
    last = tuple(range(2, 2 + len(batch)))
    return Pose(
        point.transpose(*range(1, 1 + len(batch)), 0),
        np.array([x, y, z]).transpose(*last, 1, 0),
        axes.transpose(*last, 1, 0),
        levers.transpose(*last, 1, 0),
    )


def _forward_one(q: Array, tool: float) -> Pose:
    """The same for one arm, in plain numbers: the bridge asks several times a tick, and NumPy costs a call each."""
    x, y, z, point = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (0.0, 0.0, 0.0)
    axes, origins = [], []
    for joint, angle in enumerate(q.tolist()):
        if a := _A[joint]:
            point = (point[0] + a * x[0], point[1] + a * x[1], point[2] + a * x[2])
        if _ALPHA[joint] == 1:
            y, z = z, (-y[0], -y[1], -y[2])
        elif _ALPHA[joint] == -1:
            y, z = (-z[0], -z[1], -z[2]), y
        # math.cos(nan) is nan, as in the batched form; infinite angles never get here.
        c, s = math.cos(angle), math.sin(angle)
        x, y = (
            (c * x[0] + s * y[0], c * x[1] + s * y[1], c * x[2] + s * y[2]),
            (c * y[0] - s * x[0], c * y[1] - s * x[1], c * y[2] - s * x[2]),
        )
        if d := _D[joint]:
            point = (point[0] + d * z[0], point[1] + d * z[1], point[2] + d * z[2])
        axes.append(z)
        origins.append(point)
    far = FLANGE + tool
    end = (point[0] + far * z[0], point[1] + far * z[1], point[2] + far * z[2])
    levers = []
    for (u, v, w), (a, b, c) in zip(axes, origins, strict=True):
        e, f, g = end[0] - a, end[1] - b, end[2] - c
        levers.append((v * g - w * f, w * e - u * g, u * f - v * e))
    return Pose(np.array(end), np.array([x, y, z]).T, np.array(axes), np.array(levers))


def tool_speed(pose: Pose, dq: Array) -> tuple[Array, Array]:
    """Translation speed (...,) m/s and rotation speed (...,) rad/s of the tool at joint velocities (..., 7) rad/s."""
    linear = np.einsum("...j,...jk->...k", dq, pose.levers)
    angular = np.einsum("...j,...jk->...k", dq, pose.axes)
    return np.sqrt((linear**2).sum(-1)), np.sqrt((angular**2).sum(-1))


def reach(tool: float) -> float:
    """Bound, m, on the distance of a tool point from any joint's axis: on how fast a joint can move it."""
    return sum(_D) + sum(map(abs, _A)) + FLANGE + tool


def quaternion(rotation: Array) -> Array:
    """(4,) unit quaternion x, y, z, w with x >= 0 of a rotation (3, 3).

    Of the two signs the one on the side of (1, 0, 0, 0): straight down, as a Franka works. The sign changes only where
    the flange has turned half way round from there; with w >= 0 it would change in every movement.
    """
    # The largest of the four squares decides which components are divided by which: never by a small one.
    m = rotation
    squares = np.array([1 + m[0, 0] - m[1, 1] - m[2, 2], 1 - m[0, 0] + m[1, 1] - m[2, 2], 0.0, 1 + np.trace(m)])
    squares[2] = 4.0 - squares.sum()
    rows = (
        (squares[0], m[1, 0] + m[0, 1], m[0, 2] + m[2, 0], m[2, 1] - m[1, 2]),
        (m[1, 0] + m[0, 1], squares[1], m[2, 1] + m[1, 2], m[0, 2] - m[2, 0]),
        (m[0, 2] + m[2, 0], m[2, 1] + m[1, 2], squares[2], m[1, 0] - m[0, 1]),
        (m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1], squares[3]),
    )
    found = np.array(rows[int(squares.argmax())])
    found /= np.linalg.norm(found)
    return found if found[0] >= 0 else -found


def inverse(
    position: Array, rotation: Array, q0: Array, *, tool: float, low: Array, high: Array, steps: int = 100
) -> Array | None:
    """Joint positions (7,) within [low, high] that put the tool point at a pose; None where none is found.

    Damped least squares from ``q0``, which decides the elbow: the null space is drawn to ``q0``.

    Args:
        position: (3,) m in the base frame.
        rotation: (3, 3) flange axes as columns.
        q0: (7,) start, rad.
        tool: distance from flange to tool point, m.
        low: (7,) smallest joint positions, rad.
        high: (7,) largest joint positions, rad.
        steps: iterations at most.

    """
    q = np.clip(q0, low, high)
    for _ in range(steps):
        pose = forward(q, tool)
        error = np.concatenate([position - pose.position, rotation_error(pose.rotation, rotation)])
        if np.linalg.norm(error[:3]) < 1e-5 and np.linalg.norm(error[3:]) < 1e-4:
            return q
        jacobian = np.concatenate([pose.levers, pose.axes], -1).T
        pinv = jacobian.T @ np.linalg.inv(jacobian @ jacobian.T + 1e-5 * np.eye(6))
        step = pinv @ error + (np.eye(7) - pinv @ jacobian) @ (0.05 * (q0 - q))
        q = np.clip(q + np.clip(step, -0.2, 0.2), low, high)
    return None


def rotation_error(now: Array, wanted: Array) -> Array:
    """Rotation vector (3,) that turns ``now`` into ``wanted``; exact for small angles, right in sign for all."""
    return 0.5 * _cross(now, wanted).sum(-1)


def _cross(a: Array, b: Array) -> Array:
    """Cross product of (3, ...) and (3, ...); np.cross takes several times as long for few rows."""
    return np.array([a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]])
