"""The arms that are known, one file each (or one per family); a further one is a file here and a line below."""

from __future__ import annotations

from flowpolicy.core.errors import ConfigError, nearest
from flowpolicy.real_robot.arm.arm_model import ArmModel
from flowpolicy.real_robot.arm.models.franka import FER, FR3
from flowpolicy.real_robot.arm.models.ur5e import UR5E

ARMS: dict[str, ArmModel] = {model.name.lower(): model for model in (FR3, FER, UR5E)}
"""By the name that the command line uses."""


def find_arm(name: str) -> ArmModel:
    """The model with this name; raises :class:`ConfigError` where there is none."""
    if name not in ARMS:
        raise ConfigError(f"unknown arm '{name}'", expected=nearest(name, ARMS))
    return ARMS[name]
