"""Named presets: values, no logic. One line per algorithm and task."""

from __future__ import annotations

from collections import ChainMap
from dataclasses import replace

from flowpolicy.agents.adam import Adam
from flowpolicy.agents.dm1 import DM1
from flowpolicy.agents.fisher import Fisher
from flowpolicy.agents.flow import Flow
from flowpolicy.agents.flow_bc import FlowBC
from flowpolicy.agents.fql import FQL
from flowpolicy.agents.ifql import IFQL
from flowpolicy.agents.imitation import Optimizer
from flowpolicy.agents.iql import IQL
from flowpolicy.agents.mean_flow_q import MeanFlowQ
from flowpolicy.agents.qc import QC
from flowpolicy.agents.rebrac import ReBRAC
from flowpolicy.agents.regression import Regression
from flowpolicy.data.dataset import DataConfig
from flowpolicy.data.normalize import NormalizerConfig
from flowpolicy.flows.dispersive import Dispersive
from flowpolicy.flows.fisher import Metric
from flowpolicy.flows.times import PairLaw
from flowpolicy.nets.critic import CriticConfig
from flowpolicy.nets.encoder import StateEncoder
from flowpolicy.nets.mlp import MLP
from flowpolicy.nets.plain import Plain
from flowpolicy.policy.policy import KINDS as POLICY_KINDS
from flowpolicy.train.experiment import Experiment

_OWN_KINDS: dict[str, type] = {
    "experiment": Experiment,
    "data": DataConfig,
    "normalizer": NormalizerConfig,
    "optimizer": Optimizer,
    "adam": Adam,
    "pairs": PairLaw,
    "dispersive": Dispersive,
    "metric": Metric,
    "dm1": DM1,
    "flow_bc": FlowBC,
    "flow": Flow,
    "regression": Regression,
    "fql": FQL,
    "ifql": IFQL,
    "iql": IQL,
    "qc": QC,
    "rebrac": ReBRAC,
    "fisher": Fisher,
    "mean_flow_q": MeanFlowQ,
}
# Not copied: a method that is registered on an axis later has its tag at once.
KINDS = ChainMap(_OWN_KINDS, *POLICY_KINDS.maps)
"""Tags of the config classes in ``config.json``."""

ARM_KEYS = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos", "object")

# Ten decisions a second: a chunk of 0.2 s at 20 Hz, replaced when half of it is executed.
FAST = Optimizer(lr=2e-3)
# Twice the default share of intervals that end at the data, on states of their own for development: 398 instead of
# 391 of 400 Lift episodes; on the door 1 instead of 9 of 200, so that it keeps the default.
DM1_ARM = DM1(chunk=4, execute=2, optimizer=FAST, pairs=PairLaw(share_endpoint=0.3))
DM1_DOOR = replace(DM1_ARM, pairs=PairLaw())
FLOW_BC_ARM = FlowBC(chunk=4, execute=2, optimizer=FAST)
REGRESSION_ARM = Regression(chunk=4, execute=2, optimizer=FAST)
LIFT = Experiment(agent=DM1_ARM, env="lift", data=DataConfig(obs_keys=ARM_KEYS), steps=5_000)
CAN = replace(LIFT, env="can", steps=15_000)
DOOR = Experiment(agent=DM1_DOOR, env="door", data=DataConfig(obs_keys=("state",)), steps=10_000)
DEBUG = Experiment(
    agent=FlowBC(net=MLP(width=64, depth=2)),
    env="toy",
    steps=300,
    batch_size=64,
    checkpoint_every=100,
    compile=False,
)

# Offline RL: values of tables 4 and 6 of the FQL study (arXiv 2502.02538); its observations are not scaled.
UNSCALED = NormalizerConfig(obs="none")
SMALL_CRITIC = CriticConfig(width=64, depth=2)
DEBUG_RL = replace(DEBUG, agent=FQL(net=Plain(width=64, depth=2), critic=SMALL_CRITIC, normalize_q=True, alpha=1.0))
MIN = CriticConfig(aggregate="min")
DOOR_RL = replace(DOOR, agent=FQL(alpha=30_000.0, critic=MIN), normalizer=UNSCALED, steps=500_000)

# OGBench, single tasks: the tables' values where they have the task, with networks of 3 x 256 that a CPU trains
# in minutes (published: 4 x 512). Mazes are scaled: their positions span twenty metres.
SMALL, SMALL_MLP = Plain(width=256, depth=3), MLP(width=256, depth=3)
MEAN_OF_TWO = CriticConfig(width=256, depth=3)
MIN_OF_TWO = CriticConfig(width=256, depth=3, aggregate="min")
SMALL_BC = FlowBC(
    net=SMALL,
    encoder=StateEncoder(width=0),
    chunk=1,
    execute=1,
    optimizer=Optimizer(lr=3e-4, weight_decay=0.0, warmup=0, schedule="constant", ema=0.0),
)
CUBE = Experiment(
    agent=FQL(net=SMALL, critic=MEAN_OF_TWO, alpha=300.0),
    env="cube-single",
    data=DataConfig(obs_keys=("state",)),
    normalizer=NormalizerConfig(obs="none", action="none"),
    steps=1_000_000,
    checkpoint_every=10_000,
)
MAZE = replace(
    CUBE,
    agent=FQL(net=SMALL, critic=MIN_OF_TWO, alpha=10.0),
    env="pointmaze-medium",
    normalizer=NormalizerConfig(action="none"),
)

