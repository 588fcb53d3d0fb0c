"""How late the ticks of the bridge are: with two cameras, a policy that sees and a recorder, and with cameras off."""

from __future__ import annotations

import dataclasses
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table

from flowpolicy.agents.cloning.dm1 import DM1
from flowpolicy.core.seed import numpy_generator
from flowpolicy.core.spec import Contract, ImageSpec
from flowpolicy.data.hdf5_frames import SUFFIX
from flowpolicy.data.normalize import Normalizer
from flowpolicy.envs.arm_tasks import ArmTaskConfig
from flowpolicy.nets.vision import VisionEncoder
from flowpolicy.policy.actor import PolicyConfig
from flowpolicy.policy.policy import Policy
from flowpolicy.policy.samplers import Direct
from flowpolicy.real_robot.bridge.states import State
from flowpolicy.real_robot.cameras.cameras import recorded_levels
from flowpolicy.real_robot.session.launch import RunningSession, Setup, start_session
from flowpolicy.real_robot.session.operate import prepare_episode
from flowpolicy.real_robot.session.play import recording_meta, start_cameras, wait_for_policy, wait_for_recorder
from flowpolicy.real_robot.tasks.tasks import Reach

_CAMERAS = ("front", "wrist")
_RATE = 20.0
_STEP = 0.002
"""What the policy asks of the first joint in every row, rad: an arm that moves slowly."""
_PATIENCE = 600.0
"""Seconds that a policy may take to start beside whatever else is measured."""
_SPARE = 240.0
"""Seconds of pictures beyond those measured, while a policy starts: a replay that has ended is a camera that lags."""
_WRITTEN = 2.0
"""Seconds after the end of an episode, in which its file is written."""


def bench_bridge(*, seconds: float = 10.0, rounds: int = 2, size: int = 84, engine: str = "auto") -> dict[str, Any]:
    """Sessions of processes in real time on the arm in NumPy, in turn without and with cameras.

    Args:
        seconds: of a running arm in each session.
        rounds: sessions of each kind.
        size: pixels a side of the pictures of both cameras, 20 a second.
        engine: what computes the policy's decisions.

    Returns:
        Of each kind, over all its rounds: ``ticks``; ``late_p50``, ``late_p99`` and ``late_max``, how many ms ticks of
        a running arm began late; ``compute_p99``, ms of a tick's own work; ``written_p99``, how late ticks began in the
        2 s in which the episode's file was written; ``decisions`` and ``missed``, of the policy; of each camera its
        pictures, those that nobody saw, and their latency, ms. ``load_average`` tells of the machine.

    """
    found: dict[str, list[dict[str, Any]]] = {"cameras off": [], "two cameras": []}
    with tempfile.TemporaryDirectory() as home:
        pictures = record_noise(Path(home) / "pictures.hdf5", seconds + _SPARE, size)
        for number in range(rounds):
            for kind, cameras in (("cameras off", ()), ("two cameras", _CAMERAS)):
                setup = Setup(
                    session=f"bench-{os.getpid()}",
                    cameras=tuple(f"{name}=replay:{pictures}#{name}" for name in cameras),
                )
                folder = Path(home) / f"{len(cameras)}-{number}"
                found[kind].append(_session(setup, folder, seconds, engine))
    told = {kind: _over(rounds_of) for kind, rounds_of in found.items()}
    return {"kinds": told, "seconds": seconds, "rounds": rounds, "size": size, "load_average": os.getloadavg()[0]}


def bridge_table(result: dict[str, Any]) -> Table:
    """The result of :func:`bench_bridge` for the console."""
    names = ("late_p50", "late_p99", "late_max", "compute_p99", "written_p99")
    table = Table("ms", *names, "decisions", "missed", title="ticks of the bridge, 250 a second")
    for kind, row in result["kinds"].items():
        table.add_row(kind, *(f"{row[name]:.3f}" for name in names), str(row["decisions"]), str(row["missed"]))
    return table


