"""--flow flags, fit, distill and cite as a user meets them."""

import contextlib
import json

import pytest

from flowpolicy.agents.cloning.flow import Flow
from flowpolicy.cli import main
from flowpolicy.commands import train
from flowpolicy.commands.flow_flags import split_flow_flags
from flowpolicy.configs.presets import PRESETS
from flowpolicy.core.checkpoint import resolve
from flowpolicy.core.errors import ConfigError
from flowpolicy.core.files import read_json
from flowpolicy.flows.axes.refusals import IncompatibleSpecError

QUICK = ["--steps", "12", "--checkpoint-every", "12", "--no-tensorboard", "--batch-size", "32"]


def parse(preset, argv):
    description, experiment = PRESETS[preset]
    return train.parse(experiment, argv, f"train {preset}", description)


def flowpolicy(*words):
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    return end.value.code


@pytest.mark.parametrize(
    ("flags", "expected", "nfe"),
    [
        ("--flow.coupling c2ot --flow.time u-shape", {"coupling": "c2ot", "time": "u-shape"}, 10),
        (
            "--flow.interpolant trig --flow.target data --flow.solver ddim",
            {"interpolant": "trig", "target": "data", "solver": "ddim"},
            10,
        ),
        ("--flow.source=student-t", {"source": "student-t"}, 10),
        ("--flow.consistency lsd --flow.solver map", {"consistency": "lsd", "solver": "map"}, 1),
        ("--flow.guidance cfg", {"guidance": "cfg"}, 20),
        ("--flow.solver plan", {"solver": "plan"}, 6),
    ],
)
def test_flags_turn_the_preset_into_a_point_on_the_axes(flags, expected, nfe):
    agent = parse("debug", flags.split()).agent
    assert isinstance(agent, Flow) and agent.nfe == nfe and agent.net.width == 64
    assert {axis: getattr(agent.flow, axis).name for axis in expected} == expected
    assert agent.flow.loss.name == "squared"


@pytest.mark.parametrize(
    ("flags", "nfe"),
    [
        ("--flow.guidance noise-opt --flow.guidance.iterations 2", 30),
        ("--flow.guidance best-of-n --flow.guidance.n 3 --flow.consistency lsd --flow.solver map", 3),
        ("--flow.guidance best-of-n --flow.guidance.n 3 --agent.nfe 6", 6),
        ("--flow.guidance compose --flow.guidance.keys position", 20),
        ("--flow.solver plan --flow.solver.letters HM", 4),
        ("--flow.target segment --flow.solver self", 2),
        ("--flow.interpolant bridge", 10),
    ],
)
def test_the_evaluations_follow_the_options(flags, nfe):
    assert parse("debug", flags.split()).agent.nfe == nfe


def test_options_of_a_picked_value_are_flags():
    agent = parse("debug", ["--flow.coupling", "c2ot", "--flow.coupling.weight", "3.5", "--agent.nfe", "4"]).agent
    assert agent.flow.coupling.weight == 3.5 and agent.nfe == 4
    legal = parse("debug", ["--flow.loss", "adaptive", "--flow.loss.power", "0"]).agent
    assert legal.flow.loss.power == 0.0


def test_without_a_flag_the_preset_is_what_it_was():
    assert type(parse("debug", []).agent).__name__ == "FlowBC"


def test_dm1_presets_keep_their_objective():
    agent = parse("dm1-lift", ["--flow.coupling", "c2ot"]).agent
    assert (agent.flow.consistency.name, agent.flow.solver.name, agent.nfe) == ("meanflow", "map", 1)
    assert agent.flow.time.share_endpoint == 0.3 and agent.dispersive.weight == 0.5


