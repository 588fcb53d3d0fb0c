"""Environment steps per second through the vector environment, over those of the bare simulator."""

from __future__ import annotations

from typing import Any

import numpy as np
from rich.table import Table

from flowpolicy.bench.timing import alternate, spread
from flowpolicy.core.seed import numpy_generator
from flowpolicy.envs.robosuite import RobosuiteConfig, RobosuiteEnv


def bench_rollout(*, task: str = "Lift", num_envs: int = 4, steps: int = 20, rounds: int = 5) -> dict[str, Any]:
    """Step robosuite through worker processes and, in alternation, one bare simulator in this process.

    Args:
        task: robosuite task.
        num_envs: slots of the vector environment.
        steps: steps per round.
        rounds: alternated rounds.

    Returns:
        Steps per second of both (median and quartiles), and ``ratio`` = vector / bare per round: the number
        of cores, less what messages cost.

    """
    config = RobosuiteConfig(task, horizon=0)
    generator = numpy_generator(0, "bench", "rollout")
    action = generator.uniform(-0.3, 0.3, size=(num_envs, config.spec().action.size))
    slots = range(num_envs)
    bare = RobosuiteEnv.create(config)
    with config.make(num_envs) as vector:
        vector.reset(list(slots), slots)
        bare.reset(0)
        work = {"vector": lambda: vector.step(action, slots), "bare": lambda: bare.sim_env.step(action[0])}
        seconds = alternate(work, rounds, steps)
    bare.close()
    rates = {"vector": num_envs / seconds["vector"], "bare": 1 / seconds["bare"]}
    return {
        "task": task,
        "num_envs": num_envs,
        "steps_per_second": {name: spread(np.asarray(rate)) for name, rate in rates.items()},
        "ratio": spread(rates["vector"] / rates["bare"]),
    }


def rollout_table(result: dict[str, Any]) -> Table:
    """The result of :func:`bench_rollout` for the console."""
    table = Table("", "median", "quartiles", title=f"{result['task']}, {result['num_envs']} slots")
    for name, value in result["steps_per_second"].items():
        table.add_row(f"{name}, steps/s", f"{value['median']:.1f}", f"{value['low']:.1f} - {value['high']:.1f}")
    ratio = result["ratio"]
    table.add_row("vector / bare", f"{ratio['median']:.2f}", f"{ratio['low']:.2f} - {ratio['high']:.2f}")
    return table
