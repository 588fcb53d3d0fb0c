"""Tags of the config classes in ``config.json``: what a stored experiment can be made of.

An agent's config has its tag from the decorator :func:`register_config`; whatever lies in ``flowpolicy.agents`` is
imported here. ``flowpolicy resume`` imports nothing of the user's: so that it knows agents of another package too, the
package names its module in the entry-point group ``flowpolicy.agents``. The module may also call
:func:`register_preset`, and ``flowpolicy train`` knows the agent.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from pkgutil import walk_packages

import flowpolicy.agents as agents
from flowpolicy.agents.base.agent_tags import KINDS as KINDS
from flowpolicy.agents.base.agent_tags import register_config as register_config
from flowpolicy.agents.base.optimizer import Adam, Optimizer
from flowpolicy.core.errors import ConfigError
from flowpolicy.data.dataset import DataConfig
from flowpolicy.data.normalize import NormalizerConfig
from flowpolicy.flows.dispersive import Dispersive
from flowpolicy.flows.fisher_metric import Metric
from flowpolicy.train.experiment import Experiment
from flowpolicy.train.online_source import OnlineConfig

for _module in walk_packages(agents.__path__, f"{agents.__name__}."):
    import_module(_module.name)  # every agent names its own tag
_OTHERS: dict[str, type] = {
    "experiment": Experiment,
    "data": DataConfig,
    "normalizer": NormalizerConfig,
    "online": OnlineConfig,
    "optimizer": Optimizer,
    "adam": Adam,
    "dispersive": Dispersive,
    "metric": Metric,
}
for _tag, _class in _OTHERS.items():
    register_config(_tag)(_class)

PLUGINS = "flowpolicy.agents"
"""Group of the entry points whose modules are imported with this one."""

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
