"""Environments as Gymnasium has them."""

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from flowpolicy.core.errors import ConfigError
from flowpolicy.envs import ENVS
from flowpolicy.envs.arm_tasks import ARM_TASKS
from flowpolicy.envs.gymnasium_env import make_env
from flowpolicy.evaluate.plan import make_plan


@pytest.mark.filterwarnings("ignore:.*A Box observation space m")
def test_gymnasium_itself_finds_nothing_wrong():
    check_env(gymnasium.make("flowpolicy/toy-v0", render_mode="rgb_array").unwrapped)


def test_all_that_is_simulated_here_is_registered():
    registered = {name for name in gymnasium.registry if name.startswith("flowpolicy/")}
    assert registered == {f"flowpolicy/{name}-v0" for name in ENVS.keys() - ARM_TASKS.keys()}


def test_seeded_resets_walk_along_the_plan_of_the_seed():
    env, plan = make_env("toy"), make_plan("flowpolicy/Toy", 3, 5)
    vector = ENVS["toy"].make(1)
    for number, index in enumerate(plan.indices):
        obs, info = env.reset(seed=5) if number == 0 else env.reset()
        assert info["index"] == index
        assert np.array_equal(obs["position"], vector.reset([index], [0])["position"][0])
    assert env.reset(options={"index": 7})[1]["index"] == 7
    assert env.reset()[1]["index"] == plan.indices[-1] + 1  # a state that was picked moves nothing
    drawn = [make_env("toy").reset()[1]["index"] for _ in range(2)]
    assert drawn[0] != drawn[1]


def test_what_no_environment_takes_is_told():
    env = make_env("toy")
    with pytest.raises(ConfigError, match="after the end"):
        env.step(np.zeros(2))
    env.reset(seed=0)
    for action in (np.zeros(3), np.zeros((8, 2)), np.array([np.nan, 0.0])):
        with pytest.raises(ConfigError, match="an action of shape"):
            env.step(action)
    for options in ({"idnex": 1}, {"index": -1}, {"index": 1.5}):
        with pytest.raises(ConfigError):
            env.reset(options=options)
    with pytest.raises(ConfigError, match="rgb_array"):
        make_env("toy", render_mode="human")
    assert env.render() is None and make_env("toy", render_mode="rgb_array").render().dtype == np.uint8


@pytest.mark.sim
def test_a_simulator_with_pictures_is_a_plain_environment():
    pytest.importorskip("gym_pusht")
    from flowpolicy.envs import find_env
    from flowpolicy.envs.gymnasium_env import GymnasiumEnv

    env = GymnasiumEnv(find_env("pusht", find_env("pusht").with_cameras((), 32, 32, "fast").spec().images))
    obs, _ = env.reset(seed=0)
    assert env.observation_space.contains(obs)
    obs, _, _, _, info = env.step(env.action_space.sample())
    assert env.observation_space.contains(obs) and info == {"success": False}
