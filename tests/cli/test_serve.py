"""``flowpolicy serve`` as a user runs it: a run, a robot, a newer checkpoint, a signal."""

import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from flowpolicy.core.errors import ConfigError, ServingError
from flowpolicy.policy import Policy
from flowpolicy.serve.client import PolicyClient

from ..policy.test_policy import make, store
from ..serve.conftest import until


@pytest.fixture
def run(contract, tmp_path):
    store(make(contract), tmp_path / "run", step=1)
    return tmp_path / "run"


def start(run, *flags, **environment):
    command = [sys.executable, "-m", "flowpolicy", "serve", str(run), "--port", "0", *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment})
    line = process.stdout.readline()
    found = re.search(r"ws://\S+", line)
    assert found, line
    return process, found[0]


def test_a_run_is_served_reloaded_and_stopped(run, contract):
    process, url = start(run, "--watch-s", "0.1", FLOWPOLICY_TOKEN="correct-horse-battery")
    try:
        with pytest.raises(ServingError, match="token"):
            PolicyClient(url)
        obs = {"state": np.ones((2, 3), np.float32), "goal": np.zeros((2, 2), np.float32)}
        noise = np.random.default_rng(0).normal(size=(1, 4, 2)).astype(np.float32)
        policy = Policy.load(run)
        expected = policy.act_from({k: torch.from_numpy(v)[None] for k, v in obs.items()}, torch.from_numpy(noise), 1)
        with PolicyClient(url, "correct-horse-battery") as client:
            reply = client.act(obs, 5000, noise=noise)
            assert reply.checkpoint == "step_00000001"
            assert np.allclose(reply.chunk, expected[0].numpy(), atol=1e-6)
            store(make(contract), run, step=2)
            until(lambda: client.act(obs, 5000).checkpoint == "step_00000002", 30)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()


def test_a_short_token_file_is_refused(tmp_path):
    from flowpolicy.commands.serve import run as serve

    (tmp_path / "token").write_text("short\n")
    with pytest.raises(ConfigError, match="holds 5 characters"):
        serve([str(tmp_path), "--token-file", str(tmp_path / "token")])
