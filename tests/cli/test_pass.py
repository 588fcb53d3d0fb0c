"""Every path that a command takes, with every kind of wrong path: exit code 2 and words, and nothing is changed."""

import contextlib
import dataclasses
import hashlib
import re
import signal
import socket
import time

import h5py
import numpy as np
import pytest

from flowpolicy.core.files import held_alone

from .conftest import FEW, GROUPS, run
from .parsers import commands, options

IN = ("missing", "folder", "text", "empty", "truncated", "unicode", "long", "below a file", "huge", "busy")
"""Where something is to be read. 'huge' has 1 GiB, 'busy' is being written by somebody else."""
OUT = ("text", "folder", "missing", "unicode", "long", "below a file", "read-only")
"""Where something is to be written."""
NEW = ("folder", "missing", "unicode")
"""Of those, where something can be written: right answers."""


@dataclasses.dataclass(frozen=True)
class Row:
    """A command line with PATH where the wrong path goes; @ is the folder with the good files."""

    command: str
    option: str
    words: str
    kinds: tuple[str, ...] = IN
    right: tuple[str, ...] = ()
    """Kinds that may be a right answer."""


def out(command, option, words, right=NEW, skip=()):
    return Row(command, option, words, tuple(kind for kind in OUT if kind not in skip), right)


