"""``flowpolicy demo``: what ``make demo`` runs, from demonstrations to a table with intervals."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from flowpolicy.commands.arguments import call
from flowpolicy.commands.compare import compare
from flowpolicy.commands.data import make
from flowpolicy.commands.evaluate import evaluate_run
from flowpolicy.commands.train import train
from flowpolicy.configs.presets import PRESETS
from flowpolicy.core import checkpoint
from flowpolicy.core.files import read_json
from flowpolicy.evaluate.tables import Method, methods_table
from flowpolicy.policy import Policy

METHODS = {"dm1": "dm1-lift", "flow_bc": "flow-bc-lift", "regression": "regression-lift"}
"""Folder under the demo's -> preset."""


def run(argv: Sequence[str]) -> int:
    """Run the demonstration."""
    return call(demo, argv, "demo")


def demo(out: Path = Path("runs/demo"), demonstrations: int = 200, episodes: int = 100, video: int = 3) -> None:
    """Generate Lift demonstrations, train DM1, flow BC and regression, evaluate all on one plan, compare.

    Finished stages are kept, so a stopped demo goes on where it was.

    Args:
        out: folder of the data and the runs.
        demonstrations: training episodes.
        episodes: planned initial states of the evaluation, none of them in the data.
        video: rollouts to record per method.

    """
    start = time.perf_counter()
    data = out / "lift.hdf5"
    if not data.exists():
        make("lift", data, episodes=demonstrations)
    methods = []
    for name, preset in METHODS.items():
        _train(out / name, preset, data)
        evaluation, _ = evaluate_run(out / name, episodes=episodes, video=video)
        folder = checkpoint.resolve(out / name)
        seconds = read_json(folder / "state.json")["train_seconds"]
        methods.append(Method(name, evaluation, seconds, Policy.load(folder).parameters_count))
    Console().print(methods_table(methods, f"Lift, {demonstrations} demonstrations, {episodes} planned initial states"))
    for other in ("flow_bc", "regression"):
        compare(out / "dm1", out / other)
    for name in METHODS:
        sys.stdout.write(f"{name}: {out / name}/curves.png, {out / name}/videos/, {out / name}/eval/\n")
    sys.stdout.write(f"the demo took {(time.perf_counter() - start) / 60:.1f} min\n")


def _train(folder: Path, preset: str, data: Path) -> None:
    experiment = PRESETS[preset][1]
    experiment = dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, path=str(data)))
    started = (folder / checkpoint.FOLDER / checkpoint.LATEST).exists()
    if started and read_json(checkpoint.resolve(folder) / "state.json")["step"] == experiment.steps:
        return
    train(experiment, folder, resume=started)
