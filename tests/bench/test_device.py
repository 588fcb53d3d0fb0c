"""The rehearsal of what a GPU will be asked."""

import pytest

from flowpolicy.bench import device
from flowpolicy.bench.device import SECTIONS, DeviceBench, device_table
from flowpolicy.core.files import read_json

from ..conftest import unchecked


@pytest.fixture
def bench(tmp_path, monkeypatch):
    monkeypatch.setattr(device, "AGENTS", ("fql-cube-single", "dm1-lift"))
    monkeypatch.setattr(device, "TOGETHER", ("iql-cube-single",))
    return lambda seconds: DeviceBench("cpu", tmp_path / "record.json", seconds, True, {"device": "cpu"})


def test_every_section_is_rehearsed_and_recorded(bench, tmp_path):
    with unchecked():
        record = bench(600).run(("facts", "plumbing", "seeds", "updates"))
    assert read_json(tmp_path / "record.json") == record
    for found in record["plumbing"].values():
        assert found["loss_minus_cpu"] == 0 and found["resumes_bit_for_bit"] and set(found["policy_devices"]) == {"cpu"}
    assert list(record["seeds"]) == [f"iql-cube-single, {n} seeds, fp32" for n in (1, 2)]
    assert all(found["ms"] > 0 for section in ("seeds", "updates") for found in record[section].values())
    assert device_table(record).row_count == 3 + 2 + 2 + 2


def test_nothing_is_begun_after_the_budget_and_an_error_is_a_result(bench, tmp_path, monkeypatch):
    record = bench(0).run(SECTIONS)
    assert set(record) & set(SECTIONS) == {"facts"}
    late = bench(600)
    monkeypatch.setattr(late, "build", lambda preset: 1 / 0)
    late.plumbing()
    assert read_json(tmp_path / "record.json")["plumbing"]["dm1-lift"]["error"].startswith("ZeroDivisionError")
