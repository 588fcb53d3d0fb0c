"""Forward kinematics, Jacobian and a damped inverse of a chain of turning joints, from its Denavit-Hartenberg table.

Observations use this and never the robot's own report of its pose, which two releases of Franka's client and one
simulator have wrong (docs/methods/franka-control.md#drivers). Arrays are batched: (..., n) in, for n joints.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Pose(NamedTuple):
    """Where the tool is and how joints move it."""

    position: Array
    """(..., 3) tool point in the base frame, m."""
    rotation: Array
    """(..., 3, 3) flange axes as columns, in the base frame."""
    axes: Array
    """(..., n, 3) joint axes in the base frame."""
    levers: Array
    """(..., n, 3) velocity of the tool point per joint velocity, m."""


@dataclasses.dataclass(frozen=True)
class Chain:
    """Turning joints in a row, by their modified Denavit-Hartenberg table (Craig 1986).

    From one joint's frame to the next: ``a`` along x, a turn about x, the joint's own turn about z, ``d`` along z.
    A table of the standard convention becomes one of this by moving ``a`` and the turns one joint on.
    """

    d: tuple[float, ...]
    """m."""
    a: tuple[float, ...]
    """m."""
    quarter_turns: tuple[int, ...]
    """The turns about x (alpha), in quarters: -1, 0 or 1."""
    flange: float
    """Distance from the last joint's frame to the flange along z, m."""

    @property
    def joints(self) -> int:
        """Number of joints, n."""
        return len(self.d)

    def forward(self, q: Array, tool: float = 0.0) -> Pose:
        """Pose of a tool point ``tool`` m along the flange's z axis, at ``q`` (..., n) rad."""
        q = np.asarray(q, dtype=np.float64)
        if q.ndim == 1:
            return self._forward_one(q, tool)
        cos, sin = np.cos(q), np.sin(q)
        # Components come first, so that NumPy's innermost loop runs over the batch and not over three numbers.
        batch = q.shape[:-1]
        x, y, z, point = (np.zeros((3, *batch)) for _ in range(4))
        x[0] = y[1] = z[2] = 1.0
        axes, origins = np.empty((3, self.joints, *batch)), np.empty((3, self.joints, *batch))
        for joint, (a, d, turn) in enumerate(zip(self.a, self.d, self.quarter_turns, strict=True)):
            if a:
                point = point + a * x
            if turn == 1:
                y, z = z, -y
            elif turn == -1:
                y, z = -z, y
            c, s = cos[..., joint], sin[..., joint]
            x, y = c * x + s * y, c * y - s * x
            if d:
                point = point + d * z
            axes[:, joint], origins[:, joint] = z, point
        point = point + (self.flange + tool) * z
        levers = _cross(axes, point[:, None] - origins)
        last = tuple(range(2, 2 + len(batch)))
        return Pose(
            point.transpose(*range(1, 1 + len(batch)), 0),
            np.array([x, y, z]).transpose(*last, 1, 0),
            axes.transpose(*last, 1, 0),
            levers.transpose(*last, 1, 0),
        )

    def _forward_one(self, q: Array, tool: float) -> Pose:
        """The same for one arm, in plain numbers: the bridge asks several times a tick, and NumPy costs a call each."""
        x, y, z, point = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (0.0, 0.0, 0.0)
        axes, origins = [], []
        for angle, a, d, turn in zip(q.tolist(), self.a, self.d, self.quarter_turns, strict=True):
            if a:
                point = (point[0] + a * x[0], point[1] + a * x[1], point[2] + a * x[2])
            if turn == 1:
                y, z = z, (-y[0], -y[1], -y[2])
            elif turn == -1:
                y, z = (-z[0], -z[1], -z[2]), y
            # math.cos(nan) is nan, as in the batched form; infinite angles never get here.
            c, s = math.cos(angle), math.sin(angle)
            x, y = (
                (c * x[0] + s * y[0], c * x[1] + s * y[1], c * x[2] + s * y[2]),
                (c * y[0] - s * x[0], c * y[1] - s * x[1], c * y[2] - s * x[2]),
            )
            if d:
                point = (point[0] + d * z[0], point[1] + d * z[1], point[2] + d * z[2])
            axes.append(z)
            origins.append(point)
        far = self.flange + tool
        end = (point[0] + far * z[0], point[1] + far * z[1], point[2] + far * z[2])
        levers = []
        for (u, v, w), (a, b, c) in zip(axes, origins, strict=True):
            e, f, g = end[0] - a, end[1] - b, end[2] - c
            levers.append((v * g - w * f, w * e - u * g, u * f - v * e))
        return Pose(np.array(end), np.array([x, y, z]).T, np.array(axes), np.array(levers))

    def reach(self, tool: float) -> float:
        """Bound, m, on the distance of a tool point from any joint's axis: on how fast a joint can move it."""
        return sum(map(abs, self.d)) + sum(map(abs, self.a)) + abs(self.flange) + tool

    def inverse(
        self, position: Array, rotation: Array, q0: Array, *, tool: float, low: Array, high: Array, steps: int = 100
    ) -> Array | None:
        """Joint positions (n,) within [low, high] that put the tool point at a pose; None where none is found.

        Damped least squares from ``q0``, which decides the elbow: the null space is drawn to ``q0``.

        Args:
            position: (3,) m in the base frame.
            rotation: (3, 3) flange axes as columns.
            q0: (n,) start, rad.
            tool: distance from flange to tool point, m.
            low: (n,) smallest joint positions, rad.
            high: (n,) largest joint positions, rad.
            steps: iterations at most.

        """
        q = np.clip(q0, low, high)
        for _ in range(steps):
            pose = self.forward(q, tool)
            error = np.concatenate([position - pose.position, rotation_error(pose.rotation, rotation)])
            if np.linalg.norm(error[:3]) < 1e-5 and np.linalg.norm(error[3:]) < 1e-4:
                return q
            jacobian = np.concatenate([pose.levers, pose.axes], -1).T
            pinv = jacobian.T @ np.linalg.inv(jacobian @ jacobian.T + 1e-5 * np.eye(6))
            step = pinv @ error + (np.eye(self.joints) - pinv @ jacobian) @ (0.05 * (q0 - q))
            q = np.clip(q + np.clip(step, -0.2, 0.2), low, high)
        return None


