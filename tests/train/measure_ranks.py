"""What two processes come to against one, at the sizes of presets, and what they say to each other meanwhile.

``python -m torch.distributed.run --nproc-per-node 2 -m tests.train.measure_ranks docs/records/ranks.json``; several
minutes. Times are processor time, beside whatever else runs.
"""

import csv
import sys
import time
from pathlib import Path

import torch

from flowpolicy.agents.cloning.dm1 import DM1
from flowpolicy.agents.offline.fisher import Fisher
from flowpolicy.agents.offline.iql import IQL
from flowpolicy.agents.offline.rebrac import ReBRAC
from flowpolicy.configs.presets import PRESETS
from flowpolicy.core import checkpoint, ranks
from flowpolicy.core.files import read_tensors, write_json
from flowpolicy.flows.dispersive import Dispersive
from flowpolicy.nets.mlp import MLP
from flowpolicy.train import Trainer
from tests.train import shared_runs

TOY = {"log_every": 10, "checkpoint_every": 1_000, "tensorboard": False, "compile": "off"}


def experiments():
    """Name -> experiment on data that the toy makes itself."""
    debug, fql = PRESETS["debug"][1], PRESETS["fql-toy"][1]
    small = {"net": fql.agent.net, "critic": fql.agent.critic}
    dm1 = DM1(net=debug.agent.net, dispersive=Dispersive(weight=0.5))
    found = {
        "debug": debug.with_(**TOY, steps=300),
        "fql-toy": fql.with_(**TOY, steps=300),
        "dm1 with dispersive weight 0.5": debug.with_(**TOY, steps=300, agent=dm1),
        "iql": fql.with_(**TOY, steps=100, agent=IQL(**small)),
        "rebrac": fql.with_(**TOY, steps=100, agent=ReBRAC(**small)),
        "fisher": fql.with_(**TOY, steps=100, agent=Fisher(net=MLP(width=64, depth=2), critic=fql.agent.critic)),
    }
    for name in ("dm1-lift", "fql-cube-single"):  # at their sizes, on the toy's data
        preset = PRESETS[name][1]
        found[f"{name}, its networks and batch"] = debug.with_(**TOY, steps=10, agent=preset.agent).with_(
            batch_size=preset.batch_size
        )
    return found


def measure(path):
    """Train everything alone and shared, and write what came of it."""
    torch.set_num_threads(1)
    found = {}
    with ranks.shared("cpu") as group:
        folder = path.with_suffix(".runs")  # removed by whoever reads them
        folder.mkdir(exist_ok=True)
        with group.leader_first():
            if group.leads:
                shared_runs.write_data(folder)
        agent, _ = shared_runs.agents()["dm1-sees"]
        repelling = shared_runs.experiment_on(folder, agent, sees=True).with_(**TOY, steps=300)
        seeing = {
            "dm1 from two small pictures": repelling.with_(agent={"dispersive": Dispersive(weight=0.0)}),
            "dm1 from two small pictures, repelled": repelling,
        }
        for name, experiment in {**experiments(), **seeing}.items():
            env = shared_runs.BLOBS if experiment.env == "blobs" else None
            alone = folder / f"alone-{len(found)}"
            with group.leader_first():
                if group.leads:
                    with ranks.apart():
                        before = time.process_time()
                        Trainer(experiment, alone, env).train()
                        seconds = time.process_time() - before
                        if name in seeing:
                            other = Trainer(experiment, folder / f"rounded-{len(found)}", env)
                            round_off(other)
                            other.train()
            shared = folder / f"shared-{len(found)}"
            group.messages = group.bytes = 0
            before = time.process_time()
            Trainer(experiment, shared, env).train()
            found[name] = {
                "updates": experiment.steps,
                "batch_size": experiment.batch_size,
                "messages_per_update": round(group.messages / experiment.steps, 2),
                "bytes_per_update": round(group.bytes / experiment.steps),
            }
            if group.leads:
                found[name] |= differences(alone, shared) | {
                    "cpu_ms_per_update_alone": 1e3 * seconds / experiment.steps,
                    "cpu_ms_per_update_and_rank": 1e3 * (time.process_time() - before) / experiment.steps,
                }
                if name in seeing:
                    control = differences(alone, folder / f"rounded-{len(found) - 1}")
                    found[name] |= {f"{key}_of_one_process_rounded": value for key, value in control.items()}
                sys.stderr.write(f"{name}: {found[name]}\n")
        if group.leads:
            write_json(path, {"ranks": group.count, "torch": torch.__version__, "backend": "gloo", "runs": found})


def round_off(trainer):
    """Change the first weights by what rounding changes: the control for runs that enlarge any difference."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in trainer.agent.actor.parameters():
            weight.mul_(1 + 6e-8 * torch.randn(weight.shape, generator=generator).sign())


def differences(alone, shared):
    """Largest relative difference of a tensor of weights, and of a loss in the log."""
    worst, folders = 0.0, [checkpoint.resolve(run) for run in (alone, shared)]
    for file in ("weights", "ema", "training"):
        if (folders[0] / f"{file}.safetensors").exists():
            one, two = (read_tensors(folder / f"{file}.safetensors") for folder in folders)
            for key, value in one.items():
                if value.is_floating_point():
                    apart = (value.double() - two[key].double()).norm() / value.double().norm().clamp(min=1e-12)
                    worst = max(worst, float(apart))
    curves = [list(csv.DictReader((run / "metrics.csv").open())) for run in (alone, shared)]
    losses = [abs(float(a["loss"]) - float(b["loss"])) / abs(float(a["loss"])) for a, b in zip(*curves, strict=True)]
    return {"weights_relative": worst, "loss_relative": max(losses)}


if __name__ == "__main__":
    measure(Path(sys.argv[1]))
