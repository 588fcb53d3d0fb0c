"""What errors advise can be followed: commands and flags exist where they are told, and remedies are run to the end."""

import ast
import fnmatch
import inspect
import re
import shutil
from pathlib import Path

import pytest

from flowpolicy.cli import COMMANDS

from .conftest import FEW, GROUPS, run
from .parsers import commands, functions, options

ROOT = Path(__file__).parents[2]
ROOMS = ("flowpolicy", "agents", "envs", "configs", "real_robot")
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*(?:\.[a-z][a-z0-9-]*)*")
COMMAND = re.compile(r"flowpolicy ([a-z]+)(?: ([a-z]+))?(?![a-z]*=)")
PROSE = ("version", "in", "of", "itself", "error", "was", "is", "knows", "says", "yields", "wrote")
"""Words behind 'flowpolicy' that are no command."""
FOREIGN = {
    "--force-reinstall",
    "--index-url",
    "--user",
    "--query-gpu",
    "--format",
    "--no-deps",
    "--target",
    "--local-dir",
    "--nproc-per-node",
}
"""Flags of other programs."""
TOLD = {
    "flowpolicy/commands/flow_flags.py": ("train",),
    "flowpolicy/commands/robot": ("robot *",),
    "flowpolicy/bench/": ("bench *", "serve"),
    "flowpolicy/lab/lift_demo.py": ("demo",),
    "flowpolicy/lab/ray_": ("suite run", "sweep"),
    "flowpolicy/lab/slurm_place.py": ("suite run",),
    "flowpolicy/lab/development_sweep.py": ("sweep", "train"),
    "flowpolicy/lab/suite_jobs.py": ("suite run", "train", "eval", "data make"),
    "flowpolicy/lab/peer_run.py": ("peer train", "train"),
    "flowpolicy/lab/": ("lab",),
    "flowpolicy/serve/protocol.py": ("train",),
    "flowpolicy/serve/": ("serve",),
    "flowpolicy/evaluate/evaluation.py": ("eval",),
    "flowpolicy/evaluate/report.py": ("eval",),
    "flowpolicy/evaluate/features_of_run.py": ("features",),
    "flowpolicy/train/group_sources.py": ("groups make", "train"),
    "flowpolicy/train/post_training_figure.py": ("groups picture",),
    "flowpolicy/policy/engines/numpy_graph.py": ("export", "serve"),
    "flowpolicy/policy/engines/compiled.py": ("serve", "robot run", "eval"),
    "flowpolicy/policy/exporting.py": ("export",),
    "flowpolicy/evaluate/video_strip.py": ("eval",),
    "flowpolicy/core/spec.py": ("eval",),
    "flowpolicy/policy/engines/": ("export",),
    "flowpolicy/policy/graph.py": ("serve", "robot run"),
    "flowpolicy/policy/": ("train",),
    "flowpolicy/data/download.py": ("data download",),
    "flowpolicy/data/lerobot_writer.py": ("data convert",),
    "flowpolicy/data/hub.py": ("data download", "train"),
    "flowpolicy/data/remote_data.py": ("data download",),
    "flowpolicy/data/zarr_recording.py": ("train",),
    "flowpolicy/data/episode_writers.py": ("data convert",),
    "flowpolicy/data/conversion.py": ("data convert",),
    "flowpolicy/data/episode_edits.py": ("data edit", "data filter", "data split"),
    "flowpolicy/report/dataset_pages.py": ("data view",),
    "flowpolicy/report/": ("report",),
    "flowpolicy/core/devices.py": ("train",),
    "flowpolicy/core/errors.py": ("train", "serve"),
    "flowpolicy/core/files.py": ("data make", "train"),
    "agents/students/": ("distill", "train"),
    "agents/groups/": ("groups make", "train"),
    "envs/labelling.py": ("groups make",),
    "envs/rendered_data.py": ("data render", "data make", "data observe"),
    "envs/behaviours.py": ("data rollouts",),
    "envs/": ("doctor", "train"),
    "real_robot/session/check.py": ("train",),
    "real_robot/": ("robot *",),
    "flowpolicy/": ("train",),
    "agents/": ("train",),
}
"""Beginning of a file's path -> commands in which its errors are told, or that its advice is about; the first one that
fits. A command's own function answers for that command alone."""


def texts():
    """(path, enclosing function, line, text) of every text that is no docstring; {} stands for what is filled in."""
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            yield from _texts(tree, str(path.relative_to(ROOT)), "")