RUN, Q, DATA, FRANKA = "@/run", "@/q", "@/data.hdf5", "@/franka"
SUITE = "suite run offline-rl --tasks door-human --arms fql"
LEADER = "robot record --out @new --teach leader --calibration @/calibration.json --episodes 1 --listen 0.0.0.0:0"
PEER = "peer train fql-cube-single --peer fql=@/peer"
ONLY_OVERWRITES = ("text",)
JSON = {"skip": NEW}
"""Records: written where nothing stands, after the minutes of a measurement."""
ROWS = (
    Row("train", "--data.path", "train debug --data.path PATH --steps 1 --out @new"),
    Row("train", "--base", "train debug-gdro --base PATH --groups @/groups.hdf5 --out @new"),
    Row("train", "--groups", f"train debug-gdro --base {RUN} --groups PATH --out @new"),
    Row("train", "--online.base", "train fql-toy --online.base PATH --out @new"),
    Row(
        "train",
        "--agent.teacher",
        f"train debug --flow.coupling table --agent.teacher PATH --data.path {DATA} --out @new",
    ),
    Row(
        "train",
        "--agent.encoder.weights",
        f"train dm1-lift-image --agent.encoder.weights PATH --data.path {DATA} --out @new",
    ),
    out("train", "--out", f"train debug {FEW} --data.path {DATA} --steps 1 --out PATH", skip=("missing",)),
    Row("online", "RUN", "online PATH --steps 1 --out @new"),
    Row("online", "--data.path", f"online {Q} --steps 1 --data.path PATH --out @new"),
    Row("online", "--base", f"online {Q} --steps 1 --base PATH --out @new"),
    Row("online", "--groups", f"online {Q} --steps 1 --groups PATH --out @new"),
    Row("online", "--online.base", f"online {Q} --steps 1 --online.base PATH --out @new"),
    out("online", "--out", f"online {Q} --steps 1 --out PATH", skip=NEW),
    out("data make", "--out", "data make toy --episodes 1 --workers 1 --out PATH", right=("missing", "unicode")),
    Row("data render", "FILE", "data render PATH --out @new"),
    out("data render", "--out", f"data render {DATA} --out PATH", right=(), skip=NEW),
    Row("data observe", "FILE", "data observe PATH --out @new"),
    out("data observe", "--out", f"data observe {DATA} --out PATH", right=(), skip=NEW),
    Row("data rollouts", "RUN", "data rollouts PATH --episodes 1 --out @new"),
    out("data rollouts", "--out", f"data rollouts {RUN} --episodes 1 --workers 1 --out PATH", right=(), skip=NEW),
    out("data download", "--folder", "data download door-human-v1 --folder PATH", skip=NEW),
    Row("data label", "FILE", "data label PATH --env cube-single --out @new"),
    out("data label", "--out", "data label @/cube.npz --env cube-single --out PATH", right=(), skip=NEW),
    Row("data info", "FILE", "data info PATH"),
    out("data info", "--pictures", f"data info {DATA} --pictures PATH", right=(), skip=NEW),
    Row("data view", "FILE", "data view PATH --out @new"),
    out("data view", "--out", f"data view {DATA} --out PATH", right=("missing", "unicode"), skip=("folder",)),
    out("data view", "--rerun", f"data view {DATA} --out @new --rerun PATH", right=(), skip=NEW),
    Row("data convert", "FILE", "data convert PATH @new --format robomimic"),
    out("data convert", "OUT", f"data convert {DATA} PATH --format robomimic", right=("missing", "unicode")),
    Row("data merge", "FILES", f"data merge {DATA} PATH --out @new"),
    out("data merge", "--out", f"data merge {DATA} {DATA} --out PATH", right=(), skip=NEW),
    Row("data split", "FILE", "data split PATH --out @new1 @new2"),
    out("data split", "--out", f"data split {DATA} --shares 0.5 --out PATH", right=("missing", "unicode")),
    Row("data filter", "FILE", "data filter PATH --success yes --out @new"),
    out("data filter", "--out", f"data filter {DATA} --episodes 0 --out PATH", right=("missing", "unicode")),
    Row("data edit", "FILE", "data edit PATH --drop 0 --out @new"),
    out("data edit", "--out", f"data edit {DATA} --drop 0 --out PATH", right=("missing", "unicode")),
    Row("doctor", "FILE", "doctor PATH"),
    Row("groups make", "RUN", "groups make PATH --source returns --out @new"),
    Row("groups make", "--data", f"groups make {RUN} --source returns --data PATH --out @new"),
    Row("groups make", "--critic", f"groups make {RUN} --source critic --critic PATH --out @new"),
    Row("groups make", "--held-out", f"groups make {RUN} --source critic --critic {Q} --held-out PATH --out @new"),
    out(
        "groups make",
        "--out",
        f"groups make {RUN} {GROUPS} --out PATH",
        right=(),
        skip=NEW,
    ),
    Row("groups picture", "RUN", "groups picture PATH"),
    out("groups picture", "--out", f"groups picture {RUN} --out PATH", skip=ONLY_OVERWRITES),
    Row("resume", "RUN", "resume PATH"),
    Row("resume", "--data.path", f"resume {RUN} --data.path PATH"),
    Row("resume", "COMPANY", f"resume {RUN} PATH"),
    Row("eval", "RUN", "eval PATH --episodes 1"),
    Row("eval", "--plan", f"eval {RUN} --plan PATH"),
    out("eval", "--json", f"eval {RUN} --episodes 1 --seed 1 --json PATH", right=("missing",), skip=("unicode",)),
    Row("compare", "RUN-A", f"compare PATH {RUN}"),
    Row("compare", "RUN-B", f"compare {RUN} PATH"),
    Row("serve", "RUN", "serve PATH"),
    Row("serve", "--token-file", f"serve {RUN} --engine eager --token-file PATH"),
    Row("features", "RUN", "features PATH"),
    Row("features", "--data.path", f"features {RUN} --data.path PATH"),
    out("features", "--json", f"features {RUN} --json PATH", right=(), skip=NEW),
    out("features", "--figure", f"features {RUN} --figure PATH", right=(), skip=NEW),
    Row("report", "RUNS", "report PATH --out @new"),
    out("report", "--out", f"report {RUN} --out PATH", right=("missing", "unicode")),
    Row("push", "RUN", "push PATH ann/x"),
    out("pull", "--out", "pull ann/x --out PATH", right=(), skip=NEW),
    Row("card", "RUN", "card PATH --episodes 1"),
    Row("suite run", "--data", f"{SUITE} --data PATH --out @new"),
    out(
        "suite run", "--out", "suite run offline-rl --tasks door-human --arms fql --data @/folder --out PATH", right=()
    ),
    out("suite run", "--records", f"{SUITE} --data @/folder --out @new --records PATH", right=()),
    Row("suite run", "--peer-python", f"{SUITE} --data @/folder --out @new --peer fql=@/peer --peer-python PATH"),
    Row("suite run", "--peer", f"{SUITE} --data @/folder --out @new --peer fql=PATH"),
    Row("peer train", "--peer", f"peer train fql-cube-single --peer fql=PATH --data {DATA} --out @new"),
    Row("peer train", "--data", "peer train fql-toy --peer fql=@/peer --data PATH --out @new"),
    Row("peer train", "--peer-python", f"{PEER} --data {DATA} --out @new --peer-python PATH"),
    out("peer train", "--out", f"{PEER} --data {DATA} --out PATH", right=(), skip=NEW),
    Row("peer eval", "RUN", "peer eval PATH"),
    out("peer eval", "--json", f"peer eval {RUN} --json PATH", right=(), skip=NEW),
    out("sweep", "--out", "sweep fql-toy --over agent.alpha=1,2 --out PATH", right=(), skip=NEW),
    Row("suite table", "--records", "suite table offline-rl --records PATH"),
    out("suite table", "--picture", "suite table offline-rl --records @/folder --picture PATH", right=()),
    out("suite table", "--report", "suite table offline-rl --records @/folder --report PATH", right=()),
    Row("export", "RUN", "export PATH --to numpy --out @new"),
    out("export", "--out", f"export {RUN} --to numpy --out PATH", skip=("missing",)),
    out("demo", "--out", "demo --demonstrations 1 --episodes 1 --out PATH", skip=NEW),
    out("demo-image", "--out", "demo-image --demonstrations 1 --episodes 1 --out PATH", skip=NEW),
    Row("robot check", "RUN", "robot check PATH --no-connect"),
    Row("robot check", "--token-file", "robot check ws://127.0.0.1:1 --no-connect --token-file PATH"),
    Row("robot run", "RUN", "robot run PATH"),
    Row("robot run", "--token-file", "robot run ws://127.0.0.1:1 --token-file PATH"),
    out("robot run", "--out", f"robot run {FRANKA} --out PATH", skip=NEW),
    out("robot run", "--json", f"robot run {FRANKA} --json PATH", right=(), skip=NEW),
    out("robot record", "--out", "robot record --episodes 1 --out PATH", skip=NEW),
    Row("robot record", "--leader-token-file", f"{LEADER} --leader-token-file PATH"),
    Row("robot record", "--calibration", "robot record --out @new --teach leader --episodes 1 --calibration PATH"),
    Row("robot demos", "FOLDER", "robot demos list PATH"),
    Row("robot demos", "--out", "robot demos show @/folder 1 --out PATH"),
    Row("robot leader", "FILE", "robot leader PATH --listen 0.0.0.0:0"),
    Row(
        "robot leader",
        "--leader-token-file",
        "robot leader @new --leader-token-file PATH --wait 0.1 --listen 0.0.0.0:0",
    ),
    Row("robot replay", "FILE", "robot replay PATH"),
    Row("robot salvage", "FOLDER", "robot salvage PATH", right=("folder",)),
    Row("robot twin", "--venv", "robot twin --venv PATH"),
    out("lab", "--out", "lab --updates 1 --seeds 1 --out PATH", skip=NEW),
    Row("fit", "RUN", "fit PATH --nfe 2 --out @new"),
    out("fit", "--out", f"fit {RUN} --nfe 2 --out PATH", skip=("missing", "unicode", "folder")),
    Row("distill", "RUN", "distill PATH --out @new"),
    out("distill", "--out", f"distill {RUN} --steps 1 --out PATH", skip=NEW),
    Row("cite", "RUN", "cite PATH"),
    Row("bench update", "--peer-path", "bench update fql-toy --peer fql --peer-path PATH --rounds 1"),
    Row("bench update", "--peer-python", "bench update fql-toy --peer fql --peer-path @/peer --peer-python PATH"),
    out("bench update", "--json", "bench update --json PATH", **JSON),
    Row("bench latency", "RUN", "bench latency PATH --calls 1 --rounds 1"),
    Row("bench latency", "--peer-python", f"bench latency {RUN} --engines eager --calls 1 --peer-python PATH"),
    out("bench latency", "--json", f"bench latency {RUN} --json PATH", **JSON),
    out("bench latency", "--picture", f"bench latency {RUN} --picture PATH", **JSON),
    out("bench render", "--json", "bench render --json PATH", **JSON),
    out("bench data", "--json", "bench data --json PATH", **JSON),
    Row("bench serve", "RUN", "bench serve PATH --seconds 1"),
    Row("bench serve", "--before", f"bench serve {RUN} --seconds 1 --before PATH"),
    out("bench serve", "--json", f"bench serve {RUN} --json PATH", **JSON),
    out("bench rows", "--json", "bench rows --json PATH", **JSON),
    out("bench rollout", "--json", "bench rollout --json PATH", **JSON),
    out("bench startup", "--json", "bench startup --json PATH", **JSON),
    out("bench device", "--json", "bench device --device cpu --small --only facts --json PATH", **JSON),
    out("bench seams", "--json", "bench seams --json PATH", **JSON),
    out("bench bridge", "--json", "bench bridge --json PATH", **JSON),
)
NO_PATHS = {
    ("train", "--data.filter-key"),
    ("train", "--dataset"),
    ("online", "--data.filter-key"),
    ("online", "--dataset"),
    ("features", "--data.filter-key"),
    ("features", "--object"),
    ("data download", "--sha256"),
    ("data download", "NAME"),
    ("data make", "--cameras"),
    ("data filter", "--filter-key"),
    ("doctor", "--env"),
    ("robot run", "--engine"),
}
"""Text whose help speaks of files."""


