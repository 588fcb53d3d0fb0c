"""OGBench's tasks: names, the table against the registered environments, timing of rewards, published scores."""

import contextlib
import re

import numpy as np
import pytest

from flowpolicy.core.errors import ConfigError
from flowpolicy.core.seed import derive
from flowpolicy.envs import ENVS, find_env
from flowpolicy.envs.global_random import GlobalRandom
from flowpolicy.envs.ogbench_env import SUITE, OGBenchConfig, OGBenchEnv, create, reset_seeded


@pytest.mark.parametrize(
    "name",
    [
        "cube-single-task3",
        "cube-single-singletask-task3-v0",
        "cube-single-play-singletask-task3-v0",
        "ogbench/cube-single-singletask-task3-v0",
    ],
)
def test_a_task_is_found_under_all_its_names(name):
    assert find_env(name) == OGBenchConfig("cube-single", 3)


def test_default_tasks_are_those_of_the_single_task_protocol():
    expected = {"cube-single": 2, "cube-double": 2, "scene": 2, "puzzle-3x3": 4, "pointmaze-medium": 1}
    assert {name: ENVS[name].task_id for name in expected} == expected
    assert find_env("ogbench/scene-singletask-task2-v0") is ENVS["scene"]
    assert OGBenchConfig.parse("pointmaze-medium-navigate-singletask-v0") == OGBenchConfig("pointmaze-medium")


def test_wrong_names_and_tasks_are_refused():
    with pytest.raises(ConfigError, match="cube-single has no task 6"):
        find_env("cube-single-task6")
    with pytest.raises(ConfigError, match="did you mean 'cube-single'"):
        find_env("cube-singel")
    with pytest.raises(ConfigError, match="unknown OGBench environment 'cube'"):
        OGBenchConfig("cube")


def test_the_global_stream_goes_on_where_it_was():
    np.random.seed(0)  # noqa: NPY002
    expected = np.random.uniform(size=2)  # noqa: NPY002
    np.random.seed(0)  # noqa: NPY002
    first = np.random.uniform()  # noqa: NPY002
    lent = GlobalRandom(7)
    with lent:
        mine = [np.random.uniform()]  # noqa: NPY002
    assert [first, np.random.uniform()] == expected.tolist()  # noqa: NPY002
    with lent:
        mine.append(np.random.uniform())  # noqa: NPY002
    assert mine == np.random.RandomState(7).uniform(size=2).tolist()


@pytest.mark.sim
def test_the_table_agrees_with_the_registered_environments():
    import gymnasium

    create("pointmaze-medium-v0").close()
    for name, (_, horizon, _) in SUITE.items():
        assert gymnasium.spec(f"{name}-singletask-task5-v0").max_episode_steps == horizon
        kwargs = gymnasium.spec(f"{name}-singletask-v0").kwargs
        assert (kwargs["reward_task_id"], kwargs["success_timing"]) == (0, "pre")


@pytest.mark.sim
@pytest.mark.parametrize("name", ["cube-double", "scene", "puzzle-3x3", "antmaze-large", "antsoccer-arena"])
def test_sizes_and_default_tasks_are_those_of_the_simulator(name):
    config = OGBenchConfig(name)
    env = create(f"{name}-singletask-v0")
    with contextlib.closing(env):
        obs, _ = env.reset(seed=0)
        assert obs.shape == config.spec().observation["state"].shape
        assert env.action_space.shape == (config.spec().action.size,)
        assert env._reward_task_id == config.task_id


@pytest.mark.sim
def test_reward_and_success_speak_of_the_state_before_the_action():
    env = OGBenchEnv(OGBenchConfig("pointmaze-medium"))
    env.reset(0)
    env.sim_env.set_xy(env.sim_env.cur_goal_xy + np.array([-1.1, 0.0]))
    reaching, after = env.step(np.array([1.0, 0.0])), env.step(np.array([0.0, 0.0]))
    assert (reaching.reward, reaching.terminated, reaching.success) == (-1.0, False, False)
    assert (after.reward, after.terminated, after.success) == (0.0, True, True)


@pytest.mark.sim
def test_manipulation_rewards_count_unsolved_sub_tasks_and_actions_are_clipped():
    env = OGBenchEnv(OGBenchConfig("cube-double"))
    start = env.reset(0)["state"]
    assert env.step(np.zeros(5)).reward == -2.0
    moved = [env.step(np.full(5, size)).obs["state"] for size in (1.0,) if env.reset(0) is not None]
    env.reset(0)
    np.testing.assert_array_equal(env.step(np.full(5, 9.0)).obs["state"], moved[0])
    assert not np.array_equal(start, moved[0])


@pytest.mark.sim
def test_the_first_state_does_not_depend_on_the_global_stream():
    env = OGBenchEnv(OGBenchConfig("pointmaze-large"))
    np.random.seed(1)  # noqa: NPY002
    first = env.reset(4)["state"]
    np.random.seed(2)  # noqa: NPY002
    np.testing.assert_array_equal(first, env.reset(4)["state"])
    assert re.match(r"ogbench/pointmaze-large-singletask-task1-v0", ENVS["pointmaze-large"].spec().env_id)


@pytest.mark.sim
def test_a_visual_environment_moves_as_the_other_one_and_shows_ogbenchs_own_picture():
    seeing, blind = (OGBenchEnv(OGBenchConfig("cube-single", visual=visual)) for visual in (True, False))
    assert seeing.reset(3) == {} and blind.reset(3)
    own = create(OGBenchConfig("cube-single", visual=True).name)
    seed = derive(0, "plan", "ogbench", "cube-single", 2, 3)
    given, _ = reset_seeded(own, GlobalRandom(), seed)
    np.testing.assert_array_equal(seeing.look()["pixels"], given)
    for _ in range(3):
        one, other = (env.step(np.array([0.3, 0.1, -0.2, 0.0, 1.0])) for env in (seeing, blind))
        assert one.reward == other.reward and one.obs == {}
    np.testing.assert_array_equal(seeing.sim_env._data.qpos, blind.sim_env._data.qpos)
    for env in (seeing, blind, own):
        env.close()
