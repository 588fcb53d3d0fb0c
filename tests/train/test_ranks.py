"""Several processes that share the rows of every batch come to what one process comes to."""

import dataclasses
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from flowpolicy.agents.cloning.regression import RegressionAgent
from flowpolicy.cli import main
from flowpolicy.core import checkpoint, ranks
from flowpolicy.core.errors import ConfigError, DataWarning, TrainingError
from flowpolicy.core.files import read_json, read_tensors
from flowpolicy.train.verify import compare
from tests.conftest import ForkedCommand
from tests.train import shared_runs

ROOT = Path(__file__).parents[2]
LAUNCHER = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with runs of one process and of two, and what the two said."""
    folder = tmp_path_factory.mktemp("ranks")
    shared_runs.write_data(folder)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(folder)}
    together = subprocess.Popen(
        [*LAUNCHER, "-m", "tests.train.shared_runs", str(folder)],
        env=environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        for name, (agent, sees) in shared_runs.agents().items():
            shared_runs.trainer(folder, name, agent, sees, "alone").train()
    said, _ = together.communicate(timeout=300)
    assert together.returncode == 0, said
    return folder


def tensors(run):
    folder = checkpoint.resolve(run)
    return {
        f"{path.stem}/{name}": value
        for path in sorted(folder.glob("*.safetensors"))
        for name, value in read_tensors(path).items()
    }


@pytest.mark.parametrize("name", list(shared_runs.agents()))
def test_two_processes_come_to_what_one_comes_to(runs, name):
    alone, shared = tensors(runs / "alone" / name), tensors(runs / "shared" / name)
    assert alone.keys() == shared.keys()
    for key, value in alone.items():
        # The bias before a softmax over places has no gradient but round-off, which Adam makes steps of.
        if "exp_avg" not in key and not ("sees" in name and key.endswith(".4.bias")):
            torch.testing.assert_close(
                shared[key], value, rtol=1e-5, atol=2e-6, msg=lambda text, key=key: f"{key}: {text}"
            )
    one, two = ((runs / kind / name / "metrics.csv").read_text().splitlines() for kind in ("alone", "shared"))
    assert one[0] == two[0]
    times = ("data_ms", "update_ms", "log_ms")
    for left, right in zip(one[1:], two[1:], strict=True):
        for column, a, b in zip(one[0].split(","), left.split(","), right.split(","), strict=True):
            assert column in times or float(a) == pytest.approx(float(b), rel=1e-4, abs=1e-6), column


def test_crops_and_pictures_are_those_of_the_whole_batch_and_a_resumed_run_is_equal_bit_for_bit(runs):
    for name in ("dm1", "fql-sees"):
        compare(checkpoint.resolve(runs / "shared" / name), checkpoint.resolve(runs / "resumed" / name))
        assert read_json(checkpoint.resolve(runs / "resumed" / name) / "state.json")["shares"] == [[0, 2]]


def test_a_run_goes_on_with_another_number_of_processes_and_says_so(runs):
    shared_runs.back_to_the_middle(runs / "shared" / "flow-bc", runs / "fewer" / "flow-bc")
    agent, sees = shared_runs.agents()["flow-bc"]
    with pytest.warns(DataWarning, match="by 2 processes up to update 3 and goes on with 1"):
        shared_runs.trainer(runs, "flow-bc", agent, sees, "fewer", resume=True).train()
    newest = checkpoint.resolve(runs / "fewer" / "flow-bc")
    assert read_json(newest / "state.json")["shares"] == [[0, 2], [3, 1]]
    assert "2 processes from update 1 on, 1 process from update 4 on" in (newest / "card.md").read_text()
    expected = tensors(runs / "alone" / "flow-bc")
    for key, value in tensors(runs / "fewer" / "flow-bc").items():
        torch.testing.assert_close(value, expected[key], rtol=1e-5, atol=2e-6)


def launch(*words, cwd, **more):
    """Two processes as torchrun starts them, with nobody who ends one when the other dies."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1", **more}
    return [ForkedCommand(*words, cwd=cwd, **common, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(2)]


def ended(processes):
    """Exit statuses, and what all of them said."""
    codes, said = zip(*(process.ended() for process in processes), strict=True)
    return [*codes], "".join(said)


def wait_for_rows(run, processes, more=0):
    while True:
        rows = len((run / "metrics.csv").read_text().splitlines()) if (run / "metrics.csv").exists() else 0
        if rows > more + 1:
            return rows
        assert all(process.poll() is None for process in processes), ended(processes)
        time.sleep(0.02)


@pytest.mark.slow
def test_a_request_to_stop_ends_all_with_a_checkpoint_and_a_rank_that_dies_ends_the_others(tmp_path):
    run = tmp_path / "run"
    steps = ["--steps", "1000000", "--checkpoint-every", "1000000", "--log-every", "2", "--no-tensorboard"]
    processes = launch("train", "debug", *steps, "--out", run, cwd=tmp_path)
    rows = wait_for_rows(run, processes)
    processes[1].send_signal(signal.SIGTERM)
    codes, said = ended(processes)
    assert codes == [130, 130], said
    stored = checkpoint.resolve(run)
    assert said.count("stopped: ") == 1
    assert f"go on from {stored.name} with: torchrun --nproc-per-node 2 -m flowpolicy resume {run}" in said
    assert read_json(stored / "state.json")["step"] >= 2 * (rows - 1)

    processes = launch("resume", run, cwd=tmp_path, FLOWPOLICY_RANK_TIMEOUT="60")
    wait_for_rows(run, processes, more=rows + 2)
    processes[1].send_signal(signal.SIGKILL)
    codes, said = ended(processes)
    assert codes == [2, -9], said
    assert said.count("error: ") == 1
    assert "another of the 2 ranks has gone, or did not answer rank 0 within 60 s" in said
    assert "Traceback" not in said


@pytest.fixture
def started_by_torchrun(monkeypatch):
    for name, value in {"WORLD_SIZE": "3", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "here"}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["eval", "run"], "flowpolicy eval in 3 processes of torchrun: each would do all of it"),
        (["online", "run"], "flowpolicy online in 3 processes"),
        (
            ["train", "debug", "--seeds", "2"],
            "runs in company in 3 processes of torchrun: they share one update already",
        ),
        (["train", "debug", "--verify-resume"], "--verify-resume in 3 processes of torchrun: it starts processes"),
    ],
)
def test_what_processes_cannot_do_together_is_refused(words, told, started_by_torchrun, capsys):
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    assert told in capsys.readouterr().err