def test_every_path_that_a_command_takes_has_a_row():
    taken = set()
    for command in commands():
        for name, option in options(command).items():
            speaks = re.search(r"\b(file|folder|picture|path|run|checkout|python)\b", option.help, re.IGNORECASE)
            if "PATH" in option.takes or ("STR" in option.takes and speaks):
                taken.add((command, name))
    assert taken - NO_PATHS - {(row.command, row.option) for row in ROWS} == set()


@pytest.fixture
def paths(tmp_path, good):
    """Kind -> a wrong path of that kind, all of them new."""
    home = tmp_path / "wrong"
    (home / "folder").mkdir(parents=True)
    (home / "text").write_text("hello")
    (home / "empty").write_bytes(b"")
    content = (good / "data.hdf5").read_bytes()
    (home / "truncated").write_bytes(content[: len(content) // 2])
    with (home / "huge").open("wb") as sparse:
        sparse.truncate(1 << 30)
    named = {name: home / name for name in ("missing", "folder", "text", "empty", "truncated", "huge", "busy")}
    odd = {"unicode": home / "Dätä 数据 'q' [1]", "long": home / ("x" * 5000), "below a file": home / "text" / "x"}
    with h5py.File(home / "busy", "w") as file:
        file["data/demo_0/actions"] = np.zeros((2, 2))
        file.flush()
        yield named | odd | {"read-only": "/sys/flowpolicy"}


def content(folder):
    """Hash of every file below a folder; of a sparse one its size. Locks come and go."""
    return {
        path: path.stat().st_size if path.name == "huge" else hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.command} {row.option}")
def test_a_wrong_path_ends_in_words(row, good, paths, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ended = signal.getsignal(signal.SIGTERM)  # robot twin sets it
    faults = []
    for kind in row.kinds:
        new = tmp_path / "new" / kind.replace(" ", "_")
        before = content(good) | content(tmp_path)
        words = [
            word.replace("PATH", str(paths[kind])).replace("@new", str(new)).replace("@", str(good))
            for word in row.words.split()
        ]
        start = time.monotonic()
        try:
            code = run(words)
        except Exception as error:
            code = f"{type(error).__name__}: {error}"
        told, after = capsys.readouterr(), content(good) | content(tmp_path)
        if code not in ((0, 2) if kind in row.right else (2,)) or (code == 2 and "error:" not in told.err):
            faults.append((kind, code, told.err[-300:], told.out[-300:]))
        if time.monotonic() - start > 60:
            faults.append((kind, "took more than 60 s"))
        if changed := [path for path, found in before.items() if after.get(path) != found]:
            faults.append((kind, "changed", changed))
        if code == 2 and (made := [path for path in after if path not in before]):
            faults.append((kind, "left behind", made))
    signal.signal(signal.SIGTERM, ended)
    assert not faults


def test_a_port_in_use_and_a_run_in_work_are_told(good, tmp_path, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert run(["serve", f"{good}/run", "--engine", "eager", "--port", str(taken.getsockname()[1])]) == 2
    assert "--port" in capsys.readouterr().err
    with held_alone(tmp_path / "run", "somebody"), contextlib.chdir(tmp_path):
        assert run(["train", "debug", "--data.path", f"{good}/data.hdf5", "--steps", "1", "--out", "run"]) == 2
    assert "somebody" in capsys.readouterr().err


def test_what_means_nothing_is_said_or_refused(good, tmp_path, capsys):
    assert run(["compare", f"{good}/run", f"{good}/run"]) == 0
    assert "is compared with itself" in capsys.readouterr().err
    twice = "--data.obs-keys position position"
    assert run(f"train debug {FEW} --data.path {good}/data.hdf5 {twice} --out {tmp_path}/new".split()) == 2
    assert "names 'position' twice" in capsys.readouterr().err
