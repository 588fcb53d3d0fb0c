"""Processor seconds of an agent's first compiled update: with the compiler's cache empty, and once more with it.

Each is a process of its own, since a compiler also remembers within a process. The compiler works in that process and
not in helpers of its own, so that the seconds are all counted.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from typing import Any

from flowpolicy.core.config import decode, encode
from flowpolicy.core.errors import FlowPolicyError, TrainingError


def first_calls(config: Any, obs: int, action: int, batch_size: int, device: str = "cpu") -> dict[str, float]:
    """``cold_s`` and ``warm_s``, processor seconds of the first compiled update of an agent.

    Args:
        config: of the agent; one that is told to :mod:`flowpolicy.train.kinds`.
        obs: numbers of an observation.
        action: numbers of an action.
        batch_size: rows.
        device: where.

    Raises:
        TrainingError: it cannot be compiled here.

    """
    from flowpolicy.train.kinds import KINDS

    settings = json.dumps([encode(config, KINDS), obs, action, batch_size, device])
    with tempfile.TemporaryDirectory() as cache:
        threads = {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
        environment = {**os.environ, **threads, "TORCHINDUCTOR_CACHE_DIR": cache}
        return {name: _seconds(settings, environment) for name in ("cold_s", "warm_s")}


def _seconds(settings: str, environment: dict[str, str]) -> float:
    command = [sys.executable, "-m", "flowpolicy.bench.first_call", settings]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise TrainingError(f"the first update could not be measured: {done.stderr.strip()[-2000:]}")
    return float(done.stdout.split()[-1])


def _main(settings: str) -> None:
    import torch

    from flowpolicy.bench.update import make_agent, random_batch
    from flowpolicy.core.seed import torch_generator
    from flowpolicy.train.kinds import KINDS

    torch.set_num_threads(1)
    stored, obs, action, rows, device = json.loads(settings)
    config = decode(stored, KINDS)
    agent, batch = make_agent(config, obs, action, device), random_batch(config, obs, action, rows).to(device)
    before = _used()
    agent.update(batch, torch_generator(0, "bench", "draws", device=device))
    sys.stdout.write(f"{_used() - before:.3f}\n")


def _used() -> float:
    """Processor seconds of this process and of the compilers that it has waited for."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


if __name__ == "__main__":
    try:
        _main(sys.argv[1])
    except FlowPolicyError as error:
        sys.exit(str(error))
