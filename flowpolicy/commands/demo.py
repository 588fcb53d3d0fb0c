"""``flowpolicy demo``: what ``make demo`` and ``make compare`` run, from demonstrations to success with an interval."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from flowpolicy.commands.arguments import call, typed
from flowpolicy.commands.compare import compare as compare_runs
from flowpolicy.commands.console import console
from flowpolicy.commands.data import make
from flowpolicy.commands.report import end_with_report
from flowpolicy.core.errors import SimulatorError
from flowpolicy.core.ranges import Count, Natural


def run(argv: Sequence[str]) -> int:
    """Run the demonstration."""
    return call(demo, argv, "demo")


def demo(
    out: Path | None = None,
    demonstrations: Count = 200,
    episodes: Count = 100,
    video: Natural = 3,
    compare: bool = False,
    device: str = "cpu",
) -> None:
    """Generate Lift demonstrations, train a DM1 policy for half a minute, and play it on planned initial states.

    With --compare, DM1, flow BC and regression are trained at full size instead, and compared on one plan. Finished
    stages are kept, so a stopped demo goes on where it was.

    Args:
        out: folder of the data and the runs; runs/demo unless given, and runs/compare with --compare.
        demonstrations: training episodes.
        episodes: planned initial states of the evaluation, none of them in the data.
        video: rollouts to record per method.
        compare: train and compare three methods at full size: a quarter of an hour instead of some minutes.
        device: where policies are trained and act: cpu or a CUDA device.

    """
    from flowpolicy.lab import lift_demo

    begun = time.perf_counter()
    out = out or Path("runs/compare" if compare else "runs/demo")
    data = out / "lift.hdf5"
    lift_demo.require_sensible(out, episodes)
    methods = lift_demo.METHODS if compare else lift_demo.FAST
    lift_demo.require_this_demo(out, data, demonstrations, methods, device)
    video = _drawable(video)
    with _stage(f"1/3: {demonstrations} demonstrations by a scripted Panda"):
        if not data.exists():
            make("lift", data, episodes=demonstrations)
    if compare:
        _compare(out, data, demonstrations, episodes, video, device)
    else:
        _fast(out, data, episodes, video, device)
    end_with_report([out / name for name in methods], out / "report.html")
    sys.stdout.write(f"the demo took {(time.perf_counter() - begun) / 60:.1f} min\n")


def _fast(out: Path, data: Path, episodes: int, video: int, device: str) -> None:
    from flowpolicy.evaluate.evaluation import evaluate
    from flowpolicy.evaluate.tables import evaluation_table
    from flowpolicy.lab.lift_demo import FAST, simulators, train_here

    [(name, preset)] = FAST.items()
    with simulators() as started:  # beside the training, which uses one core
        with _stage(f"2/3: training {name}, about half a minute"):
            trained = train_here(out / name, preset, data, device)
        with _stage(f"3/3: {episodes} planned episodes that are in no data"):
            # Always the same engine, not the fastest measured: each draws other noise.
            engine = "numpy" if device == "cpu" else ""
            evaluation = evaluate(
                trained,
                episodes=episodes,
                video=video,
                command=typed(),
                device=device,
                engine=engine,
                env=started(),
            )
    console().print(evaluation_table(evaluation))
    sys.stdout.write(f"{name}: {out / name}/curves.png, {out / name}/videos/, {out / name}/eval/\n")


def _compare(out: Path, data: Path, demonstrations: int, episodes: int, video: int, device: str) -> None:
    from flowpolicy.configs.presets import PRESETS
    from flowpolicy.evaluate.evaluation import evaluate
    from flowpolicy.evaluate.methods_figure import draw_methods
    from flowpolicy.evaluate.records import record_path
    from flowpolicy.evaluate.tables import methods_table
    from flowpolicy.lab.lift_demo import METHODS, train_all

    with _stage(f"2/3: training {', '.join(METHODS)}, about five minutes"):
        train_all(out, data, device)
    methods, records = {}, {}
    with _stage(f"3/3: {episodes} planned episodes that are in no data, for each of them"):
        for name in METHODS:
            methods[name] = evaluate(out / name, episodes=episodes, video=video, command=typed(), device=device)
            records[name] = record_path(out / name, methods[name])
    # What was asked for is what was used: require_this_demo has looked.
    updates = ", ".join(f"{steps:,}" for steps in sorted({PRESETS[preset][1].steps for preset in METHODS.values()}))
    title = f"Lift, {demonstrations} demonstrations, {updates} updates, {episodes} planned initial states"
    console().print(methods_table(methods, title))
    draw_methods(methods, title, out / "methods.png")
    for other in ("flow_bc", "regression"):
        compare_runs(records["dm1"], records[other])
    for name in METHODS:
        sys.stdout.write(f"{name}: {out / name}/curves.png, {out / name}/videos/, {out / name}/eval/\n")
    sys.stdout.write(f"picture {out / 'methods.png'}\n")


@contextmanager
def _stage(title: str) -> Iterator[None]:
    """Say what begins, and what it took in wall and processor time."""
    from flowpolicy.lab.lift_demo import processor_seconds

    sys.stderr.write(f"stage {title}\n")
    wall, processor = time.perf_counter(), processor_seconds()
    yield
    wall, processor = time.perf_counter() - wall, processor_seconds() - processor
    sys.stderr.write(f"stage {title[:3]} took {wall:.0f} s, {processor:.0f} s of processor time\n")


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
