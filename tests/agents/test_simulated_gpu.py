"""Runs simulated_gpu_runs.py, where PyTorch is linked with CUDA; a GPU is not needed.

In a process of its own: PyTorch 2.11 may crash when it gives such tensors up, after everything is told.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from .simulated_gpu import LINKED

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not LINKED, reason="this PyTorch is a build without CUDA")
def test_nothing_meets_on_two_devices():
    plain = ("-o", "addopts=--import-mode=importlib --strict-markers", "-p", "no:cacheprovider")
    command = (sys.executable, "-m", "pytest", "-q", *plain, "tests/agents/simulated_gpu_runs.py")
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    summary = (done.stdout.strip().splitlines() or [""])[-1]
    assert " passed" in summary and " failed" not in summary and " error" not in summary, done.stdout[-4000:]
