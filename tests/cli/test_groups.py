"""Post-training as a user meets it, on the toy: base, groups from every source, training, resume, picture."""

import json
import re
import shutil

import pytest

from flowpolicy.agents.groups.group_file import read_groups, write_groups
from flowpolicy.core import checkpoint
from flowpolicy.envs.labelling import CandidateRunner
from flowpolicy.policy import Policy
from flowpolicy.train.verify import compare

from ..conftest import flowpolicy

pytestmark = pytest.mark.timeout(900)

SMALL = ["--agent.net.width", "16", "--agent.net.depth", "1", "--no-tensorboard", "--data.path", "toy.hdf5"]
TRAIN = ["--steps", "20", "--checkpoint-every", "10", "--keep-checkpoints", "0", "--agent.assess-every", "5"]


def succeed(*arguments, cwd):
    done = flowpolicy(*arguments, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Data, a base and a critic with held-out networks."""
    home = tmp_path_factory.mktemp("post")
    succeed("data", "make", "toy", "--quality", "mixed", "--episodes", 12, "--out", "toy.hdf5", cwd=home)
    succeed("train", "debug", *SMALL, "--steps", 60, "--out", "base", cwd=home)
    succeed(
        *("train", "fql-toy", *SMALL, "--steps", 20, "--agent.chunk", 4, "--agent.critic.held-out", 1),
        *("--out", "critic"),
        cwd=home,
    )
    return home


MAKE = ("groups", "make", "base", "--states", 24, "--candidates", 4, "--held-out-share", 0.3)


@pytest.fixture(scope="module")
def trained(home):
    succeed(*MAKE, "--source", "simulator", "--rollouts", 1, "--workers", 0, "--out", "sim.hdf5", cwd=home)
    succeed("train", "debug-gdro", "--base", "base", "--groups", "sim.hdf5", *TRAIN, "--agent.scale", "deviation",
            "--no-tensorboard", "--out", "run", cwd=home)  # fmt: skip
    return home / "run"


def test_simulator_groups_are_told_apart_everywhere(trained, home):
    groups = read_groups(home / "sim.hdf5")
    assert groups.outcomes["success"].shape == (24, 4, 1) and set(groups.judges) == {"train", "held_out"}
    assert "report apart" in succeed("data", "info", "sim.hdf5", cwd=home).replace("\n", " ")
    folder = checkpoint.resolve(trained)
    contract = json.loads((folder / "contract.json").read_text())
    assert contract["groups_sha256"] == groups.sha256 and contract["groups_source"] == "simulator"
    assert contract["base"] == str(checkpoint.resolve(home / "base"))
    assert "no offline result" in (folder / "card.md").read_text()


def test_the_result_acts_as_the_base_does_and_is_drawn(trained, home):
    base, policy = Policy.load(home / "base"), Policy.load(trained)
    assert policy.config == base.config and policy.contract.nfe == base.contract.nfe
    assert (trained / "corrected.png").stat().st_size > 5000
    header = (trained / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"corrected_gain", "hacking_gap", "kl", "best_update"} <= set(header)
    succeed("groups", "picture", "run", "--episodes", 2, "--out", "with.png", cwd=home)
    assert (home / "with.png").stat().st_size > (trained / "corrected.png").stat().st_size


def test_killed_and_resumed_equals_uninterrupted(trained, home):
    shutil.copytree(trained, home / "killed")
    shutil.rmtree(home / "killed" / "checkpoints" / "step_00000020")
    (home / "killed" / "checkpoints" / "LATEST").write_text("step_00000010\n")
    succeed("resume", "killed", cwd=home)
    compare(checkpoint.resolve(trained), checkpoint.resolve(home / "killed"))


def test_changed_groups_are_not_resumed_on(trained, home):
    whole = (home / "sim.hdf5").read_bytes()
    groups = read_groups(home / "sim.hdf5")
    groups.score[0, 0] += 1
    write_groups(home / "sim.hdf5", groups)
    try:
        done = flowpolicy("resume", "run", cwd=home)
    finally:
        (home / "sim.hdf5").write_bytes(whole)
    assert done.returncode == 2 and "the groups of the run, sim.hdf5, changed" in done.stderr


def test_critic_and_returns_are_deterministic(home):
    for source in (["--source", "critic", "--critic", "critic"], ["--source", "returns"]):
        for name in ("a.hdf5", "b.hdf5"):
            (home / name).unlink(missing_ok=True)
            succeed(*MAKE, *source, "--out", name, cwd=home)
        assert (home / "a.hdf5").read_bytes() == (home / "b.hdf5").read_bytes()
        groups = read_groups(home / "a.hdf5")
        assert groups.provenance["source"] == source[1] and float(groups.score.std()) > 0


def test_stopped_labelling_goes_on_where_it_was(trained, home, monkeypatch):
    make = (*MAKE, "--source", "simulator", "--rollouts", 1, "--workers", 0, "--out", "stopped.hdf5")
    label, left = CandidateRunner.label, [5]

    def until(*arguments):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return label(*arguments)

    monkeypatch.setattr(CandidateRunner, "label", until)
    done = flowpolicy(*make, cwd=home)
    assert done.returncode == 130, done.stderr
    assert (home / "stopped.hdf5.labels").exists() and not (home / "stopped.hdf5").exists()
    done = flowpolicy(*make, "--seed", 1, cwd=home)
    assert done.returncode == 2 and "stopped.hdf5.labels" in done.stderr.replace("\n", "")
    left[0] = 19  # of 24 states
    succeed(*make, cwd=home)
    assert (home / "stopped.hdf5").read_bytes() == (home / "sim.hdf5").read_bytes()
    assert not (home / "stopped.hdf5.labels").exists()


def test_what_the_base_does_becomes_groups_of_states_that_it_meets(home):
    succeed("data", "rollouts", "base", "--episodes", 10, "--noise-scale", 0, 1, "--workers", 0, "--out", "own.hdf5",
            cwd=home)  # fmt: skip
    assert "where it comes from" in succeed("data", "info", "own.hdf5", cwd=home)
    succeed("train", "fql-toy", *SMALL[:-1], "own.hdf5", "--steps", 4, "--agent.chunk", 4, "--agent.critic.held-out", 1,
            "--out", "judge", cwd=home)  # fmt: skip
    ladder = ("--data", "own.hdf5", "--candidate-noise", 0, 1, "--out", "ladder.hdf5")
    succeed(*MAKE, "--source", "critic", "--critic", "judge", *ladder, cwd=home)
    ways = ("--source", "simulator", "--rollouts", 1, "--completion-noise", "own", "--workers", 0)
    succeed(*MAKE, *ways, *ladder, "--overwrite", cwd=home)
    found = read_groups(home / "ladder.hdf5").provenance
    assert (found["candidate_noise"], found["completion_noise"], found["dataset"]) == ([0, 1], "own", "own.hdf5")


MISTAKES = (
    (["groups", "make", "base", "--source", "critic", "--out", "x"], "--critic RUN"),
    (["groups", "make", "base", "--source", "simulator", "--limit", "8", "--out", "x"], "within the chunk of 8"),
    (["groups", "make", "base", "--source", "simulator", "--span", "0.5", "0.2", "--out", "x"], "0 0.3"),
    ([*MAKE, "--source", "simulator", "--completion-noise", 0, "--out", "x"], "--rollouts 1"),
    ([*MAKE, "--source", "returns", "--candidate-noise", 0, "nan", "--out", "x"], "finite"),
    ([*MAKE, "--source", "returns", "--candidate-noise", 0, 1, "--out", "x"], "from the data"),
    (["groups", "make", "base", "--source", "critic", "--critic", "base", "--out", "x"], "has no critic"),
    (["groups", "make", "critic", "--source", "returns", "--out", "x"], "dm1-*, flow-bc-*"),
    (["groups", "make", "base", "--source", "returns", "--candidates", 2, "--out", "x"], "at least 4"),
    (["groups", "make", "absent", "--source", "returns", "--out", "x"], "flowpolicy train"),
    (["data", "rollouts", "base", "--noise-scale", 0, "inf", "--out", "x"], "finite"),
    (["train", "debug-gdro"], "--base RUN --groups FILE"),
    (["train", "debug-gdro", "--base", "base", "--groups", "toy.hdf5"], "not a group file"),
    (["train", "debug-gdro", "--base", "base", "--groups", "x", "--agent.nfe", 3], "the base has 10"),
    (["train", "debug", "--base", "base"], "has no meaning"),
    (["groups", "picture", "base"], "gdro"),
)


def test_mistakes_exit_with_2_and_a_hint(home):
    done = [(flowpolicy(*arguments, cwd=home), hint) for arguments, hint in MISTAKES]
    assert not [one for one, hint in done if one.returncode != 2 or hint not in re.sub(r"\s+", " ", one.stderr)]
