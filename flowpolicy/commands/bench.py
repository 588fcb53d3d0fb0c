"""``flowpolicy bench update|latency|data|rollout|seams``."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from flowpolicy.commands.arguments import call, pick
from flowpolicy.commands.console import console
from flowpolicy.core.errors import ConfigError


def run(argv: Sequence[str]) -> int:
    """Measure one kind of speed."""
    table: dict[str, tuple[str, Callable[..., None]]] = {
        "update": ("gradient step of MeanFlow over flow matching and over the bare matrix products", update),
        "latency": ("one-step latency over the bare matrix-vector products of the same weights", latency),
        "data": ("share of an update spent on sampling its batch", data),
        "rollout": ("environment steps per second over those of the bare simulator", rollout),
        "seams": ("what reaches a robot arm where chunks disagree, per chunk mode", seams),
    }
    name, rest = pick(argv, table, "bench", "measurement")
    return call(table[name][1], rest, f"bench {name}")


def update(
    preset: Annotated[str, tyro.conf.Positional] = "",
    /,
    peer: Literal["", "fql"] = "",
    peer_path: Path | None = None,
    peer_python: str = "",
    threads: int = 2,
    rounds: int = 30,
    batch_size: int = 256,
    json: Path | None = None,
) -> None:
    """Compiled gradient steps: MeanFlow and flow matching with one MLP of 4 x 512, or a preset against a peer.

    Args:
        preset: FQL preset to compare with --peer.
        peer: public implementation to compare with, run from --peer-path.
        peer_path: checkout of the peer (github.com/seohongpark/fql).
        peer_python: Python that has the peer's packages; this one unless given.
        threads: torch threads, and cores of the peer.
        rounds: alternated rounds.
        batch_size: rows per batch; 256 against a peer.
        json: where to write the figures.

    """
    from flowpolicy.bench.update import bench_update, update_table

    if peer or preset:
        _against_peer(preset, peer, peer_path, peer_python, threads, rounds, json)
        return
    _show(bench_update(threads=threads, rounds=rounds, batch_size=batch_size), update_table, json)


def _against_peer(
    preset: str, peer: str, path: Path | None, python: str, threads: int, rounds: int, json: Path | None
) -> None:
    from flowpolicy.bench.peer import bench_peer, peer_table
    from flowpolicy.configs.presets import PRESETS
    from flowpolicy.envs import find_env

    if not peer or path is None:
        raise ConfigError(
            f"bench update {preset} compares with a peer, and none is given",
            expected="PRESET --peer fql --peer-path DIR",
            fix="git clone https://github.com/seohongpark/fql DIR",
        )
    name, _ = pick([preset], PRESETS, "bench update", "preset")
    experiment = PRESETS[name][1]
    spec = find_env(experiment.env).spec()
    result = bench_peer(experiment.agent, spec, path, python, threads=threads, rounds=rounds)
    _show({**result, "preset": name}, peer_table, json)


def latency(
    run: Annotated[Path | None, tyro.conf.Positional] = None,
    /,
    threads: int = 1,
    calls: int = 2000,
    json: Path | None = None,
) -> None:
    """One-step latency at batch 1: p50, p99, p99.9, and its ratio to the bare products of the same weights.

    Args:
        run: run of a policy that acts in one evaluation; an untrained DM1 with Lift's sizes unless given.
        threads: torch threads.
        calls: timed calls.
        json: where to write the figures.

    """
    from flowpolicy.agents.dm1 import DM1
    from flowpolicy.bench.latency import bench_latency, latency_table
    from flowpolicy.bench.update import make_agent
    from flowpolicy.policy import Policy

    policy = Policy.load(run) if run else make_agent(DM1(), obs=19, action=7).policy()
    _show(bench_latency(policy, calls=calls, threads=threads), latency_table, json)


def data(preset: str = "dm1-lift", chunk: int = 16, threads: int = 2, json: Path | None = None) -> None:
    """Share of an update spent on sampling its batch from a million rows.

    Args:
        preset: whose agent is updated.
        chunk: actions per window.
        threads: torch threads.
        json: where to write the figures.

    """
    import dataclasses

    import torch

    from flowpolicy.bench.data import bench_data, data_table
    from flowpolicy.bench.update import make_agent
    from flowpolicy.configs.presets import PRESETS
    from flowpolicy.core.seed import torch_generator

    name, _ = pick([preset], PRESETS, "bench data --preset", "preset")
    torch.set_num_threads(threads)
    config = dataclasses.replace(PRESETS[name][1].agent, chunk=chunk)
    agent, noise = make_agent(config, obs=39, action=28), torch_generator(0, "bench", "noise")
    result = bench_data(lambda batch: agent.update(batch, noise), history=config.history, chunk=chunk)
    _show({**result, "threads": threads, "preset": preset}, data_table, json)


def rollout(
    task: Literal["Lift", "PickPlaceCan"] = "Lift", slots: int = 4, rounds: int = 10, json: Path | None = None
) -> None:
    """Environment steps per second through the vector environment over those of the bare simulator.

    Args:
        task: robosuite task.
        slots: slots of the vector environment, dealt to one worker process per core.
        rounds: alternated rounds of 20 steps.
        json: where to write the figures.

    """
    from flowpolicy.bench.rollout import bench_rollout, rollout_table

    _show(bench_rollout(task=task, num_envs=slots, rounds=rounds), rollout_table, json)


def seams(disagreement: float = 0.010, latency: float = 0.100, seconds: float = 20.0, json: Path | None = None) -> None:
    """Jump at the seams of chunks, per chunk mode; simulated time, the same figures on every machine.

    Args:
        disagreement: standard deviation of what a chunk is off by, rad.
        latency: from observation to chunk, s.
        seconds: simulated time.
        json: where to write the figures.

    """
    from flowpolicy.bench.seams import bench_seams, seams_table

    _show(bench_seams(disagreement=disagreement, latency=latency, seconds=seconds), seams_table, json)


def _show(result: dict[str, Any], table: Any, json: Path | None) -> None:
    console().print(table(result))
    if json is not None:
        from flowpolicy.core.files import write_json
        from flowpolicy.core.spec import library_versions
        from flowpolicy.evaluate.report import git_commit

        record = {"command": shlex.join(["flowpolicy", *sys.argv[1:]]), "commit": git_commit()}
        write_json(json, {**result, **record, "versions": library_versions()})
