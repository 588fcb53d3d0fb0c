"""Datasets in an object store, against a real server: fetched once, whole or absent, and noticed when they change."""

import hashlib
import shutil

import pytest

from flowpolicy.core import files
from flowpolicy.core.errors import ConfigError, DataError, StoreError, StoreWarning
from flowpolicy.core.object_store import find_address
from flowpolicy.data import remote_data
from flowpolicy.data.dataset import DataConfig, dataset_sha256, load_dataset
from flowpolicy.data.remote_data import data_place, fetch_data
from tests.conftest import write_demonstrations
from tests.object_store_server import bucket, store, wire  # noqa: F401


@pytest.fixture
def stored(bucket, tmp_path):  # noqa: F811
    """Address of a dataset file, and a copy of it."""
    file = write_demonstrations(tmp_path / "toy.hdf5")
    store().put_file(str(file), f"{bucket}/data/toy.hdf5")
    return f"s3://{bucket}/data/toy.hdf5", file


def test_a_file_is_fetched_once_and_read_like_any_other(stored, wire):  # noqa: F811
    url, file = stored
    dataset = load_dataset(DataConfig(path=url))
    assert dataset.sha256 == files.sha256(file) == dataset_sha256(DataConfig(path=url))
    assert dataset.path.name == "toy.hdf5" and dataset.steps.rows == 28
    with wire.cut_after(0), pytest.warns(StoreWarning, match="its copy from before is used"):
        assert data_place(url) == dataset.path


def test_a_changed_object_is_fetched_anew_beside_the_old_copy(stored, tmp_path):
    url, file = stored
    first = data_place(url)
    content = file.read_bytes()[:-1] + b"x"
    store().pipe_file(url, content)
    with pytest.warns(StoreWarning, match="has changed since it was fetched"):
        second = data_place(url)
    assert second.read_bytes() == content and first.read_bytes() == file.read_bytes()


def test_what_has_arrived_is_kept_and_gone_on_from(bucket, wire, monkeypatch):  # noqa: F811
    monkeypatch.setattr("flowpolicy.core.object_store._BLOCK", 1000)
    content, address = bytes(range(256)) * 64, find_address(f"s3://{bucket}/x.bin")
    store().pipe_file(address.path, content)
    asked = []

    def cut(there, total):
        asked.append(there)
        wire.budget, wire.carried = (0, 1) if there == 4000 and len(asked) < 9 else (wire.budget, wire.carried)
        if wire.budget == 0:
            wire._break()

    with pytest.raises(StoreError):
        fetch_data(address, progress=cut, pause=0.01)
    wire.budget = None
    assert not list(files.cache_root().rglob("x.bin"))
    digest = hashlib.sha256(content).hexdigest()
    again = []
    place = fetch_data(address, expected_sha256=digest, progress=lambda there, total: again.append(there))
    assert place.read_bytes() == content and again[0] == 5000 and max(asked) == 4000
    with pytest.raises(DataError, match="another content than expected"):
        fetch_data(address, expected_sha256="0" * 64)


def test_an_altered_copy_is_refused(stored):
    url, _ = stored
    place = data_place(url)
    place.write_bytes(place.read_bytes()[:-1] + b"x")
    with pytest.raises(DataError, match="was altered after it was fetched"):
        data_place(url)


def test_a_folder_comes_whole_and_no_name_leads_out_of_it(bucket, tmp_path):  # noqa: F811
    for name in ("meta/info.json", "data/0.bin"):
        store().pipe_file(f"{bucket}/set/{name}", name.encode())
    place = data_place(f"s3://{bucket}/set")
    assert (place / "meta" / "info.json").read_bytes() == b"meta/info.json" and (place / "data" / "0.bin").exists()
    with pytest.raises(DataError, match="would be written elsewhere"):
        remote_data._require_inside("../evil", find_address(f"s3://{bucket}/set"))


def test_a_disk_without_room_and_what_is_not_there(stored, bucket, tmp_path, monkeypatch):  # noqa: F811
    url, _ = stored
    with pytest.raises(DataError, match="holds nothing"):
        data_place(f"s3://{bucket}/data/other.hdf5")
    with pytest.raises(ConfigError, match="password, a token or a query"):
        data_place("s3://key:secret@bucket/toy.hdf5")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=files.SPARE))
    with pytest.raises(StoreError, match="XDG_CACHE_HOME"):
        data_place(url)
