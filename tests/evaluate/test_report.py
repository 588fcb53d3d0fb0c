import dataclasses
import io
import json

import numpy as np
import pytest
from rich.console import Console

from flowpolicy.core.errors import CheckpointError, EvaluationError
from flowpolicy.evaluate.methods_figure import draw_methods
from flowpolicy.evaluate.plan import EvaluationPlan, make_plan
from flowpolicy.evaluate.report import compare, git_commit, load_evaluation, make_evaluation, save_evaluation
from flowpolicy.evaluate.rollout import rollout
from flowpolicy.evaluate.statistics import wilson
from flowpolicy.evaluate.tables import comparison_table, evaluation_table, methods_table, verdict

from .fakes import ChaosEnv, NetworkPolicy, episode, outcome

PLAN = make_plan("fake/Chaos", 10, 0)


def evaluation(successes, run="runs/a", first_index=0, **options):
    n = len(successes)
    plan = EvaluationPlan(
        "fake/Chaos", tuple(range(first_index, first_index + n)), tuple(range(first_index + 100, first_index + 100 + n))
    )
    episodes = [episode(first_index + i, 5 if s else None, return_=float(s) * (i + 1)) for i, s in enumerate(successes)]
    return make_evaluation(plan, episodes, run=run, **options)


def printed(table):
    console = Console(file=io.StringIO(), width=200)
    console.print(table)
    return console.file.getvalue()


def test_the_file_holds_what_scripts_read(tmp_path):
    made = evaluation(
        [True] * 8 + [False] * 2, step=500, command="flowpolicy eval runs/a", normalized_score=lambda r: 10 * r
    )
    save_evaluation(tmp_path / "eval.json", made)
    value = json.loads((tmp_path / "eval.json").read_text())
    reference = wilson(8, 10)
    assert value["success"] == {"mean": 0.8, "low": reference.low, "high": reference.high, "n": 10}
    assert set(value["return"]) == {"mean", "low", "high"}
    assert value["return"]["mean"] == pytest.approx(3.6)
    assert value["return"]["low"] < 3.6 < value["return"]["high"]
    assert value["normalized_score"]["mean"] == pytest.approx(36.0)
    assert value["nfe"] == 1
    assert isinstance(value["nfe"], int)
    assert (value["run"], value["step"], value["command"]) == ("runs/a", 500, "flowpolicy eval runs/a")
    assert value["plan_digest"] == made.plan.digest
    assert value["plan"]["indices"] == list(range(10))
    assert "torch" in value["versions"]
    assert value["episodes"][8] == {
        "index": 8,
        "policy_seed": 108,
        "success": False,
        "success_step": None,
        "return": 0.0,
        "length": 10,
        "chunks": 2,
        "evaluations": 2,
        "policy_seconds": 3e-3,
    }


def test_a_rollout_survives_the_file(tmp_path):
    made = make_evaluation(PLAN, rollout(NetworkPolicy(), ChaosEnv(3), PLAN), run="r", step=1)
    save_evaluation(tmp_path / "eval.json", made)
    read = load_evaluation(tmp_path / "eval.json")
    assert [outcome(e) for e in read.episodes] == [outcome(e) for e in made.episodes]
    assert (read.success, read.return_, read.nfe, read.latency) == (made.success, made.return_, 2, made.latency)
    assert (read.plan, read.versions, read.commit, read.normalized) == (made.plan, made.versions, made.commit, None)


def test_the_scale_of_the_noise_is_kept_and_older_files_had_one(tmp_path):
    made = evaluation([True], noise_scale=0.25)
    save_evaluation(tmp_path / "eval.json", made)
    assert load_evaluation(tmp_path / "eval.json").noise_scale == 0.25
    assert "0.25" in printed(evaluation_table(made))
    value = json.loads((tmp_path / "eval.json").read_text())
    del value["noise_scale"]
    (tmp_path / "older.json").write_text(json.dumps(value))
    assert load_evaluation(tmp_path / "older.json").noise_scale == 1.0


def test_latency_leaves_out_the_very_first_decision_only():
    episodes = [episode(0, seconds=(9.0, 1e-3)), episode(1, seconds=(2e-3, 3e-3))]
    latency = make_evaluation(EvaluationPlan("e", (0, 1), (100, 101)), episodes).latency
    assert latency.p50_us == pytest.approx(2000.0)
    assert latency.p99_us == pytest.approx(2980.0)


def test_one_decision_has_no_latency_and_nan_is_never_written(tmp_path):
    made = make_evaluation(EvaluationPlan("e", (0,), (100,)), [episode(chunks=1, evaluations=1, seconds=(1.0,))])
    save_evaluation(tmp_path / "eval.json", made)
    assert json.loads((tmp_path / "eval.json").read_text())["latency"] is None
    assert "NaN" not in (tmp_path / "eval.json").read_text()
    assert load_evaluation(tmp_path / "eval.json").latency is None


@pytest.mark.parametrize("counts", [((2, 2), (2, 4)), ((2, 3), (2, 3))])
def test_an_inconsistent_number_of_evaluations_is_an_error(counts):
    episodes = [episode(i, chunks=c, evaluations=e) for i, (c, e) in enumerate(counts)]
    with pytest.raises(EvaluationError, match="differ between episodes"):
        _ = make_evaluation(EvaluationPlan("e", (0, 1), (100, 101)), episodes).nfe


