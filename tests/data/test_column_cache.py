"""Large files are found again by their columns: whole or absent, and never those of another content."""

import errno
import os
import threading

import numpy as np
import pytest

from flowpolicy.core import files
from flowpolicy.core.errors import DataError, FlowPolicyError
from flowpolicy.data import column_cache
from flowpolicy.data import dataset as reading
from flowpolicy.data.dataset import DataConfig, load_dataset
from flowpolicy.data.ogbench import open_npz

from .test_windows import same

pytestmark = pytest.mark.filterwarnings("ignore::flowpolicy.core.errors.DataWarning")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Files of any size and age are remembered, as large and old ones are."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(files, "_LARGE", 0)
    monkeypatch.setattr(files, "_SETTLED", 0)
    return tmp_path / "cache" / "flowpolicy"


@pytest.fixture(params=["d4rl", "ogbench", "robomimic"])
def file(request, tmp_path):
    if request.param != "ogbench":
        return request.getfixturevalue(f"{request.param}_file")
    path, rows = tmp_path / "play.npz", 12
    ends = np.zeros(rows, np.float32)
    ends[[4, 11]] = 1
    wide = np.arange(rows * 3, dtype=np.float32).reshape(rows, 3)
    np.savez_compressed(
        path, observations=wide, actions=-wide[:, :2], terminals=ends, rewards=-np.ones(rows), masks=np.ones(rows)
    )
    return path


def load(path, limit=0, **fields):
    return load_dataset(DataConfig(path=str(path), memory_limit_mb=limit, **fields))


def forget():
    """What another process would not know."""
    files._sha256_of.cache_clear()


@pytest.fixture
def unopened(monkeypatch):
    def refuse(config):
        raise AssertionError("the file was opened")

    return lambda: monkeypatch.setattr(reading, "open_recording", refuse)


def test_a_file_is_found_again_without_being_opened_or_hashed(file, unopened, monkeypatch):
    plain, first = load(file, limit=2048), load(file)
    forget()
    unopened()
    monkeypatch.setattr(files, "sha256", lambda path: pytest.fail("the file was hashed"))
    again = load(file)
    assert again.memory_mapped and same(again.steps, plain.steps) and same(first.steps, plain.steps)
    for name in ("names", "spec", "env_args", "sha256", "format", "unread", "remarks", "filter_key"):
        assert getattr(again, name) == getattr(plain, name), name
    assert again.lengths.tolist() == plain.lengths.tolist() and again.path == plain.path


def test_another_content_of_the_same_size_and_date_is_noticed(d4rl_file):
    load(d4rl_file)
    before, times = d4rl_file.read_bytes(), d4rl_file.stat()
    import h5py

    with h5py.File(d4rl_file, "a") as file:
        file["rewards"][3] = 7.0
    assert len(d4rl_file.read_bytes()) == len(before)
    os.utime(d4rl_file, ns=(times.st_atime_ns, times.st_mtime_ns))
    forget()
    assert load(d4rl_file).steps["reward"][3] == 7.0


def test_a_file_that_takes_another_ones_place_is_noticed(d4rl_file, robomimic_file):
    assert load(d4rl_file).format == "d4rl"
    robomimic_file.replace(d4rl_file)
    assert load(d4rl_file).format == "robomimic"


def test_a_file_just_written_is_not_remembered(d4rl_file, cache, monkeypatch):
    """A change within the clock's grain has no other time."""
    monkeypatch.setattr(files, "_SETTLED", 10**12)
    load(d4rl_file)
    assert not (cache / "hashes").exists()


def test_verify_reads_what_is_remembered_and_tells_what_only_the_disk_changed(d4rl_file, cache):
    load(d4rl_file)
    forget()
    (memory,) = (cache / "hashes").iterdir()
    memory.write_text(memory.read_text().replace(files.sha256(d4rl_file), "0" * 64))
    assert files.unchanged_sha256(d4rl_file) == "0" * 64
    with pytest.raises(FlowPolicyError, match="has another content than when it was first read"):
        load(d4rl_file, verify=True)


def test_columns_of_other_readers_are_made_anew(d4rl_file, cache, monkeypatch):
    load(d4rl_file)
    (folder,) = (path for path in cache.iterdir() if path.name != "hashes")
    (folder / "action.bin").write_bytes(b"")
    monkeypatch.setattr(column_cache, "_readers", lambda: "newer")
    assert load(d4rl_file).steps["action"].shape == (10, 2)


def test_what_a_killed_process_left_is_written_over(d4rl_file, cache):
    plain = load(d4rl_file, limit=2048)
    partial = column_cache.column_folder(plain.sha256, ["", (), 0.0, True])
    partial = partial.with_name(f"{partial.name}.partial")
    partial.mkdir(parents=True)
    (partial / "action.bin").write_bytes(b"half of it" * 999)
    assert same(load(d4rl_file).steps, plain.steps)
    assert not list(cache.glob("*.partial"))


@pytest.mark.parametrize("when", ["reserve", "write"])
def test_a_full_disk_leaves_nothing(d4rl_file, cache, monkeypatch, when):
    full = OSError(errno.ENOSPC, "No space left on device")
    if when == "reserve":
        monkeypatch.setattr(os, "posix_fallocate", lambda *_: (_ for _ in ()).throw(full))
    else:
        monkeypatch.setattr(column_cache, "flush", lambda path: (_ for _ in ()).throw(full))
    with pytest.raises(DataError, match=r"cannot be written: No space left(.|\n)*--data.memory-limit-mb 1"):
        load(d4rl_file)
    assert not [path for path in cache.iterdir() if path.name != "hashes"]


def test_two_that_convert_one_file_at_once_both_get_it(d4rl_file, cache):
    found = []
    threads = [threading.Thread(target=lambda: found.append(load(d4rl_file))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    plain = load(d4rl_file, limit=2048)
    assert len(found) == 4 and all(same(each.steps, plain.steps) for each in found)
    assert len([path for path in cache.iterdir() if path.name != "hashes"]) == 1


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", ["C", "F"])
def test_columns_of_an_archive_are_read_in_any_order(tmp_path, save, order):
    values = np.asarray(np.random.default_rng(0).standard_normal((50, 3)), order=order)
    save(tmp_path / "file.npz", values=values)
    with open_npz(tmp_path / "file.npz") as file:
        column = file.column("values", 2)
        assert (column.rows, column.width) == (50, 3)
        for start, end in ((0, 7), (7, 9), (30, 50), (2, 3), (0, 50), (49, 50)):
            np.testing.assert_array_equal(column.read(start, end), values[start:end])


@pytest.mark.parametrize("part", ["middle", "end"])
def test_a_damaged_column_is_told(tmp_path, part):
    path, values = tmp_path / "file.npz", np.random.default_rng(0).standard_normal((5000, 2))
    np.savez_compressed(path, values=values)
    content = bytearray(path.read_bytes())
    place = {"middle": len(content) // 2, "end": content.rindex(b"PK\x01\x02") - 9}[part]
    content[place] ^= 0xFF
    path.write_bytes(content)
    with open_npz(path) as file, pytest.raises(DataError, match="values cannot be read"):
        file.column("values", 2).read(0, 5000)
