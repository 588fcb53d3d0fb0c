"""Group files are whole or absent, hold what was written, and refuse what is no group file."""

import os

import h5py
import numpy as np
import pytest
import torch

from flowpolicy.agents.groups.group_file import (
    Groups,
    GroupSampler,
    StoredJudge,
    describe_groups,
    is_groups,
    read_groups,
    reliability,
    write_groups,
)
from flowpolicy.core.errors import DataError
from flowpolicy.core.seed import torch_generator
from flowpolicy.data.dataset import DataConfig, load_dataset
from flowpolicy.data.windows import WindowSampler


def make_groups(n=6, k=4, h=3, a=2, obs=(("state", 3), ("goal", 2)), **provenance):
    random = torch_generator(0)
    return Groups(
        obs={name: torch.randn(n, 2, width, generator=random) for name, width in obs},
        action=torch.randn(n, k, h, a, generator=random),
        valid=torch.ones(n, h, dtype=torch.bool),
        score=torch.randn(n, k, generator=random),
        row=torch.arange(n),
        held_out=torch.arange(n) % 3 == 0,
        provenance={"source": "critic", "base": "run", "base_sha256": "ab" * 32, **provenance},
        judges={"train": StoredJudge({"shapes": {"state": 3, "goal": 2}}, {"a/b.weight": torch.ones(2, 3)})},
        outcomes={"success": np.ones((n, k, 2), dtype=bool)},
    )


@pytest.fixture
def path(tmp_path):
    write_groups(tmp_path / "groups.hdf5", make_groups())
    return tmp_path / "groups.hdf5"


def test_what_is_written_is_read(path):
    written, found = make_groups(), read_groups(path)
    for name in ("action", "valid", "score", "row", "held_out"):
        assert torch.equal(getattr(found, name), getattr(written, name)), name
        assert getattr(found, name).dtype == getattr(written, name).dtype
    assert set(found.obs) == {"state", "goal"}
    assert torch.equal(found.obs["goal"], written.obs["goal"])
    assert found.provenance == written.provenance
    assert torch.equal(found.judges["train"].tensors["a/b.weight"], torch.ones(2, 3))
    assert found.outcomes["success"].shape == (6, 4, 2)
    # An order that sorting would change: a judge joins the observations in it.
    assert list(found.judges["train"].config["shapes"]) == ["state", "goal"]
    assert is_groups(path) and len(found.sha256) == 64
    assert [entry.name for entry in path.parent.iterdir()] == ["groups.hdf5"]


def test_the_same_groups_are_the_same_bytes(path, tmp_path):
    write_groups(tmp_path / "again" / "groups.hdf5", make_groups())
    assert path.read_bytes() == (tmp_path / "again" / "groups.hdf5").read_bytes()


@pytest.mark.parametrize("name", ["score", "action", "obs/goal"])
def test_a_number_that_is_not_finite_is_refused_when_written_and_when_read(name, path):
    broken = make_groups()
    column = broken.obs["goal"] if name == "obs/goal" else getattr(broken, name)
    column[4] = float("nan")
    before = path.read_bytes()
    with pytest.raises(DataError, match=f"{name} holds NaN or infinity, first in state 4"):
        write_groups(path, broken)
    assert path.read_bytes() == before
    with h5py.File(path, "r+") as file:
        file[name][2] = np.inf
    with pytest.raises(DataError, match=f"groups.hdf5: {name} holds NaN or infinity, first in state 2"):
        read_groups(path)


def test_truncated_foreign_and_incomplete_files_say_so(path, tmp_path, demonstrations):
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="truncated"):
        read_groups(path)
    with pytest.raises(DataError, match="not a group file; it holds data"):
        read_groups(demonstrations)
    assert not is_groups(demonstrations) and not is_groups(tmp_path / "absent")
    with pytest.raises(DataError, match="not a file"):
        read_groups(tmp_path / "absent")
    for change, message in (
        (lambda file: file.__delitem__("score"), "score is missing"),
        (lambda file: file.attrs.__setitem__("schema", 7), "group schema 7"),
        (lambda file: file.attrs.__setitem__("provenance", "{"), "provenance"),
    ):
        path.write_bytes(whole)
        with h5py.File(path, "r+") as file:
            change(file)
        with pytest.raises(DataError, match=message):
            read_groups(path)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("score", np.zeros((6, 5), np.float32), "score has shape"),
        ("action", np.zeros((6, 1, 3, 2), np.float32), "2 or more"),
        ("held_out", np.ones(6, dtype=bool), "every state is held out"),
        ("obs/state", np.zeros((5, 2, 3), np.float32), "obs/state has shape"),
    ],
)
def test_shapes_that_disagree_are_refused(name, value, message, path):
    with h5py.File(path, "r+") as file:
        del file[name]
        file[name] = value
    with pytest.raises(DataError, match=message):
        read_groups(path)


