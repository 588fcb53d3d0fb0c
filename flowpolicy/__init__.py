"""Offline RL and robot learning with flow-matching policies.

From a data file to a success rate, and to actions::

    import flowpolicy as fp

    run = fp.train("dm1-lift", data="lift.hdf5")
    print(fp.evaluate(run, episodes=50))
    env, session = fp.make_env(run), fp.Session(fp.load_policy(run))

Names are looked up when they are used, so that importing the package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flowpolicy.configs.named_training import train as train
    from flowpolicy.configs.preset_table import presets as presets
    from flowpolicy.core.errors import FlowPolicyError as FlowPolicyError
    from flowpolicy.data.dataset import DataConfig as DataConfig
    from flowpolicy.data.dataset import load_dataset as load_dataset
    from flowpolicy.envs.gymnasium_env import make_env as make_env
    from flowpolicy.evaluate.evaluation import evaluate as evaluate
    from flowpolicy.policy.engines import load_engine as load_engine
    from flowpolicy.policy.policy import Policy as Policy
    from flowpolicy.policy.policy import load_policy as load_policy
    from flowpolicy.policy.session import Session as Session
    from flowpolicy.train.experiment import Experiment as Experiment
    from flowpolicy.train.kinds import register_config as register_config
    from flowpolicy.train.run import Run as Run

__version__ = "0.1.0"

__all__ = [
    "DataConfig",
    "Experiment",
    "FlowPolicyError",
    "Policy",
    "Run",
    "Session",
    "__version__",
    "evaluate",
    "load_dataset",
    "load_engine",
    "load_policy",
    "make_env",
    "presets",
    "register_config",
    "train",
]

_HOMES = {
    "DataConfig": "data.dataset",
    "Experiment": "train.experiment",
    "FlowPolicyError": "core.errors",
    "Policy": "policy.policy",
    "Run": "train.run",
    "Session": "policy.session",
    "load_dataset": "data.dataset",
    "load_engine": "policy.engines",
    "load_policy": "policy.policy",
    "make_env": "envs.gymnasium_env",
    "presets": "configs.preset_table",
    "register_config": "train.kinds",
}
_ROOMS = ("evaluate", "train")  # packages that can be called


def __getattr__(name: str) -> object:
    if name in _ROOMS:
        return import_module(f"{__name__}.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
