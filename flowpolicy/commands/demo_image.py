"""``flowpolicy demo-image``: what ``make demo-image`` runs, from demonstrations to films of what a policy saw."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from flowpolicy.commands.arguments import call, typed
from flowpolicy.commands.console import console
from flowpolicy.commands.data import make
from flowpolicy.core.ranges import Count

_PRESET = "dm1-lift-image"


def run(argv: Sequence[str]) -> int:
    """Run the demonstration with pictures."""
    return call(demo_image, argv, "demo-image")


def demo_image(
    out: Path = Path("runs/demo-image"),
    demonstrations: Count = 200,
    episodes: Count = 50,
    films: Count = 3,
) -> None:
    """Draw Lift demonstrations, train DM1 on two cameras without the object's pose, evaluate it, and film what it saw.

    Finished stages are kept, so a stopped demo goes on where it was.

    Args:
        out: folder of the data and the run.
        demonstrations: training episodes.
        episodes: planned initial states of the evaluation, none of them in the data.
        films: episodes to film: the scene, exactly what the policy decided on, and its actions.

    """
    from flowpolicy.envs.rendering import require_opengl
    from flowpolicy.evaluate.evaluation import evaluate, loaded
    from flowpolicy.evaluate.plan import make_plan
    from flowpolicy.evaluate.tables import evaluation_table
    from flowpolicy.evaluate.video import require_imageio
    from flowpolicy.evaluate.video_strip import save_strips
    from flowpolicy.lab.lift_demo import require_sensible, require_this_demo, train_here

    start, data, run = time.perf_counter(), out / "lift.hdf5", out / "dm1"
    require_sensible(out, episodes)
    require_this_demo(out, data, demonstrations, {"dm1": _PRESET})
    require_imageio()
    require_opengl()
    if not data.exists():
        make("lift", data, episodes=demonstrations, cameras=("agentview", "robot0_eye_in_hand"))
    train_here(run, _PRESET, data)
    console().print(evaluation_table(evaluate(run, episodes=episodes, command=typed())))
    with loaded(run) as (policy, env, _):
        plan = make_plan(env.spec.env_id, films, 0)
        paths = save_strips(policy, env, plan, run / "videos", policy.contract.spec.action.rate_hz or 20.0)
    for path in paths:
        sys.stdout.write(f"film {path}\n")
    sys.stdout.write(f"the demo took {(time.perf_counter() - start) / 60:.1f} min\n")
