"""Files that are not what they seem: refused by name in every format, or said."""

import subprocess
import sys

import h5py
import numpy as np
import pytest

from flowpolicy.core.errors import DataError, DataWarning
from flowpolicy.data.dataset import DataConfig, load_dataset, load_unchecked
from flowpolicy.data.dataset_checks import describe, diagnose

from ..conftest import write_demonstrations


def replace(group, name, value):
    del group[name]
    group[name] = value


def d4rl(path, **changed):
    rng, n = np.random.default_rng(0), 40
    columns = {
        "observations": rng.normal(size=(n, 4)),
        "actions": rng.uniform(-1, 1, (n, 2)),
        "rewards": rng.normal(size=n),
        "terminals": np.zeros(n, bool),
        "timeouts": np.arange(n) % 20 == 19,
        **changed,
    }
    with h5py.File(path, "w") as file:
        for name, value in columns.items():
            if value is not None:
                file[name] = value
    return path


def minari(path, first=0, change=None):
    with h5py.File(path, "w") as file:
        for i in range(first, first + 3):
            group, rng = file.create_group(f"episode_{i}"), np.random.default_rng(i)
            group["observations"], group["actions"] = rng.normal(size=(11, 4)), rng.uniform(-1, 1, (10, 2))
            group["rewards"], group["terminations"] = np.zeros(10), np.zeros(10, bool)
            group["truncations"] = np.arange(10) == 9
        if change:
            change(file)
    return path


def robomimic(path, change=None):
    write_demonstrations(path)
    with h5py.File(path, "a") as file:
        if change:
            change(file)
    return path


def load(path, **options):
    return load_dataset(DataConfig(path=str(path), **options))


NARROW = np.ones((11, 1))
WIDTHS = {
    "robomimic wider": lambda p: robomimic(p, lambda f: replace(f["data/demo_1/obs"], "state", np.ones((12, 5)))),
    "robomimic narrower": lambda p: robomimic(p, lambda f: replace(f["data/demo_1/obs"], "state", np.ones((12, 1)))),
    "robomimic flat": lambda p: robomimic(p, lambda f: replace(f["data/demo_1/obs"], "state", np.ones(12))),
    "robomimic action": lambda p: robomimic(p, lambda f: replace(f["data/demo_1"], "actions", np.ones((12, 1)))),
    "minari action": lambda p: minari(p, change=lambda f: replace(f["episode_1"], "actions", np.ones((10, 1)))),
    "minari observation": lambda p: minari(
        p, change=lambda f: replace(f["episode_1"], "observations", np.ones((11, 1)))
    ),
}


@pytest.mark.parametrize("case", WIDTHS)
def test_an_episode_of_another_width_is_refused_by_name(case, tmp_path):
    path = WIDTHS[case](tmp_path / "file.hdf5")
    for read in (load, describe):
        with pytest.raises(DataError, match=r"(demo|episode)_1"):
            read(path)


@pytest.mark.parametrize("wrong", [np.nan, 0.5, 255.0, -1.0])
@pytest.mark.parametrize("flag", ["terminals", "timeouts", "terminations", "truncations", "dones"])
def test_flags_other_than_0_and_1_are_refused(flag, wrong, tmp_path):
    path, marks = tmp_path / "file.hdf5", np.zeros(40)
    marks[7] = wrong
    if flag in ("terminations", "truncations"):
        minari(path, change=lambda f: replace(f["episode_1"], flag, marks[:10]))
    elif flag == "dones":
        robomimic(path, lambda f: replace(f["data/demo_1"], flag, marks[:12]))
    else:
        d4rl(path, **{flag: marks})
    with pytest.raises(DataError, match=f"{flag} holds {wrong}".replace(".", r"\.")):
        load(path)


