"""``flowpolicy demo``: what ``make demo`` runs, from demonstrations to a table with intervals."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from flowpolicy.commands.arguments import call, typed
from flowpolicy.commands.compare import compare
from flowpolicy.commands.console import console
from flowpolicy.commands.data import make
from flowpolicy.core.errors import SimulatorError
from flowpolicy.core.ranges import Count, Natural


def run(argv: Sequence[str]) -> int:
    """Run the demonstration."""
    return call(demo, argv, "demo")


def demo(
    out: Path = Path("runs/demo"),
    demonstrations: Count = 200,
    episodes: Count = 100,
    video: Natural = 3,
    device: str = "cpu",
) -> None:
    """Generate Lift demonstrations, train DM1, flow BC and regression, evaluate all on one plan, compare.

    Finished stages are kept, so a stopped demo goes on where it was.

    Args:
        out: folder of the data and the runs.
        demonstrations: training episodes.
        episodes: planned initial states of the evaluation, none of them in the data.
        video: rollouts to record per method.
        device: where policies are trained and act: cpu or a CUDA device.

    """
    from flowpolicy.configs.presets import PRESETS
    from flowpolicy.evaluate.evaluation import evaluate
    from flowpolicy.evaluate.methods_figure import draw_methods
    from flowpolicy.evaluate.records import record_path
    from flowpolicy.evaluate.tables import methods_table
    from flowpolicy.lab.lift_demo import METHODS, require_sensible, require_this_demo, train_all

    start = time.perf_counter()
    data = out / "lift.hdf5"
    require_sensible(out, episodes)
    require_this_demo(out, data, demonstrations, device)
    video = _drawable(video)
    if not data.exists():
        make("lift", data, episodes=demonstrations)
    train_all(out, data, device)
    methods, records = {}, {}
    for name in METHODS:
        methods[name] = evaluate(out / name, episodes=episodes, video=video, command=typed(), device=device)
        records[name] = record_path(out / name, methods[name])
    # What was asked for is what was used: require_this_demo has looked.
    updates = ", ".join(f"{steps:,}" for steps in sorted({PRESETS[preset][1].steps for preset in METHODS.values()}))
    title = f"Lift, {demonstrations} demonstrations, {updates} updates, {episodes} planned initial states"
    console().print(methods_table(methods, title))
    draw_methods(methods, title, out / "methods.png")
    for other in ("flow_bc", "regression"):
        compare(records["dm1"], records[other])
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
