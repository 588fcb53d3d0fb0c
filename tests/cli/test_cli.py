"""The command line as a user meets it: names, exit codes, messages, and a whole run without a simulator."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from flowpolicy import cli
from flowpolicy.cli import COMMANDS
from flowpolicy.configs.presets import PRESETS
from flowpolicy.core import checkpoint
from flowpolicy.train.verify import compare

from ..conftest import ForkedCommand, flowpolicy

COMMAND = [sys.executable, "-m", "flowpolicy"]
QUICK = ["--steps", "40", "--checkpoint-every", "10", "--no-tensorboard"]


@pytest.fixture(scope="module")
def debug_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("debug")
    done = flowpolicy("train", "debug", *QUICK, "--out", "run", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "run"


def test_help_lists_the_commands_and_imports_nothing_heavy(tmp_path):
    code = (
        "import sys; from flowpolicy.cli import main; main(['--help']); "
        "print(sorted({'torch', 'numpy', 'tyro'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.endswith("[]\n")
    for name in COMMANDS:
        assert re.search(rf"^  {name} ", done.stdout, re.M)


EXPLAIN = """
import contextlib, io, sys
from flowpolicy.cli import COMMANDS, main
# The presets that 'train' lists are values of classes that need torch; every other help comes without it.
for command in sorted(COMMANDS, key="train".__eq__):
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        try:
            main([command, "--help"])
        except SystemExit as end:
            assert not end.code, command
    assert "usage: flowpolicy" in text.getvalue(), command
    assert ("torch" in sys.modules) == (command == "train"), command
