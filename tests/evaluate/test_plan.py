import dataclasses
import json

import pytest

from flowpolicy.core.errors import CheckpointError, EvaluationError
from flowpolicy.evaluate.plan import EvaluationPlan, load_plan, make_plan, save_plan


def test_default_plan_is_the_block_of_its_seed():
    assert make_plan("Lift", 3, 2).indices == (2_000_000, 2_000_001, 2_000_002)


def test_plans_of_different_seeds_share_neither_initial_states_nor_policy_seeds():
    plans = [make_plan("Lift", 200, seed) for seed in range(5)]
    assert len({index for plan in plans for index in plan.indices}) == 1000
    assert len({seed for plan in plans for seed in plan.policy_seeds}) == 1000


def test_a_longer_plan_begins_with_the_shorter_one():
    short, long = make_plan("Lift", 5, 1), make_plan("Lift", 50, 1)
    assert long.indices[:5] == short.indices
    assert long.policy_seeds[:5] == short.policy_seeds


def test_plan_survives_the_file(tmp_path):
    plan = make_plan("robosuite/Lift", 7, 3)
    save_plan(tmp_path / "plan.json", plan)
    assert load_plan(tmp_path / "plan.json") == plan


def test_digest_ignores_layout_and_sees_every_field(tmp_path):
    plan = make_plan("Lift", 4, 0)
    (tmp_path / "plan.json").write_text(json.dumps(dict(reversed(plan.to_json().items())), indent=7))
    assert load_plan(tmp_path / "plan.json").digest == plan.digest
    others = [
        dataclasses.replace(plan, env_id="Can"),
        dataclasses.replace(plan, indices=(0, 1, 3, 2)),
        dataclasses.replace(plan, policy_seeds=(1, 2, 3, 4)),
    ]
    assert len({plan.digest, *(other.digest for other in others)}) == 4


@pytest.mark.parametrize(("episodes", "seed"), [(0, 0), (1_000_001, 0), (5, -1)])
def test_impossible_plans_are_refused(episodes, seed):
    with pytest.raises(EvaluationError):
        make_plan("Lift", episodes, seed)


def test_ragged_empty_and_negative_plans_are_refused():
    with pytest.raises(EvaluationError, match="2 indices and 1 policy_seeds"):
        EvaluationPlan("Lift", (1, 2), (1,))
    with pytest.raises(EvaluationError, match="no episodes"):
        EvaluationPlan("Lift", (), ())
    with pytest.raises(EvaluationError, match="negative"):
        EvaluationPlan("Lift", (-1,), (1,))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, "schema 1"),
        ({"indices": [0, "one"]}, "indices"),
        ({"policy_seeds": [0.5, 1]}, "policy_seeds"),
        ({"indices": [True, 1]}, "indices"),
        ({"env_id": 3}, "env_id"),
        ({"extra": 1}, "extra"),
    ],
)
def test_a_malformed_file_is_named(tmp_path, change, message):
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({**make_plan("Lift", 2, 0).to_json(), **change}))
    with pytest.raises(EvaluationError, match=message) as caught:
        load_plan(path)
    assert str(path) in str(caught.value)


def test_a_missing_or_truncated_file_is_named(tmp_path):
    path = tmp_path / "plan.json"
    with pytest.raises(CheckpointError, match="missing"):
        load_plan(path)
    path.write_text('{"schema": 1, "ind')
    with pytest.raises(CheckpointError, match="not valid JSON"):
        load_plan(path)
