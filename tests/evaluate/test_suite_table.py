import dataclasses
import io
import json

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from flowpolicy.core.errors import EvaluationError
from flowpolicy.evaluate.plan import make_plan
from flowpolicy.evaluate.report import make_evaluation, save_evaluation
from flowpolicy.evaluate.sheets import as_csv, as_latex, as_markdown
from flowpolicy.evaluate.statistics import (
    hierarchical_difference,
    hierarchical_mean,
    interquartile_mean,
    probability_of_improvement,
    wilson,
)
from flowpolicy.evaluate.suite_table import draw_suite, load_records, suite_scores, suite_sheets, suite_table

from .fakes import episode

PLAN = make_plan("fake/Chaos", 50, 0)
GENERATOR = np.random.default_rng(0)


def store(folder, task, arm, seed, rate, *, step=100, data="a" * 64, noise_scale=1.0, **options):
    outcomes = GENERATOR.random(50) < rate
    episodes = [
        dataclasses.replace(episode(i, 5 if good else None), policy_seed=s)
        for i, s, good in zip(PLAN.indices, PLAN.policy_seeds, outcomes, strict=True)
    ]
    training = {"seconds": 2.0, "dataset_sha256": data, "experiment": {"batch_size": 64, "seed": seed, **options}}
    save_evaluation(
        folder / task / f"{arm}-seed{seed}.json",
        make_evaluation(
            PLAN, episodes, run=f"runs/{arm}-seed{seed}", step=step, training=training, noise_scale=noise_scale
        ),
    )
    return outcomes.mean()


def printed(tables):
    console = Console(file=io.StringIO(), width=200)
    for table in tables:
        console.print(table)
    return console.file.getvalue()


def test_the_table_has_every_arm_its_difference_and_the_iqm_over_tasks(tmp_path):
    rates = {(arm, task): [] for arm in ("fql", "fisher") for task in ("maze", "cube")}
    for (arm, task), found in rates.items():
        for seed in range(3):
            found.append(store(tmp_path, task, arm, seed, 0.9 if arm == "fisher" else 0.2))
    records = load_records(tmp_path, ["maze", "cube"], ["fql", "fisher", "absent"])
    text = printed(suite_table("s", records, "fql"))
    assert list(records) == ["fql", "fisher"]
    assert f"{100 * np.mean(rates['fisher', 'maze']):.1f} %" in text
    iqm = stats.trim_mean(np.concatenate([rates["fisher", "maze"], rates["fisher", "cube"]]), 0.25)
    assert f"{100 * iqm:.1f} %" in text
    assert f"{100 * (np.mean(rates['fisher', 'cube']) - np.mean(rates['fql', 'cube'])):+.1f}" in text
    assert text.count(" *") >= 2
    assert "20.0" in text  # 2 s over 100 updates
    assert f"maze: 50 episodes a run (plan {PLAN.digest[:12]}), 100 updates of 64 rows, data aaaaaaaaaaaa" in text
    draw_suite(tmp_path / "picture.png", records, "fql")
    assert (tmp_path / "picture.png").stat().st_size > 5000


HOPPER = make_plan("gymnasium/Hopper-v4", 10, 0)
PUBLISHED = {"hopper": {"iql": (67.5, "a source & more"), "other": (99.0, "a source & more")}}


def returns(folder, task, arm, seed, mean, step=100):
    """A record of Hopper, whose episodes return about ``mean``."""
    values = mean + GENERATOR.standard_normal(10)
    episodes = [
        dataclasses.replace(episode(i, None), policy_seed=s, return_=float(value))
        for i, s, value in zip(HOPPER.indices, HOPPER.policy_seeds, values, strict=True)
    ]
    training = {"seconds": 3.0, "dataset_sha256": "c" * 64, "experiment": {"batch_size": 64, "seed": seed}}
    made = make_evaluation(HOPPER, episodes, step=step, training=training, success_defined=False)
    save_evaluation(folder / task / f"{arm}-seed{seed}.json", made)
    return 100 * (values.mean() + 20.272305) / (3234.3 + 20.272305)


