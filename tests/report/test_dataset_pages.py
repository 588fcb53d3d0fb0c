"""The page about a dataset: episodes, what the doctor points at, and what does not fit."""

import sys

import h5py
import numpy as np
import pytest

from flowpolicy.core.errors import MissingExtraError
from flowpolicy.data.dataset import DataConfig, load_unchecked
from flowpolicy.data.dataset_checks import diagnose
from flowpolicy.report import dataset_pages
from flowpolicy.report.dataset_pages import spread, write_dataset_view

from ..conftest import write_demonstrations
from .reported_runs import facts_of, section


def test_flags_of_the_doctor_lead_to_episode_and_step(tmp_path):
    file = write_demonstrations(tmp_path / "d.hdf5", lengths=(30,) * 12 + (200,))
    with h5py.File(file, "r+") as data:
        data["data/demo_3/obs/state"][11, 1] = np.nan
        for key in ("actions", "rewards", "obs/state", "obs/goal"):
            data[f"data/demo_5/{key}"][...] = data[f"data/demo_4/{key}"][...]
    findings = {one.check: one.places for one in diagnose(load_unchecked(DataConfig(path=str(file))))}
    assert findings["finite"] == (("demo_3", 11),)
    assert findings["duplicates"] == (("demo_5", 0),)
    assert ("demo_12", 0) in findings["episode lengths"]
    written = write_dataset_view(file, tmp_path / "v.html")
    facts, attached = facts_of(written.path)
    rows = section(facts, "episodes")["blocks"][0]["episodes"]
    assert [row["cells"][0] for row in rows] == [f"demo_{k}" for k in range(13)]
    assert "finite" in rows[3]["cells"][4] and "duplicates" in rows[5]["cells"][4]
    assert attached == [f"trace-{k}" for k in range(13)]
    jumps = {row[0]: row[4] for row in section(facts, "doctor")["blocks"][0]["rows"]}
    assert ["demo_3", 11] in jumps["finite"]
    assert section(facts, "doctor")["blocks"][0]["rows"][0][1] == "error"


def test_many_episodes_fit_and_what_does_not_is_told(tmp_path, monkeypatch):
    file = write_demonstrations(tmp_path / "d.hdf5", lengths=(60,) * 40)
    monkeypatch.setattr(dataset_pages, "_TRACE_BYTES", 20_000)
    written = write_dataset_view(file, tmp_path / "v.html")
    facts, attached = facts_of(written.path)
    assert 1 < len(attached) < 40
    assert f"{40 - len(attached)} of 40 episodes have no traces here." in written.left_out
    assert any(block.get("lines") == list(written.left_out) for block in section(facts, "overview")["blocks"])


def test_pictures_become_films_and_strips(tmp_path):
    import pytest

    pytest.importorskip("imageio_ffmpeg")
    file = write_demonstrations(tmp_path / "d.hdf5", lengths=(9,) * 5)
    with h5py.File(file, "r+") as data:
        for name in data["data"]:
            frames = np.random.default_rng(0).integers(0, 255, (9, 21, 33, 3), dtype=np.uint8)
            data[f"data/{name}/obs/front_image"] = frames
    written = write_dataset_view(file, tmp_path / "v.html", films=2)
    facts, attached = facts_of(written.path)
    assert written.films == 2 and attached[:2] == ["film-0", "film-4"]
    assert written.left_out == ("3 of 5 episodes have no film here: --films N chooses how many.",)
    strips = section(facts, "pictures")["blocks"][0]["rows"]
    assert [title for title, _ in strips] == [f"demo_{k}, front_image" for k in (0, 2, 4)]
    assert all(url.startswith("data:image/jpeg;base64,") for _, urls in strips for url in urls)
    none = write_dataset_view(file, tmp_path / "w.html", films=0)
    assert none.films == 0


def test_spread_has_both_ends():
    assert spread(3, 5) == [0, 2, 4] and spread(9, 3) == [0, 1, 2] and spread(1, 7) == [0] and spread(0, 4) == []


def test_a_file_of_rerun_holds_every_number_and_is_asked_for_before_any_work(tmp_path, monkeypatch):
    file = write_demonstrations(tmp_path / "d.hdf5", lengths=(30, 12))
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "rerun", None)
        with pytest.raises(MissingExtraError, match="'rerun' is needed"):
            write_dataset_view(file, tmp_path / "a.html", rerun=tmp_path / "a.rrd")
    assert {path.name for path in tmp_path.iterdir()} == {"d.hdf5"}
    rerun = pytest.importorskip("rerun", reason="the extra 'rerun'")
    write_dataset_view(file, tmp_path / "a.html", rerun=tmp_path / "a.rrd")
    stored = rerun.dataframe.load_recording(str(tmp_path / "a.rrd"))
    table = stored.view(index="step", contents="/demo_0/action/**").select().read_all()
    data = load_unchecked(DataConfig(path=str(file)))
    found = [row[0] for row in table["/demo_0/action/1:Scalar"].to_pylist() if row]
    assert found == pytest.approx(data.steps["action"][: int(data.lengths[0]), 1].tolist())
