"""``flowpolicy demo``: what ``make demo`` runs, from demonstrations to a table with intervals."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from flowpolicy.commands.arguments import call
from flowpolicy.commands.compare import compare
from flowpolicy.commands.console import console
from flowpolicy.commands.data import make
from flowpolicy.core.errors import SimulatorError, TrainingError

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
    from flowpolicy.commands.evaluation import evaluate_run
    from flowpolicy.evaluate.methods_figure import draw_methods
    from flowpolicy.evaluate.tables import methods_table

    start = time.perf_counter()
    video = _drawable(video)
    data = out / "lift.hdf5"
    if not data.exists():
        make("lift", data, episodes=demonstrations)
    _train_all(out, data)
    methods = {}
    for name in METHODS:
        methods[name], _ = evaluate_run(out / name, episodes=episodes, video=video)
    title = f"Lift, {demonstrations} demonstrations, {episodes} planned initial states"
    console().print(methods_table(methods, title))
    draw_methods(methods, title, out / "methods.png")
    for other in ("flow_bc", "regression"):
        compare(out / "dm1", out / other)
    for name in METHODS:
        sys.stdout.write(f"{name}: {out / name}/curves.png, {out / name}/videos/, {out / name}/eval/\n")
    sys.stdout.write(f"picture {out / 'methods.png'}\nthe demo took {(time.perf_counter() - start) / 60:.1f} min\n")


def _drawable(video: int) -> int:
    """The number of videos that can be made: without OpenGL none, which is said before anything is trained."""
    if video:
        from flowpolicy.envs.rendering import require_opengl

        try:
            require_opengl()
        except SimulatorError as error:
            sys.stderr.write(f"warning: the demo goes on without videos\n{error}\n")
            return 0
    return video


def _train_all(out: Path, data: Path) -> None:
    """Train what is not finished, as many runs at a time as there are cores: each uses one thread."""
    waiting = [command for name, preset in METHODS.items() if (command := _training(out / name, preset, data))]
    # Several live progress bars would overwrite each other; this makes the trainings print lines instead.
    environment = {**os.environ, "TTY_COMPATIBLE": "0"}
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        codes = list(
            pool.map(lambda command: subprocess.run(command, check=False, env=environment).returncode, waiting)
        )
    if any(codes):
        raise TrainingError("a training of the demo failed; its message stands above", fix="mend it and run again")


def _training(folder: Path, preset: str, data: Path) -> list[str]:
    """The command that trains or resumes a run; empty if it is finished."""
    from flowpolicy.configs.presets import PRESETS
    from flowpolicy.core import checkpoint
    from flowpolicy.core.files import read_json

    flowpolicy = [sys.executable, "-m", "flowpolicy"]
    if not (folder / checkpoint.FOLDER / checkpoint.LATEST).exists():
        return [*flowpolicy, "train", preset, "--data.path", str(data), "--out", str(folder)]
    finished = read_json(checkpoint.resolve(folder) / "state.json")["step"] == PRESETS[preset][1].steps
    return [] if finished else [*flowpolicy, "resume", str(folder)]
