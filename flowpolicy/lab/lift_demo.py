"""The demonstration: one policy for Lift in minutes, or three, trained on the same data and played on one plan."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from flowpolicy.configs.presets import PRESETS
from flowpolicy.core import checkpoint
from flowpolicy.core.errors import ConfigError, TrainingError
from flowpolicy.core.files import unchanged_sha256
from flowpolicy.core.protocols import VecEnv
from flowpolicy.data.dataset import DataConfig, open_recording
from flowpolicy.envs import find_env
from flowpolicy.evaluate.plan import make_plan
from flowpolicy.train.compiling import decided
from flowpolicy.train.run import Run
from flowpolicy.train.training import train

FAST = {"dm1": "dm1-lift-fast"}
"""Folder under the demo's -> preset."""
METHODS = {"dm1": "dm1-lift", "flow_bc": "flow-bc-lift", "regression": "regression-lift"}
"""The same for the comparison."""


def require_sensible(out: Path, episodes: int) -> None:
    """Refuse what could not work, before minutes of work."""
    make_plan(find_env("lift").spec().env_id, episodes, seed=0)
    for folder in (out, *out.parents):
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"{folder} is a file", expected="--out FOLDER, which is made if it does not exist")
    out.mkdir(parents=True, exist_ok=True)


def require_this_demo(
    out: Path, data: Path, demonstrations: int, methods: Mapping[str, str], device: str = "cpu"
) -> None:
    """Refuse a folder whose data or runs are not of this demo: its table would not be about them."""
    fix = "choose another --out folder"
    if data.exists():
        with open_recording(DataConfig(path=str(data))) as recording:
            found = len(recording.lengths)
        if found != demonstrations:
            raise ConfigError(
                f"{data} holds {found} demonstrations, and --demonstrations says {demonstrations}",
                fix=f"{fix}, or add --demonstrations {found}",
            )
    for name, preset in methods.items():
        if not checkpoint.newest(out / name):
            continue
        stored, wanted = Run.load(out / name), decided(dataclasses.replace(PRESETS[preset][1], device=device))
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


@contextmanager
def simulators() -> Iterator[Callable[[], VecEnv]]:
    """Begin to start the environment, which takes seconds, and yield a function that waits for it."""
    with ThreadPoolExecutor(1) as pool:
        starting = pool.submit(find_env("lift").make, len(os.sched_getaffinity(0)))
        try:
            yield starting.result
        finally:
            starting.result().close()


def train_here(folder: Path, preset: str, data: Path, device: str = "cpu") -> Run:
    """Train in this process, or finish what was begun."""
    if not checkpoint.newest(folder):
        return train(PRESETS[preset][1].with_(data=data, device=device), folder)
    run = Run.load(folder)
    return run if run.step == PRESETS[preset][1].steps else run.resume()


def processor_seconds() -> float:
    """Processor time of this process and of those that it started, s."""
    ended = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    seconds = sum(each.ru_utime + each.ru_stime for each in ended)
    for child in multiprocessing.active_children():
        with suppress(OSError):  # it has just ended, or this is no Linux
            fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
            seconds += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return seconds


def train_all(out: Path, data: Path, device: str = "cpu") -> None:
    """Train what is not finished, as many runs at a time as there are cores: each uses one thread."""
    waiting = [command for name, preset in METHODS.items() if (command := _training(out / name, preset, data, device))]
    # Several live progress bars would overwrite each other; this makes the trainings print lines instead.
    environment = {**os.environ, "TTY_COMPATIBLE": "0"}
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        codes = list(
            pool.map(lambda command: subprocess.run(command, check=False, env=environment).returncode, waiting)
        )
    if any(codes):
        raise TrainingError("a training of the demo failed; its message stands above", fix="mend it and run again")


def _training(folder: Path, preset: str, data: Path, device: str) -> list[str]:
    """The command that trains or resumes a run; empty if it is finished."""
    flowpolicy = [sys.executable, "-m", "flowpolicy"]
    if not checkpoint.newest(folder):
        return [*flowpolicy, "train", preset, "--data.path", str(data), "--device", device, "--out", str(folder)]
    finished = Run.load(folder).step == PRESETS[preset][1].steps
    return [] if finished else [*flowpolicy, "resume", str(folder)]
