"""Proof that resume is exact, on the user's machine: kill a run, resume it, compare every bit."""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from flowpolicy.core import checkpoint
from flowpolicy.core.errors import TrainingError
from flowpolicy.core.files import read_json

STEPS = 120
"""Updates of the rehearsal, unless the run itself is shorter."""


def verify_resume(command: Sequence[str], steps: int) -> None:
    """Train a rehearsal twice, once killed at a random moment and resumed; the results must be equal.

    Args:
        command: the training command, without ``--out``.
        steps: planned updates of the run.

    Raises:
        TrainingError: a file or random stream differs, or the rehearsal could not be run.

    """
    total = min(steps, STEPS)
    every = max(1, total // 6)
    length = ["--steps", str(total), "--checkpoint-every", str(every), "--keep-checkpoints", "0"]
    with tempfile.TemporaryDirectory(prefix="flowpolicy-verify-") as folder:
        whole, broken = Path(folder) / "uninterrupted", Path(folder) / "killed"
        sys.stderr.write(f"verify-resume: {total} updates without interruption\n")
        _run([*command, *length, "--out", str(whole)])
        killed_after = _kill([*command, *length, "--out", str(broken)], broken, total, every)
        sys.stderr.write(f"verify-resume: killed after update {killed_after} was stored; resuming\n")
        _run([sys.executable, "-m", "flowpolicy", "resume", str(broken)])
        compare(checkpoint.resolve(whole), checkpoint.resolve(broken))
    sys.stderr.write("verify-resume: weights, averages, optimiser and random streams are equal bit for bit\n")


def compare(one: Path, other: Path) -> None:
    """Require two checkpoints to hold the same training state."""
    manifests = [read_json(folder / checkpoint.MANIFEST) for folder in (one, other)]
    states = [read_json(folder / "state.json") for folder in (one, other)]
    tensors = sorted(name for name in manifests[0].keys() | manifests[1].keys() if name.endswith(".safetensors"))
    different = [name for name in tensors if manifests[0].get(name) != manifests[1].get(name)]
    different += [f"state.json: {key}" for key in ("step", "generators") if states[0][key] != states[1][key]]
    if different:
        raise TrainingError(
            f"the resumed run differs from the uninterrupted one in {', '.join(different)}",
            expected="equality bit for bit",
            fix="train on the CPU with a fixed --threads; report it if it happens there",
        )


def _kill(command: Sequence[str], run: Path, total: int, every: int) -> int:
    """Start ``command`` and kill it at a random moment after its first checkpoint; the newest stored update."""
    target = every * random.SystemRandom().randint(1, max(1, total // every - 2))
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    latest = run / checkpoint.FOLDER / checkpoint.LATEST
    while process.poll() is None and _stored(latest) < target:
        time.sleep(0.001)
    time.sleep(random.SystemRandom().uniform(0, 0.02))
    process.kill()
    _, errors = process.communicate()
    if _stored(latest) < target:
        raise TrainingError(f"the rehearsal failed: {errors.decode(errors='replace')[-2000:]}")
    return _stored(latest)


def _stored(latest: Path) -> int:
    return int(latest.read_text(encoding="utf-8").split("_")[1]) if latest.exists() else 0


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise TrainingError(f"the rehearsal failed: {done.stderr[-2000:]}")