def test_a_batch_that_cannot_be_shared_equally_is_refused_with_the_mend(tmp_path, monkeypatch):
    shared_runs.write_data(tmp_path)
    monkeypatch.setattr(ranks, "_current", SimpleNamespace(count=3, leads=True))
    with pytest.raises(ConfigError, match=r"--batch-size 8 cannot be shared equally by 3 processes") as refused:
        shared_runs.trainer(tmp_path, "fql", *shared_runs.agents()["fql"], "shared")
    assert "--batch-size 6 or 9, or torchrun --nproc-per-node 2" in str(refused.value)


def test_leading_rows_are_shared_out_without_loss(monkeypatch):
    for count, leading in ((2, 5), (3, 1), (4, 0), (4, 16)):
        each = []
        for rank in range(count):
            monkeypatch.setattr(ranks, "_current", SimpleNamespace(count=count, rank=rank))
            each.append(ranks.own(leading))
        assert sum(each) == leading
        assert max(each) - min(each) <= 1


class Careless(RegressionAgent):
    """Takes the mean of its own rows alone."""

    def loss(self, obs, action, valid, draws):
        return (
            self.actor.net(
                torch.zeros_like(action), action.new_zeros(len(action)), self.encoded(obs, len(action)).cond
            ).value
            - action
        ).square().mean(), {}


def test_a_loss_that_is_not_written_for_shared_rows_is_found_by_the_first_update(tmp_path, monkeypatch):
    shared_runs.write_data(tmp_path)
    agent, sees = shared_runs.agents()["regression"]
    trainer = shared_runs.trainer(tmp_path, "careless", dataclasses.replace(agent, prefix=0), sees, "alone")
    monkeypatch.setattr(trainer.agent, "_loss", Careless.loss.__get__(trainer.agent))
    monkeypatch.setattr(trainer.agent, "loss", trainer.agent._loss)
    monkeypatch.setattr(ranks, "_current", SimpleNamespace(count=2, rank=0, rows=slice(0, None, 2), proven=False))
    with pytest.raises(TrainingError, match=r"by rows of several processes and .* whole"):
        trainer._update()