def test_damaged_files_are_named(tmp_path):
    path = tmp_path / "eval.json"
    with pytest.raises(CheckpointError, match="missing"):
        load_evaluation(path)
    save_evaluation(path, evaluation([True, False]))
    whole = json.loads(path.read_text())
    without = {k: v for k, v in whole.items() if k != "run"}
    changed = json.loads(path.read_text())
    changed["plan"]["indices"] = [5, 6]
    swapped = json.loads(path.read_text())
    swapped["episodes"].reverse()
    for value, message in (
        ({**whole, "schema": 9}, "schema 1"),
        (without, "'run'"),
        (changed, "altered"),
        (swapped, "altered"),
    ):
        path.write_text(json.dumps(value))
        with pytest.raises(EvaluationError, match=message) as caught:
            load_evaluation(path)
        assert str(path) in str(caught.value)


def test_comparing_different_plans_is_an_error_that_says_so():
    with pytest.raises(EvaluationError, match="runs/a and runs/b were evaluated on different plans"):
        compare(evaluation([True] * 5), evaluation([True] * 5, run="runs/b", first_index=50))


def test_compare_pairs_episodes_by_the_plan():
    a, b = evaluation([True] * 12 + [False] * 8), evaluation([False] * 9 + [True] * 3 + [False] * 8, run="runs/b")
    result = compare(a, b)
    assert (result.only_a, result.only_b, result.n) == (9, 0, 20)
    assert result.difference.mean == pytest.approx(0.45)
    assert result.return_difference.mean == pytest.approx(sum(range(1, 10)) / 20)
    text = printed(comparison_table(a, b, result))
    assert "+45.0 points" in text
    assert verdict(result).startswith("Resolved: A succeeds more often")
    assert verdict(compare(b, a)).startswith("Resolved: B succeeds more often")
    assert verdict(compare(a, a)).startswith("Not resolved")
    assert "hair" not in verdict(compare(a, a))
    assert "hair" in verdict(compare(evaluation([True] * 5 + [False] * 15), evaluation([False] * 20)))


def test_what_is_not_alike_is_told():
    a, b = evaluation([True] * 4, step=300), evaluation([True] * 4, run="runs/b", step=100, noise_scale=0.5)
    b = dataclasses.replace(b, versions=b.versions | {"mujoco": "0"}, training={"dataset_sha256": "b" * 64})
    text = printed(comparison_table(a, b, compare(a, b)))
    for told in ("A = runs/a at step 300, B = runs/b at step 100", "initial noise times 1 and 0.5", "and 0."):
        assert told in text
    assert "Not trained on the same data: files unstated and bbbbbbbbbbbb" in text
    lacking = dataclasses.replace(a, versions={k: v for k, v in a.versions.items() if k != "mujoco"})
    for other in (a, lacking):  # what is absent in one did not simulate
        assert "Not" not in printed(comparison_table(a, other, compare(a, other))).replace("Not resolved", "")


def test_tables_show_the_numbers():
    made = evaluation([True] * 19 + [False], run="runs/demo/dm1", step=300, normalized_score=lambda r: r)
    text = printed(evaluation_table(made))
    assert "95.0 % [76.4, 99.1]" in text
    assert "normalised score" in text
    trained = dataclasses.replace(made, training={"seconds": 125.4, "parameters": 1_234_567})
    rows = {"DM1": trained, "flow BC": dataclasses.replace(trained, latency=None)}
    text = printed(methods_table(rows, "Lift"))
    for cell in ("DM1", "2 min 05 s", "1,234,567", "95.0 % [76.4, 99.1]", "2000 / ", "flow BC"):
        assert cell in text


def test_where_no_success_is_defined_the_return_counts(tmp_path):
    plan = make_plan("gymnasium/Hopper-v4", 20, 0)
    stronger, weaker = (
        make_evaluation(
            plan,
            [
                dataclasses.replace(episode(index, return_=gain + index % 3), policy_seed=seed)
                for index, seed in zip(plan.indices, plan.policy_seeds, strict=True)
            ],
            success_defined=False,
            normalized_score=lambda value: value / 30,
        )
        for gain in (1000.0, 900.0)
    )
    path = tmp_path / "hopper.json"
    save_evaluation(path, stronger)
    value = json.loads(path.read_text())
    assert value["success"] is None and {played["success"] for played in value["episodes"]} == {None}
    assert load_evaluation(path) == dataclasses.replace(stronger, episodes=load_evaluation(path).episodes)
    # Older versions wrote that nobody succeeded.
    path.write_text(json.dumps(value | {"success": {"mean": 0.0, "low": 0.0, "high": 0.2, "n": 20}}))
    assert load_evaluation(path).success is None
    text = printed(evaluation_table(stronger))
    assert "success" not in text and "normalised score" in text and "return" in text
    text = printed(comparison_table(stronger, weaker, compare(stronger, weaker)))
    assert "Resolved: the return of A is higher" in text and "0.0 %" not in text and "McNemar" not in text
    draw_methods({"stronger": stronger, "weaker": weaker}, "Hopper", tmp_path / "methods.png")


def test_git_commit_is_a_hash_or_empty():
    commit = git_commit()
    assert commit == "" or np.all([c in "0123456789abcdef" for c in commit.removesuffix("-dirty")])
    assert len(commit.removesuffix("-dirty")) in (0, 40)
