"""The scene of the twin: an FR3 of capsules, a hand, a table whose top is z = 0, a cube and two cameras.

Imports MuJoCo and NumPy only, so that the twin (in its own environment) and the arm that is stepped without sockets
(:mod:`flowpolicy.real_robot.twin.scene`) are the same bodies in the same world.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mujoco
import numpy as np

HERE = Path(__file__).parent
PREFIX = "fr3_"
FLANGE, CUBE = 0.107, 0.02
"""Distance from the frame of link 7 to the flange, and half the cube's edge, m."""
_HAND_QUAT = (0.3826834, 0.0, 0.0, 0.9238795)  # flange to hand: -45 degrees, and the hand's own half turn


def build_scene(dt: float = 0.001) -> Any:
    """The compiled model, steps of ``dt`` s; actuators are off: whoever steps it writes generalised forces."""
    spec = mujoco.MjSpec.from_file(str(HERE / "twin_fr3.xml"))
    hand = mujoco.MjSpec.from_file(str(HERE / "twin_hand.xml"))
    frame = _body(spec, f"{PREFIX}link7").add_frame()
    frame.pos, frame.quat = [0.0, 0.0, FLANGE], list(_HAND_QUAT)
    frame.attach_body(hand.worldbody.first_body(), PREFIX, "")
    spec.option.timestep = dt
    spec.option.disableflags |= mujoco.mjtDisableBit.mjDSBL_ACTUATION
    # Capsules are fatter than the links: neighbours overlap, and their contacts would cost time and push.
    pairs = [
        (f"{PREFIX}link{i}", f"{PREFIX}link{j}") for i in range(8) for j in (i + 1, i + 2) if j < 8 and (i, j) != (0, 1)
    ]
    pairs += [(f"{PREFIX}link{i}", f"{PREFIX}hand") for i in (5, 6, 7)]
    for one, other in pairs:
        exclude = spec.add_exclude()
        exclude.bodyname1, exclude.bodyname2 = one, other
    for body in spec.bodies:
        body.gravcomp = 1.0
    world = spec.worldbody
    box = mujoco.mjtGeom.mjGEOM_BOX
    world.add_geom(name="table", type=box, size=[0.35, 0.45, 0.02], pos=[0.55, 0, -0.02], rgba=[0.6, 0.45, 0.3, 1])
    cube = world.add_body(name="cube", pos=[0.5, 0.05, CUBE + 0.001])
    cube.add_freejoint()
    cube.add_geom(
        name="cube",
        type=box,
        size=[CUBE] * 3,
        mass=0.05,
        rgba=[0.8, 0.1, 0.1, 1],
        friction=[1.5, 0.01, 0.001],
        condim=4,
    )
    world.add_light(pos=[0.5, -0.5, 2], dir=[0, 0.2, -1])
    world.add_camera(
        name="front", pos=[1.35, 0, 0.65], fovy=50, quat=look_at([1.35, 0, 0.65], [0.5, 0, 0.1], [0, 0, 1])
    )
    _body(spec, f"{PREFIX}hand").add_camera(
        name="wrist", pos=[0.07, 0, 0.02], fovy=75, quat=look_at([0.07, 0, 0.02], [0, 0, 0.15], [1, 0, 0])
    )
    model = spec.compile()
    del hand  # it must outlive the compilation
    return model


def look_at(position: list[float], target: list[float], up: list[float]) -> list[float]:
    """Quaternion of a camera at ``position`` that looks at ``target``."""
    z = np.subtract(position, target)
    z = z / np.linalg.norm(z)
    x = np.cross(up, z)
    x /= np.linalg.norm(x)
    quat = np.zeros(4)
    mujoco.mju_mat2Quat(quat, np.stack([x, np.cross(z, x), z], 1).flatten())
    return [float(value) for value in quat]


def place_cube(data: Any, x: float, y: float, yaw: float = 0.0) -> None:
    """Put the cube on the table at x, y m, turned by ``yaw`` rad, at rest."""
    data.qpos[-7:] = [x, y, CUBE, np.cos(0.5 * yaw), 0.0, 0.0, np.sin(0.5 * yaw)]
    data.qvel[-6:] = 0.0


def _body(spec: Any, name: str) -> Any:
    # mujoco 3.3 renamed find_body; the twin's environment has an older one.
    return spec.body(name) if hasattr(spec, "body") else spec.find_body(name)
