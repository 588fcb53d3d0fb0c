"""What a server computes with: an engine of the newest checkpoint per number of evaluations."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from flowpolicy.core.checkpoint import resolve
from flowpolicy.core.errors import FlowPolicyError
from flowpolicy.policy import Engine, load_engine
from flowpolicy.policy.engines import FORMATS, EngineName
from flowpolicy.policy.policy import Policy

QUICK: tuple[EngineName, ...] = ("numpy", "eager")
"""Engines that are ready within a second: what 'auto' measures."""


def load_engines(
    path: Path,
    nfes: tuple[int, ...],
    threads: int,
    name: str = "auto",
    batches: Sequence[int] = (1,),
    device: str = "cpu",
) -> tuple[list[Engine], str]:
    """Engines of the newest checkpoint of ``path``, and its name; the contract's evaluations unless ``nfes`` says.

    Raises:
        ConfigError: the engine ``name`` cannot run this policy, or the policy draws more than noise at the start.

    """
    torch.set_num_threads(threads)
    folder = resolve(path)
    policy = Policy.load(folder)
    policy.require_plain_noise()
    loaded = [_load(folder, name, batches, threads, nfe, device) for nfe in nfes or (policy.contract.nfe,)]
    return loaded, folder.name


def _load(folder: Path, name: str, batches: Sequence[int], threads: int, nfe: int, device: str) -> Engine:
    if name in FORMATS and name not in QUICK and device == "cpu":
        # Compilers hold the interpreter for seconds, and a server that reloads has deadlines to keep meanwhile.
        with tempfile.TemporaryDirectory() as scratch:
            model = Path(scratch) / name
            _export_apart(folder, FORMATS[name], model, batches, threads, nfe)
            return load_engine(model, name, threads=threads)
    return load_engine(folder, name, among=QUICK, batches=batches, threads=threads, nfe=nfe, device=device)


def _export_apart(folder: Path, form: str, model: Path, batches: Sequence[int], threads: int, nfe: int) -> None:
    """``flowpolicy export`` in a process of its own, with less of a claim on the processor than the server."""
    flags = ["--to", form, "--out", str(model), "--nfe", str(nfe), "--threads", str(threads)]
    command = [sys.executable, "-m", "flowpolicy", "export", str(folder), *flags, "--batches", *map(str, batches)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        os.setpriority(os.PRIO_PROCESS, process.pid, max(5, os.getpriority(os.PRIO_PROCESS, 0)))
        _, complaint = process.communicate()
    if process.returncode:
        raise FlowPolicyError(f"the engine could not be built: {complaint.strip()}", fix="--engine auto")
