"""Runs in an object store, against a real server: what is seen is whole, whatever breaks and whoever else writes."""

import json
import shutil
import threading

import pytest
import torch

from flowpolicy.core import checkpoint, files, run_upload
from flowpolicy.core.errors import CheckpointError, ConfigError, FlowPolicyError, StoreError, StoreWarning
from flowpolicy.core.object_store import find_address, place_name
from flowpolicy.core.remote_run import TakenOverError, begin, publish_remote, pull, snapshot_of, take_over
from flowpolicy.core.run_upload import uploading
from tests.object_store_server import bucket, store, wire  # noqa: F401


def made(home, step, value=None):
    """A published checkpoint of a run folder."""

    def write(folder):
        for name in checkpoint.ESSENTIAL:
            if name.endswith(".safetensors"):
                files.write_tensors(folder / name, {"x": torch.full((300,), float(value or step))})
            else:
                files.write_json(folder / name, {"value": value or step})
        files.write_json(folder / "state.json", {"step": step})

    (home / "metrics.csv").write_text(f"step,loss\n{step},1\n")
    return checkpoint.publish(home, step, write, keep=5)


def send(home, step, keep=5):
    with snapshot_of(home, made(home, step)) as snapshot:
        return publish_remote(home, snapshot, keep)


def seen(url, place, monkeypatch):
    """The checkpoint that another machine takes."""
    shutil.rmtree(place, ignore_errors=True)
    with monkeypatch.context() as other:
        other.setenv("XDG_CACHE_HOME", str(place))
        return checkpoint.resolve(files.Path(url))


@pytest.fixture
def url(bucket):  # noqa: F811
    return f"s3://{bucket}/runs/x"


def test_another_machine_takes_the_newest_and_what_lies_beside_it(url, tmp_path, monkeypatch):
    home = begin(url)
    for step in (10, 20, 30):
        send(home, step, keep=2)
    there = seen(url, tmp_path / "b", monkeypatch)
    assert there.name == "step_00000030" and there.is_relative_to(tmp_path / "b")
    assert checkpoint.fingerprint(there) == checkpoint.fingerprint(checkpoint.resolve(home))
    assert (checkpoint.run_of(there) / "metrics.csv").read_text() == "step,loss\n30,1\n"
    kept = {name.split("/")[4] for name in store().find(url) if "/checkpoints/" in name}
    assert sorted(name[9:22] for name in kept) == ["step_00000020"] * 2 + ["step_00000030"] * 2
    with pytest.raises(ConfigError, match=f"already holds a run\n.*flowpolicy resume {url}"):
        begin(url)


def _short(home):
    return checkpoint.fingerprint(checkpoint.resolve(home))[:12]


def test_a_server_that_dies_at_any_byte_never_shows_half_a_checkpoint(url, wire, tmp_path, monkeypatch):  # noqa: F811
    home = begin(url)
    send(home, 10)
    made(home, 20)
    with snapshot_of(home, checkpoint.resolve(home)) as snapshot:
        broken = []
        for budget in (0, 6_000, 12_000, 18_000, 10**9):
            try:
                with wire.cut_after(budget):
                    publish_remote(home, snapshot, 1)
                break
            except StoreError as error:
                broken.append(str(error))
            pointed = any(
                "step_00000020" in name for name in store().find(url) if name.endswith(f"{_short(home)}.json")
            )
            assert seen(url, tmp_path / "b", monkeypatch).name == f"step_000000{20 if pointed else 10}"
        assert len(broken) > 2 and not any("secret" in each or "Signature" in each for each in broken)
    assert seen(url, tmp_path / "b", monkeypatch).name == "step_00000020"
    assert not [name for name in store().find(url) if "step_00000010" in name]


def test_killed_before_the_first_pointer_its_own_machine_goes_on_and_stores_it(url, tmp_path, monkeypatch):
    home = begin(url)
    name = send(home, 10)
    (home / "checkpoints" / "LATEST").unlink()
    store().rm(f"{url}/checkpoints/{name}.json")
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        seen(url, tmp_path / "b", monkeypatch)
    ours = checkpoint.resolve(files.Path(url))
    assert ours == home / "checkpoints" / "step_00000010" and take_over(home) == home
    with uploading(home, 5):
        pass
    assert seen(url, tmp_path / "b", monkeypatch).name == "step_00000010"


