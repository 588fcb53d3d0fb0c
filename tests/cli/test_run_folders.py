"""Run folders: one process at a time, nothing replaced unasked, the data that a run was trained on or none."""

import fcntl
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from flowpolicy.agents.groups.group_file import read_groups
from flowpolicy.cli import main
from flowpolicy.core import checkpoint
from flowpolicy.core.errors import CheckpointError
from flowpolicy.core.spec import load_contract
from flowpolicy.data.dataset import DataConfig, load_dataset

from ..conftest import ForkedCommand

TRAIN = ("--steps", 40, "--checkpoint-every", 20, "--keep-checkpoints", 0, "--no-compile", "--no-tensorboard")


def flowpolicy(*words):
    """Exit code of a command."""
    try:
        main([str(word) for word in words])
    except SystemExit as stopped:
        return stopped.code or 0
    return 0


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("home")
    assert flowpolicy("data", "make", "toy", "--episodes", 30, "--workers", 1, "--out", folder / "toy.hdf5") == 0
    data = ("--data.path", folder / "toy.hdf5")
    assert flowpolicy("train", "debug", *data, *TRAIN, "--out", folder / "run") == 0
    assert flowpolicy("train", "fql-toy", *data, *TRAIN, "--agent.chunk", 1, "--out", folder / "critic") == 0
    return folder


@pytest.fixture
def copy(home, tmp_path):
    """A copy that a test may spoil; its runs still name the file of the original."""
    shutil.copytree(home, tmp_path / "copy")
    return tmp_path / "copy"


def refused(capsys, *words):
    capsys.readouterr()
    assert flowpolicy(*words) == 2
    return capsys.readouterr().err


def test_of_two_trainings_in_one_folder_one_is_refused_and_the_other_untouched(home, tmp_path):
    words = ["train", "debug", "--data.path", home / "toy.hdf5", "--steps", 300, "--checkpoint-every", 100]
    words = [*words, "--no-compile", "--no-tensorboard", "--log-every", 10, "--out", tmp_path / "both"]
    both = [ForkedCommand(*words, "--seed", seed, cwd=tmp_path) for seed in (1, 2)]
    codes, told = zip(*(process.ended() for process in both), strict=True)
    assert sorted(codes) == [0, 2], told
    loser = told[codes.index(2)]
    assert "one process at a time" in loser or "already holds a run" in loser
    rows = (tmp_path / "both" / "metrics.csv").read_text().splitlines()[1:]
    assert [int(row.split(",")[0]) for row in rows] == list(range(10, 301, 10))


