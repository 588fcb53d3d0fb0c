"""``flowpolicy sweep PRESET``."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from flowpolicy.commands.arguments import call
from flowpolicy.commands.console import console
from flowpolicy.core.errors import ConfigError
from flowpolicy.core.ranges import Count, NonNegative, Positive, Range, Seed, Threads


def run(argv: Sequence[str]) -> int:
    """Search for options of a preset."""
    return call(sweep, argv, "sweep")


def sweep(
    preset: Annotated[str, tyro.conf.Positional],
    /,
    over: tuple[str, ...],
    out: Path,
    search: Literal["grid", "random", "optuna"] = "grid",
    trials: Threads = 16,
    steps: Count | None = None,
    rungs: Annotated[int, Range(1, 6)] = 3,
    episodes: Count = 50,
    plan_seed: Seed = 7,
    seed: Seed = 0,
    cpus_per_run: Positive = 1.0,
    gpus_per_run: NonNegative = 0.0,
) -> None:
    """Search for the options of a preset with Ray Tune: many runs, each a process of its own, the worse stopped early.

    For any option of `flowpolicy train`, on one machine or on the Ray cluster that it belongs to (RAY_ADDRESS). Where
    all that differs are numbers of an agent, `flowpolicy train PRESET --sweep` trains all of them in one process and
    on one device, and stops none. The same command again goes on with a sweep that was stopped.

    Args:
        preset: preset and flags that all trials have in common, as one word: 'fql-toy --batch-size 64'.
        over: what is searched: NAME=VALUE,VALUE,... as agent.alpha=0.3,1,3, or, but for a grid, a span NAME=LOW..HIGH,
            NAME=LOW..HIGH:log.
        out: every trial goes to OUT/LABEL, a run folder, with a log file beside it, its outcomes to OUT/records and
            the search to OUT/sweep.json. All nodes of a cluster must see it.
        search: grid tries every combination; random and optuna (by what the trials before taught) choose --trials.
        trials: how many, of random and optuna.
        steps: updates of a trial that is not stopped; those of the preset unless given.
        rungs: how often a trial is judged. At each but the last the best third of those that came so far go on (ASHA);
            1 stops none.
        episodes: states of development that a trial is judged on.
        plan_seed: seed of the plan of development; 0 is that of evaluations and refused.
        seed: of the search. The training seed is a flag of the preset: 'fql-toy --seed 3'.
        cpus_per_run: cores that Ray gives to a trial.
        gpus_per_run: GPUs that Ray gives to a trial, with 'PRESET --device cuda'; several share one by a fraction.

    """
    from flowpolicy.commands.train import parse
    from flowpolicy.configs.preset_table import find_preset
    from flowpolicy.envs import find_env
    from flowpolicy.evaluate.sheets import as_rich
    from flowpolicy.lab.development_sweep import DevelopmentSweep, parse_axis, run_sweep, sweep_sheet, words_of

    words = tuple(shlex.split(preset))
    if not words:
        raise ConfigError("no preset given", expected="one of flowpolicy train --list")
    if taken := [word for word in words if word.partition("=")[0] in ("--out", "--sweep", "--seeds", "--steps")]:
        raise ConfigError(f"{taken[0]} among the flags of the trials", fix="give --steps and --out to the sweep")
    description, base = find_preset(words[0])
    axes = tuple(parse_axis(word) for word in over)
    common = parse(base, words[1:], f"train {words[0]}", description)
    if gpus_per_run and common.device == "cpu":
        raise ConfigError(
            f"--gpus-per-run {gpus_per_run:g} for trials on the CPU", fix="name a preset to train with --device cuda"
        )
    env_id = find_env(common.env).spec().env_id
    planned = DevelopmentSweep(
        words, axes, search, trials, steps or common.steps, env_id, episodes, rungs, plan_seed=plan_seed, seed=seed
    )
    if len(planned.combinations) > 512:
        raise ConfigError(f"{len(planned.combinations)} combinations", expected="at most 512", fix="--search random")
    for values in planned.combinations:  # every flag is understood before the first trial begins
        parse(base, words_of(words, values), f"train {words[0]}", description)
    run_sweep(planned, out, cpus=cpus_per_run, gpus=gpus_per_run)
    sheet, winner = sweep_sheet(planned, out)
    console().print(as_rich(sheet))
    sys.stdout.write(f"winner {out / winner}\non states that nothing was chosen on:\n")
    sys.stdout.write(f"  flowpolicy eval {shlex.quote(str(out / winner))} --episodes 100 --seed 0\n")
