import sys
import types

import pytest

from flowpolicy.configs.suites import SUITES
from flowpolicy.core.errors import ConfigError, DataError, FlowPolicyError, MissingExtraError
from flowpolicy.core.files import sha256
from flowpolicy.lab import ray_pieces, ray_place
from flowpolicy.lab.ray_cluster import ray_cluster, require_address
from flowpolicy.lab.ray_pieces import Outbox, Unpacking, cached, pieces_of
from flowpolicy.lab.suite_jobs import job_from, plan_jobs


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    monkeypatch.setattr(ray_pieces, "PIECE", 4)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def a_run(folder, *steps):
    """A folder that looks like a run with these checkpoints."""
    for step in steps:
        place = folder / "checkpoints" / step
        place.mkdir(parents=True, exist_ok=True)
        (place / "weights").write_text(f"weights of {step}")
        (folder / "checkpoints" / "LATEST").write_text(f"{step}\n")
    (folder / "metrics.csv").write_text("step,loss\n" * len(steps))
    (folder / ".lock").write_text("somebody")


def files(folder):
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def test_a_file_of_any_size_arrives_whole(tmp_path):
    for size in (0, 1, 4, 5, 8, 11):
        (tmp_path / "from").write_bytes(b"x" * size)
        unpacking = Unpacking(lambda path: True)
        for piece in pieces_of(tmp_path / "from", str(tmp_path / "to")):
            assert not (tmp_path / "to").exists() or size != len((tmp_path / "to").read_bytes())
            unpacking.take(piece)
        assert (tmp_path / "to").read_bytes() == b"x" * size


def test_a_run_is_sent_at_every_checkpoint_and_is_resumable_there(tmp_path):
    near, far, sent = tmp_path / "node" / "a-seed0", tmp_path / "home" / "a-seed0", []
    record, log = near.parent / "record.json", near.with_suffix(".log")
    names = {str(near): str(far), str(log): str(far.with_suffix(".log")), str(record): str(far.parent / "record.json")}
    outbox, unpacking = (
        Outbox(sent.append, names, near, record),
        Unpacking(lambda path: path.is_relative_to(far.parent)),
    )
    a_run(near, "step_1")
    log.write_text("a log")
    outbox.send()
    for piece in sent:  # LATEST only moves when all that it names is there
        unpacking.take(piece)
        if (far / "checkpoints" / "LATEST").exists():
            assert (far / "checkpoints/step_1/weights").read_text() == "weights of step_1"
    assert files(far) == files(near) and far.with_suffix(".log").read_text() == "a log"
    sent.clear()
    a_run(near, "step_2")
    (near / "checkpoints/step_1/weights").unlink()
    (near / "checkpoints/step_1").rmdir()
    record.write_text("done")
    outbox.send()
    assert not any("step_1" in piece["path"] for piece in sent)
    assert sent[-1]["path"] == str(far.parent / "record.json")  # a record is never there before its run
    for piece in sent:
        unpacking.take(piece)
    assert files(far) == files(near) and (far.parent / "record.json").read_text() == "done"
    sent.clear()
    outbox.send()
    assert [piece["keep"] for piece in sent] == [["step_2", "step_2"]]


def test_what_a_dead_node_had_begun_is_dropped(tmp_path):
    (tmp_path / "from").write_text("old content")
    unpacking = Unpacking(lambda path: True)
    first, second, *_ = pieces_of(tmp_path / "from", str(tmp_path / "run" / "file"))
    unpacking.take(first)
    unpacking.forget(tmp_path / "run")
    unpacking.take(second)
    assert not list((tmp_path / "run").iterdir())


def test_a_node_writes_nowhere_else(tmp_path):
    (tmp_path / "from").write_text("x")
    unpacking = Unpacking(lambda path: path.is_relative_to(tmp_path / "run"))
    for piece in pieces_of(tmp_path / "from", str(tmp_path / "other")):
        with pytest.raises(DataError, match="belongs to no run"):
            unpacking.take(piece)


def test_a_training_file_is_fetched_once_and_checked(tmp_path):
    (tmp_path / "toy.hdf5").write_text("some content")
    sha, fetched = sha256(tmp_path / "toy.hdf5"), []

    def get():
        fetched.append(1)
        return pieces_of(tmp_path / "toy.hdf5")

    assert cached("toy.hdf5", sha, None) is None
    place = cached("toy.hdf5", sha, get)
    assert place.read_text() == "some content" and place.name == "toy.hdf5"
    assert cached("toy.hdf5", sha, None) == cached("toy.hdf5", sha, get) == place and len(fetched) == 1
    with pytest.raises(DataError, match="arrived with"):
        cached("toy.hdf5", "0" * 64, get)
    assert cached("toy.hdf5", "0" * 64, None) is None


def test_a_run_folder_travels_to_a_node_with_its_newest_checkpoint_alone(tmp_path):
    a_run(tmp_path / "home", "step_1", "step_2")
    a_run(tmp_path / "node", "step_9")
    pieces = list(ray_place._needed(str(tmp_path / "home")))
    ray_place._restore(tmp_path / "node", str(tmp_path / "home"), lambda: iter(pieces))
    there = files(tmp_path / "home")
    del there["checkpoints/step_1/weights"]
    assert files(tmp_path / "node") == there
    ray_place._restore(tmp_path / "node", str(tmp_path / "home"), None)
    assert not (tmp_path / "node").exists()


def test_a_job_travels_as_json_and_moves_to_other_paths(tmp_path):
    job = plan_jobs(SUITES["debug"], tmp_path / "data", tmp_path / "out", tmp_path / "records")[0]
    assert job_from(job.to_json()) == job
    moved = job.elsewhere(
        {str(job.run): "/node/toy/fql-seed0", job.data: "/cache/toy.hdf5", str(job.record): "/r.json"}
    )
    assert not [word for word in (*moved.train, *moved.evaluate, *moved.together) if str(tmp_path) in word]
    assert moved.together[-1] == "/node/toy/fql" and moved.log.name == "fql-seed0.log"


def test_a_suites_folder_is_known_by_its_mark(tmp_path):
    mark = ray_place._mark(tmp_path)
    assert mark == ray_place._mark(tmp_path)
    assert ray_place._sees({"out": str(tmp_path), "mark": mark})
    assert not ray_place._sees({"out": str(tmp_path / "elsewhere"), "mark": mark})
    assert not ray_place._sees({"out": str(tmp_path), "mark": "another"})


@pytest.mark.parametrize("word", ["rays", "ray://", "ray://host", "ray://:10001", "ray://host:port", "LOCAL", ""])
def test_places_that_do_not_exist_are_refused(word):
    with pytest.raises(ConfigError, match="--on"):
        require_address(word)
    assert require_address("ray") == "" and require_address("ray://h:1") == "ray://h:1"


def test_a_cluster_that_does_not_answer_is_told(monkeypatch):
    def init(*words, **more):
        raise ConnectionError("nobody there\nand so on")

    monkeypatch.setitem(sys.modules, "ray", types.SimpleNamespace(init=init, __version__="2"))
    with pytest.raises(FlowPolicyError, match="no Ray cluster answers at ray://h:1: nobody there"):
        ray_cluster("ray://h:1").__enter__()
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"flowpolicy\[ray\]"):
        ray_cluster("").__enter__()
