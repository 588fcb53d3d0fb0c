"""Checkpoint folders are whole or absent, whatever happens while they are written."""

import errno

import pytest
import torch

from flowpolicy.core import checkpoint, files
from flowpolicy.core.errors import CheckpointError, FlowPolicyError


def fill(folder, value=1.0):
    for name in checkpoint.ESSENTIAL:
        if name.endswith(".safetensors"):
            files.write_tensors(folder / name, {"x": torch.full((3,), value)})
        else:
            files.write_json(folder / name, {"value": value})


@pytest.mark.quick("core")
def test_latest_names_the_newest_whole_checkpoint(tmp_path):
    checkpoint.publish(tmp_path, 10, lambda folder: fill(folder, 1.0))
    checkpoint.publish(tmp_path, 20, lambda folder: fill(folder, 2.0))
    newest = checkpoint.resolve(tmp_path)
    assert newest.name == "step_00000020"
    assert files.read_tensors(newest / "weights.safetensors")["x"].tolist() == [2.0] * 3


@pytest.mark.quick("core")
def test_a_write_that_fails_half_way_leaves_the_previous_one(tmp_path):
    checkpoint.publish(tmp_path, 10, fill)

    def full_disk(folder):
        files.write_tensors(folder / "weights.safetensors", {"x": torch.zeros(3)})
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        checkpoint.publish(tmp_path, 20, full_disk)
    assert checkpoint.resolve(tmp_path).name == "step_00000010"
    assert [path.name for path in (tmp_path / "checkpoints").iterdir() if "20" in path.name] == []


def test_killed_between_rename_and_latest_is_repeated_without_loss(tmp_path):
    checkpoint.publish(tmp_path, 10, fill)
    checkpoint.publish(tmp_path, 20, lambda folder: fill(folder, 2.0))
    files.write_text(tmp_path / "checkpoints" / "LATEST", "step_00000010\n")
    assert checkpoint.resolve(tmp_path).name == "step_00000010"
    checkpoint.publish(tmp_path, 20, lambda folder: fill(folder, 2.0))
    assert checkpoint.resolve(tmp_path).name == "step_00000020"


def test_killed_before_latest_was_ever_written_the_first_checkpoint_is_taken_once_all_of_it_is_there(tmp_path):
    folder = checkpoint.publish(tmp_path, 10, fill)
    (tmp_path / "checkpoints" / "LATEST").unlink()
    assert checkpoint.newest(tmp_path) == "step_00000010" and checkpoint.resolve(tmp_path) == folder
    arriving = tmp_path / "checkpoints" / "step_00000020"  # as a node sends one, file by file
    for name in sorted(path.name for path in folder.iterdir()):
        assert checkpoint.resolve(tmp_path) == folder
        arriving.mkdir(exist_ok=True)
        (arriving / name).write_bytes((folder / name).read_bytes())
    assert checkpoint.resolve(tmp_path) == arriving
    (tmp_path / "checkpoints" / "LATEST").write_text("")
    with pytest.raises(CheckpointError, match="names the checkpoint ''"):
        checkpoint.resolve(tmp_path)


def test_keep_removes_the_oldest_only(tmp_path):
    for step in (10, 20, 30, 40):
        checkpoint.publish(tmp_path, step, fill, keep=2)
    assert sorted(path.name for path in (tmp_path / "checkpoints").glob("step_*")) == ["step_00000030", "step_00000040"]


@pytest.mark.parametrize("name", checkpoint.ESSENTIAL)
def test_a_missing_file_is_named(tmp_path, name):
    folder = checkpoint.publish(tmp_path, 10, fill)
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        checkpoint.resolve(tmp_path)


@pytest.mark.parametrize("name", checkpoint.ESSENTIAL)
@pytest.mark.quick("core")
def test_an_altered_file_is_named(tmp_path, name):
    folder = checkpoint.publish(tmp_path, 10, fill)
    content = bytearray((folder / name).read_bytes())
    content[-2] ^= 1
    (folder / name).write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match=f"{name} was altered"):
        checkpoint.resolve(tmp_path)


def test_no_run_says_what_was_expected(tmp_path):
    with pytest.raises(CheckpointError, match="holds no checkpoint") as caught:
        checkpoint.resolve(tmp_path)
    assert "flowpolicy train" in str(caught.value)


def test_full_disk_is_a_clear_error_and_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    files.write_json(path, {"old": 1})

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "flush", full)
    with pytest.raises(FlowPolicyError, match="no space left"):
        files.write_json(path, {"new": 2})
    assert files.read_json(path) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_truncated_safetensors_is_named(tmp_path):
    path = tmp_path / "x.safetensors"
    files.write_tensors(path, {"x": torch.arange(10.0)})
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        files.read_tensors(path)


def test_json_refuses_not_a_number(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(tmp_path / "a.json", {"x": float("nan")})
