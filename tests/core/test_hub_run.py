"""Runs that go to the hub and come back: the same, whole or absent, and one sentence for whatever is wrong."""

import json
import shutil
from pathlib import Path

import pytest

import flowpolicy as fp
from flowpolicy.cli import main
from flowpolicy.core import checkpoint
from flowpolicy.core.errors import FlowPolicyError
from flowpolicy.core.hub_run import LISTING, fetch_run, hub_name
from flowpolicy.core.run_places import local_run
from flowpolicy.envs.demonstrators import make_demonstrations

from ..hub_server import hub  # noqa: F401

pytest.importorskip("huggingface_hub", reason="the extra 'hub'")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with a record, its film and its trace, and what does not belong on a hub."""
    home = tmp_path_factory.mktemp("trained")
    make_demonstrations("toy", home / "toy.hdf5", episodes=5, seed=0, quality="expert", workers=1)
    few = {"batch_size": 8, "compile": "off", "tensorboard": False, "agent": {"net": {"width": 8}}}
    run = fp.train("debug", data=home / "toy.hdf5", steps=2, out=home / "run", progress=False, **few)
    fp.evaluate(run, episodes=2, progress=False)
    (record,) = (run.path / "eval").iterdir()
    for name in (f"episode_0000-{record.stem}_failure", "episode_0000-of-another_success"):
        for suffix in (".mp4", ".json"):
            (run.path / "videos").mkdir(exist_ok=True)
            (run.path / "videos" / name).with_suffix(suffix).write_bytes(b"film")
    (run.path / "notes.pkl").write_bytes(b"mine")
    return run.path


def told(words, capsys):
    """Exit code and output of a command."""
    with pytest.raises(SystemExit) as end:
        main(words)
    said = capsys.readouterr()
    return end.value.code, said.out + said.err


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def pushed(hub, trained, capsys):  # noqa: F811
    code, said = told(["push", str(trained), "hf://ann/toy", "--license", "mit", "--private"], capsys)
    assert code == 0 and "hf://ann/toy@" in said, said
    return hub


def test_a_run_comes_back_as_it_went(pushed, trained, tmp_path, capsys):
    there, home = pushed.newest("ann/toy"), files(trained)
    assert pushed.private == {"ann/toy"} and not any("another" in name or name.endswith("pkl") for name in there)
    assert len([name for name in there if name.startswith("videos/")]) == 2
    code, said = told(["pull", "ann/toy", "--out", str(tmp_path / "mine")], capsys)
    assert code == 0, said
    back = files(tmp_path / "mine")
    assert {name for name in back if name not in home} == {LISTING, "README.md"}
    assert all(home[name] == content for name, content in back.items() if name in home)
    assert checkpoint.resolve(tmp_path / "mine").name == "step_00000002"
    assert told(["pull", "ann/toy", "--out", str(tmp_path / "mine")], capsys)[0] == 2  # stands there already

    result = fp.evaluate("hf://ann/toy", episodes=2, seed=1, progress=False)
    commit = pushed.repos["ann/toy"][-1][0]
    assert result.run == f"hf://ann/toy@{commit}"
    assert repr(fp.load_policy("hf://ann/toy").contract) == repr(fp.load_policy(trained).contract)
    fp.make_env("hf://ann/toy").close()
    pushed.broken = "."  # no hub any more: the commit lies here
    fetch_run.cache_clear()
    assert fp.Run.load(f"hf://ann/toy@{commit}").step == 2
    with pytest.raises(FlowPolicyError, match="pull ann/toy@"):
        fp.Run.load(f"hf://ann/toy@{commit}").resume()


def test_the_card_says_what_was_measured(pushed, trained):
    card = pushed.newest("ann/toy")["README.md"].decode()
    run = fp.Run.load(trained)
    (record,) = run.evaluations()
    yaml = pytest.importorskip("yaml")
    about = yaml.safe_load(card.split("---")[1])
    assert (about["library_name"], about["license"], about["metrics"][0]) == ("flowpolicy", "mit", "success_rate")
    metric = about["model-index"][0]["results"][0]["metrics"][0]
    assert metric["value"] == record.success.mean and metric["args"]["high"] == round(record.success.high, 6)
    assert "Made for flowpolicy/Toy" in card and "_failure.mp4" in card and run.identity.sha256 in card


def test_what_an_earlier_push_left_is_removed_and_nothing_of_others_is(pushed, trained, tmp_path, capsys):
    again = shutil.copytree(trained, tmp_path / "again")
    shutil.rmtree(again / "videos")
    assert told(["push", str(again), "ann/toy"], capsys)[0] == 0
    assert not any(name.startswith("videos/") for name in pushed.newest("ann/toy"))
    pushed.commit("ann/model", {"config.json": b"{}"})
    before = json.dumps(sorted(pushed.newest("ann/model")))
    code, said = told(["push", str(trained), "ann/model"], capsys)
    assert code == 2 and "holds something else, such as config.json" in said
    assert json.dumps(sorted(pushed.newest("ann/model"))) == before


def changed(there, name):
    return {**there, name: there[name] + b" "}


HOSTILE = {
    "a changed file": (lambda f: changed(f, "metrics.csv"), "metrics.csv with another content"),
    "changed weights": (lambda f: changed(f, WEIGHTS), "weights.safetensors with another content"),
    "a foreign repository": (lambda f: {"model.safetensors": b"", "README.md": b""}, f"no {LISTING}"),
    "no contract": (lambda f: {k: v for k, v in f.items() if "contract" not in k}, "no contract.json"),
    "no weights": (lambda f: {k: v for k, v in f.items() if k != WEIGHTS}, "no checkpoints/step_00000002/weights"),
    "a pickle": (lambda f: {**f, "policy.pkl": b"x"}, "the file 'policy.pkl'"),
    "a pickle in a checkpoint": (lambda f: {**f, WEIGHTS.replace("safetensors", "pt"): b""}, "weights.pt"),
    "a way out": (lambda f: {**f, "eval/../../x.json": b""}, "the file 'eval/../../x.json'"),
    "one more record": (lambda f: {**f, "eval/x.json": b"{}"}, "eval/x.json, which"),
    "no list": (lambda f: {**f, LISTING: b'{"files": 3}'}, "lists no files"),
    "no JSON": (lambda f: {**f, LISTING: b"<html>"}, "not valid JSON"),
}
WEIGHTS = "checkpoints/step_00000002/weights.safetensors"


def test_what_is_no_whole_run_ends_in_one_sentence_and_leaves_nothing(pushed, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    good = pushed.newest("ann/toy")
    faults = []
    for number, (what, (damage, sentence)) in enumerate(HOSTILE.items()):
        pushed.commit(f"eve/run{number}", damage(good))
        for words in (["pull", f"eve/run{number}", "--out", "new"], ["eval", f"hf://eve/run{number}"]):
            code, said = told(words, capsys)
            if code != 2 or sentence not in said:
                faults.append((what, words, said))
    left = [path for path in tmp_path.rglob("*") if path.is_file() and path.name not in (".lock", "fontlist.json")]
    assert not faults and not [path for path in left if "eve" in str(path) or "new" in path.parts]


def test_a_hub_that_does_not_answer_or_refuses_is_told(pushed, trained, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told_of = {
        "pull ann/other": "is not there, or not for this login",
        "pull ann/toy@v7": "has no revision 'v7'",
        "pull ann/toy@../x": "names no run of the hub",
        "pull hf://datasets/ann/lift": "is a data set of the hub",
        "pull ann": "names no run of the hub",
        f"push {trained} ann/toy@v1": "its branch main",
        f"push {trained} ann/toy --license MIT!": "an identifier such as mit",
        f"push {trained}/nothing ann/toy": "holds no checkpoint",
        f"push {trained}/checkpoints ann/toy": "holds no checkpoint",
        f"train debug --data.path {trained.parent}/toy.hdf5 --out hf://ann/toy": "flowpolicy push RUN",
    }
    for words, sentence in told_of.items():
        code, said = told(words.split(), capsys)
        assert code == 2 and sentence in said, (words, said)
    commits = len(pushed.repos["ann/toy"])
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)  # between its attempts
    for broken, token, words, sentence in (
        ("", "other", ["pull", "ann/toy"], "log in with a token: HF_TOKEN"),
        ("", "other", ["push", str(trained), "ann/new"], "a token that may write"),
        ("/resolve/.*weights", "", ["pull", "ann/toy"], "cannot be fetched"),
        ("/commit/", "", ["push", str(trained), "ann/toy"], "cannot be sent"),
    ):
        pushed.broken, pushed.token = broken, token
        code, said = told(words, capsys)
        assert code == 2 and sentence in said, (words, said)
    assert len(pushed.repos["ann/toy"]) == commits and "ann/new" not in pushed.repos
    pushed.reach("http://127.0.0.1:9")  # where nobody listens
    code, said = told(["pull", "ann/toy"], capsys)
    assert code == 2 and "cannot be fetched" in said and "Traceback" not in said
    assert not list(tmp_path.glob("runs/*")) and not list(tmp_path.glob("runs/.*"))


def test_names():
    assert hub_name("hf:/a/b@v1/x").url == hub_name("a/b@v1/x").url == "hf://a/b@v1/x"
    assert local_run(Path("runs/x")) == Path("runs/x")
