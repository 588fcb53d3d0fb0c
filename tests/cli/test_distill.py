"""``flowpolicy distill`` as a user meets it: every method, resume, eval, cite, and errors with code 2."""

import pytest

from flowpolicy.agents.students.distillation import METHODS, Order
from flowpolicy.commands import distill
from flowpolicy.core.checkpoint import resolve
from flowpolicy.core.config import decode
from flowpolicy.core.files import read_json
from flowpolicy.envs import find_env
from flowpolicy.train.derive import student
from flowpolicy.train.kinds import KINDS
from flowpolicy.train.loop import Trainer
from flowpolicy.train.run import Run

from .test_flow_flags import QUICK, flowpolicy

SHORT = ["--steps", 6, "--teacher-nfe", 4, "--nfe", 2]


def test_the_help_explains_the_methods_that_there_are_and_others_are_refused(trained, capsys):
    assert [name for name in METHODS if f"'{name}'" not in distill.distill.__doc__] == []
    assert flowpolicy("distill", trained, "--method", "reflov") == 2
    assert "did you mean 'reflow'" in capsys.readouterr().err


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distill")
    assert flowpolicy("train", "debug", *QUICK, "--out", folder / "run") == 0
    return folder / "run"


def test_methods_train_eval_and_cite(trained, capsys):
    cited = {"slimflow": "2407.12718", "boss": "2312.16414", "refiner": "2409.18128", "arcflow": "ArcFlow"}
    for name, paper in cited.items():
        words = [*SHORT[:-1], 1] if name == "slimflow" else SHORT
        out = trained.with_name(name)
        assert flowpolicy("distill", trained, "--method", name, *words, "--width", 16, "--out", out) == 0
        assert flowpolicy("eval", out, "--episodes", 1, "--json", trained.with_name(f"{name}.json")) == 0
        assert read_json(trained.with_name(f"{name}.json"))["nfe"] == words[-1]
        capsys.readouterr()
        assert flowpolicy("cite", out) == 0
        assert paper in capsys.readouterr().out
    # A student of one evaluation has no flow that could teach.
    assert flowpolicy("distill", trained.with_name("slimflow"), "--method", "reflow") == 2
    assert "distil the run that it was distilled from" in capsys.readouterr().err


def test_a_distillation_that_was_killed_goes_on_bit_for_bit(trained, tmp_path):
    """The second phase of backward simulation trains two networks and draws from both."""
    for name in ("whole", "broken"):
        order = Order(nfe=1, teacher_nfe=4, width=16, depth=2, lr=1e-3)
        experiment = student(Run.load(trained), "backward-simulation", order, steps=8, seed=3)
        run = tmp_path / name
        trainer = Trainer(experiment, run, find_env("toy").spec())
        if name == "whole":
            trainer.train()
            continue
        with trainer.keeping() as keep:
            for _ in range(6):
                keep(*trainer._update())
        trainer.save()
        assert flowpolicy("resume", run) == 0
    whole, broken = resolve(tmp_path / "whole"), resolve(tmp_path / "broken")
    for path in sorted(whole.glob("*.safetensors")):
        assert path.read_bytes() == (broken / path.name).read_bytes(), path.name
    stored = read_json(broken / "config.json")["experiment"]
    assert decode(stored, KINDS).agent.teacher_weights


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["--method", "slimflow", "--nfe", 4], "--nfe 1"),
        (["--method", "refiner"], "--nfe 2"),
        (["--method", "boss", "--nfe", 9, "--teacher-nfe", 4], "between 1 and 4"),
        (["--method", "reflow", "--real", 0.5], "improved-reflow"),
        (["--method", "improved-reflow", "--real", 0.5, "--inversion", "midpoint", "--teacher-nfe", 3], "midpoint"),
    ],
)
def test_orders_that_do_not_fit_end_with_2_and_leave_nothing(words, hint, trained, tmp_path, capsys):
    assert flowpolicy("distill", trained, *words, "--out", tmp_path / "student") == 2
    error = capsys.readouterr().err
    assert hint in error and "Traceback" not in error
    assert not (tmp_path / "student").exists()
