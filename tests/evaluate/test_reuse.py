"""Success against evaluations saved, on the toy."""

import dataclasses
import json

import pytest

from flowpolicy.envs import find_env
from flowpolicy.evaluate.plan import make_plan
from flowpolicy.evaluate.reuse import deciders, draw_reuse, reuse_curve, reuse_markdown, save_reuse
from flowpolicy.evaluate.rollout import rollout

from .test_delay import toy_policy


@pytest.mark.parametrize(
    ("sampler", "nfe", "ways"),
    [
        ("euler", 4, ["none", "similarity", "warm start", "stream batch"]),
        ("midpoint", 4, ["none", "similarity", "warm start"]),
        ("map", 1, ["none", "similarity"]),
    ],
)
def test_a_policy_goes_the_ways_that_it_can(sampler, nfe, ways):
    assert [way for way, _ in deciders(toy_policy(sampler, 0), nfe, (0.5,), 2)] == ways


def test_every_way_plays_one_plan_and_its_calls_are_counted(tmp_path):
    policy, env = toy_policy("euler", 0), dataclasses.replace(find_env("toy"), horizon=12).make(2)
    policy.contract = dataclasses.replace(policy.contract, spec=env.spec)
    plan, played = make_plan(env.spec.env_id, 2, 0), []
    points = reuse_curve(policy, env, plan, 4, kappas=(1e-9, 1e9), most=2, progress=played.append)
    calls = {(point.way, point.setting): point.evaluations for point in points}
    assert len(played) == 2 * len(points) == 12
    assert calls["none", 0.0] == calls["similarity", 1e-9] == calls["warm start", 1e-9] == 4.0
    decisions = played[0].chunks
    assert calls["similarity", 1e9] == pytest.approx(4 * -(-decisions // 3) / decisions), "one of three is computed"
    assert calls["warm start", 1e9] < 4.0
    assert calls["stream batch", 4.0] == pytest.approx((decisions + 4 * min(3, decisions)) / decisions)
    plain = rollout(policy, env, plan, nfe=4)
    assert points[0].episodes == points[1].episodes == tuple(episode.success for episode in plain)
    save_reuse(points, tmp_path / "reuse.json", run="toy")
    assert len(json.loads((tmp_path / "reuse.json").read_text())["points"]) == 6
    assert "| similarity | 1e+09 |" in reuse_markdown(points)
    draw_reuse(points, "toy", tmp_path / "reuse.png")
    assert (tmp_path / "reuse.png").stat().st_size > 10_000