def test_a_full_disk_leaves_the_old_file(path, monkeypatch):
    before = path.read_bytes()

    def full(self, data):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(Exception, match="no space left"):
        write_groups(path, make_groups(n=7))
    assert path.read_bytes() == before and len(list(path.parent.iterdir())) == 1


def test_groups_of_another_policy_or_shape_are_refused(contract):
    groups = make_groups(h=4)
    groups.require_fit(contract, "ab" * 32)
    with pytest.raises(DataError, match="another policy"):
        groups.require_fit(contract, "cd" * 32)
    with pytest.raises(DataError, match="chunks \\(3, 2\\)"):
        make_groups(h=3).require_fit(contract, "ab" * 32)
    with pytest.raises(DataError, match="observations"):
        make_groups(h=4, obs=(("state", 3),)).require_fit(contract, "ab" * 32)


def test_the_sampler_draws_training_groups_beside_windows(demonstrations):
    groups = make_groups()
    sampler = GroupSampler(WindowSampler(load_dataset(DataConfig(path=str(demonstrations))), 2, 3, 50), groups)
    batch = sampler.draw(torch_generator(0))
    assert batch["action"].shape == (50, 3, 2) and batch["group", "action"].shape == (50, 4, 3, 2)
    assert batch["group", "obs", "goal"].shape == (50, 2, 2)
    allowed = {tuple(row) for row in groups.score[~groups.held_out].tolist()}
    assert {tuple(row) for row in batch["group", "score"].tolist()} == allowed
    again = sampler.draw(torch_generator(0))
    assert torch.equal(batch["group", "score"], again["group", "score"])


def test_the_description_tells_simulator_labels_apart(path):
    facts = dict(describe_groups(read_groups(path)))
    assert facts["source"] == "critic (offline)"
    assert facts["states"] == "6, of which 2 are held out"
    assert facts["judges"] == "train"
    groups = make_groups(source="simulator")
    groups.outcomes["success"] = np.array([[1, 1, 1, 1]] * 3 + [[0, 0, 0, 0]] + [[0, 1, 0, 0]] * 2, dtype=bool)[
        ..., None
    ]
    labelled = dict(describe_groups(groups))
    assert "report apart" in labelled["source"]
    assert labelled["rollouts of a state"] == "all succeed 50.0%, none 16.7%, differ 33.3%"
    assert labelled["reliability of the labels"].startswith("not known")
    groups.provenance["completion_noise"] = 0.0
    assert "without chance" in dict(describe_groups(groups))["reliability of the labels"]
    groups.provenance["completion_noise"] = 1.0
    groups.outcomes["success"] = groups.outcomes["success"].repeat(2, axis=2)
    assert dict(describe_groups(groups))["reliability of the labels"].startswith("1.00")


def test_reliability_is_the_candidates_share_of_the_variance():
    random = np.random.default_rng(0)
    sizes = ((1, 1), (8, 1), (1, 2), (8, 2))
    state, candidate, rollout, chance = (random.standard_normal((4000, *size)) for size in sizes)
    # Variances 0.5 of the candidate and 1 of each of its rollouts: of that of a mean of two, 0.5 of 0.5 + 1 / 2.
    assert reliability(3 * state + 0.5**0.5 * candidate + chance) == pytest.approx(0.5, abs=0.02)
    assert reliability(rollout + 0.5**0.5 * candidate + chance) == pytest.approx(0.5, abs=0.02)
    assert reliability(3 * state + rollout + candidate) == pytest.approx(1.0)
    assert reliability(3 * state + rollout + chance) == pytest.approx(0, abs=0.02)
    assert reliability(np.ones((5, 4, 2), dtype=bool)) == 0.0
