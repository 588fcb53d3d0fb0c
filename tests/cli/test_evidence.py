"""An evaluation belongs to one checkpoint and one way of acting: no other takes its place, and no table mixes two."""

import json
import shutil

import pytest

from flowpolicy.cli import main
from flowpolicy.core import checkpoint
from flowpolicy.core.errors import ConfigError
from flowpolicy.core.files import sha256
from flowpolicy.lab.suite_jobs import SuiteJob, require_current

from ..conftest import write_demonstrations


def run(*words):
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    return stop.value.code


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with checkpoints at the steps 2 and 4."""
    folder = tmp_path_factory.mktemp("evidence") / "run"
    steps = ("--steps", 4, "--checkpoint-every", 2, "--keep-checkpoints", 0, "--no-compile", "--no-tensorboard")
    assert run("train", "debug", *steps, "--batch-size", 8, "--agent.net.width", 8, "--out", folder) == 0
    return folder


@pytest.fixture
def toy_run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


def records(folder):
    return {path.name: json.loads(path.read_text()) for path in (folder / "eval").glob("*.json")}


@pytest.mark.quick("command line")
def test_records_are_found_from_wherever_the_command_is_run(toy_run, monkeypatch, capsys):
    monkeypatch.chdir(toy_run / "checkpoints")
    assert run("eval", "step_00000002", "--episodes", 1) == 0
    monkeypatch.chdir(toy_run.parent)
    assert run("eval", "run", "--episodes", 1) == run("compare", "run", "run/checkpoints/step_00000002") == 0
    assert "outcomes run/eval/" in capsys.readouterr().out
    assert sorted(record["step"] for record in records(toy_run).values()) == [2, 4]


def test_no_evaluation_takes_the_place_of_another(toy_run):
    old = toy_run / "checkpoints" / "step_00000002"
    for words in ((toy_run,), (old,), (toy_run, "--seed", 1), (toy_run, "--nfe", 2), (toy_run, "--noise-scale", 0.5)):
        assert run("eval", *words, "--episodes", 2) == 0
    first = records(toy_run)
    assert sorted(record["step"] for record in first.values()) == [2, 4, 4, 4, 4]
    assert run("eval", old, "--episodes", 2) == 0
    assert records(toy_run).keys() == first.keys()  # the same again: the same file
    for record in first.values():
        folder = toy_run / "checkpoints" / f"step_{record['step']:08d}"
        assert record["checkpoint_sha256"] == checkpoint.fingerprint(folder)
        assert record["weights_sha256"] == sha256(folder / "ema.safetensors")
        assert record["training"]["dataset_sha256"] == sha256(toy_run / "toy.hdf5")


def test_only_a_record_of_the_same_evaluation_is_replaced_unasked(toy_run, capsys):
    record, note = toy_run / "record.json", toy_run / "note.json"
    note.write_text('{"mine": 1}')
    evaluation = ("eval", toy_run, "--episodes", 1, "--json")
    assert run(*evaluation, record) == run(*evaluation, record) == 0
    before = record.read_bytes()
    assert run(*evaluation, note) == run(*evaluation, record, "--seed", 1) == run(*evaluation, record, "--nfe", 2) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (note.read_text(), record.read_bytes()) == ('{"mine": 1}', before)
    assert run(*evaluation, note, "--overwrite") == 0 and json.loads(note.read_text())["step"] == 4


def test_a_measurement_replaces_no_file(tmp_path, capsys):
    note = tmp_path / "note.json"
    note.write_text("mine")
    assert run("bench", "seams", "--json", note) == 2
    assert "--overwrite" in capsys.readouterr().err and note.read_text() == "mine"


def test_compare_speaks_of_the_newest_checkpoint_or_says_that_it_cannot(toy_run, capsys):
    other = shutil.copytree(toy_run, toy_run.with_name("other"))
    old = toy_run / "checkpoints" / "step_00000002"
    assert run("eval", other, "--episodes", 2) == run("eval", old, "--episodes", 2) == 0
    assert run("compare", toy_run, other) == 2
    error = capsys.readouterr().err
    assert "of step 2" in error and "step_00000004 has none" in error and f"flowpolicy eval {toy_run}" in error
    assert run("eval", toy_run, "--episodes", 2) == run("eval", old, "--episodes", 2) == 0  # the old one last
    capsys.readouterr()
    assert run("compare", toy_run, other) == 0
    assert "run at step 4" in " ".join(capsys.readouterr().out.split())
    assert run("compare", old, other) == 0
    assert "step_00000002atstep2" in "".join(capsys.readouterr().out.split())  # a narrow table breaks words
    # Trained anew in the same folder, to the same step: what is written of the old weights is not about these.
    state = toy_run / "checkpoints" / "step_00000004" / "state.json"
    state.write_text(state.read_text().replace('"step": 4', '"step":  4'))
    manifest = json.loads((state.parent / "manifest.json").read_text()) | {"state.json": sha256(state)}
    (state.parent / "manifest.json").write_text(json.dumps(manifest))
    assert run("compare", toy_run, other) == 2
    assert "another training" in capsys.readouterr().err


def test_the_demo_refuses_what_it_could_not_be_about_before_it_works(toy_run, tmp_path, capsys):
    out = tmp_path / "demo"
    write_demonstrations(out / "lift.hdf5")
    (tmp_path / "file").write_text("mine")
    for words, message in (
        (("--out", tmp_path / "file"), "is a file"),
        (("--out", tmp_path / "file" / "below"), "is a file"),
        (("--out", out, "--episodes", 0), "--episodes is 0"),
        (("--out", out, "--episodes", 2_000_000), "a plan of 2000000 episodes"),
        (("--out", out, "--demonstrations", 50), "holds 3 demonstrations, and --demonstrations says 50"),
    ):
        assert run("demo", *words) == 2
        assert message in " ".join(capsys.readouterr().err.split())
    shutil.copytree(toy_run, out / "dm1")
    for way in ((), ("--compare",)):
        assert run("demo", "--out", out, "--demonstrations", 3, *way) == 2
        assert "dm1 was trained otherwise than this demo does" in " ".join(capsys.readouterr().err.split())


def test_a_card_is_of_one_checkpoint_and_one_plan(toy_run):
    def card():
        return json.loads((toy_run / "card" / "card.json").read_text())["card"]

    small = ("--delay", "--delays-ms", 200)
    assert run("card", toy_run, "--episodes", 1, *small) == 0
    first = card()
    assert run("card", toy_run / "checkpoints" / "step_00000002", "--episodes", 1) == 0
    assert card() == first and not (toy_run / "checkpoints" / "step_00000002" / "card").exists()
    assert run("card", toy_run, "--episodes", 2) == 0
    assert card() != first and not (toy_run / "card" / "delay.png").exists()  # of one episode: not beside a card of two
    assert (toy_run / "card" / first / "delay.png").exists()
    steps = [json.loads(path.read_text())["step"] for path in (toy_run / "card").glob("**/nfe_1.json")]
    assert sorted(steps) == [2, 4, 4]
    record = json.loads((toy_run / "card" / first / "delay.json").read_text())
    assert record["checkpoint_sha256"] == checkpoint.fingerprint(toy_run / "checkpoints" / "step_00000004")


def test_a_suite_does_not_take_the_record_of_a_run_that_has_gone_on(toy_run):
    record = toy_run.parent / "debug-seed0.json"
    job = SuiteJob("toy", "debug", 0, toy_run, record, (), (), ())
    assert run("eval", toy_run, "--episodes", 1, "--json", record) == 0
    require_current([job])
    (toy_run / "checkpoints" / "LATEST").write_text("step_00000002\n")
    with pytest.raises(ConfigError, match="another checkpoint than step_00000002"):
        require_current([job])


def test_two_rows_of_the_laboratory_have_two_names(tmp_path, capsys):
    assert run("lab", "A: lr=0.001", "A: lr=0.002", "--out", tmp_path / "lab") == 2
    assert "two rows are named 'A'" in capsys.readouterr().err


def test_videos_belong_to_their_evaluation(toy_run):
    pytest.importorskip("imageio_ffmpeg")
    for words in (("--video", 2), ("--seed", 1, "--video", 2), ("--video", 1)):
        assert run("eval", toy_run, "--episodes", 2, *words) == 0
    names, traces = ([path.name for path in (toy_run / "videos").glob(f"*.{kind}")] for kind in ("mp4", "json"))
    assert {name.removesuffix(".json") for name in traces} == {name.removesuffix(".mp4") for name in names}
    counts = [sum(name.removesuffix(".json") in video for video in names) for name in records(toy_run)]
    assert sorted(counts) == [1, 2] and len(names) == 3  # the second time one video, in place of its two
