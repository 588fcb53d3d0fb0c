"""Runs compiled_losses.py without jaxtyping's import hook, whose wrappers PyTorch's compiler cannot look through."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Of names of tests: "agents" alone would select everything, as the name of this folder.
PARTS = ["compiled_agents", "compiled_laboratory", "not compiled_agents and not compiled_laboratory"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("part", PARTS)
def test_the_compiled_loss_is_the_loss(part):
    plain = ("-o", "addopts=--import-mode=importlib --strict-markers", "-p", "no:logging", "-p", "no:cacheprovider")
    command = (sys.executable, "-m", "pytest", "-q", *plain, "tests/agents/compiled_losses.py", "-k", part)
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
