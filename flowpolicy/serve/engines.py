"""What a server computes with: an engine of the newest checkpoint per number of evaluations."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from flowpolicy.core.checkpoint import resolve
from flowpolicy.core.errors import FlowPolicyError
from flowpolicy.core.spec import Contract
from flowpolicy.policy import Engine, load_engine
from flowpolicy.policy.engines import FORMATS, EngineName
from flowpolicy.policy.policy import Policy

QUICK: tuple[EngineName, ...] = ("numpy", "eager")
"""Engines that are ready within a second: what 'auto' measures."""


class ServedEngine:
    """One of :mod:`flowpolicy.policy.engines`, and the scaling that a client's similarity filter wants.

    Args:
        engine: loaded.
        scaling: name -> offset, scale and limit (3, d).

    """

    def __init__(self, engine: Engine, scaling: dict[str, np.ndarray]) -> None:
        self._engine, self.scaling = engine, scaling

    @property
    def name(self) -> str:
        """Kind of engine."""
        return self._engine.name

    @property
    def contract(self) -> Contract:
        """The policy's."""
        return self._engine.contract

    @property
    def nfe(self) -> int:
        """Network evaluations per chunk."""
        return self._engine.nfe

    @property
    def candidates(self) -> int:
        """Noise chunks per row."""
        return self._engine.candidates

    @property
    def prefix(self) -> int:
        """Most committed actions."""
        return self._engine.prefix

    def act(self, obs: dict[str, np.ndarray], noise: np.ndarray, *committed: np.ndarray) -> np.ndarray:
        """Chunks (b, h, a); see :class:`flowpolicy.serve.model.Engine`."""
        return self._engine.act(obs, noise, *committed)


def load_engines(
    path: Path, nfes: tuple[int, ...], threads: int, name: str = "auto", batches: Sequence[int] = (1,)
) -> tuple[list[ServedEngine], str]:
    """Engines of the newest checkpoint of ``path``, and its name; the contract's evaluations unless ``nfes`` says.

    Raises:
        ConfigError: the engine ``name`` cannot run this policy, or the policy draws more than noise at the start.

    """
    torch.set_num_threads(threads)
    folder = resolve(path)
    policy = Policy.load(folder)
    policy.require_plain_noise()
    scaling = scaling_of(policy)
    loaded = [_load(folder, name, batches, threads, nfe) for nfe in nfes or (policy.contract.nfe,)]
    return [ServedEngine(engine, scaling) for engine in loaded], folder.name


def _load(folder: Path, name: str, batches: Sequence[int], threads: int, nfe: int) -> Engine:
    if name in FORMATS and name not in QUICK:
        # Compilers hold the interpreter for seconds, and a server that reloads has deadlines to keep meanwhile.
        with tempfile.TemporaryDirectory() as scratch:
            model = Path(scratch) / name
            _export_apart(folder, FORMATS[name], model, batches, threads, nfe)
            return load_engine(model, name, threads=threads)
    return load_engine(folder, name, among=QUICK, batches=batches, threads=threads, nfe=nfe)


def _export_apart(folder: Path, form: str, model: Path, batches: Sequence[int], threads: int, nfe: int) -> None:
    """``flowpolicy export`` in a process of its own, with less of a claim on the processor than the server."""
    flags = ["--to", form, "--out", str(model), "--nfe", str(nfe), "--threads", str(threads)]
    command = [sys.executable, "-m", "flowpolicy", "export", str(folder), *flags, "--batches", *map(str, batches)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        os.setpriority(os.PRIO_PROCESS, process.pid, max(5, os.getpriority(os.PRIO_PROCESS, 0)))
        _, complaint = process.communicate()
    if process.returncode:
        raise FlowPolicyError(f"the engine could not be built: {complaint.strip()}", fix="--engine auto")


def scaling_of(policy: Policy) -> dict[str, np.ndarray]:
    """Offset, scale and limit (3, d) of every observation key."""
    known = {key: policy.normalizer.observation(key) for key in policy.actor.keys}
    return {key: torch.stack([s.offset, s.scale, s.limit]).numpy() for key, s in known.items()}