def test_normalised_scores_stand_beside_published_ones_which_are_marked(tmp_path):
    scores = [returns(tmp_path, "hopper", "iql", seed, 2000.0 + seed) for seed in range(3)]
    for seed in range(3):
        returns(tmp_path, "hopper", "rebrac", seed, 3000.0, step=50)
    with pytest.raises(EvaluationError, match="not made alike"):
        load_records(tmp_path, ["hopper"], ["iql", "rebrac"])
    records = load_records(tmp_path, ["hopper"], ["iql", "rebrac"], common=False)
    measured, against = suite_sheets("s", records, "iql", score="normalised", published=PUBLISHED)
    rows = {row[0]: dict(zip(measured.head, row, strict=True)) for row in measured.rows}
    assert rows["iql"]["hopper"].startswith(f"{np.mean(scores):.1f} [")
    assert rows["iql"]["updates x rows"] == "100 x 64" and rows["rebrac"]["updates x rows"] == "50 x 64"
    assert rows["iql, published"]["hopper"] == "67.5 (a)" and rows["other, published"]["hopper"] == "99.0 (a)"
    assert "rebrac, published" not in rows
    assert rows["rebrac"]["P(better than iql)"].startswith("1.00") and rows["iql"]["P(better than iql)"] == "-"
    assert "published (a), not measured here: a source & more" in measured.notes
    assert against.rows[0][1].endswith("*")
    text = as_markdown([measured, against])
    assert "| iql, published | " in text and text.count("|\n") == len(measured.rows) + len(against.rows) + 4
    latex = as_latex([measured])
    assert r"a source \& more" in latex and r"\toprule" in latex and "_" not in latex.replace(r"\_", "")
    lines = as_csv(suite_scores(records, score="normalised", published=PUBLISHED)).splitlines()
    assert len(lines) == 1 + 2 + 2 and lines[1].startswith("iql,hopper,normalised,")
    assert [line.split(",")[2] for line in lines[3:]] == ["published", "published"]
    draw_suite(tmp_path / "normalised.png", records, "iql", score="normalised", published=PUBLISHED)
    assert (tmp_path / "normalised.png").stat().st_size > 5000


def test_many_tasks_are_rows(tmp_path):
    tasks = [f"task{n}" for n in range(6)]
    for task in tasks:
        store(tmp_path, task, "fql", 0, 0.5)
        store(tmp_path, task, "fisher", 0, 0.5)
    records = load_records(tmp_path, tasks, ["fql", "fisher"])
    sheet, against = suite_sheets("s", records, "fql", published={"task2": {"fql": (50.0, "x")}})
    assert sheet.head == ("", "fql", "fql, published", "fisher")
    assert [row[0] for row in sheet.rows if row[0] in tasks] == tasks
    assert next(row for row in sheet.rows if row[0] == "task2")[2] == "50.0 (a)"
    assert against.head == ("", "fisher") and len(against.rows) == 6
    draw_suite(tmp_path / "many.png", records, "fql")


def test_the_probability_of_improvement_is_that_of_pairs_with_ties_half():
    a, b = [np.array([1.0, 2.0, 3.0])], [np.array([2.0, 2.0])]
    found = probability_of_improvement(a, b)
    assert found.mean == pytest.approx((0 + 0 + 0.5 + 0.5 + 1 + 1) / 6) and found.low < 0.5 < found.high
    assert probability_of_improvement(b, a).mean == pytest.approx(0.5)
    certain = probability_of_improvement(
        [np.array([5.0, 6.0]), np.array([1.0])], [np.array([4.0]), np.array([0.0, 0.5])]
    )
    assert (certain.low, certain.mean, certain.high) == (1.0, 1.0, 1.0)
    one, two = np.array([0.1, 0.2, 0.3]), np.array([0.15, 0.25])
    wins = stats.mannwhitneyu(one, two).statistic / 6
    assert probability_of_improvement([one, a[0]], [two, b[0]]).mean == pytest.approx((wins + 0.5) / 2)
    with pytest.raises(EvaluationError):
        probability_of_improvement([one], [])


def test_scores_without_variance_that_are_no_shares_have_no_width():
    constant = hierarchical_mean(np.full((2, 5), 1.07))
    assert (constant.low, constant.mean, constant.high) == pytest.approx((1.07, 1.07, 1.07))


