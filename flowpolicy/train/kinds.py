"""Tags of the config classes in ``config.json``: what a stored experiment can be made of.

An agent that lives in another package is told to :func:`register_config`. So that ``flowpolicy resume`` knows it too,
which imports nothing of the user's, the package names its module in the entry-point group ``flowpolicy.agents``. The
module may also call :func:`register_preset`, and ``flowpolicy train`` knows the agent.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import TypeVar

from flowpolicy.agents.base.optimizer import Adam, Optimizer
from flowpolicy.agents.cloning.dm1 import DM1
from flowpolicy.agents.cloning.flow import Flow
from flowpolicy.agents.cloning.flow_bc import FlowBC
from flowpolicy.agents.cloning.mip import MIP
from flowpolicy.agents.cloning.regression import Regression
from flowpolicy.agents.groups.gdro import GDRO
from flowpolicy.agents.offline.fisher import Fisher
from flowpolicy.agents.offline.fql import FQL
from flowpolicy.agents.offline.ifql import IFQL
from flowpolicy.agents.offline.iql import IQL
from flowpolicy.agents.offline.mean_flow_q import MeanFlowQ
from flowpolicy.agents.offline.qc import QC
from flowpolicy.agents.offline.rebrac import ReBRAC
from flowpolicy.agents.students.arcflow import ArcFlow
from flowpolicy.agents.students.backward_simulation import BackwardSimulation
from flowpolicy.agents.students.boss import BossSegments
from flowpolicy.agents.students.refiner import Refiner
from flowpolicy.agents.students.slimflow import SlimFlow
from flowpolicy.core.errors import ConfigError
from flowpolicy.data.dataset import DataConfig
from flowpolicy.data.normalize import NormalizerConfig
from flowpolicy.flows.dispersive import Dispersive
from flowpolicy.flows.fisher_metric import Metric
from flowpolicy.policy.actor import KINDS as POLICY_KINDS
from flowpolicy.train.experiment import Experiment
from flowpolicy.train.online_source import OnlineConfig

_OWN: dict[str, type] = {
    "experiment": Experiment,
    "data": DataConfig,
    "normalizer": NormalizerConfig,
    "online": OnlineConfig,
    "optimizer": Optimizer,
    "adam": Adam,
    "dispersive": Dispersive,
    "metric": Metric,
    "dm1": DM1,
    "flow_bc": FlowBC,
    "flow": Flow,
    "slimflow": SlimFlow,
    "boss_segments": BossSegments,
    "refiner": Refiner,
    "backward_simulation": BackwardSimulation,
    "arcflow": ArcFlow,
    "regression": Regression,
    "mip": MIP,
    "fql": FQL,
    "ifql": IFQL,
    "iql": IQL,
    "qc": QC,
    "rebrac": ReBRAC,
    "fisher": Fisher,
    "mean_flow_q": MeanFlowQ,
    "gdro": GDRO,
}
# Not copied: a method that is registered on an axis later has its tag at once.
KINDS = ChainMap(_OWN, *POLICY_KINDS.maps)
"""Tags of the config classes in ``config.json``."""

PLUGINS = "flowpolicy.agents"
"""Group of the entry points whose modules are imported with this one."""

_Class = TypeVar("_Class", bound=type)


def register_config(tag: str) -> Callable[[_Class], _Class]:
    """Decorator that gives a frozen dataclass, such as the config of an agent, its tag in ``config.json``.

    Args:
        tag: stays the same when the class is renamed or moved, so that old runs can be read.

    Raises:
        ConfigError: another class has the tag.

    """

    def add(cls: _Class) -> _Class:
        known = KINDS.get(tag)
        if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ConfigError(
                f"the kind '{tag}' is {known.__module__}.{known.__qualname__} already", fix="choose another tag"
            )
        _OWN[tag] = cls  # a class of the same name: its module was imported anew, as notebooks do
        return cls

    return add


PLUGIN_PRESETS: dict[str, tuple[str, Experiment]] = {}
"""Presets of other packages: name -> (description, experiment)."""


def register_preset(name: str, description: str, experiment: Experiment) -> None:
    """Give an experiment a name for ``flowpolicy train``; called by the module that an entry point names.

    Args:
        name: of the preset on the command line.
        description: one line of its help.
        experiment: what is trained unless flags say otherwise.

    Raises:
        ConfigError: another package has registered the name.

    """
    if PLUGIN_PRESETS.get(name, ("", experiment))[1] != experiment:
        raise ConfigError(f"the preset '{name}' is registered twice", fix="choose another name")
    PLUGIN_PRESETS[name] = (description, experiment)


for _point in entry_points(group=PLUGINS):
    try:
        _point.load()
    except Exception as error:
        raise ConfigError(
            f"the entry point '{_point.name} = {_point.value}' of the installed package "
            f"{_point.dist.name if _point.dist else '?'} cannot be imported: {error}",
            fix="mend or uninstall that package",
        ) from error
