"""Franka Research 3 (FR3) and Franka Emika Robot (FER, "Panda"): one geometry, two tables of limits, never one."""

from __future__ import annotations

import dataclasses

import numpy as np

from flowpolicy.real_robot.arm.arm_model import ArmModel, Box, Gains, Hand, JointLimits
from flowpolicy.real_robot.arm.kinematics import Chain

_DAMPING = (50.0, 50.0, 50.0, 50.0, 30.0, 25.0, 15.0)

FR3 = ArmModel(
    name="FR3",
    robot="Franka FR3",
    family="franka",
    chain=Chain(  # the maker's modified Denavit-Hartenberg table
        d=(0.333, 0.0, 0.316, 0.0, 0.384, 0.0, 0.0),
        a=(0.0, 0.0, 0.0, 0.0825, -0.0825, 0.0, 0.088),
        quarter_turns=(0, -1, 1, 1, -1, 1, 1),
        flange=0.107,
    ),
    limits=JointLimits(
        q_min=(-2.7437, -1.7837, -2.9007, -3.0421, -2.8065, 0.5445, -3.0159),
        q_max=(2.7437, 1.7837, 2.9007, -0.1518, 2.8065, 4.5169, 3.0159),
        velocity=(2.62, 2.62, 2.62, 2.62, 5.26, 4.18, 5.26),
        acceleration=(10.0,) * 7,
        jerk=(5000.0,) * 7,
        torque=(87.0, 87.0, 87.0, 87.0, 12.0, 12.0, 12.0),
        speed_offset=(0.30, 0.20, 0.20, 0.30, 0.35, 0.35, 0.35),
        speed_deceleration=(6.0, 2.585, 3.5, 4.0, 17.0, 5.5, 17.0),
    ),
    home=(0.0, -np.pi / 4, 0.0, -3 * np.pi / 4, 0.0, np.pi / 2, np.pi / 4),  # the maker's ready pose
    gains=Gains((600.0, 600.0, 600.0, 600.0, 250.0, 150.0, 50.0), _DAMPING),  # libfranka's example values
    # Stiffer than for a policy: friction alone would leave the last joints 5 mrad beside the home pose.
    homing_gains=Gains((800.0, 800.0, 800.0, 800.0, 400.0, 300.0, 150.0), _DAMPING),
    hand=Hand(length=0.1034, width=0.08),
    velocity=(1.0, 1.0, 1.0, 1.0, 1.5, 1.5, 1.5),
    acceleration=(4.0,) * 7,
    jerk=(80.0,) * 7,
    workspace=Box((0.25, -0.45, 0.01), (0.75, 0.45, 0.9)),
    goals=Box((0.40, -0.20, 0.15), (0.60, 0.20, 0.40)),
    inertia=(1.6, 1.6, 1.2, 1.2, 0.4, 0.3, 0.15),
    drivers=("fake", "scene", "franky"),
    tasks=("reach", "lift", "taught"),
)
"""Franka Research 3, FCI version 10: libfranka's rate_limiting.h and the URDF that the robot serves; the tighter."""

FER = dataclasses.replace(
    FR3,
    name="FER",
    robot="Franka FER",
    limits=JointLimits(
        q_min=(-2.8973, -1.7628, -2.8973, -3.0718, -2.8973, -0.0175, -2.8973),
        q_max=(2.8973, 1.7628, 2.8973, -0.0698, 2.8973, 3.7525, 2.8973),
        velocity=(2.175, 2.175, 2.175, 2.175, 2.61, 2.61, 2.61),
        acceleration=(15.0, 7.5, 10.0, 12.5, 15.0, 20.0, 20.0),
        jerk=(7500.0, 3750.0, 5000.0, 6250.0, 7500.0, 10000.0, 10000.0),
        torque=(87.0, 87.0, 87.0, 87.0, 12.0, 12.0, 12.0),
    ),
    drivers=("fake",),
)
"""Franka Emika Robot ("Panda"), FCI version 5. No server of that version is at hand: untested on the wire."""