def test_who_holds_a_folder_is_named_and_a_dead_process_holds_nothing(copy, capsys):
    lock = os.open(copy / "run" / ".lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    os.truncate(lock, 0)
    os.write(lock, b"flowpolicy train (process 77)")
    assert "flowpolicy train (process 77) works in" in refused(capsys, "resume", copy / "run")
    os.close(lock)  # what the system does when a process ends, by whatever signal
    assert flowpolicy("resume", copy / "run") == 0


def test_a_checkpoint_is_no_run_to_resume_and_gets_nothing_written_into_it(copy, capsys):
    folder = copy / "run" / "checkpoints" / "step_00000020"
    before = sorted(folder.iterdir())
    assert f"flowpolicy resume {copy / 'run'}" in refused(capsys, "resume", folder)
    assert flowpolicy("fit", folder, "--nfe", 2, "--samples", 8) == 0
    assert (copy / "run-olss2" / "checkpoints").is_dir()
    assert sorted(folder.iterdir()) == before
    assert "learning rate depends on the number of updates" in refused(capsys, "resume", copy / "run", "--steps", 80)


@pytest.mark.parametrize("name", ["", "step_00009999"])
def test_a_newest_checkpoint_that_is_not_there_is_named_with_the_others(name, copy):
    (copy / "run" / "checkpoints" / "LATEST").write_text(name)
    with pytest.raises(CheckpointError, match="step_00000020, step_00000040"):
        checkpoint.resolve(copy / "run")


def test_a_moved_training_file_is_found_by_its_flag_and_a_changed_one_refused(tmp_path, capsys):
    data, moved, run = tmp_path / "toy.hdf5", tmp_path / "moved.hdf5", tmp_path / "run"
    make = ("data", "make", "toy", "--episodes", 12, "--workers", 1, "--out")
    assert flowpolicy(*make, data) == 0
    assert flowpolicy("train", "debug", "--data.path", data, *TRAIN, "--out", run) == 0
    assert flowpolicy("train", "fql-toy", "--data.path", data, *TRAIN, "--out", tmp_path / "q") == 0
    data.rename(moved)
    assert "--data.path FILE" in refused(capsys, "resume", run)
    assert flowpolicy("resume", run, "--data.path", moved) == 0
    assert flowpolicy(*make, data, "--seed", 9) == 0
    groups = ("groups", "make", run, "--source", "returns", "--states", 8, "--candidates", 4)
    for words in (
        ("resume", run),
        ("fit", run, "--nfe", 2, "--out", tmp_path / "f"),
        ("distill", run, "--steps", 2, "--out", tmp_path / "d"),
        ("online", tmp_path / "q", "--steps", 2, "--out", tmp_path / "o"),
        (*groups, "--out", tmp_path / "g.hdf5"),
    ):
        assert "has changed since the run was trained" in refused(capsys, *words), words
    assert flowpolicy(*groups, "--held-out-share", 0.5, "--data", moved, "--out", tmp_path / "g.hdf5") == 0
    gdro = (
        "train",
        "debug-gdro",
        "--base",
        run,
        "--groups",
        tmp_path / "g.hdf5",
        "--steps",
        2,
        "--out",
        tmp_path / "x",
    )
    assert "has changed since" in refused(capsys, *gdro)


def test_nothing_is_replaced_unasked(copy, capsys):
    mine = copy / "mine"
    mine.write_text("years of work")
    run = copy / "run"
    for words in (
        ("data", "make", "toy", "--episodes", 1),
        ("data", "rollouts", run, "--episodes", 1),
        ("data", "label", mine, "--env", "cube-single"),
        ("groups", "make", run, "--source", "returns", "--states", 4, "--candidates", 4),
    ):
        assert "--overwrite" in refused(capsys, *words, "--out", mine), words
    assert "--overwrite" in refused(capsys, "eval", run, "--episodes", 1, "--json", mine)
    assert "already" in refused(capsys, "fit", run, "--nfe", 2, "--out", copy / "critic")
    assert "already" in refused(capsys, "distill", run, "--steps", 2, "--out", copy / "critic")
    assert "no export" in refused(capsys, "export", run, "--to", "numpy", "--out", copy)
    assert mine.read_text() == "years of work"
    assert flowpolicy("data", "make", "toy", "--episodes", 2, "--workers", 1, "--overwrite", "--out", mine) == 0
    assert len(load_dataset(DataConfig(path=str(mine))).lengths) == 2


def test_a_run_never_replaces_its_own_training_file(home, capsys):
    words = ("data", "rollouts", home / "run", "--episodes", 1, "--overwrite", "--out", home / "toy.hdf5")
    assert "was trained on" in refused(capsys, *words)


def test_training_states_take_nothing_from_the_episodes_that_judge(home, tmp_path):
    made = ("groups", "make", home / "run", "--source", "returns", "--states", 60, "--candidates", 5)
    assert flowpolicy(*made, "--out", tmp_path / "g.hdf5") == 0
    groups, dataset = read_groups(tmp_path / "g.hdf5"), load_dataset(DataConfig(path=str(home / "toy.hdf5")))
    episode = dataset.steps["episode"]
    sources = episode[torch.from_numpy(np.asarray(groups.outcomes["row"]))]
    sides = [set(sources[groups.held_out == side].flatten().tolist()) for side in (False, True)]
    assert not sides[0] & sides[1]


def test_a_critic_is_no_judge_of_itself_under_another_name_either(home, copy, tmp_path, capsys):
    words = ("groups", "make", home / "run", "--source", "critic", "--critic", home / "critic", "--states", 8)
    told = refused(capsys, *words, "--held-out", copy / "critic", "--out", tmp_path / "g.hdf5")
    assert "judge what it was climbed on" in told


def test_a_run_of_a_checkpoint():
    assert checkpoint.run_of(Path("a/checkpoints/step_00000001")) == Path("a")
    assert checkpoint.run_of(Path("a")) == Path("a")


def test_the_contract_of_a_fitted_run_names_the_file_it_was_fitted_on(copy):
    assert flowpolicy("fit", copy / "run", "--nfe", 2, "--samples", 8, "--out", copy / "fitted") == 0
    contracts = [load_contract(checkpoint.resolve(copy / run) / "contract.json") for run in ("run", "fitted")]
    assert contracts[0].dataset_sha256 == contracts[1].dataset_sha256
