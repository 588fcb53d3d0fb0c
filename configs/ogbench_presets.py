"""Presets of the offline RL agents on OGBench: one line of values per task, the same agents for all.

The values are those of the FQL study (arXiv 2502.02538, tables 4 and 6) where they have the task; mazes for the point
take those of its large ant maze, but a smaller alpha. Networks are 3 x 256, which a CPU trains in minutes (published:
4 x 512).
"""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from typing import Any

from flowpolicy.agents.base.optimizer import Optimizer
from flowpolicy.agents.base.value_learning import ValueConfig
from flowpolicy.agents.cloning.flow_bc import FlowBC
from flowpolicy.agents.offline.fisher import Fisher
from flowpolicy.agents.offline.fql import FQL
from flowpolicy.agents.offline.ifql import IFQL
from flowpolicy.agents.offline.iql import IQL
from flowpolicy.agents.offline.mean_flow_q import MeanFlowQ
from flowpolicy.agents.offline.qc import QC
from flowpolicy.agents.offline.rebrac import ReBRAC
from flowpolicy.data.dataset import DataConfig
from flowpolicy.data.normalize import NormalizerConfig
from flowpolicy.flows.fisher_metric import Metric
from flowpolicy.nets.backbones import Impala
from flowpolicy.nets.critic import Aggregation, CriticConfig
from flowpolicy.nets.encoder import StateEncoder
from flowpolicy.nets.mlp import MLP
from flowpolicy.nets.plain import Plain
from flowpolicy.nets.vision import VisionEncoder
from flowpolicy.train.experiment import Experiment


@dataclasses.dataclass(frozen=True)
class _Task:
    """What differs between tasks."""

    fql: float
    """alpha of FQL and QC-FQL."""
    iql: float
    """alpha of IQL."""
    mean_flow_q: float
    """alpha of MeanFlow Q-learning, Q not normalised; of cube-double the published value, which all arms take."""
    rebrac: tuple[float, float]
    """Behaviour penalties of ReBRAC's actor and critic."""
    aggregate: Aggregation = "mean"
    """How FQL, MeanFlow Q and Fisher combine their two critics; IQL, IFQL and ReBRAC always take the minimum."""
    budget: float = 0.01
    """Nats per dimension of the Fisher Decorator. On cube-single, states and training seed for development, 50,000
    updates of 64 rows: 0.3 gave 0 of 40, 0.05 (weights not averaged) 10 of 40, 0.01 23 of 40; larger ones exploit Q."""
    metric_time: float = 0.9
    """Flow time of the Fisher Decorator's metric; 'flowpolicy data info FILE --spread' says what the data ask for."""
    n_step: int = 1
    """Rewards that a target sums, for all agents with a critic."""
    scale_obs: bool = False
    """Whether observations are scaled: a maze spans twenty metres."""


# A maze is 150 steps and more from end to end. One-step targets carry a value about one step per 200 updates (the
# targets' own time), so that after 50,000 updates all is flat beyond six metres of the goal. alpha 1 was tried on
# task 3 and development states (FQL: 20 of 20); 10, as for the large ant maze, ties a point to wandering data. There
# too the Fisher budget: 0.02 gave 3 of 20, 0.2 10 (both with the metric at 0.9), 0.5 20: who only wanders must be left.
_MAZE = _Task(1.0, 10.0, 1.0, (0.003, 0.01), "min", budget=0.5, metric_time=0.76, n_step=10, scale_obs=True)
_TASKS = {
    "cube-single": _Task(300.0, 1.0, 120.0, (1.0, 0.0)),
    "cube-double": _Task(300.0, 0.3, 120.0, (0.1, 0.0)),
    "scene": _Task(300.0, 10.0, 120.0, (0.1, 0.01)),
    "puzzle-3x3": _Task(1000.0, 10.0, 120.0, (0.3, 0.01)),
    "pointmaze-medium": _MAZE,
    "pointmaze-large": _MAZE,
}
_NET, _RESIDUAL = Plain(width=256, depth=3), MLP(width=256, depth=3)
_MIN, _MEAN = CriticConfig(width=256, depth=3, aggregate="min"), CriticConfig(width=256, depth=3)
_FLOW_BC = FlowBC(
    net=_NET,
    encoder=StateEncoder(width=0),
    chunk=1,
    execute=1,
    optimizer=Optimizer(lr=3e-4, weight_decay=0.0, warmup=0, schedule="constant", ema=0.0),
)


def _presets(name: str, task: _Task) -> dict[str, tuple[str, Experiment]]:
    critic = _MIN if task.aggregate == "min" else _MEAN
    fql = Experiment(
        agent=FQL(net=_NET, critic=critic, alpha=task.fql),
        env=name,
        data=DataConfig(obs_keys=("state",)),
        normalizer=NormalizerConfig(action="none") if task.scale_obs else NormalizerConfig(obs="none", action="none"),
        steps=1_000_000,
        checkpoint_every=10_000,
    )
    actor, behaviour = task.rebrac
    agents = {
        "flow-bc": ("Flow BC, ten evaluations", _FLOW_BC),
        "fql": ("FQL, one evaluation", fql.agent),
        "ifql": ("IFQL, best of 32 flow samples", IFQL(net=_NET, critic=_MIN)),
        "iql": ("IQL", IQL(net=_NET, critic=_MIN, alpha=task.iql)),
        "rebrac": ("ReBRAC", ReBRAC(net=_NET, critic=_MIN, alpha_actor=actor, alpha_critic=behaviour)),
        "qc": ("QC, best of 32 chunks of 5", QC(net=_NET, critic=_MEAN)),
        "qc-fql": ("QC-FQL, distilled chunks of 5", QC(net=_NET, critic=_MEAN, mode="distilled", alpha=task.fql)),
        "mean-flow-q": (
            "MeanFlow Q-learning, one evaluation",
            MeanFlowQ(net=_RESIDUAL, critic=critic, alpha=task.mean_flow_q, normalize_q=False),
        ),
        # One jump of a map needs averaged weights: the energy distance of its base to the data fell from 0.41 to 0.39.
        "fisher": (
            "Fisher Decorator, two evaluations",
            Fisher(net=_RESIDUAL, critic=critic, budget=task.budget, metric=Metric(time=task.metric_time), ema=0.999),
        ),
    }
    return {
        f"{agent}-{name}": (f"{text}, on OGBench {name}", replace(fql, agent=_with_n_step(config, task.n_step)))
        for agent, (text, config) in agents.items()
    }


def _with_n_step(agent: Any, n_step: int) -> Any:
    return replace(agent, n_step=n_step) if isinstance(agent, ValueConfig) else agent


def _visual(name: str, alpha: float) -> Experiment:
    """FQL as it is published on pictures: IMPALA's small network, shifts of 3 pixels, three pictures in a row."""
    return Experiment(
        agent=FQL(
            net=_NET,
            critic=_MEAN,
            alpha=alpha,
            history=3,
            encoder=VisionEncoder(backbone=Impala(), width=0, crop=1.0, shift=3),
        ),
        env=f"visual-{name}",
        normalizer=NormalizerConfig(action="none"),
        steps=500_000,
        checkpoint_every=10_000,
    )


OGBENCH: dict[str, tuple[str, Experiment]] = {
    **{k: v for n, task in _TASKS.items() for k, v in _presets(n, task).items()},
    "fql-visual-cube-single": (
        "FQL, one evaluation, on OGBench visual-cube-single: pictures alone",
        _visual("cube-single", 300.0),
    ),
}
"""Preset name, ``<agent>-<task>`` -> (description, experiment)."""
