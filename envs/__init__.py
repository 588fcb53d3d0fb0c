"""One adapter per simulator suite to one vector-environment protocol.

Nothing here imports a simulator before an environment is made.
"""

from __future__ import annotations

from collections.abc import Callable

from flowpolicy.core.errors import ConfigError, nearest
from flowpolicy.envs.adroit import AdroitConfig, normalized_door_score
from flowpolicy.envs.ogbench import SUITE, OGBenchConfig
from flowpolicy.envs.robosuite import RobosuiteConfig
from flowpolicy.envs.toy import ToyConfig

SuiteConfig = RobosuiteConfig | AdroitConfig | OGBenchConfig | ToyConfig

ENVS: dict[str, SuiteConfig] = {
    "lift": RobosuiteConfig("Lift", horizon=150),
    "can": RobosuiteConfig("PickPlaceCan", horizon=300),
    "door": AdroitConfig(),
    "toy": ToyConfig(),
    **{name: OGBenchConfig(name) for name in SUITE},
}
"""Environments by the name that the command line uses; OGBench's with their default task."""


def find_env(name: str) -> SuiteConfig:
    """The environment with this name, or with this ``env_id`` (such as ``robosuite/Lift``).

    OGBench's other tasks are named ``cube-single-task3`` or ``cube-single-singletask-task3-v0``.
    """
    by_id = {config.spec().env_id: config for config in ENVS.values()}
    found = ENVS.get(name) or by_id.get(name) or OGBenchConfig.parse(name)
    if found is None:
        raise ConfigError(f"unknown environment '{name}'", expected=nearest(name, [*ENVS, *by_id]))
    return found


def normalized_score(env_id: str) -> Callable[[float], float] | None:
    """Return of an episode -> normalised score; None where the field has no reference returns."""
    return normalized_door_score if env_id == AdroitConfig().spec().env_id else None
