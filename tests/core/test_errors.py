import errno
import signal
import time

import pytest
import torch

from flowpolicy.cli import main
from flowpolicy.core.devices import find_device
from flowpolicy.core.errors import ConfigError, from_system

from ..conftest import ForkedCommand


def test_an_error_of_the_system_has_path_reason_and_remedy():
    told = from_system(PermissionError(errno.EACCES, "Permission denied", "/root/x"))
    assert told.what == "/root/x: permission denied" and "permissions" in told.fix
    hidden = OSError("Unable to open file (unable to open file: name = 'x', errno = 28, error message = 'No space')")
    assert "free some space" in from_system(hidden).fix
    assert from_system(ValueError("mine")) is None
    assert from_system(RuntimeError("size mismatch")) is None
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**15)
    assert "not enough memory" in from_system(caught.value).what


@pytest.mark.parametrize("name", ["cuda:77", "mps", "gpu", ""])
def test_a_device_that_is_not_there_is_named_with_its_flag(name):
    with pytest.raises(ConfigError, match="--device"):
        find_device(name)
    assert find_device("cpu") == torch.device("cpu")


def failed(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in arguments])
    assert stopped.value.code == 2
    return capsys.readouterr().err


def test_a_file_where_a_folder_belongs(tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    message = failed(["data", "make", "toy", "--episodes", 1, "--out", tmp_path / "file" / "x.hdf5"], capsys)
    assert "file" in message and "fix:" in message


def test_a_fault_of_ours_keeps_its_traceback_and_asks_for_a_report(monkeypatch):
    monkeypatch.setattr("flowpolicy.commands.cite.run", lambda argv: {}["nothing"])
    with pytest.raises(KeyError) as caught:
        main(["cite", "x"])
    assert "report it" in caught.value.__notes__[0]


def interrupted(run, *words, when):
    process, deadline = ForkedCommand(*words, cwd=run.parent), time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None and not when():
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    return process.ended(120)


def test_what_ctrl_c_advises_can_be_followed(tmp_path, capsys):
    run = tmp_path / "run"
    train = ("train", "debug", "--steps", 100000, "--log-every", 10, "--no-compile", "--no-tensorboard", "--out", run)
    rows = lambda: (run / "metrics.csv").exists() and len((run / "metrics.csv").read_text().splitlines()) > 2  # noqa: E731
    code, told = interrupted(run, *train, "--checkpoint-every", 90000, when=rows)
    assert code == 130 and "starts anew" in told and "flowpolicy resume" not in told and "Traceback" not in told
    code, told = interrupted(run, *train, "--checkpoint-every", 20, when=(run / "checkpoints" / "LATEST").exists)
    assert code == 130, told  # the same command started anew
    assert told.strip().endswith(f"flowpolicy resume {run}")
    before = len((run / "metrics.csv").read_text().splitlines())
    more = lambda: len((run / "metrics.csv").read_text().splitlines()) > before  # noqa: E731
    code, told = interrupted(run, "resume", run, when=more)
    assert code == 130 and "Traceback" not in told, told
