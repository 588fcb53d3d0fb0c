"""Named presets: values, no logic. One line per algorithm and task."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from flowpolicy.agents.base.optimizer import Optimizer
from flowpolicy.agents.cloning.dm1 import DM1, dm1_flow
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
from flowpolicy.configs.ogbench_presets import OGBENCH as OGBENCH
from flowpolicy.core.errors import ConfigError
from flowpolicy.data.dataset import DataConfig
from flowpolicy.data.normalize import NormalizerConfig
from flowpolicy.envs.arm_tasks import ARM_TASKS
from flowpolicy.flows.dispersive import Dispersive
from flowpolicy.nets.critic import CriticConfig
from flowpolicy.nets.mlp import MLP
from flowpolicy.nets.plain import Plain
from flowpolicy.nets.vision import VisionEncoder
from flowpolicy.train.experiment import Experiment
from flowpolicy.train.kinds import KINDS as KINDS
from flowpolicy.train.kinds import PLUGIN_PRESETS

ARM_KEYS = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos", "object")

# Ten decisions a second: a chunk of 0.2 s at 20 Hz, replaced when half of it is executed.
FAST = Optimizer(lr=2e-3)
# Twice the default share of intervals that end at the data, on states of their own for development: 398 instead of
# 391 of 400 Lift episodes; on the door 1 instead of 9 of 200, so that it keeps the default.
DM1_ARM = DM1(chunk=4, execute=2, optimizer=FAST, flow=dm1_flow(share_endpoint=0.3))
DM1_DOOR = replace(DM1_ARM, flow=DM1.flow)
FLOW_BC_ARM = FlowBC(chunk=4, execute=2, optimizer=FAST)
REGRESSION_ARM = Regression(chunk=4, execute=2, optimizer=FAST)
MIP_ARM = MIP(chunk=4, execute=2, optimizer=FAST)
LIFT = Experiment(agent=DM1_ARM, env="lift", data=DataConfig(obs_keys=ARM_KEYS), steps=5_000)
# What `make demo` trains. Nothing was chosen on the demo's planned states.
LIFT_FAST = replace(LIFT, agent=replace(DM1_ARM, net=MLP(width=256)), steps=1_000, checkpoint_every=1_000)
CAN = replace(LIFT, env="can", steps=15_000)
SQUARE = replace(LIFT, env="square", steps=15_000)
# Pictures: proprioception and two cameras, and not where the object is. Four draws of noise for every picture that is
# encoded; no dispersive loss until a figure speaks for it (docs/pictures.md).
SEEING: dict[str, Any] = {
    "encoder": VisionEncoder(),
    "optimizer": Optimizer(lr=1e-3, warmup=100, ema=0.995),
    "net": MLP(width=256, depth=3),
    "chunk": 8,
    "execute": 4,
}
# Without the bypass chunks of one evaluation kept some of their noise, and 6 of 200 episodes of development failed
# instead of 1 (docs/pictures.md).
DM1_SEES = DM1(
    **{**SEEING, "net": MLP(width=256, depth=3, bypass=True)},
    noises=4,
    flow=dm1_flow(share_endpoint=0.3),
    dispersive=Dispersive(weight=0.0),
)
LIFT_SEES = Experiment(
    agent=DM1_SEES,
    env="lift",
    data=DataConfig(obs_keys=ARM_KEYS[:3], cameras=("agentview", "robot0_eye_in_hand")),
    steps=5_000,
    batch_size=64,
    checkpoint_every=500,
)
CAN_SEES = replace(LIFT_SEES, env="can", steps=12_000)
# Chunks of 0.8 s, replaced after 0.4 s. Demonstrations go on from a board in several ways.
PUSHT = Experiment(
    agent=DM1(net=MLP(width=256, depth=3), chunk=8, execute=4, optimizer=FAST, flow=dm1_flow(share_endpoint=0.3)),
    env="pusht",
    data=DataConfig(obs_keys=("agent_pos", "environment_state")),
    steps=20_000,
)
PUSHT_SEES = replace(LIFT_SEES, env="pusht", data=DataConfig(obs_keys=("agent_pos",), cameras=("top",)), steps=20_000)
# Eight rows of 50 ms, replaced after two: ten decisions a second, and always 0.3 s of a newer plan in hand.
REAL_KEYS = ("robot0_joint_pos", "robot0_eef_pos", "robot0_gripper_qpos")
REAL_REACH = Experiment(
    agent=DM1(net=MLP(width=256, depth=3), chunk=8, execute=2, optimizer=FAST, flow=dm1_flow(share_endpoint=0.3)),
    env="franka-reach",
    data=DataConfig(filter_key="successful", obs_keys=(*REAL_KEYS, "goal")),
    steps=3_000,
)
REAL_LIFT = replace(
    REAL_REACH,
    env="franka-lift",
    data=DataConfig(filter_key="successful", obs_keys=(*REAL_KEYS, "object")),
    steps=4_000,
)
# The arm from two cameras, without the object's pose: recordings of --cameras front=... wrist=... Window and updates
# are those that lifted from forty demonstrations (docs/teach.md); what each does alone was not measured.
REAL_EYES = VisionEncoder(crop=0.952)
REAL_LIFT_SEES = replace(
    REAL_LIFT,
    agent=replace(DM1_SEES, encoder=REAL_EYES, execute=2),
    data=DataConfig(filter_key="successful", obs_keys=REAL_KEYS, cameras=("front", "wrist")),
    batch_size=64,
    checkpoint_every=500,
)
REAL_TAUGHT = replace(REAL_REACH, data=DataConfig(filter_key="successful", obs_keys=REAL_KEYS))
TAUGHT = {"taught": "a task of one's own"}
REAL = {"reach": REAL_REACH, "lift": REAL_LIFT, "taught": REAL_TAUGHT}
DOOR = Experiment(agent=DM1_DOOR, env="door", data=DataConfig(obs_keys=("state",)), steps=10_000)
DEBUG = Experiment(
    agent=FlowBC(net=MLP(width=64, depth=2)),
    env="toy",
    steps=300,
    batch_size=64,
    checkpoint_every=100,
    compile="off",
)

# Offline RL: values of tables 4 and 6 of the FQL study (arXiv 2502.02538); its observations are not scaled.
UNSCALED = NormalizerConfig(obs="none")
SMALL_CRITIC = CriticConfig(width=64, depth=2)
FQL_TOY = replace(DEBUG, agent=FQL(net=Plain(width=64, depth=2), critic=SMALL_CRITIC, normalize_q=True, alpha=1.0))
# Post-training: the run that is named by --base decides environment, network, sizes and scaling. Temperature and
# learning rate were chosen on the toy with simulator labels and development states (success of 200, base 143): 156 at
# (1, 1e-4), 164 at (1, 3e-4), 175 at (0.3, 3e-4), 169 at (0.3, 1e-3), 166 at (0.1, 3e-4).
GDRO_FAST = GDRO(
    scale="deviation", temperature=0.3, optimizer=Optimizer(lr=3e-4, warmup=50, schedule="constant", ema=0.99)
)
# Chunks of Can have 56 numbers, the toy's 16. Log-ratios grow with them, and so does what chance adds to their
# estimates, while anchor and cloning are means over the numbers: with the toy's weights all candidates lose likelihood.
# Success of 60 development states, base 30: groups of a critic of the base's own episodes 18 of 54 at an anchor of 30,
# 37 and 40 at 300; groups of an IQL critic of the data 31 and 30 at 30, 36 at 300, 43 at 2000 (docs/gdro.md).
GDRO_CAN = replace(GDRO_FAST, draws=8, anchor=300.0, bc_weight=0.1)
GDRO_ARM = Experiment(agent=GDRO_FAST, env="lift", steps=1_500, batch_size=32, checkpoint_every=100)
DEBUG_GDRO = replace(DEBUG, agent=GDRO(assess_every=50), batch_size=16)
MIN = CriticConfig(aggregate="min")
DOOR_RL = replace(DOOR, agent=FQL(alpha=30_000.0, critic=MIN), normalizer=UNSCALED, steps=500_000)

PRESETS: dict[str, tuple[str, Experiment]] = {
    "debug": ("Flow BC on toy data that it generates itself; no simulator, seconds", DEBUG),
    "debug-gdro": ("GDRO on a 'debug' run and groups of it; no simulator, seconds", DEBUG_GDRO),
    "fql-toy": ("FQL on the same toy data; no simulator, seconds", FQL_TOY),
    "dm1-lift": ("DM1 on robosuite Lift, one evaluation per chunk", LIFT),
    "dm1-lift-fast": ("DM1 on robosuite Lift, a smaller network for half a minute of training", LIFT_FAST),
    "flow-bc-lift": ("Flow BC on robosuite Lift, ten evaluations per chunk", replace(LIFT, agent=FLOW_BC_ARM)),
    "regression-lift": ("Regression control on robosuite Lift", replace(LIFT, agent=REGRESSION_ARM)),
    "mip-lift": ("MIP, two regressions, on robosuite Lift", replace(LIFT, agent=MIP_ARM)),
    "mip-can": ("MIP, two regressions, on robosuite PickPlaceCan", replace(CAN, agent=MIP_ARM)),
    "mip-door": ("MIP, two regressions, on Adroit door (D4RL)", replace(DOOR, agent=MIP_ARM)),
    "gdro-lift": ("GDRO: post-train a Lift run on groups of its chunks", GDRO_ARM),
    "balance-lift": (
        "Trajectory balance: post-train a Lift run on groups of its chunks",
        replace(GDRO_ARM, agent=replace(GDRO_ARM.agent, objective="trajectory_balance")),
    ),
    "gdro-can": (
        "GDRO: post-train a PickPlaceCan run on groups of its chunks",
        replace(GDRO_ARM, env="can", agent=GDRO_CAN),
    ),
    "dm1-can": ("DM1 on robosuite PickPlaceCan", CAN),
    "flow-bc-can": ("Flow BC on robosuite PickPlaceCan", replace(CAN, agent=FLOW_BC_ARM)),
    "regression-can": ("Regression control on robosuite PickPlaceCan", replace(CAN, agent=REGRESSION_ARM)),
    "dm1-square": ("DM1 on robosuite NutAssemblySquare", SQUARE),
    "flow-bc-square": ("Flow BC on robosuite NutAssemblySquare", replace(SQUARE, agent=FLOW_BC_ARM)),
    "regression-square": ("Regression control on robosuite NutAssemblySquare", replace(SQUARE, agent=REGRESSION_ARM)),
    "dm1-lift-image": ("DM1 on robosuite Lift from two cameras, without the object's pose", LIFT_SEES),
    "flow-bc-lift-image": (
        "Flow BC on robosuite Lift from two cameras, ten evaluations per chunk",
        replace(LIFT_SEES, agent=FlowBC(**SEEING, noises=4)),
    ),
    "regression-lift-image": (
        "Regression control on robosuite Lift from two cameras",
        replace(LIFT_SEES, agent=Regression(**SEEING)),
    ),
    "dm1-can-image": ("DM1 on robosuite PickPlaceCan from two cameras", CAN_SEES),
    "flow-bc-can-image": (
        "Flow BC on robosuite PickPlaceCan from two cameras, ten evaluations per chunk",
        replace(CAN_SEES, agent=FlowBC(**SEEING, noises=4)),
    ),
    "regression-can-image": (
        "Regression control on robosuite PickPlaceCan from two cameras",
        replace(CAN_SEES, agent=Regression(**SEEING)),
    ),
    "dm1-pusht": ("DM1 on PushT from key-points of the T", PUSHT),
    "dm1-pusht-image": ("DM1 on PushT from one camera and the pusher's place", PUSHT_SEES),
    **{
        f"dm1-{env}": (
            f"DM1 on demonstrations of {TAUGHT.get(config.task, config.task)} recorded with 'flowpolicy robot record'",
            experiment,
        )
        for env, config in ARM_TASKS.items()
        for experiment in [replace(REAL[config.task], env=env)]
    },
    "dm1-franka-lift-image": (
        "DM1 on recordings of lift with the cameras 'front' and 'wrist', without the object's pose",
        REAL_LIFT_SEES,
    ),
    "dm1-franka-taught-image": (
        "DM1 on a task of one's own, taught by a person, with the cameras 'front' and 'wrist'",
        replace(REAL_LIFT_SEES, env="franka-taught"),
    ),
    "regression-franka-lift-image": (
        "Regression control on the same recordings",
        replace(REAL_LIFT_SEES, agent=Regression(**{**SEEING, "encoder": REAL_EYES, "execute": 2})),
    ),
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
        replace(DOOR_RL, agent=Fisher(critic=MIN, ema=0.999)),
    ),
    "mean-flow-q-door-human": (
        "MeanFlow Q-learning on Adroit door, one evaluation",
        replace(DOOR_RL, agent=MeanFlowQ(critic=MIN, alpha=900.0, normalize_q=False)),
    ),
    "gdro-cube-single": (
        "GDRO: post-train a cube-single run on groups of its actions",
        replace(GDRO_ARM, env="cube-single", agent=GDRO(), batch_size=64, steps=20_000, checkpoint_every=1_000),
    ),
    **OGBENCH,
}
"""Preset name -> (description, experiment)."""
if _taken := PRESETS.keys() & PLUGIN_PRESETS:
    raise ConfigError(
        f"an installed package registers the presets {', '.join(sorted(_taken))}, which are there already"
    )
PRESETS |= PLUGIN_PRESETS