PRESETS: dict[str, tuple[str, Experiment]] = {
    "debug": ("Flow BC on toy data that it generates itself; no simulator, seconds", DEBUG),
    "debug-rl": ("FQL on the same toy data; no simulator, seconds", DEBUG_RL),
    "dm1-lift": ("DM1 on robosuite Lift, one evaluation per chunk", LIFT),
    "flow-bc-lift": ("Flow BC on robosuite Lift, ten evaluations per chunk", replace(LIFT, agent=FLOW_BC_ARM)),
    "regression-lift": ("Regression control on robosuite Lift", replace(LIFT, agent=REGRESSION_ARM)),
    "dm1-can": ("DM1 on robosuite PickPlaceCan", CAN),
    "flow-bc-can": ("Flow BC on robosuite PickPlaceCan", replace(CAN, agent=FLOW_BC_ARM)),
    "regression-can": ("Regression control on robosuite PickPlaceCan", replace(CAN, agent=REGRESSION_ARM)),
    "dm1-door": ("DM1 on Adroit door, human demonstrations (D4RL)", DOOR),
    "flow-bc-door": ("Flow BC on Adroit door, human demonstrations (D4RL)", replace(DOOR, agent=FLOW_BC_ARM)),
    "regression-door": ("Regression control on Adroit door (D4RL)", replace(DOOR, agent=REGRESSION_ARM)),
    "fql-door-human": ("FQL on Adroit door, human demonstrations (D4RL)", DOOR_RL),
    "iql-door-human": ("IQL on Adroit door, human demonstrations (D4RL)", replace(DOOR_RL, agent=IQL(alpha=10.0))),
    "ifql-door-human": ("IFQL on Adroit door, human demonstrations (D4RL)", replace(DOOR_RL, agent=IFQL())),
    "rebrac-door-human": ("ReBRAC on Adroit door, human demonstrations (D4RL)", replace(DOOR_RL, agent=ReBRAC())),
    "qc-door-human": ("QC on Adroit door, human demonstrations (D4RL)", replace(DOOR_RL, agent=QC(critic=MIN))),
    "fisher-door-human": (
        "Fisher Decorator on Adroit door, two evaluations",
        replace(DOOR_RL, agent=Fisher(critic=MIN)),
    ),
    "mean-flow-q-door-human": (
        "MeanFlow Q-learning on Adroit door, one evaluation",
        replace(DOOR_RL, agent=MeanFlowQ(critic=MIN)),
    ),
    "flow-bc-cube-single": ("Flow BC on OGBench cube-single", replace(CUBE, agent=SMALL_BC)),
    "fql-cube-single": ("FQL on OGBench cube-single", CUBE),
    "ifql-cube-single": ("IFQL on OGBench cube-single", replace(CUBE, agent=IFQL(net=SMALL, critic=MIN_OF_TWO))),
    "iql-cube-single": (
        "IQL on OGBench cube-single",
        replace(CUBE, agent=IQL(net=SMALL, critic=MIN_OF_TWO, alpha=1.0)),
    ),
    "rebrac-cube-single": (
        "ReBRAC on OGBench cube-single",
        replace(CUBE, agent=ReBRAC(net=SMALL, critic=MIN_OF_TWO, alpha_actor=1.0, alpha_critic=0.0)),
    ),
    "qc-cube-single": (
        "QC, best of 32 chunks of 5, on OGBench cube-single",
        replace(CUBE, agent=QC(net=SMALL, critic=MEAN_OF_TWO)),
    ),
    "qc-fql-cube-single": (
        "QC-FQL, distilled chunks of 5, on OGBench cube-single",
        replace(CUBE, agent=QC(net=SMALL, critic=MEAN_OF_TWO, mode="distilled", alpha=300.0)),
    ),
    "mean-flow-q-cube-single": (
        "MeanFlow Q-learning on OGBench cube-single",
        replace(CUBE, agent=MeanFlowQ(net=SMALL_MLP, critic=MEAN_OF_TWO)),
    ),
    "fisher-cube-single": (
        "Fisher Decorator on OGBench cube-single, two evaluations",
        replace(CUBE, agent=Fisher(net=SMALL_MLP, critic=MEAN_OF_TWO)),
    ),
    "flow-bc-pointmaze-medium": ("Flow BC on OGBench pointmaze-medium", replace(MAZE, agent=SMALL_BC)),
    "fql-pointmaze-medium": ("FQL on OGBench pointmaze-medium", MAZE),
    "ifql-pointmaze-medium": (
        "IFQL on OGBench pointmaze-medium",
        replace(MAZE, agent=IFQL(net=SMALL, critic=MIN_OF_TWO)),
    ),
    "iql-pointmaze-medium": (
        "IQL on OGBench pointmaze-medium",
        replace(MAZE, agent=IQL(net=SMALL, critic=MIN_OF_TWO, alpha=10.0)),
    ),
    "rebrac-pointmaze-medium": (
        "ReBRAC on OGBench pointmaze-medium",
        replace(MAZE, agent=ReBRAC(net=SMALL, critic=MIN_OF_TWO, alpha_actor=0.003, alpha_critic=0.01)),
    ),
    "qc-pointmaze-medium": (
        "QC, best of 32 chunks of 5, on OGBench pointmaze-medium",
        replace(MAZE, agent=QC(net=SMALL, critic=MEAN_OF_TWO)),
    ),
    "mean-flow-q-pointmaze-medium": (
        "MeanFlow Q-learning on OGBench pointmaze-medium",
        replace(MAZE, agent=MeanFlowQ(net=SMALL_MLP, critic=MIN_OF_TWO)),
    ),
    "fisher-pointmaze-medium": (
        "Fisher Decorator on OGBench pointmaze-medium, two evaluations",
        replace(MAZE, agent=Fisher(net=SMALL_MLP, critic=MIN_OF_TWO, budget=0.2)),
    ),
}
"""Preset name -> (description, experiment)."""
