import dataclasses

import pytest

from flowpolicy.bench.batches import bench_data, data_table
from flowpolicy.configs.presets import PRESETS


@pytest.mark.parametrize("frame_store", ["raw", "jpeg"])
def test_batches_with_pictures_are_drawn_from_files_with_holes_or_of_one_jpeg(frame_store):
    experiment = PRESETS["regression-lift-image"][1].with_(batch_size=2, compile="off")
    experiment = experiment.with_(data=dataclasses.replace(experiment.data, frame_store=frame_store))
    entry = bench_data({"sees": experiment}, rows=600, rounds=1, calls=1)["entries"]["sees"]
    assert entry["sample_ms"]["median"] > 0


def test_windows_and_transitions_are_drawn_for_the_updates_that_they_feed():
    names = ("debug", "fql-toy")
    experiments = {name: PRESETS[name][1].with_(batch_size=8, compile="off") for name in names}
    figures = bench_data(experiments, rows=600, rounds=2, calls=3)
    assert [entry["batches"] for entry in figures["entries"].values()] == ["windows", "transitions"]
    for entry in figures["entries"].values():
        for part in ("sample_ms", "update_ms", "share"):
            assert 0 < entry[part]["low"] <= entry[part]["median"] <= entry[part]["high"]
        drawn, updated = (entry[part]["median"] for part in ("sample_ms", "update_ms"))
        assert entry["share"]["median"] == pytest.approx(drawn / (drawn + updated), rel=0.5)
    assert data_table(figures).row_count == 2
