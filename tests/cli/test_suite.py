import json
import subprocess

import pytest

from flowpolicy.cli import main
from flowpolicy.commands.suite import run_suite
from flowpolicy.configs.preset_table import find_preset
from flowpolicy.configs.suites import SUITES, Arm, Suite
from flowpolicy.core.errors import ConfigError, TrainingError
from flowpolicy.lab.suite_jobs import (
    companies,
    data_file,
    find_suite,
    plan_jobs,
    published_scores,
    require_data,
    with_added,
)


def parsed(words):
    from flowpolicy.commands.train import parse

    _, preset, *flags = words
    return parse(find_preset(preset)[1], flags, "train", "")


@pytest.mark.parametrize("name", list(SUITES))
def test_every_job_of_a_suite_names_a_preset_with_flags_that_it_has(name, tmp_path):
    suite = find_suite(name)
    jobs = plan_jobs(suite, tmp_path, tmp_path, tmp_path)
    assert len(jobs) == len(suite.arms) * len(suite.tasks) * suite.seeds
    assert len({job.record for job in jobs}) == len({job.run for job in jobs}) == len(jobs)
    assert suite.reference in suite.arms
    for job in jobs[: len(suite.arms) * len(suite.tasks)]:
        command = parsed(job.train)
        assert (command.seed, command.out) == (job.seed, str(job.run))


def test_the_arms_of_the_head_to_head_act_in_the_evaluations_that_their_names_say(tmp_path):
    for job in plan_jobs(SUITES["offline-rl"], tmp_path, tmp_path, tmp_path, seeds=[0]):
        if job.arm.startswith("fisher"):
            _, mode, nfe = job.arm.split("-")
            agent = parsed(job.train).agent
            assert (agent.metric.mode, agent.nfe) == (mode, int(nfe))