def test_the_pointer_comes_last(url, tmp_path, monkeypatch):
    home = begin(url)
    send(home, 10)
    name = send(home, 20)
    pointer = f"{url}/checkpoints/{name}.json"
    content = store().cat_file(pointer)
    store().rm(pointer)  # what a killed publisher leaves at the worst
    assert seen(url, tmp_path / "b", monkeypatch).name == "step_00000010"
    for part in (b"", content[: len(content) // 2], b"[]"):  # of a store that shows half an object
        store().pipe_file(pointer, part)
        with pytest.warns(StoreWarning, match="passed over .*pointer cannot be read"):
            assert seen(url, tmp_path / "b", monkeypatch).name == "step_00000010"


@pytest.mark.parametrize("damage", ["truncated", "altered", "missing"])
def test_a_damaged_object_is_passed_over_and_told(url, tmp_path, monkeypatch, damage):
    home = begin(url)
    send(home, 10)
    place = f"{url}/checkpoints/{send(home, 20)}/weights.safetensors"
    content = store().cat_file(place)
    if damage == "missing":
        store().rm(place)
    else:
        store().pipe_file(place, content[:-1] if damage == "truncated" else content[:-1] + b"!")
    with pytest.warns(StoreWarning, match=r"passed over .*step_00000020.*weights\.safetensors"):
        assert seen(url, tmp_path / "b", monkeypatch).name == "step_00000010"
    for name in store().find(url):
        if "step_00000010" in name and name.endswith("ema.safetensors"):
            store().rm(name)
    with pytest.raises(CheckpointError, match="no whole checkpoint"):
        seen(url, tmp_path / "b", monkeypatch)


def test_names_that_lie_outside_are_refused(url, tmp_path, monkeypatch):
    home = begin(url)
    name = send(home, 10)
    pointer = f"{url}/checkpoints/{name}.json"
    said = json.loads(store().cat_file(pointer))
    said["files"]["../../evil"] = said["files"]["state.json"]
    store().pipe_file(pointer, json.dumps(said).encode())
    with pytest.raises(CheckpointError, match="lies outside"):
        seen(url, tmp_path / "b", monkeypatch)


def test_whoever_takes_over_goes_on_and_the_other_is_stopped(url, tmp_path, monkeypatch):
    first = begin(url)
    send(first, 10)
    with monkeypatch.context() as other:
        other.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
        second = take_over(checkpoint.run_of(checkpoint.resolve(files.Path(url))))
        assert second.is_relative_to(tmp_path / "b") and second != first
        assert checkpoint.resolve(second).name == "step_00000010" and (second / "metrics.csv").exists()
        with pytest.raises(TakenOverError, match="trained by somebody else since") as refused:
            send(first, 30)
        assert str(first) in str(refused.value)
        send(second, 20)
    assert seen(url, tmp_path / "c", monkeypatch).name == "step_00000020"
    assert checkpoint.resolve(first).name == "step_00000030"  # nothing of it is lost
    with pytest.raises(TakenOverError):
        take_over(first)


def test_two_who_begin_at_once_have_two_numbers(bucket):  # noqa: F811
    url, homes = f"s3://{bucket}/together", []
    threads = [threading.Thread(target=lambda: homes.append(begin(url))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(home.name for home in homes) == [f"writer_{number:08d}" for number in (1, 2, 3, 4)]


def test_training_goes_on_while_the_store_does_not_answer(url, wire, tmp_path, monkeypatch, capsys):  # noqa: F811
    home = begin(url)
    failed = threading.Event()
    monkeypatch.setattr(run_upload.warnings, "warn", lambda text, *_, **__: "attempt 1" in text and failed.set())
    with uploading(home, 2, pause=0.01) as published:
        with wire.cut_after(0):
            for step in (10, 20, 30):
                published(made(home, step))
            assert failed.wait(60)
        with wire.held():
            published(made(home, 40))  # returns although nothing gets through
    assert seen(url, tmp_path / "b", monkeypatch).name == "step_00000040"
    assert f"the run works in {home}" in capsys.readouterr().err


def test_what_never_reached_the_store_is_named_and_stored_later(url, wire, tmp_path, monkeypatch):  # noqa: F811
    home = begin(url)
    monkeypatch.setattr(run_upload.warnings, "warn", lambda *_, **__: None)
    with pytest.raises(FlowPolicyError) as failed:
        _train_without_store(wire, home)
    wire.budget = None
    assert f"whole in {home}" in str(failed.value) and f"flowpolicy resume {home}" in str(failed.value)
    assert checkpoint.resolve(home).name == "step_00000010"
    with uploading(take_over(home), 2):
        pass
    assert seen(url, tmp_path / "b", monkeypatch).name == "step_00000010"


def _train_without_store(wire, home):  # noqa: F811
    with uploading(home, 2, patience=2, pause=0.01) as published:
        wire.budget = 0
        wire._break()
        published(made(home, 10))


def test_a_disk_without_room_is_told_before_anything_is_fetched(url, tmp_path, monkeypatch):
    send(begin(url), 10)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=files.SPARE))
    with pytest.raises(StoreError, match=r"needs .* GB in [^$]*XDG_CACHE_HOME"):
        seen(url, tmp_path / "b", monkeypatch)
    assert not list((tmp_path / "b").rglob("*.safetensors"))


def test_what_is_no_run_is_told(bucket, wire, tmp_path, monkeypatch):  # noqa: F811
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        checkpoint.resolve(files.Path(f"s3://{bucket}/nothing"))
    with pytest.raises(StoreError, match="name of the bucket"):
        begin("s3://no-such-bucket-here/x")
    with pytest.raises(ConfigError, match="BUCKET/NAME"):
        begin(f"s3://{bucket}")
    with pytest.raises(ConfigError, match="no place of runs"):
        checkpoint.resolve(files.Path("https://example.org/run"))
    with wire.cut_after(0), pytest.raises(StoreError, match="check the network"):
        pull(find_address(f"s3://{bucket}/x"))


@pytest.mark.parametrize(
    "name", ["s3://key:secret@bucket/x", "https://h/x?token=secret", "s3://b/x#secret", "https://u:secret@h/x"]
)
def test_a_name_with_a_secret_is_refused_without_saying_it(name):
    with pytest.raises(ConfigError, match="password, a token or a query") as refused:
        find_address(name)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    "name", ["s3://", "s3://b/../x", "s3://b//x", "s3://b/\n", "http://example.org/x", "s3://b/" + "x" * 999]
)
def test_a_name_that_cannot_be_one_is_refused(name):
    with pytest.raises(ConfigError):
        find_address(name)


def test_what_pathlib_makes_of_a_name_is_read():
    assert place_name(files.Path("s3://bucket/runs/x")) == "s3://bucket/runs/x"
    assert find_address("runs/x") is None and find_address("C:/x") is None
    with pytest.raises(ConfigError, match="written to a folder of this machine"):
        files.require_writable(files.Path("s3://bucket/x"))
