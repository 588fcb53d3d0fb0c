"""The delay wrapper against what it must be, observation by observation."""

import numpy as np
import pytest

from flowpolicy.core.errors import ConfigError
from flowpolicy.core.protocols import VecEnv
from flowpolicy.envs import find_env
from flowpolicy.envs.delay import Delay, DelayedVecEnv, delay_steps

from ..evaluate.fakes import ChaosEnv


def play(delay, indices=(3, 4), steps=9, slots=(0, 1)):
    """Observations and ages as the policy sees them, and the true ones."""
    env, true = DelayedVecEnv(ChaosEnv(2), delay), ChaosEnv(2)
    seen, fresh, ages = [env.reset(indices, slots)["state"]], [true.reset(indices, slots)["state"]], [[0, 0]]
    for step in range(steps):
        action = np.full((2, 2), 0.1 * step)
        late = env.step(action, slots)
        seen.append(late.obs["state"])
        fresh.append(true.step(action, slots).obs["state"])
        ages.append(late.age.tolist())
    return np.array(seen), np.array(fresh), np.array(ages)


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_an_observation_is_so_many_actions_old(steps):
    seen, fresh, ages = play(Delay(steps))
    for now in range(10):
        age = min(now, steps)
        assert ages[now].tolist() == [age, age]
        assert np.array_equal(seen[now], fresh[now - age])


@pytest.mark.parametrize("delay", [Delay(1, jitter=3), Delay(2, dropped=0.5), Delay(0, jitter=2, dropped=0.3, seed=5)])
def test_with_jitter_and_losses_the_age_tells_which_observation_it_is(delay):
    seen, fresh, ages = play(delay)
    for now in range(10):
        for row in range(2):
            taken = now - ages[now, row]
            assert np.array_equal(seen[now, row], fresh[taken, row])
            assert taken == 0 or ages[now, row] >= delay.steps
    taken = np.arange(10)[:, None] - ages
    assert (np.diff(taken, axis=0) >= 0).all(), "an observation was overtaken"
    assert (ages != play(Delay(delay.steps))[2]).any()


def test_the_delay_of_an_episode_depends_on_seed_and_initial_state_alone():
    delay = Delay(1, jitter=2, dropped=0.2)
    first, swapped = play(delay, (3, 4)), play(delay, (4, 3))
    assert np.array_equal(first[2], swapped[2][:, ::-1])
    assert not np.array_equal(first[2], play(Delay(1, jitter=2, dropped=0.2, seed=1), (3, 4))[2])


def test_the_share_of_losses_is_what_was_asked_for():
    env = DelayedVecEnv(ChaosEnv(1), Delay(dropped=0.25))
    env.reset([0], [0])
    env.env.left[0] = 5000
    ages = np.array([env.step(np.zeros((1, 2)), [0]).age[0] for _ in range(4000)])
    assert (ages > 0).mean() == pytest.approx(0.25, abs=3 * (0.25 * 0.75 / 4000) ** 0.5)


def test_reward_success_and_end_are_not_delayed():
    env, true = DelayedVecEnv(ChaosEnv(1), Delay(4)), ChaosEnv(1)
    env.reset([1], [0])
    true.reset([1], [0])
    for _ in range(12):
        late, fresh = (one.step(np.ones((1, 2)), [0]) for one in (env, true))
        assert [late.reward, late.success, late.truncated] == [fresh.reward, fresh.success, fresh.truncated]


def test_every_simulator_can_be_delayed():
    env = DelayedVecEnv(find_env("toy").make(2), Delay(2))
    assert isinstance(env, VecEnv)
    start = env.reset([0, 1], [0, 1])["position"].copy()
    step = env.step(np.ones((2, 2)), [0, 1])
    assert np.array_equal(step.obs["position"], start)
    assert env.render(0).shape == (128, 128, 3)
    env.close()


def test_milliseconds_are_rounded_up_to_actions():
    assert [delay_steps(ms, 20.0) for ms in (0, 1, 50, 51, 100, 200)] == [0, 1, 1, 2, 2, 4]
    with pytest.raises(ConfigError, match="control rate"):
        delay_steps(50, 0.0)


@pytest.mark.parametrize("wrong", [{"steps": -1}, {"jitter": -1}, {"dropped": 1.0}, {"dropped": -0.1}])
def test_an_impossible_delay_is_refused(wrong):
    with pytest.raises(ConfigError):
        Delay(**wrong)