def _texts(node, path, function):
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):
            continue  # a docstring
        if isinstance(child, ast.JoinedStr):
            parts = [str(part.value) if isinstance(part, ast.Constant) else "{}" for part in child.values]
            yield path, function, child.lineno, "".join(parts)
        elif isinstance(child, ast.Constant) and isinstance(child.value, str):
            yield path, function, child.lineno, child.value
        else:
            inner = child.name if isinstance(child, ast.FunctionDef) else function
            yield from _texts(child, path, inner)


def told_for(path, function):
    """The commands whose user reads a text."""
    own = {
        name
        for name, each in functions().items()
        if inspect.unwrap(each).__name__ == function and Path(inspect.getfile(each)) == ROOT / path
    }
    if own:
        return own
    module = path.removeprefix("flowpolicy/commands/").removesuffix(".py")
    if mine := {name for name in commands() if COMMANDS[name.split()[0]][0] == module}:
        return mine
    patterns = next((each for beginning, each in TOLD.items() if path.startswith(beginning)), ())
    return {name for pattern in patterns for name in fnmatch.filter(commands(), pattern)}


def named_commands(text):
    """(command, where its words end) for every command line in a text."""
    known = set(commands())
    for found in COMMAND.finditer(text):
        first, second = found.groups()
        if first in PROSE:
            continue
        pair = f"{first} {second}"
        name = pair if pair in known else first
        yield name, found.start(), found.end()


def test_every_command_that_a_text_names_exists():
    known, wrong = {*commands(), *(name.split()[0] for name in commands())}, []
    for path, _, line, text in texts():
        for name, _, _ in named_commands(text):
            if name not in known:
                wrong.append(f"{path}:{line}: flowpolicy {name}")
    assert not wrong


def meant(text, flag, path, function):
    """The commands that a flag in a text is for: named before it in the same part of the sentence, or where it is told.

    Args:
        text: the text.
        flag: match of the flag in it.
        path: file of the text.
        function: its function.

    """
    begin = max(text.rfind(end, 0, flag.start()) for end in (", ", "; ", "(", ". ")) + 1
    part = text[begin : flag.start()]
    if before := [name for name, start, _ in named_commands(text) if begin <= start < flag.start()]:
        return {full for full in commands() if before[-1] in (full, full.split()[0])}
    if re.search(r"\btrain(ed)?\b(?! for)", part) or "preset" in text[flag.end() : flag.end() + 16]:
        return {"train"}
    return told_for(path, function)


def test_every_flag_that_a_text_names_is_one_of_the_command_that_it_is_told_for():
    wrong, known = [], {flag for command in commands() for flag in options(command)}
    for path, function, line, text in texts():
        if " " not in text:  # a word for a program, not for a user
            continue
        for flag in FLAG.finditer(text):
            beginning = flag[0] not in known and any(each.startswith(f"{flag[0]}.") for each in known)
            if flag[0] in FOREIGN or beginning:  # of another program, or what several flags begin with
                continue
            names = meant(text, flag, path, function)
            taken = {"--version", "--help"}.union(*(options(name) for name in names))
            if not {flag[0], flag[0].replace("--no-", "--", 1)} & taken:
                wrong.append(f"{path}:{line}: {flag[0]} for {sorted(names)} in {text[:80]!r}")
    assert not wrong, "\n".join(wrong)


