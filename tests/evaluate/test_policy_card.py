import json

import pytest
from matplotlib.image import imread

from flowpolicy.core.errors import ConfigError
from flowpolicy.evaluate.plan import make_plan
from flowpolicy.evaluate.policy_card import card, supported
from flowpolicy.evaluate.rollout import rollout

from .fakes import ChaosEnv, NetworkPolicy, outcome

PLAN = make_plan("fake/Chaos", 6, 0)


def test_card_evaluates_what_the_policy_supports_on_one_plan(tmp_path):
    evaluations = card(NetworkPolicy(), ChaosEnv(3), PLAN, tmp_path, run="runs/demo/dm1", step=7)
    assert [e.nfe for e in evaluations] == [1, 2, 4]
    assert {e.plan.digest for e in evaluations} == {PLAN.digest}
    direct = rollout(NetworkPolicy(), ChaosEnv(1), PLAN, nfe=4)
    assert [outcome(e) for e in evaluations[2].episodes] == [outcome(e) for e in direct]
    assert json.loads((tmp_path / "nfe_4.json").read_text())["nfe"] == 4
    lines = (tmp_path / "card.md").read_text().splitlines()
    assert lines[0] == "# dm1 at step 7 on fake/Chaos, 6 episodes"
    assert [line.split("|")[1].strip() for line in lines if line.startswith("| ")] == ["NFE", "1", "2", "4"]
    assert imread(tmp_path / "card.png").std() > 0.05


def test_a_policy_that_supports_nothing_is_an_error():
    with pytest.raises(ConfigError, match=r"none of \[3, 5\]"):
        supported(NetworkPolicy(), (3, 5))