def test_an_arm_without_every_task_has_no_aggregate(tmp_path):
    store(tmp_path, "maze", "fql", 0, 0.5)
    store(tmp_path, "cube", "fql", 0, 0.5)
    store(tmp_path, "maze", "fisher", 0, 0.5)
    text = printed(suite_table("s", load_records(tmp_path, ["maze", "cube"], ["fql", "fisher"]), "fql"))
    row = next(line for line in text.splitlines() if "fisher" in line)
    assert row.count(" - ") == 3  # the task, the IQM, and the probability to beat the reference
    store(tmp_path, "cube", "fisher", 0, 0.5)
    assert "(one seed)" in printed(suite_table("s", load_records(tmp_path, ["maze", "cube"], ["fisher"]), "fql"))
    store(tmp_path, "cube", "fisher", 1, 0.5)  # two seeds on one task and one on the other weigh unequally
    text = printed(suite_table("s", load_records(tmp_path, ["maze", "cube"], ["fisher"]), "fql"))
    assert "(one seed)" not in text and next(line for line in text.splitlines() if "fisher" in line).count(" - ") == 2


@pytest.mark.parametrize("odd", [{"step": 99}, {"data": "b" * 64}, {"noise_scale": 0.5}])
def test_records_of_another_budget_are_refused(tmp_path, odd):
    store(tmp_path, "maze", "fql", 0, 0.5)
    store(tmp_path, "maze", "fisher", 0, 0.5, **odd)
    with pytest.raises(EvaluationError, match=r"not made alike.*fisher-seed0"):
        load_records(tmp_path, ["maze"], ["fql", "fisher"])


@pytest.mark.parametrize(
    ("odd", "message"),
    [({"agent": {"alpha": 1.0}}, "agent.alpha is 3.0 and 1.0"), ({"seed": 0}, "is of the training seed 0")],
)
def test_two_seeds_of_an_arm_that_are_no_two_seeds_are_refused(tmp_path, odd, message):
    store(tmp_path, "maze", "fql", 0, 0.5, agent={"alpha": 3.0}, threads=1)
    store(tmp_path, "maze", "fql", 1, 0.5, agent={"alpha": 3.0}, threads=2)
    load_records(tmp_path, ["maze"], ["fql"])
    path = tmp_path / "maze" / "fql-seed1.json"
    value = json.loads(path.read_text())
    value["training"]["experiment"] |= odd
    path.write_text(json.dumps(value))
    with pytest.raises(EvaluationError, match=message):
        load_records(tmp_path, ["maze"], ["fql"])


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(EvaluationError, match="no records"):
        load_records(tmp_path, ["maze"], ["fql"])


def test_the_interval_over_seeds_and_episodes_is_wider_than_the_pooled_one_when_seeds_differ():
    values = np.zeros((3, 50))
    values[0] = 1.0
    values[1, ::2] = 1.0
    interval, pooled = hierarchical_mean(values), wilson(int(values.sum()), values.size)
    assert interval.mean == pytest.approx(0.5)
    assert interval.high - interval.low > 2 * (pooled.high - pooled.low)


def test_its_width_is_that_of_the_normal_law_with_equal_seeds_and_many_episodes():
    # One column per episode, the same for all seeds: only the episodes vary, with variance p (1 - p) / n.
    values = np.tile(np.arange(400) % 2, (3, 1)).astype(float)
    interval = hierarchical_mean(values)
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * 0.5 / 20, rel=0.05)


def test_paired_episodes_cancel_in_the_difference():
    hard = (GENERATOR.random((1, 50)) < 0.5).astype(float).repeat(3, axis=0)
    same = hierarchical_difference(hard, hard)
    assert (same.mean, same.low, same.high) == (0.0, 0.0, 0.0)
    assert np.ptp([hierarchical_mean(hard).low, hierarchical_mean(hard).high]) > 0.2


def test_outcomes_without_variance_keep_a_width():
    none, every = np.zeros((3, 50)), np.ones((3, 50))
    assert hierarchical_mean(none) == wilson(0, 150)
    difference = hierarchical_difference(every, none)
    assert difference.low < 1.0 == difference.mean
    assert difference.low > 0.9


def test_the_interquartile_mean_drops_the_outer_quarters():
    scores = [np.array([0.0, 0.1, 0.5, 0.6]), np.array([0.4, 0.5, 0.9, 1.0])]
    assert interquartile_mean(scores).mean == pytest.approx(np.mean([0.4, 0.5, 0.5, 0.6]))
    constant = interquartile_mean([np.full(4, 0.3), np.full(4, 0.3)])
    assert (constant.low, constant.mean, constant.high) == pytest.approx((0.3, 0.3, 0.3))


@pytest.mark.parametrize("bad", [np.array([np.nan, 1.0]), np.array([])])
def test_scores_that_are_no_numbers_are_refused(bad):
    with pytest.raises(EvaluationError):
        interquartile_mean([bad])
