import pytest

from flowpolicy.core.errors import DataError
from flowpolicy.core.files import sha256
from flowpolicy.data.dataset import DataConfig, load_dataset

from .test_windows import same


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "flowpolicy"


def load(path, **fields):
    return load_dataset(DataConfig(path=str(path), **fields))


def test_layout_is_found_by_content_not_by_name(robomimic_file, d4rl_file):
    swapped = robomimic_file.with_name("d4rl-copy.bin")
    swapped.write_bytes(robomimic_file.read_bytes())
    assert load(swapped).names[0] == "demo_0"
    assert load(d4rl_file).names[0] == "episode_0"


def test_hash_is_that_of_the_file(robomimic_file):
    assert load(robomimic_file).sha256 == sha256(robomimic_file)


def test_memory_mapped_equals_in_memory(robomimic_file):
    plain, mapped = load(robomimic_file), load(robomimic_file, memory_limit_mb=0)
    assert mapped.memory_mapped and not plain.memory_mapped
    assert same(plain.steps, mapped.steps)
    assert plain.lengths.tolist() == mapped.lengths.tolist()


def test_complete_cache_is_used_again(robomimic_file, cache):
    load(robomimic_file, memory_limit_mb=0)
    (folder,) = cache.iterdir()
    before = {f.name: f.stat().st_mtime_ns for f in folder.iterdir()}
    load(robomimic_file, memory_limit_mb=0)
    assert {f.name: f.stat().st_mtime_ns for f in folder.iterdir()} == before


def test_another_selection_is_another_cache(robomimic_file, cache):
    load(robomimic_file, memory_limit_mb=0)
    mapped = load(robomimic_file, memory_limit_mb=0, filter_key="okay")
    assert len(list(cache.iterdir())) == 2
    assert same(mapped.steps, load(robomimic_file, filter_key="okay").steps)


def test_refused_file_leaves_no_cache(d4rl_file, cache):
    import h5py

    with h5py.File(d4rl_file, "a") as file:
        file["actions"][9, 1] = float("nan")
    with pytest.raises(DataError):
        load(d4rl_file, memory_limit_mb=0)
    assert list(cache.iterdir()) == []
