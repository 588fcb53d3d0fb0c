"""One adapter per simulator suite to one vector-environment protocol.

Nothing here imports a simulator before an environment is made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from flowpolicy.core.errors import ConfigError, nearest
from flowpolicy.core.spec import UNSTATED, ImageSpec
from flowpolicy.envs.adroit import AdroitConfig, AdroitEnv
from flowpolicy.envs.arm_tasks import ARM_TASKS, ArmTaskConfig
from flowpolicy.envs.d4rl_env import SUITE as D4RL_SUITE
from flowpolicy.envs.d4rl_env import D4RLConfig, D4RLEnv
from flowpolicy.envs.ogbench_env import SUITE as OGBENCH_SUITE
from flowpolicy.envs.ogbench_env import OGBenchConfig, OGBenchEnv
from flowpolicy.envs.pusht import PushTConfig, PushTEnv
from flowpolicy.envs.robosuite import TRANSPORT_KEYS, RobosuiteConfig, RobosuiteEnv
from flowpolicy.envs.toy import ToyConfig, ToyEnv
from flowpolicy.envs.vector import SingleEnv

SuiteConfig = RobosuiteConfig | AdroitConfig | D4RLConfig | OGBenchConfig | PushTConfig | ToyConfig | ArmTaskConfig

ENVS: dict[str, SuiteConfig] = {
    "lift": RobosuiteConfig("Lift"),
    "can": RobosuiteConfig("PickPlaceCan"),
    "square": RobosuiteConfig("NutAssemblySquare", horizon=400),
    "tool-hang": RobosuiteConfig("ToolHang", horizon=700),
    "transport": RobosuiteConfig("TwoArmTransport", horizon=700, obs_keys=TRANSPORT_KEYS),
    "door": AdroitConfig(),
    "hammer": AdroitConfig(task="hammer"),
    "pen": AdroitConfig(horizon=100, task="pen"),
    "relocate": AdroitConfig(task="relocate"),
    "pusht": PushTConfig(),
    "toy": ToyConfig(),
    **ARM_TASKS,
    **{name: D4RLConfig(name) for name in D4RL_SUITE},
    **{name: OGBenchConfig(name) for name in OGBENCH_SUITE},
}
"""Environments by the name that the command line uses; OGBench's with their default task."""

RECORDED = "recorded"
"""Name of the environment of a recording that nothing simulates: observations and actions are those of the file."""


def find_env(name: str, images: Mapping[str, ImageSpec] | None = None) -> SuiteConfig:
    """The environment with this name, or with this ``env_id`` (such as ``robosuite/Lift``).

    OGBench's other tasks are named ``cube-single-task3`` or ``cube-single-singletask-task3-v0``.

    Args:
        name: of the environment.
        images: pictures that it is to give besides, as a contract or a file describes them.

    Raises:
        ConfigError: there is no such environment, or it gives no such pictures.

    """
    if name in (RECORDED, UNSTATED):
        raise ConfigError(
            "what was recorded here is simulated by nothing: no episode of it can be played",
            fix="train with --env recorded; judge a policy on the machine that the data are of, or serve it to that",
        )
    by_id = {config.spec().env_id: config for config in ENVS.values()}
    found = ENVS.get(name) or by_id.get(name) or OGBenchConfig.parse(name)
    if found is None:
        raise ConfigError(f"unknown environment '{name}'", expected=nearest(name, [*ENVS, *by_id]))
    missing = {key: image for key, image in (images or {}).items() if key not in found.spec().observation}
    if not missing:
        return found
    if not isinstance(found, RobosuiteConfig | PushTConfig):
        raise ConfigError(
            f"{name} takes no pictures {', '.join(missing)}",
            expected="a task of robosuite, e.g. lift, or pusht, for pictures",
        )
    return found.seeing(missing)


def single_env(config: SuiteConfig) -> SingleEnv:
    """One copy of an environment, in this process."""
    if isinstance(config, RobosuiteConfig):
        return RobosuiteEnv.create(config)
    if isinstance(config, AdroitConfig):
        return AdroitEnv(config.horizon, config.task)
    if isinstance(config, D4RLConfig):
        return D4RLEnv(config)
    if isinstance(config, OGBenchConfig):
        return OGBenchEnv(config)
    if isinstance(config, PushTConfig):
        return PushTEnv(config)
    if isinstance(config, ToyConfig):
        return ToyEnv(config.horizon)
    return config.make(1)  # an arm, which says where it moves


def defines_success(env_id: str) -> bool:
    """Whether episodes of an environment can succeed; taken to be so of an unknown one."""
    return all(config.spec().defines_success for config in ENVS.values() if config.spec().env_id == env_id)


def normalized_score(env_id: str) -> Callable[[float], float] | None:
    """Return of an episode -> normalised score; None where the field has no reference returns.

    None for AntMaze too: its score is the rate of success.
    """
    config = {config.spec().env_id: config for config in ENVS.values()}.get(env_id)
    if isinstance(config, AdroitConfig) or (isinstance(config, D4RLConfig) and not config.spec().reward_shift):
        return config.normalized_score
    return None
