"""Rollouts behind a delay, and the curve that a card shows."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from flowpolicy.core.protocols import Step
from flowpolicy.core.spec import ActionSpec, Contract, ObservationSpec, Spec
from flowpolicy.envs import find_env
from flowpolicy.envs.delay import Delay, DelayedVecEnv
from flowpolicy.evaluate.delay_curve import delay_curve, delay_markdown, draw_delay, save_delay, ways
from flowpolicy.evaluate.plan import make_plan
from flowpolicy.evaluate.rollout import rollout

from ..policy.test_policy import make
from .fakes import ChaosEnv, NetworkPolicy, outcome


class CountingEnv:
    """The observation is the number of actions so far; keeps the actions."""

    spec = Spec({"count": ObservationSpec((1,))}, ActionSpec(1, low=-99, high=99), env_id="fake/Counting")
    num_envs = 1

    def reset(self, indices, slots):
        self.actions = []
        return {"count": np.zeros((1, 1), np.float32)}

    def step(self, action, slots):
        self.actions.append(float(action[0, 0]))
        count, one = len(self.actions), np.zeros(1)
        over = np.array([count >= 20])
        return Step({"count": np.full((1, 1), count, np.float32)}, one, one > 0, over, one > 0)

    def close(self):
        pass


class CountingPolicy:
    """Row i of a chunk is the time it is meant for, observation + i: right only where it is executed then."""

    def __init__(self):
        self.contract = Contract(CountingEnv.spec, 1, 8, 2, 1)
        self.evaluations, self.bound = 0, []

    def act(self, obs, generator, nfe=None, committed=None):
        self.evaluations += 1
        if committed is not None:
            self.bound.append(committed)
            length = int(committed.length)
            past = committed.action[0, :length, 0]
            assert torch.equal(past, obs["count"].flatten() + torch.arange(length)), "not what was executed since"
        return (obs["count"][:, 0, 0] + torch.arange(8.0)).view(1, 8, 1)


PLAN = make_plan("fake/Counting", 1, 0)


@pytest.mark.parametrize("delay", [Delay(0), Delay(1), Delay(4), Delay(1, jitter=2, dropped=0.2)])
@pytest.mark.parametrize("execution", ["aligned", "real_time"])
def test_skipping_the_age_executes_every_row_at_its_time(execution, delay):
    env, policy = DelayedVecEnv(CountingEnv(), delay), CountingPolicy()
    (episode,) = rollout(policy, env, PLAN, execution=execution)
    assert env.env.actions == list(range(20))
    assert bool(policy.bound) == (execution == "real_time" and delay != Delay(0))
    assert episode.stale == 0


def test_the_naive_queue_executes_late_by_the_delay():
    env = DelayedVecEnv(CountingEnv(), Delay(3))
    rollout(CountingPolicy(), env, PLAN)
    assert env.env.actions == [0, 1, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]


def test_an_observation_older_than_can_be_bridged_is_counted():
    env = DelayedVecEnv(CountingEnv(), Delay(4))
    (episode,) = rollout(CountingPolicy(), env, PLAN, execution="real_time", most_committed=2)
    assert 0 < episode.stale < episode.chunks
    assert env.env.actions == list(range(20))


def test_no_delay_is_the_plain_rollout_in_every_way():
    plan = make_plan("fake/Chaos", 4, 0)
    plain = [outcome(e) for e in rollout(NetworkPolicy(), ChaosEnv(2), plan)]
    for execution in ("naive", "aligned"):
        found = rollout(NetworkPolicy(), DelayedVecEnv(ChaosEnv(2), Delay()), plan, execution=execution)
        assert [outcome(e) for e in found] == plain
    late = rollout(NetworkPolicy(), DelayedVecEnv(ChaosEnv(2), Delay(1)), plan)
    assert [outcome(e) for e in late] != plain


def toy_policy(sampler, prefix):
    spec = find_env("toy").spec()
    return make(Contract(spec, 1, 6, 2, 4), sampler, prefix=prefix)


def test_the_ways_of_a_policy():
    assert list(ways(toy_policy("map", 0))) == ["naive", "aligned"]
    assert list(ways(toy_policy("map", 3))) == ["naive", "aligned", "real-time, trained"]
    assert list(ways(toy_policy("euler", 0))) == ["naive", "aligned", "real-time, guided"]


def test_the_curve_plays_every_way_at_every_delay_on_one_plan(tmp_path):
    policy, env = toy_policy("euler", 3), dataclasses.replace(find_env("toy"), horizon=12).make(2)
    policy.contract = dataclasses.replace(policy.contract, spec=env.spec)
    plan, played = make_plan(env.spec.env_id, 2, 0), []
    points = delay_curve(policy, env, plan, delays_ms=(0, 200), jitter=0, progress=played.append)
    names = ["naive", "aligned", "real-time, trained", "real-time, guided"]
    assert [(p.way, p.delay_ms, p.steps) for p in points] == [(n, ms, ms / 100) for ms in (0, 200) for n in names]
    assert len(played) == 2 * (1 + 4), "without delay one way is played for all"
    assert points[0].episodes == points[3].episodes
    save_delay(points, tmp_path / "delay.json", run="toy")
    stored = json.loads((tmp_path / "delay.json").read_text())
    assert [point["success"]["n"] for point in stored["points"]] == [2] * 8
    text = delay_markdown(points)
    assert "| way | 0 ms | 200 ms |" in text
    assert all(f"| {name} |" in text for name in names)
    draw_delay(points, "toy", tmp_path / "delay.png")
    assert (tmp_path / "delay.png").stat().st_size > 10_000
    only = delay_curve(policy, env, plan, delays_ms=(200,), only=("aligned",))
    assert [(p.way, p.episodes, p.length) for p in only] == [("aligned", points[5].episodes, points[5].length)]
