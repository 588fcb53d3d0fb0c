"""``flowpolicy demo``: what ``make demo`` runs, from demonstrations to a table with intervals."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from flowpolicy.commands.arguments import call, typed
from flowpolicy.commands.compare import compare
from flowpolicy.commands.console import console
from flowpolicy.commands.data import make
from flowpolicy.core.errors import ConfigError, SimulatorError, TrainingError
from flowpolicy.core.ranges import Count, Natural

METHODS = {"dm1": "dm1-lift", "flow_bc": "flow-bc-lift", "regression": "regression-lift"}
"""Folder under the demo's -> preset."""


def run(argv: Sequence[str]) -> int:
    """Run the demonstration."""
    return call(demo, argv, "demo")


def demo(out: Path = Path("runs/demo"), demonstrations: Count = 200, episodes: Count = 100, video: Natural = 3) -> None:
    """Generate Lift demonstrations, train DM1, flow BC and regression, evaluate all on one plan, compare.

    Finished stages are kept, so a stopped demo goes on where it was.

    Args:
        out: folder of the data and the runs.
        demonstrations: training episodes.
        episodes: planned initial states of the evaluation, none of them in the data.
        video: rollouts to record per method.

    """
    from flowpolicy.configs.presets import PRESETS
    from flowpolicy.evaluate.evaluation import evaluate
    from flowpolicy.evaluate.methods_figure import draw_methods
    from flowpolicy.evaluate.records import record_path
    from flowpolicy.evaluate.tables import methods_table

    start = time.perf_counter()
    data = out / "lift.hdf5"
    _require_sensible(out, demonstrations, episodes, video)
    _require_this_demo(out, data, demonstrations)
    video = _drawable(video)
    if not data.exists():
        make("lift", data, episodes=demonstrations)
    _train_all(out, data)
    methods, records = {}, {}
    for name in METHODS:
        methods[name] = evaluate(out / name, episodes=episodes, video=video, command=typed())
        records[name] = record_path(out / name, methods[name])
    # What was asked for is what was used: _require_this_demo has looked.
    updates = ", ".join(f"{steps:,}" for steps in sorted({PRESETS[preset][1].steps for preset in METHODS.values()}))
    title = f"Lift, {demonstrations} demonstrations, {updates} updates, {episodes} planned initial states"
    console().print(methods_table(methods, title))
    draw_methods(methods, title, out / "methods.png")
    for other in ("flow_bc", "regression"):
        compare(records["dm1"], records[other])
    for name in METHODS:
        sys.stdout.write(f"{name}: {out / name}/curves.png, {out / name}/videos/, {out / name}/eval/\n")
    sys.stdout.write(f"picture {out / 'methods.png'}\nthe demo took {(time.perf_counter() - start) / 60:.1f} min\n")


def _require_sensible(out: Path, demonstrations: int, episodes: int, video: int) -> None:
    """Refuse what could not work, before minutes of work."""
    from flowpolicy.envs import find_env
    from flowpolicy.evaluate.plan import make_plan

    make_plan(find_env("lift").spec().env_id, episodes, seed=0)
    for folder in (out, *out.parents):
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"{folder} is a file", expected="--out FOLDER, which is made if it does not exist")
    out.mkdir(parents=True, exist_ok=True)


def _require_this_demo(out: Path, data: Path, demonstrations: int) -> None:
    """Refuse a folder whose data or runs are not of this demo: its table would not be about them."""
    from flowpolicy.configs.presets import PRESETS
    from flowpolicy.core import checkpoint
    from flowpolicy.core.files import unchanged_sha256
    from flowpolicy.data.dataset import DataConfig, open_recording
    from flowpolicy.train.run import Run

    fix = "choose another --out folder"
    if data.exists():
        with open_recording(DataConfig(path=str(data))) as recording:
            found = len(recording.lengths)
        if found != demonstrations:
            raise ConfigError(
                f"{data} holds {found} demonstrations, and --demonstrations says {demonstrations}",
                fix=f"{fix}, or add --demonstrations {found}",
            )
    for name, preset in METHODS.items():
        if not checkpoint.newest(out / name):
            continue
        stored, wanted = Run.load(out / name), PRESETS[preset][1]
        for field in dataclasses.fields(wanted):
            has, should = getattr(stored.experiment, field.name), getattr(wanted, field.name)
            if field.name != "data" and has != should:
                raise ConfigError(
                    f"{out / name} was trained otherwise than this demo does: {field.name} is {has}",
                    expected=f"{should}, as in the preset {preset}",
                    fix=fix,
                )
        if not data.exists() or stored.contract.dataset_sha256 != unchanged_sha256(data):
            raise ConfigError(f"{out / name} was trained on other data than {data}", fix=fix)


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
