"""Universal Robots UR5e: six joints. No driver speaks to one: only the arm in NumPy plays it.

Published by the maker, and where:

- Denavit-Hartenberg table: "DH parameters for calculations of kinematics and dynamics", universal-robots.com. It is in
  the standard convention: ``a`` = (0, -0.425, -0.3922, 0, 0, 0), alpha = (90, 0, 0, 90, -90, 0) degrees; here each of
  them stands one joint on. Its last frame is the flange.
- Range of +-360 degrees and 180 degrees/s of every joint: User Manual UR5e, 5.8.
- Torques of 150 and 28 Nm: "Max. joint torques", universal-robots.com.

Our choices, to be looked at before an arm moves by them: the elbow's range of +-180 degrees (beyond it the upper arm is
in the way, as the maker's own robot description says); accelerations and jerks, which the maker does not publish
(180 degrees/s^2 is what its robot description plans with); what a policy may ask for, workspace and goals; gains and
inertias, which are the NumPy arm's alone; the length of a hand such as Robotiq's 2F-85, whose opening is published.
Nothing here looks whether the arm would hit itself.
"""

from __future__ import annotations

import numpy as np

from flowpolicy.real_robot.arm.arm_model import ArmModel, Box, Gains, Hand, JointLimits
from flowpolicy.real_robot.arm.kinematics import Chain

_TURN = 2.0 * np.pi
_DAMPING = (60.0, 60.0, 45.0, 20.0, 15.0, 8.0)

UR5E = ArmModel(
    name="UR5e",
    robot="Universal Robots UR5e",
    family="ur5e",
    chain=Chain(
        d=(0.1625, 0.0, 0.0, 0.1333, 0.0997, 0.0996),
        a=(0.0, 0.0, -0.425, -0.3922, 0.0, 0.0),
        quarter_turns=(0, 1, 0, 0, 1, -1),
        flange=0.0,
    ),
    limits=JointLimits(
        q_min=(-_TURN, -_TURN, -np.pi, -_TURN, -_TURN, -_TURN),
        q_max=(_TURN, _TURN, np.pi, _TURN, _TURN, _TURN),
        velocity=(np.pi,) * 6,
        acceleration=(np.pi,) * 6,
        jerk=(100.0,) * 6,
        torque=(150.0, 150.0, 150.0, 28.0, 28.0, 28.0),
    ),
    home=(0.0, -np.pi / 2, -np.pi / 2, -np.pi / 2, np.pi / 2, -np.pi / 2),
    gains=Gains((600.0, 600.0, 600.0, 250.0, 150.0, 50.0), _DAMPING),
    homing_gains=Gains((800.0, 800.0, 800.0, 400.0, 300.0, 150.0), _DAMPING),
    hand=Hand(length=0.16, width=0.085),
    velocity=(1.0, 1.0, 1.0, 1.5, 1.5, 1.5),
    acceleration=(3.0,) * 6,
    jerk=(60.0,) * 6,
    workspace=Box((0.25, -0.45, 0.01), (0.75, 0.45, 0.9)),
    goals=Box((0.40, -0.20, 0.15), (0.60, 0.20, 0.40)),
    inertia=(2.0, 2.0, 1.0, 0.3, 0.2, 0.1),
    drivers=("fake",),
    tasks=("reach", "taught"),
)
