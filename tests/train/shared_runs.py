"""Runs that two processes share by rows: what they are, and the program that trains all of them in one group.

``python -m torch.distributed.run --standalone --nproc-per-node 2 -m tests.train.shared_runs FOLDER``
"""

import dataclasses
import shutil
import sys
from pathlib import Path

from flowpolicy.agents.cloning.dm1 import DM1
from flowpolicy.agents.cloning.flow import Flow
from flowpolicy.agents.cloning.flow_bc import FlowBC
from flowpolicy.agents.cloning.mip import MIP
from flowpolicy.agents.cloning.regression import Regression
from flowpolicy.agents.offline.fisher import Fisher
from flowpolicy.agents.offline.fql import FQL
from flowpolicy.agents.offline.ifql import IFQL
from flowpolicy.agents.offline.iql import IQL
from flowpolicy.agents.offline.mean_flow_q import MeanFlowQ
from flowpolicy.agents.offline.qc import QC
from flowpolicy.agents.offline.rebrac import ReBRAC
from flowpolicy.core.ranks import shared
from flowpolicy.core.spec import ActionSpec, ObservationSpec, Spec
from flowpolicy.data.dataset import DataConfig
from flowpolicy.flows.axes.flow_spec import FlowSpec
from flowpolicy.flows.axes.registry import make
from flowpolicy.flows.dispersive import Dispersive
from flowpolicy.flows.fisher_metric import Metric
from flowpolicy.nets.backbones import SmallConv
from flowpolicy.nets.critic import CriticConfig
from flowpolicy.nets.encoder import StateEncoder
from flowpolicy.nets.mlp import MLP
from flowpolicy.nets.plain import Plain
from flowpolicy.nets.vision import VisionEncoder
from flowpolicy.train import Trainer
from flowpolicy.train.experiment import Experiment
from tests.conftest import write_demonstrations
from tests.pictures import SPEC, write_blobs

STEPS, HALF = 6, 3
POINT = Spec(
    observation={"state": ObservationSpec((3,)), "goal": ObservationSpec((2,))},
    action=ActionSpec(2),
    env_id="robosuite/Point",
)
BLOBS = dataclasses.replace(SPEC, observation={"state": SPEC.observation["state"]})
SEES = VisionEncoder(backbone=SmallConv(width=4, keypoints=4, feature=4), width=4, crop=0.8)


def agents():
    """Every kind of loss, with what could tell a shared batch from a whole one; name -> (agent, whether it sees)."""
    net = MLP(width=8, depth=1)
    clone = {"net": net, "encoder": StateEncoder(width=4), "chunk": 4, "execute": 2, "history": 2}
    learn = {"net": Plain(width=8, depth=1), "critic": CriticConfig(width=8, depth=1)}
    shortcut = FlowSpec(time=make("time", "uniform"), consistency=make("consistency", "shortcut"))
    return {
        "flow-bc": (FlowBC(**clone, noises=2), False),
        "dm1": (DM1(**clone, noises=2, dispersive=Dispersive(weight=0.5, exclude_steps=2)), False),
        "dm1-covariance": (DM1(**clone, dispersive=Dispersive(kind="covariance", place="trunk")), False),
        "coupled": (Flow(**clone, flow=FlowSpec(coupling=make("coupling", "c2ot"))), False),
        "shortcut": (Flow(**clone, nfe=1, flow=shortcut), False),
        "mip": (MIP(**clone), False),
        "regression": (Regression(**{**clone, "chunk": 6}, prefix=2), False),
        "fql": (FQL(**learn, normalize_q=True, ema=0.9), False),
        "iql": (IQL(**learn), False),
        "ifql": (IFQL(**learn, candidates=2), False),
        "rebrac": (ReBRAC(**learn), False),
        "qc": (QC(**learn, target_candidates=3), False),
        "mean-flow-q": (MeanFlowQ(**{**learn, "net": net}, target_candidates=2), False),
        "fisher": (Fisher(**{**learn, "net": net}, metric=Metric(normalise="global", samples=2)), False),
        "fisher-kl2": (Fisher(**{**learn, "net": net}, metric=Metric(mode="kl2"), base="euler"), False),
        "dm1-sees": (DM1(**{**clone, "encoder": SEES}, noises=2, dispersive=Dispersive(weight=0.5)), True),
        "fql-sees": (FQL(**learn, encoder=SEES), True),
    }


def experiment_on(folder, agent, sees):
    """The run of an agent on the files in a folder."""
    data = {"path": str(folder / ("blobs.hdf5" if sees else "point.hdf5"))}
    if sees:
        data |= {"obs_keys": ("state",), "cameras": ("front", "wrist"), "accept": ("unstated",)}
    return Experiment(
        agent=agent,
        env="blobs" if sees else "point",
        data=DataConfig(**data),
        steps=STEPS,
        batch_size=8,
        checkpoint_every=HALF,
        keep_checkpoints=0,
        log_every=1,
        compile="off",
        tensorboard=False,
    )


def trainer(folder, name, agent, sees, kind, **how):
    """A run of one of them below ``folder``."""
    return Trainer(experiment_on(folder, agent, sees), folder / kind / name, BLOBS if sees else POINT, **how)


def write_data(folder):
    """The files that they are trained on."""
    write_demonstrations(folder / "point.hdf5", lengths=(9, 6, 12, 7))
    write_blobs(folder / "blobs.hdf5")


def main(folder):
    """Train all of them, and one a second time from the middle."""
    with shared("cpu") as ranks:
        for name, (agent, sees) in agents().items():
            trainer(folder, name, agent, sees, "shared").train()
        for name in ("dm1", "fql-sees"):
            with ranks.leader_first():
                if ranks.leads:
                    back_to_the_middle(folder / "shared" / name, folder / "resumed" / name)
            trainer(folder, name, *agents()[name], "resumed", resume=True).train()


def back_to_the_middle(run, copy):
    """A copy of a run that was killed after its first checkpoint."""
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "checkpoints" / f"step_{STEPS:08d}")
    (copy / "checkpoints" / "LATEST").write_text(f"step_{HALF:08d}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