def _session(setup: Setup, folder: Path, seconds: float, engine: str) -> dict[str, Any]:
    config = ArmTaskConfig("reach", tool=setup.tool_length)
    with start_session(setup) as running:
        seen = start_cameras(running)
        meta = recording_meta(config, config.env_args(), seen, setup)
        running.start("recorder_process", {"folder": str(folder / "out"), "meta": meta})
        wait_for_recorder(running)
        running.start("policy_process", {"run": policy_of(folder / "run", config, seen), "seed": 0, "engine": engine})
        wait_for_policy(running, _PATIENCE)
        about = prepare_episode(running, Reach(setup.limits), numpy_generator(0, "bench", "bridge"))
        running.session.command("begin", 1, about)
        running.wait(State.RUNNING, seconds=_PATIENCE)
        before = running.session.chunks.count
        ticks = _ticks(running, seconds)
        decided = running.session.chunks.count - before
        running.session.command("end", 0)
        running.session.command("stop")
        written = _ticks(running, _WRITTEN)
    files = sorted((folder / "out").glob("episode_*.hdf5"))
    return {"ticks": ticks, "written": written, "chunks": decided, "cameras": recorded_levels(files)}


def _ticks(running: RunningSession, seconds: float) -> NDArray[Any]:
    """All ticks of the next ``seconds`` s."""
    cursor, end, kept = running.session.ticks.count, time.monotonic() + seconds, []
    while time.monotonic() < end:
        time.sleep(0.5)
        running.require_alive()
        records, cursor, _ = running.session.ticks.read(cursor)
        kept.append(records)
    return np.concatenate(kept)


def _over(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    ticks = np.concatenate([one["ticks"] for one in rounds])
    late = 1e3 * ticks["lateness"]
    cameras: dict[str, dict[str, float]] = {}
    for one in rounds:
        for name, level in one["cameras"].items():
            kept = cameras.setdefault(name, {"pictures": 0, "dropped": 0, "latency_p99": 0.0})
            kept["pictures"] += level.frames
            kept["dropped"] += level.dropped
            kept["latency_p99"] = max(kept["latency_p99"], level.latency_p99)
    return {
        "ticks": len(ticks),
        "late_p50": float(np.percentile(late, 50)),
        "late_p99": float(np.percentile(late, 99)),
        "late_p99_rounds": [float(np.percentile(1e3 * one["ticks"]["lateness"], 99)) for one in rounds],
        "late_max": float(late.max()),
        "compute_p99": float(np.percentile(1e3 * ticks["compute"], 99)),
        "written_p99": float(np.percentile(np.concatenate([1e3 * one["written"]["lateness"] for one in rounds]), 99)),
        "decisions": sum(one["chunks"] for one in rounds),
        "missed": int(sum(one["ticks"]["missed"][-1] - one["ticks"]["missed"][0] for one in rounds)),
        "cameras": cameras,
    }


def record_noise(path: Path, seconds: float, size: int) -> Path:
    """Write a recording of noise by two cameras, to be replayed; returns its path."""
    rng, count = numpy_generator(0, "bench", "pictures"), round(_RATE * seconds)
    with h5py.File(path, "w") as file:
        for name in _CAMERAS:
            pictures = rng.integers(40, 200, (count, size, size, 3), dtype=np.uint8)
            file.create_dataset(f"data/demo_0/obs/{name}{SUFFIX}", data=pictures)
        file.create_dataset("data/demo_0/robot/t_mono", data=np.arange(count) / _RATE)
    return path


def policy_of(folder: Path, config: ArmTaskConfig, seen: dict[str, ImageSpec]) -> str:
    """A policy of the sizes of a trained one, which turns the first joint slowly whatever it sees."""
    spec = config.spec()
    images = {f"{name}{SUFFIX}": image for name, image in seen.items()}
    keys = ("robot0_joint_pos", "robot0_eef_pos", "robot0_gripper_qpos")
    spec = dataclasses.replace(spec, observation={**{key: spec.observation[key] for key in keys}, **images})
    scaling = Normalizer({key: spec.observation[key].shape[0] for key in keys}, spec.action.size)
    step = torch.zeros(spec.action.size)
    step[0], step[-1] = _STEP, 0.08
    scaling.action_scaling.offset[:] = step
    agent = DM1()  # whose new network says 0: the middle of an action's range
    encoder = VisionEncoder() if images else agent.encoder
    contract = Contract(spec, history=1, chunk=8, execute=2, nfe=1)
    Policy(PolicyConfig(agent.net, encoder, Direct()), contract, scaling).save(folder)
    return str(folder)