TRAIN = f"train debug {FEW} --data.path DATA --steps 2 --out NEW"
REMEDIES = (
    (f"train debug {FEW} --data.path DATA --steps 2 --out RUN", "flowpolicy resume", "resume RUN"),
    ("data make toy --episodes 1 --workers 1 --out DATA", "--overwrite", "data make toy --episodes 1 --workers 1 "
     "--out DATA --overwrite"),
    ("resume RUN --steps 9", "flowpolicy train PRESET --steps N --out OUT", TRAIN),
    ("card NONE", "flowpolicy train PRESET --out RUN", f"{TRAIN} | card NEW --episodes 1"),
    ("compare Q FRANKA", "flowpolicy eval", "eval Q --episodes 1 | eval RUN --episodes 1 | compare Q RUN"),
    ("train debug-gdro --steps 2", "flowpolicy groups make RUN --source critic|simulator|returns --out FILE",
     f"groups make RUN {GROUPS} --out FILE | train debug-gdro --base RUN --groups FILE --steps 2 --batch-size 4 "
     "--no-tensorboard --out NEW"),
    (f"groups make RUN {GROUPS} --candidates 16 --out FILE", "fewer --candidates", f"groups make RUN {GROUPS} --out "
     "FILE"),
    ("groups make RUN --source simulator --completion-noise 0 --states 8 --candidates 4 --out FILE", "--rollouts 1",
     "groups make RUN --source simulator --completion-noise 0 --states 8 --candidates 4 --rollouts 1 --workers 0 "
     "--out FILE"),
    ("train fql-toy --online.base Q", "flowpolicy online RUN", "online Q --steps 2 --no-tensorboard --out NEW"),
    ("train debug --flow.coupling table --data.path DATA", "flowpolicy distill RUN --method reflow",
     "distill RUN --method reflow --steps 2 --out NEW"),
    ("train debug --flow.solver olss --data.path DATA", "flowpolicy fit RUN --nfe 4",
     f"{TRAIN} --flow.solver euler | fit NEW --nfe 4 --samples 8"),
    ("train debug --flow.schedule boss --data.path DATA", "flowpolicy fit RUN --nfe 4 --what boss",
     f"{TRAIN} --flow.schedule uniform | fit NEW --nfe 4 --what boss --samples 8"),
    (f"{TRAIN} --flow.solver map", "--flow.consistency lsd", f"{TRAIN} --flow.solver map --flow.consistency lsd"),
    (f"{TRAIN} --flow.solver self", "--flow.target segment", f"{TRAIN} --flow.solver self --flow.target segment"),
    (f"{TRAIN} --flow.source laplace --flow.solver sde", "--flow.source normal",
     f"{TRAIN} --flow.source normal --flow.solver sde"),
    (f"{TRAIN} --agent.prefix 4 --agent.chunk 4", "--agent.chunk 12", f"{TRAIN} --agent.prefix 4 --agent.chunk 12"),
    (f"{TRAIN} --agent.chunk 24", "--data.short-episodes pad", f"{TRAIN} --agent.chunk 24 --data.short-episodes pad"),
    (f"{TRAIN} --agent.chunk 500", "choose a chunk of at most 25",
     f"{TRAIN} --agent.chunk 25 --data.short-episodes pad"),
    (f"{TRAIN} --data.reward-shift -1", "--data.reward-shift 0", f"{TRAIN} --data.reward-shift 0"),
    (f"{TRAIN} --device cuda:99", "leave --device out", TRAIN),
    ("train fql-toy --flow.solver euler", "flowpolicy train debug --flow.coupling c2ot",
     f"{TRAIN} --flow.coupling c2ot"),
    ("distill RUN --real 0.5 --steps 2 --out NEW", "--method improved-reflow",
     "distill RUN --real 0.5 --method improved-reflow --steps 2 --out NEW"),
    ("distill RUN --method refiner --nfe 1 --steps 2 --out NEW", "--nfe 2",
     "distill RUN --method refiner --nfe 2 --steps 2 --out NEW"),
    ("distill RUN --method slimflow --nfe 2 --steps 2 --out NEW", "--nfe 1",
     "distill RUN --method slimflow --nfe 1 --steps 2 --out NEW"),
    ("data info NONE", "flowpolicy data make", "data make toy --episodes 1 --workers 1 --out NONE | data info NONE"),
)  # fmt: skip
"""(situation, advice in its error, the advice with its placeholders filled; commands one after the other)."""


@pytest.mark.parametrize(("situation", "advice", "followed"), REMEDIES, ids=[row[1] for row in REMEDIES])
def test_advice_leads_out_of_the_situation(situation, advice, followed, good, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(good, tmp_path / "good")
    places = {"RUN": "good/run", "DATA": "good/data.hdf5", "Q": "good/q", "FRANKA": "good/franka"}
    places |= {"NEW": "new", "FILE": "file", "NONE": "none"}
    assert run([places.get(word, word) for word in situation.split()]) == 2
    told = capsys.readouterr().err
    assert advice in told.partition("\n")[2], told
    for line in followed.split(" | "):
        assert run([places.get(word, word) for word in line.split()]) == 0, (line, capsys.readouterr().err)


def test_data_that_were_moved_are_named_as_the_error_says(good, tmp_path, capsys):
    home = shutil.copytree(good, tmp_path / "good")
    moved = shutil.move(shutil.copy(home / "data.hdf5", tmp_path / "data.hdf5"), tmp_path / "moved.hdf5")
    words = f"train debug {FEW} --data.path {home}/data.hdf5 --steps 2 --out {tmp_path}/run"
    assert run(words.split()) == 0
    (home / "data.hdf5").unlink()
    assert run(["resume", f"{tmp_path}/run"]) == 2
    assert "say where it lies now: --data.path FILE" in capsys.readouterr().err
    assert run(["resume", f"{tmp_path}/run", "--data.path", str(moved)]) == 0
