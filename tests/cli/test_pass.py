"""Every command with every kind of wrong path: exit code 2 and words, never a traceback, and nothing is changed."""

import hashlib

import pytest

from flowpolicy.cli import main

from ..conftest import write_demonstrations

NEW = "NEW"
"""A path where nothing stands."""

COMMANDS = {
    "data info": ("data", "info", "PATH"),
    "data label": ("data", "label", "PATH", "--env", "cube-single", "--out", NEW),
    "data make": ("data", "make", "toy", "--episodes", "1", "--workers", "1", "--out", "PATH/x.hdf5"),
    "data rollouts": ("data", "rollouts", "PATH", "--episodes", "1", "--out", NEW),
    "doctor": ("doctor", "PATH"),
    "train": ("train", "debug", "--data.path", "PATH", "--steps", "1", "--out", NEW),
    "train groups": ("train", "debug-gdro", "--base", "PATH", "--groups", "PATH", "--out", NEW),
    "resume": ("resume", "PATH"),
    "online": ("online", "PATH", "--steps", "1", "--out", NEW),
    "groups make": ("groups", "make", "PATH", "--source", "returns", "--out", NEW),
    "groups picture": ("groups", "picture", "PATH"),
    "eval": ("eval", "PATH", "--episodes", "1"),
    "compare": ("compare", "PATH", "PATH"),
    "card": ("card", "PATH", "--episodes", "1"),
    "export": ("export", "PATH", "--to", "numpy", "--out", NEW),
    "fit": ("fit", "PATH", "--out", NEW),
    "distill": ("distill", "PATH", "--out", NEW),
    "serve": ("serve", "PATH"),
    "serve token": ("serve", "PATH", "--token-file", "PATH"),
    "cite": ("cite", "PATH"),
    "suite table": ("suite", "table", "offline-rl", "--records", "PATH"),
    "bench latency": ("bench", "latency", "PATH", "--calls", "1", "--rounds", "1"),
    "robot check": ("robot", "check", "PATH", "--no-connect"),
    "robot replay": ("robot", "replay", "PATH"),
    "robot salvage": ("robot", "salvage", "PATH"),
}
HARMLESS = {("data make", "folder"), ("data make", "missing"), ("data make", "unicode"), ("robot salvage", "folder")}
"""Where a folder, or a new one, is a right answer."""
PATHS = ("missing", "folder", "text", "empty", "truncated", "unicode", "long", "below a file")


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory):
    return write_demonstrations(tmp_path_factory.mktemp("whole") / "demonstrations.hdf5").read_bytes()


@pytest.fixture
def paths(tmp_path_factory, demonstrations):
    home = tmp_path_factory.mktemp("pass")
    (home / "folder").mkdir()
    (home / "text").write_text("hello")
    (home / "empty").write_bytes(b"")
    (home / "truncated").write_bytes(demonstrations[: len(demonstrations) // 2])
    named = {name: home / name for name in ("missing", "folder", "text", "empty", "truncated")}
    odd = {"unicode": home / "Dätä 数据 'q' [1]", "long": home / ("x" * 5000), "below a file": home / "text" / "x"}
    return named | odd


def content(paths):
    files = (path for name, path in paths.items() if name in ("text", "empty", "truncated"))
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]


@pytest.mark.parametrize("kind", PATHS)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_wrong_path_ends_in_words(command, kind, paths, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = content(paths)
    words = [word.replace("PATH", str(paths[kind])).replace(NEW, str(tmp_path / "new")) for word in COMMANDS[command]]
    with pytest.raises(SystemExit) as stopped:
        main(words)
    told = capsys.readouterr()
    wanted = (0, 2) if (command, kind) in HARMLESS else (2,)
    assert stopped.value.code in wanted, told
    assert stopped.value.code == 0 or "error:" in told.err
    assert content(paths) == before
    if (command, kind) not in HARMLESS:
        assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"]