@pytest.mark.parametrize("name", ["observations", "actions", "rewards", "terminals"])
@pytest.mark.parametrize("dtype", ["S4", "c8"])
def test_columns_that_are_no_real_numbers_are_named(name, dtype, tmp_path):
    shape = {"observations": (40, 4), "actions": (40, 2)}.get(name, (40,))
    path = d4rl(tmp_path / "file.hdf5", **{name: np.zeros(shape, dtype)})
    with pytest.raises(DataError, match=f"{name} holds (text|complex numbers)"):
        describe(path)


def test_a_numbering_that_begins_with_1_is_read(tmp_path):
    assert load(minari(tmp_path / "file.hdf5", first=1)).names == ("episode_1", "episode_2", "episode_3")


def test_what_contradicts_is_said_in_training_and_by_the_doctor(tmp_path):
    def change(file):
        file["data"].attrs["total"] = 1000
        file["mask/valid"] = np.array([b"demo_0", b"demo_99"])

    path = robomimic(tmp_path / "file.hdf5", change)
    with pytest.warns(DataWarning) as caught:
        load(path)
    said = " ".join(str(warning.message) for warning in caught)
    assert "demo_99" in said and "share episodes: demo_0" in said and "total says 1000" in said
    finding = next(f for f in diagnose(load_unchecked(DataConfig(path=str(path)))) if f.check == "statements")
    assert finding.level == "warning" and "demo_99" in finding.message
    robomimic(path, lambda f: f.create_dataset("mask/twice", data=np.array([b"demo_0", b"demo_0"])))
    with pytest.raises(DataError, match="names an episode twice"):
        load(path, filter_key="twice")


def test_borders_that_nothing_marks_are_said(tmp_path):
    path = d4rl(tmp_path / "file.hdf5", timeouts=None)
    with pytest.warns(DataWarning, match="all 40 steps are read as one episode"):
        load(path)
    assert "one episode" in describe(path).remarks[0]


def test_observations_that_are_not_read_are_said_with_the_reason(tmp_path):
    def change(file):
        for name in file["data"]:
            obs, steps = file[f"data/{name}/obs"], len(file[f"data/{name}/actions"])
            obs["image"], obs["stacked"] = np.zeros((steps, 8, 8, 3), "u1"), np.ones((steps, 1, 3))
            obs["task"] = np.full(steps, b"reach")
            obs.create_dataset("ragged", (steps,), h5py.vlen_dtype(np.float32))
            obs["nested/deep"] = np.ones(steps)

    path = robomimic(tmp_path / "file.hdf5", change)
    why = describe(path).unread
    assert why["image"] == "pictures, uint8 (T, 8, 8, 3)"
    assert why["stacked"] == "more than one dimension per step, float64 (T, 1, 3)"
    assert (why["task"], why["ragged"], why["nested"]) == ("text", "rows of different lengths", "a group of keys")
    with pytest.warns(DataWarning, match="stacked"):
        load(path)
    load(path, obs_keys=("state",))  # chosen: nothing to say
    with pytest.raises(DataError, match="task is not read: text"):
        load(path, obs_keys=("task",))


def test_a_file_that_is_being_written_is_called_so(tmp_path):
    path = d4rl(tmp_path / "file.hdf5")
    hold = "import h5py, sys; f = h5py.File(sys.argv[1], 'a'); print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", hold, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout.readline() == "held\n"
        with pytest.raises(DataError, match="open for writing in another program"):
            describe(path)
        writer.stdin.close()
    assert describe(path).episodes == 2


def test_describing_leaves_no_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "file.hdf5"
    with h5py.File(path, "w") as file:  # chunks that were never written take no disk
        for name, shape in {"observations": (600_000, 800), "actions": (600_000, 2), "rewards": (600_000,)}.items():
            file.create_dataset(name, shape, "f4", chunks=(1000, *shape[1:]))
        file["terminals"], file["timeouts"] = np.zeros(600_000, bool), np.arange(600_000) % 1000 == 999
    assert describe(path).steps == 600_000
    assert not (tmp_path / "cache").exists()


def test_a_cache_that_cannot_be_written_names_the_remedy(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(DataError, match="XDG_CACHE_HOME"):
        load(d4rl(tmp_path / "file.hdf5"), memory_limit_mb=0)