"""


def test_every_command_explains_itself_at_once(tmp_path):
    done = subprocess.run([sys.executable, "-c", EXPLAIN], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


MISTAKES = (
    (["trian", "debug"], "did you mean 'train'"),
    (["train", "dm1-lft"], "did you mean 'dm1-lift'"),
    (["train", "debug", "--agent.net", "mpl"], "did you mean 'mlp'"),
    (["train", "debug", "--agent.encoder", "visoin"], "did you mean 'vision'"),
    (["train", "debug", "--agent.encoder.backbone", "conv"], "StateEncoder has no option 'backbone'"),
    (["train", "dm1-lift-image", "--agent.encoder.backbone", "resnet18"], "did you mean 'resnet'"),
    (["train", "debug", "--agent.encoder", "vision", "--out", "seeing"], "given states alone"),
    (["train", "debug", "--stepz", "3"], "--steps"),
    (["train", "debug", "--steps", "0"], "at least 1"),
    (["train", "dm1-lift"], "flowpolicy data make lift"),
    (["train", "dm1-lift", "--data.path", "absent.hdf5"], "absent.hdf5"),
    (["eval", "absent"], "flowpolicy train"),
    (["resume", "absent"], "flowpolicy train"),
    (["compare", "absent", "absent"], "flowpolicy eval"),
    (["bench", "latencey"], "did you mean 'latency'"),
    (["bench", "latency", "--engines", "onxx"], "did you mean 'onnx'"),
    (["export", "absent", "--to", "numpy", "--out", "out"], "flowpolicy train"),
    (["data", "info", "absent.hdf5"], "absent.hdf5"),
)


@pytest.mark.quick("command line")
def test_mistakes_exit_with_2_and_a_hint(tmp_path):
    done = [(flowpolicy(*arguments, cwd=tmp_path), hint) for arguments, hint in MISTAKES]
    assert not [one for one, hint in done if one.returncode != 2 or hint not in one.stderr + one.stdout]


def test_a_mistake_in_a_process_of_its_own_has_no_traceback(tmp_path):
    done = subprocess.run([*COMMAND, "train", "debug", "--steps", "0"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and "at least 1" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["bench", "latency", "--help"], ["--version"]])
def test_a_reader_that_has_seen_enough_is_no_error(arguments):
    read, write = os.pipe()
    os.close(read)
    process = subprocess.run(
        [sys.executable, "-m", "flowpolicy", *arguments], stdout=write, stderr=subprocess.PIPE, text=True, timeout=120
    )
    os.close(write)
    assert (process.returncode, process.stderr) == (141, "")


def test_a_broken_pipe_that_is_not_ours_is_not_hidden(monkeypatch):
    def lose(command, arguments):
        raise BrokenPipeError("a worker's")

    monkeypatch.setattr(cli, "_dispatch", lose)
    with pytest.raises(BrokenPipeError, match="a worker's"):
        cli.main(["train"])


def test_train_eval_compare_card_without_a_simulator(debug_run, tmp_path):
    home = debug_run.parent
    assert (debug_run / "curves.png").stat().st_size > 5000
    for run in ("run", "other"):
        if run == "other":
            shutil.copytree(debug_run, home / "other")
        done = flowpolicy("eval", run, "--episodes", 6, "--json", f"{run}.json", cwd=home)
        assert done.returncode == 0, done.stderr
    value = json.loads((home / "run.json").read_text())
    assert set(value["success"]) >= {"mean", "low", "high", "n"}
    assert set(value["return"]) >= {"mean", "low", "high"}
    assert value["nfe"] == 10
    assert len(value["episodes"]) == 6
    done = flowpolicy("compare", "run", "other", cwd=home)
    assert done.returncode == 0, done.stderr
    assert "Not resolved" in done.stdout
    assert flowpolicy("eval", "run", "--episodes", 6, "--nfe", 2, "--json", "two.json", cwd=home).returncode == 0
    assert json.loads((home / "two.json").read_text())["nfe"] == 2
    done = flowpolicy("eval", "run", "--episodes", 6, "--noise-scale", 0, "--json", "calm.json", cwd=home)
    assert done.returncode == 0 and "scale of the initial noise" in done.stdout, done.stderr
    assert json.loads((home / "calm.json").read_text())["noise_scale"] == 0
    assert len(list((debug_run / "eval").glob("*-nfe10*.json"))) == 2  # it stands beside the usual one
    # The newest that both have is without noise in one of them alone; like is compared with like.
    assert "noise" not in flowpolicy("compare", "run", "other", cwd=home).stdout
    assert "noise" in flowpolicy("compare", "calm.json", "other", cwd=home).stdout
    done = flowpolicy("eval", "run", "--noise-scale", -1, cwd=home)
    assert done.returncode == 2 and "at least 0" in done.stderr
    done = flowpolicy("card", "run", "--episodes", 2, "--delay", "--delays-ms", 0, 200, cwd=home)
    assert done.returncode == 0, done.stderr
    assert (debug_run / "card" / "card.png").stat().st_size > 5000
    assert (debug_run / "card" / "delay.png").stat().st_size > 5000
    assert "real-time, guided" in done.stdout
    record = json.loads((debug_run / "card" / "delay.json").read_text())
    assert record["training"]["seed"] == 0 and len(record["plan"]["policy_seeds"]) == 2
    points = record["points"]
    assert [(point["way"], point["steps"]) for point in points[3:]] == [
        ("naive", 2),
        ("aligned", 2),
        ("real-time, guided", 2),
    ]


def test_export_and_bench_latency(debug_run, tmp_path):
    done = flowpolicy("export", debug_run, "--to", "numpy", "--out", "model", "--nfe", 2, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"model: numpy, differs from the policy by at most \d\.\de-\d\d", done.stdout)
    assert json.loads((tmp_path / "model" / "engine.json").read_text())["nfe"] == 2
    quick = ["--engines", "numpy", "--calls", 20, "--rounds", 2, "--nfe", 2, "--json", "latency.json"]
    done = flowpolicy("bench", "latency", debug_run, *quick, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "latency.json").read_text())
    assert record["step"] == 40 and len(record["checkpoint_sha256"]) == 64
    best = record["best"]
    assert best["engine"] == "numpy" and 0 < best["p50"] <= best["p99"]
    assert (debug_run / "bench" / "latency.png").stat().st_size > 5000


def test_the_same_plan_gives_the_same_outcomes(debug_run):
    home = debug_run.parent
    for name in ("a.json", "b.json"):
        assert flowpolicy("eval", "run", "--episodes", 5, "--seed", 3, "--json", name, cwd=home).returncode == 0
    a, b = (json.loads((home / name).read_text())["episodes"] for name in ("a.json", "b.json"))
    for one, other in zip(a, b, strict=True):
        del one["policy_seconds"], other["policy_seconds"]
        assert one == other


def test_killed_and_resumed_equals_uninterrupted(debug_run, tmp_path):
    process = ForkedCommand("train", "debug", *QUICK, "--out", "killed", cwd=tmp_path)
    latest = tmp_path / "killed" / "checkpoints" / "LATEST"
    while process.poll() is None and not latest.exists():
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.ended()
    done = flowpolicy("resume", "killed", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    compare(checkpoint.resolve(debug_run), checkpoint.resolve(tmp_path / "killed"))


@pytest.mark.slow
def test_verify_resume_with_the_compiled_update(tmp_path):
    small = ["--agent.net.width", "16", "--agent.net.depth", "1", "--batch-size", "16", "--no-tensorboard"]
    flags = ["--compile", "--steps", "30", *small, "--out", "run", "--verify-resume"]
    command = [*COMMAND, "train", "debug", *flags]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "equal bit for bit" in done.stderr
    assert (tmp_path / "run" / "checkpoints" / "LATEST").exists()


def test_a_checkpoint_with_a_missing_file_is_refused(debug_run, tmp_path):
    shutil.copytree(debug_run, tmp_path / "run")
    (checkpoint.resolve(tmp_path / "run") / "ema.safetensors").unlink()
    for command in (["eval", "run"], ["resume", "run"]):
        done = flowpolicy(*command, cwd=tmp_path)
        assert done.returncode == 2
        assert "ema.safetensors is missing" in done.stderr


def test_every_preset_is_described_and_named_by_algorithm_and_task():
    for task in ("lift", "can", "door"):
        for method in ("dm1", "flow-bc", "regression"):
            assert f"{method}-{task}" in PRESETS
    assert all(text for text, _ in PRESETS.values())
