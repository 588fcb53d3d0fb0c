"""Offline RL and robot learning with flow-matching policies.

From a data file to a success rate::

    import flowpolicy as fp

    experiment = fp.presets["dm1-lift"].with_(data="lift.hdf5")
    run = fp.train(experiment)
    print(fp.evaluate(run, episodes=50))

Names are looked up when they are used, so that importing the package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flowpolicy.configs.preset_table import presets as presets
    from flowpolicy.data.dataset import load_dataset as load_dataset
    from flowpolicy.evaluate.evaluation import evaluate as evaluate
    from flowpolicy.policy.engines import load_engine as load_engine
    from flowpolicy.policy.policy import Policy as Policy
    from flowpolicy.policy.session import Session as Session
    from flowpolicy.train.experiment import Experiment as Experiment
    from flowpolicy.train.kinds import register_config as register_config
    from flowpolicy.train.run import Run as Run
    from flowpolicy.train.training import train as train

__version__ = "0.1.0"

__all__ = [
    "Experiment",
    "Policy",
    "Run",
    "Session",
    "__version__",
    "evaluate",
    "load_dataset",
    "load_engine",
    "presets",
    "register_config",
    "train",
]

_HOMES = {
    "Experiment": "train.experiment",
    "Policy": "policy.policy",
    "Run": "train.run",
    "Session": "policy.session",
    "load_dataset": "data.dataset",
    "load_engine": "policy.engines",
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
