"""Updates per second of our FQL over those of the public JAX implementation, alternated, on the same shapes.

In processor time: a machine that computes something else besides does not change it. With several threads their waiting
for each other counts too.

The peer (github.com/seohongpark/fql) runs from a folder that the user names, in a Python that has its packages: a
process of its own that updates when told to and waits otherwise. Nothing of it is part of flowpolicy.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table

from flowpolicy.agents.offline.fql import FQL
from flowpolicy.agents.offline.peer_options import fql_options
from flowpolicy.bench.timing import spread
from flowpolicy.bench.update import make_agent, random_batch
from flowpolicy.core.errors import ConfigError, TrainingError
from flowpolicy.core.files import require_program
from flowpolicy.core.seed import torch_generator
from flowpolicy.core.spec import Spec
from flowpolicy.nets.plain import Plain

PROGRAM = """
import json, os, sys, time

settings = json.loads(sys.argv[1])
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: settings["threads"]])
sys.path.insert(0, os.getcwd())
import jax
import numpy as np
from agents.fql import FQLAgent, get_config

config = get_config()
for name, value in settings["config"].items():
    config[name] = tuple(value) if isinstance(value, list) else value
rows, obs, action = settings["batch_size"], settings["obs"], settings["action"]
random = np.random.default_rng(0)
draw = lambda *shape: random.standard_normal(shape).astype(np.float32)
batch = {
    "observations": draw(rows, obs),
    "next_observations": draw(rows, obs),
    "actions": np.tanh(draw(rows, action)),
    "rewards": -np.ones(rows, np.float32),
    "masks": np.ones(rows, np.float32),
}
agent = FQLAgent.create(0, batch["observations"], batch["actions"], config)
for line in sys.stdin:
    start = time.process_time()
    for _ in range(int(line)):
        agent, info = agent.update(batch)
    jax.block_until_ready((agent, info))
    print("seconds", time.process_time() - start, flush=True)
"""


def bench_peer(
    config: Any, spec: Spec, peer: Path, python: str = "", threads: int = 1, rounds: int = 10, calls: int = 20
) -> dict[str, Any]:
    """Alternate rounds of ``calls`` updates of both, in processor time; batch 256.

    Args:
        config: our FQL, on the network of the FQL family.
        spec: sizes of observations and actions.
        peer: folder with the peer's ``agents/fql.py``.
        python: Python that has the peer's packages; this one unless given.
        threads: torch threads, and cores that the peer may use.
        rounds: number of alternated rounds.
        calls: updates per round and side.

    Returns:
        ``ratio`` (our updates per second over the peer's inside each round: median, low, high),
        ``updates_per_second`` of both, and the settings.

    """
    settings = peer_settings(config, spec, threads)
    if not (peer / "agents" / "fql.py").is_file():
        raise ConfigError(f"{peer} holds no agents/fql.py", expected="a checkout of github.com/seohongpark/fql")
    if python:
        require_program(python, "--peer-python")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    seconds = np.zeros((rounds, 2))
    agent = make_agent(config, obs=settings["obs"], action=settings["action"])
    batch = random_batch(config, settings["obs"], settings["action"], settings["batch_size"])
    noise = torch_generator(0, "bench", "draws")
    try:
        with _started(peer, python or sys.executable, settings) as turn:
            for row in range(-1, rounds):  # the round before the first compiles and warms up
                start = time.process_time()
                for _ in range(calls):
                    agent.update(batch, noise)
                seconds[row] = time.process_time() - start, turn(calls)
    finally:
        torch.set_num_threads(before)
    rates = calls / seconds
    return {
        "ratio": spread(rates[:, 0] / rates[:, 1]),
        "updates_per_second": {"flowpolicy": spread(rates[:, 0]), "peer": spread(rates[:, 1])},
        "net": f"{config.net.depth} x {config.net.width}",
        "peer": str(peer),
        **{name: settings[name] for name in ("threads", "batch_size", "obs", "action")},
    }


def resized(config: Any, width: int, depth: int) -> Any:
    """The agent with networks of ``depth`` x ``width``; one that the peer cannot run is left to be refused later."""
    if not isinstance(config, FQL) or not isinstance(config.net, Plain):
        return config
    critic = dataclasses.replace(config.critic, width=width, depth=depth)
    return dataclasses.replace(config, net=Plain(width=width, depth=depth), critic=critic)


def peer_settings(config: Any, spec: Spec, threads: int) -> dict[str, Any]:
    """What makes the peer do the same work. ConfigError where it cannot."""
    return {
        "threads": threads,
        "batch_size": 256,
        "obs": sum(int(torch.Size(value.shape).numel()) for value in spec.observation.values()),
        "action": spec.action.size,
        "config": fql_options(config),
    }


def peer_table(result: dict[str, Any]) -> Table:
    """The result of :func:`bench_peer` for the console."""
    table = Table(title=f"FQL {result['net']}, batch {result['batch_size']}, {result['threads']} threads")
    for column in ("", "median", "quartiles"):
        table.add_column(column, justify="left" if not column else "right")
    rows = {f"{name}, updates/s": value for name, value in result["updates_per_second"].items()}
    for name, value in {**rows, "ratio": result["ratio"]}.items():
        table.add_row(name, f"{value['median']:.2f}", f"{value['low']:.2f} - {value['high']:.2f}")
    return table


@contextmanager
def _started(peer: Path, python: str, settings: dict[str, Any]) -> Iterator[Any]:
    """The peer's process; what is yielded lets it make so many updates and returns the seconds they took."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    for name in ("PYTHONPATH", "PYTHONSAFEPATH"):
        environment.pop(name, None)
    process = subprocess.Popen(
        [python, "-c", PROGRAM, json.dumps(settings)],
        cwd=peer,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    told, answers = process.stdin, process.stdout

    def turn(calls: int) -> float:
        try:
            told.write(f"{calls}\n")
            told.flush()
        except BrokenPipeError:
            pass  # it has ended: reported below
        for line in answers:
            if line.startswith("seconds "):
                return float(line.split()[1])
        raise TrainingError(
            f"the peer in {peer} stopped with exit code {process.wait()}; its own message is above",
            fix="--peer-python PYTHON that has jax, flax, optax, distrax and ml_collections",
        )

    try:
        yield turn
    finally:
        process.kill()
        process.wait()
        told.close()
        answers.close()
