import json

import pytest

from flowpolicy.cli import main
from flowpolicy.commands.suite import run_suite
from flowpolicy.configs.preset_table import find_preset
from flowpolicy.configs.suites import SUITES, Arm, Suite
from flowpolicy.core.errors import ConfigError, TrainingError
from flowpolicy.lab.suite_jobs import companies, find_suite, plan_jobs


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
        ({"seeds": [2]}, "no seed 2"),
    ],
)
def test_unknown_words_are_refused(words, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        plan_jobs(SUITES["debug"], tmp_path, tmp_path, tmp_path, **words)


def test_a_suite_whose_file_cannot_be_generated_says_where_to_put_it(tmp_path):
    with pytest.raises(ConfigError, match=r"door-human\.hdf5 is missing") as error:
        run_suite("door-human", data=tmp_path / "data", out=tmp_path / "runs")
    assert "put D4RL's door-human file there" in str(error.value)


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
    run_suite("small", data=tmp_path / "data", out=tmp_path / "runs", arms=("fql",))
    assert record.stat().st_mtime_ns == first
