"""robosuite's other tasks: what they observe, and that a planned start is the same whatever came before."""

import numpy as np
import pytest

from flowpolicy.envs import find_env
from flowpolicy.envs.robosuite import RobosuiteEnv

pytestmark = pytest.mark.sim


@pytest.mark.parametrize(("name", "actions"), [("square", 7), ("tool-hang", 7), ("transport", 14)])
@pytest.mark.filterwarnings("ignore:robosuite is simulated by its own control step")
def test_a_task_gives_what_its_spec_says_and_starts_where_the_plan_says(name, actions):
    config = find_env(name)
    spec, env = config.spec(), RobosuiteEnv.create(config)
    assert spec.action.size == actions
    first = env.reset(3)
    assert {key: value.shape for key, value in first.items()} == {k: v.shape for k, v in spec.observation.items()}
    outcome = env.step(np.full(actions, 0.5))
    assert not outcome.success and outcome.reward == 0.0
    assert any(not np.array_equal(first[key], outcome.obs[key]) for key in first)
    again = env.reset(3)
    assert all(np.array_equal(first[key], again[key]) for key in first)
    env.close()