@pytest.mark.parametrize(
    ("flags", "suggestion"),
    [
        ("--flow.coupling c2ot --flow.coupling.weight 0", "weight 10"),
        ("--flow.coupling knn --flow.coupling.until 1", "until 0.3"),
        ("--flow.loss pseudo-huber", "reflow"),
        ("--flow.solver map", "--flow.consistency lsd"),
        ("--flow.interpolant latent --flow.consistency meanflow", "--flow.consistency lsd"),
        ("--flow.guidance gradient --flow.consistency lsd --flow.solver map", "noise-opt"),
        ("--flow.source student-t --flow.solver sde", "--flow.source normal"),
        ("--flow.target data --flow.target.floor 0", "floor 0.05"),
        ("--flow.target noise --agent.nfe 1", "--agent.nfe 4"),
        ("--flow.target segment --flow.solver ddim", "--flow.solver self"),
        ("--flow.solver olss", "flowpolicy fit"),
        ("--flow.guidance cfg --flow.consistency meanflow --flow.solver map", "--flow.guidance none"),
        ("--flow.guidance cfg --flow.guidance.dropout 0", "above 0 and below 1"),
        ("--flow.source warm-start --flow.coupling table", "--flow.source normal"),
        ("--agent.prefix 6 --flow.coupling c2ot", "--agent.chunk 14"),
        ("--flow.source student-t --flow.source.dof 2", "expected: above 2"),
        ("--flow.time shifted --flow.time.shift 0", "above 0"),
        ("--flow.time shifted --flow.time.reference 4096", "reference 56"),
        ("--flow.solver heun --flow.solver.last corrector --agent.nfe 2", "safe"),
        ("--flow.source mixed --flow.source.acting one", "zero or uniform"),
        ("--flow.consistency lsd --flow.consistency.clamp 0", "clamp 3"),
        ("--flow.guidance projection --flow.guidance.goal a[99]=0", "8 actions"),
        ("--flow.guidance projection --flow.guidance.goal a[0]=99", "range can meet"),
    ],
)
def test_refused_with_2_a_reason_and_a_suggestion(flags, suggestion, tmp_path, capsys):
    assert flowpolicy("train", "debug", *flags.split(), "--out", tmp_path / "run") == 2
    error = " ".join(capsys.readouterr().err.split())
    assert suggestion in error and ("fix: " in error or "expected: " in error) and "Traceback" not in error
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("flags", "hint"),
    [
        ("--flow.copling c2ot", "did you mean 'coupling'"),
        ("--flow.coupling c2to", "did you mean 'c2ot'"),
        ("--flow.coupling", "does not exist"),
    ],
)
def test_misspelt_flags_get_a_hint(flags, hint):
    with pytest.raises(ConfigError, match=hint):
        split_flow_flags(flags.split())


def test_agents_beside_the_axes_refuse_the_flags():
    with pytest.raises(ConfigError, match="points on the axes"):
        parse("fql-toy", ["--flow.coupling", "c2ot"])
    with pytest.raises(IncompatibleSpecError, match="conditional"):
        parse("debug", ["--flow.coupling", "c2ot", "--flow.coupling.weight", "0"])


def test_help_names_every_axis_and_value(capsys):
    with contextlib.suppress(SystemExit):
        parse("debug", ["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for word in ("--flow.coupling", "c2ot", "--flow.guidance", "pseudo-corrector", "u-shape"):
        assert word in shown


def test_train_fit_distill_and_cite(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert flowpolicy("train", "debug", "--flow.target", "data", *QUICK, "--out", "run") == 0
    assert flowpolicy("fit", "run", "--nfe", 2, "--samples", 64) == 0
    stored = read_json(resolve(tmp_path / "run-olss2") / "config.json")["policy"]["sampler"]["sampling"]
    assert stored["solver"]["class"] == "solver/olss" and len(stored["solver"]["coefficients"]) == 2
    assert flowpolicy("eval", "run-olss2", "--episodes", 2, "--json", "fitted.json") == 0
    assert json.loads((tmp_path / "fitted.json").read_text())["nfe"] == 2
    capsys.readouterr()
    assert flowpolicy("cite", "run-olss2") == 0
    cited = capsys.readouterr().out
    assert "target data: RiT" in cited and "2305.14677" in cited
    assert flowpolicy("fit", "run", "--nfe", 2, "--samples", 64) == 2  # it is there

    for method in ("annealed-reflow", "k-step"):
        words = ["--steps", 6, "--teacher-nfe", 2, "--nfe", 2, *(["--width", 16] if method[0] == "a" else [])]
        assert flowpolicy("distill", "run", "--method", method, *words) == 0
        assert flowpolicy("eval", f"run-{method}", "--episodes", 1) == 0
    agent = read_json(resolve(tmp_path / "run-k-step") / "config.json")["experiment"]["agent"]
    assert agent["flow"]["time"] == {"class": "time/grid", "steps": 2} and agent["nfe"] == 2
    assert agent["flow"]["coupling"]["class"] == "coupling/table"


@pytest.mark.parametrize(
    "flags",
    [
        ["--flow.interpolant", "bridge", "--agent.execute", "4"],
        ["--flow.source", "warm-start", "--flow.source.motion", "0.5", "--agent.history", "2", "--agent.execute", "4"],
        ["--flow.guidance", "compose", "--flow.guidance.keys", "position"],
        ["--flow.guidance", "projection", "--flow.guidance.goal", "sum a[:, 0] = 0", "--flow.guidance.samples", "3"],
        ["--flow.target", "segment", "--flow.solver", "self"],
    ],
    ids=["bridge", "warm-start", "compose", "projection", "segment"],
)
def test_train_and_roll_out(flags, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert flowpolicy("train", "debug", *flags, *QUICK, "--out", "run") == 0
    assert flowpolicy("eval", "run", "--episodes", 2, "--json", "found.json") == 0
    found = json.loads((tmp_path / "found.json").read_text())
    stored = read_json(resolve(tmp_path / "run") / "config.json")["experiment"]["agent"]
    assert found["nfe"] == stored["nfe"] == {"compose": 20, "projection": 30, "segment": 2}.get(flags[1], 10)
