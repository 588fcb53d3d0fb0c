import pytest

from flowpolicy.cli import main


def run(*words):
    with pytest.raises(SystemExit) as stop:
        main(words)
    return stop.value.code


SMALL = ("--no-compile", "--no-tensorboard", "--batch-size", "8")


def test_a_run_is_continued_resumed_and_drawn(tmp_path, capsys):
    base, out = str(tmp_path / "base"), tmp_path / "on"
    assert run("train", "fql-toy", "--steps", "3", *SMALL, "--out", base) == 0
    assert (
        run("online", base, "--steps", "90", "--out", str(out), "--online.ratio", "0.25", "--agent.alpha", "0.1") == 0
    )
    assert (out / "online.png").stat().st_size > 5000
    assert "online.png" in capsys.readouterr().out
    assert run("resume", str(out)) == 0
    assert run("eval", str(out), "--episodes", "2") == 0


def test_what_is_missing_is_said(tmp_path, capsys):
    base = str(tmp_path / "base")
    assert run("train", "debug", "--steps", "3", *SMALL, "--out", base) == 0
    assert run("online", base, "--steps", "9", "--out", str(tmp_path / "on")) == 2
    assert "learns nothing from rewards" in capsys.readouterr().err
    assert run("online", str(tmp_path / "nowhere"), "--out", str(tmp_path / "on")) == 2
    assert "nowhere" in capsys.readouterr().err
    assert run("train", "fql-toy", "--online.base", base) == 2
    assert "flowpolicy online RUN" in capsys.readouterr().err