def test_all_arms_come_before_a_second_seed(tmp_path):
    jobs = plan_jobs(SUITES["debug"], tmp_path, tmp_path, tmp_path)
    assert [job.seed for job in jobs] == sorted(job.seed for job in jobs)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"arms": ["fqll"]}, "no arm 'fqll'"),
        ({"tasks": ["cube"]}, "no task 'cube'"),
    ],
)
def test_unknown_words_are_refused(words, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        plan_jobs(SUITES["debug"], tmp_path, tmp_path, tmp_path, **words)


def test_seeds_can_be_added(tmp_path):
    jobs = plan_jobs(SUITES["debug"], tmp_path, tmp_path, tmp_path, seeds=[4])
    assert {job.seed for job in jobs} == {4}


def test_added_arms_stay_with_the_records(tmp_path):
    suite = with_added(SUITES["debug"], tmp_path, ["fql-weak=fql --agent.alpha 0.1"])
    assert suite.arms["fql-weak"] == Arm("fql", ("--agent.alpha", "0.1"))
    assert with_added(SUITES["debug"], tmp_path).arms == suite.arms
    assert with_added(SUITES["debug"], tmp_path, ["fql-weak=fql --agent.alpha 0.1"]).arms == suite.arms
    for text, message in (
        ("fql=fql", "another arm 'fql'"),
        ("fql-weak=fql --agent.alpha 3", "another arm 'fql-weak'"),
        ("fql --agent.alpha 3", "NAME=PRESET"),
        ("../x=fql", "NAME=PRESET"),
    ):
        with pytest.raises(ConfigError, match=message):
            with_added(SUITES["debug"], tmp_path, [text])


def test_files_of_published_suites_are_named_as_they_were_published(tmp_path):
    assert data_file("hopper-medium-v2", tmp_path).name == "hopper-medium-v2.hdf5"
    assert data_file("scene-play-singletask-task2-v0", tmp_path).name == "scene-play-v0.npz"
    with pytest.raises(ConfigError, match=r"hopper-medium-v2\.hdf5 is missing") as error:
        run_suite("d4rl-locomotion", data=tmp_path / "data", out=tmp_path / "runs", tasks=("hopper-medium-v2",))
    assert "flowpolicy data download hopper-medium-v2 --folder" in str(error.value)


def test_published_numbers_are_found_for_a_suite():
    found = published_scores(SUITES["d4rl-locomotion"])
    assert found["hopper-medium-v2"]["rebrac"][0] == 102.3 and len(found) == 9
    assert "BC-RNN" in published_scores(SUITES["robomimic-lowdim"])["square-ph"]


def test_a_suite_whose_file_cannot_be_generated_says_where_to_put_it(tmp_path):
    with pytest.raises(ConfigError, match=r"door-human\.hdf5 is missing") as error:
        run_suite("door-human", data=tmp_path / "data", out=tmp_path / "runs")
    assert "put D4RL's door-human file there" in str(error.value)


def test_the_file_of_a_suite_with_pictures_is_made_with_the_cameras_of_its_presets(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(subprocess, "run", lambda words, check: made.append(" ".join(words[3:])))
    require_data(SUITES["dispersion"], "lift-image", tmp_path)
    require_data(SUITES["offline-rl"], "cube-single", tmp_path)
    cameras = "--cameras agentview robot0_eye_in_hand"
    assert made == [
        f"data make lift --episodes 20 --seed 0 {cameras} --out {tmp_path}/lift-image.hdf5",
        f"data make cube-single --episodes 300 --seed 0 --out {tmp_path}/cube-single.npz",
    ]


def test_an_unknown_suite_exits_with_2(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["suite", "run", "offline"])
    assert stop.value.code == 2
    assert "offline-rl" in capsys.readouterr().err


def test_seeds_in_a_row_are_trained_together_unless_one_is_under_way(tmp_path):
    suite = Suite("", {"a": Arm("fql"), "b": Arm("iql")}, {"toy": 6}, (), seeds=4, episodes=2)
    jobs = plan_jobs(suite, tmp_path, tmp_path, tmp_path, seeds=[0, 1, 3], more=("--device", "cuda"))
    assert [[job.seed for job in company] for company in companies(jobs)] == [[0, 1], [3]] * 2
    (jobs[0].run / "checkpoints" / "step_00000001").mkdir(parents=True)
    assert [[job.seed for job in company] for company in companies(jobs)] == [[0], [1], [3], [0, 1], [3]]
    assert [str(job.run) for job in jobs[:1]] == [f"{jobs[0].together[-1]}-seed0"]
    command = parsed(jobs[0].together)
    assert (command.device, command.out) == ("cuda", str(tmp_path / "toy" / "a"))


@pytest.mark.slow
def test_a_suite_trains_its_seeds_together(tmp_path, monkeypatch):
    small = Suite("two seeds", {"fql": Arm("fql")}, {"toy": 6}, ("--steps", "4"), seeds=2, episodes=2)
    monkeypatch.setitem(SUITES, "small", small)
    run_suite("small", data=tmp_path / "data", out=tmp_path / "runs", batch_seeds=True)
    records = [json.loads((tmp_path / f"runs/records/toy/fql-seed{n}.json").read_text()) for n in range(2)]
    assert [record["training"]["experiment"]["seed"] for record in records] == [0, 1]


@pytest.mark.slow
def test_a_suite_runs_keeps_what_is_done_and_names_what_failed(tmp_path, monkeypatch, capsys):
    arms = {"fql": Arm("fql"), "broken": Arm("fql", ("--agent.alpha", "nan", "--agent.tau", "7"))}
    small = Suite("two runs", arms, {"toy": 6}, ("--steps", "4", "--batch-size", "8"), seeds=1, episodes=2)
    monkeypatch.setitem(SUITES, "small", small)
    with pytest.raises(TrainingError, match="1 of 2 runs failed: toy/broken-seed0") as error:
        run_suite("small", data=tmp_path / "data", out=tmp_path / "runs", jobs=2)
    assert "broken-seed0.log" in str(error.value)
    assert "fql" in capsys.readouterr().out
    record = tmp_path / "runs/records/toy/fql-seed0.json"
    first = record.stat().st_mtime_ns
    assert len(json.loads(record.read_text())["episodes"]) == 2
    run_suite("small", data=tmp_path / "data", out=tmp_path / "runs", arms=("fql",), steps=4)
    with pytest.raises(ConfigError, match="is of 4 updates, and --steps 5"):
        run_suite("small", data=tmp_path / "data", out=tmp_path / "runs", arms=("fql",), steps=5)
    assert record.stat().st_mtime_ns == first