def tool_speed(pose: Pose, dq: Array) -> tuple[Array, Array]:
    """Translation speed (...,) m/s and rotation speed (...,) rad/s of the tool at joint velocities (..., n) rad/s."""
    linear = np.einsum("...j,...jk->...k", dq, pose.levers)
    angular = np.einsum("...j,...jk->...k", dq, pose.axes)
    return np.sqrt((linear**2).sum(-1)), np.sqrt((angular**2).sum(-1))


def quaternion(rotation: Array) -> Array:
    """(4,) unit quaternion x, y, z, w with x >= 0 of a rotation (3, 3).

    Of the two signs the one on the side of (1, 0, 0, 0): straight down, as a hand works over a table. The sign
    changes only where the flange has turned half way round from there; with w >= 0 it would change in every movement.
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


def rotation_error(now: Array, wanted: Array) -> Array:
    """Rotation vector (3,) that turns ``now`` into ``wanted``; exact for small angles, right in sign for all."""
    return 0.5 * _cross(now, wanted).sum(-1)


def rotation_vector(now: Array, wanted: Array) -> Array:
    """Rotation vector (3,), axis times angle in rad, that turns ``now`` (3, 3) into ``wanted``; for every angle."""
    sine = 0.5 * _cross(now, wanted).sum(-1)
    size, cosine = math.sqrt(float(sine @ sine)), 0.5 * (float((now * wanted).sum()) - 1.0)
    angle = math.atan2(size, cosine)
    if size > 1e-6:
        return sine * (angle / size)
    if cosine > 0.0:
        return sine
    # Half a turn: the sine says nothing, the symmetric part holds the axis.
    both = wanted @ now.T
    axis = np.sqrt(np.maximum(0.5 * (np.diag(both) + 1.0), 0.0))
    largest = int(axis.argmax())
    axis = np.where(both[largest] + both[:, largest] < 0.0, -axis, axis)
    axis[largest] = abs(axis[largest])
    return np.asarray(angle * axis / np.linalg.norm(axis))


def _cross(a: Array, b: Array) -> Array:
    """Cross product of (3, ...) and (3, ...); np.cross takes several times as long for few rows."""
    return np.array([a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]])
