"""A policy acts on pictures that were drawn otherwise than in training only where that is allowed, and it is told."""

import dataclasses
import warnings

import pytest

from flowpolicy.commands.evaluate import _cost
from flowpolicy.core.errors import ContractError, DataWarning
from flowpolicy.core.spec import ImageSpec, RenderSpec
from flowpolicy.data.thumbnails import thumbnail, write_thumbnail
from flowpolicy.evaluate.plan import EvaluationPlan
from flowpolicy.evaluate.records import as_trained, record_name, record_path
from flowpolicy.evaluate.report import load_evaluation, make_evaluation, save_evaluation
from flowpolicy.evaluate.rollout import rollout

from .fakes import SEEN, NetworkPolicy, SeeingChaosEnv, episode

LINE = "observation eye_image.render.reflections: 'off' against 'on'"


def drawn(reflections):
    image = ImageSpec((4, 5, 3), camera="eye", render=RenderSpec("mujoco", reflections=reflections))
    return dataclasses.replace(SEEN, observation={**SEEN.observation, "eye_image": image})


def test_other_pictures_are_refused_unless_they_are_allowed():
    env, policy = SeeingChaosEnv(2), NetworkPolicy(spec=drawn("off"))
    env.spec = drawn("on")
    plan = EvaluationPlan("fake/Chaos", (1, 2, 3), (4, 5, 6))
    with pytest.raises(ContractError, match=LINE):
        rollout(policy, env, plan)
    assert len(rollout(policy, env, plan, allow_render_mismatch=True)) == 3


def test_a_camera_that_shows_something_else_than_in_training_is_told():
    env = SeeingChaosEnv(2)
    env.reset([1, 2], [0, 1])
    seen = thumbnail(env.look([0, 1])["eye_image"])
    plan = EvaluationPlan("fake/Chaos", (1, 2, 3), (4, 5, 6))

    def play(grey):
        image = dataclasses.replace(SEEN.observation["eye_image"], thumbnail=write_thumbnail(grey))
        rollout(
            NetworkPolicy(spec=dataclasses.replace(SEEN, observation={**SEEN.observation, "eye_image": image})),
            env,
            plan,
        )

    with pytest.warns(DataWarning, match="'eye_image' shows something else than in training"):
        play(255 - seen)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        play(seen)


def test_what_other_pictures_cost_is_told_against_the_record_on_those_of_training(tmp_path, monkeypatch):
    monkeypatch.setattr("flowpolicy.evaluate.report.defines_success", lambda env_id: True)
    plan = EvaluationPlan("fake/Chaos", tuple(range(20)), tuple(range(100, 120)))
    best = [episode(index, success_step=3) for index in range(20)]
    worse = [episode(index, success_step=3 if index < 8 else None) for index in range(20)]
    common = {"run": "run", "step": 5, "checkpoint_sha256": "ab" * 32}
    before, after = make_evaluation(plan, best, **common), make_evaluation(plan, worse, **common, mismatch=(LINE,))
    assert record_name(before) != record_name(after)
    assert as_trained(tmp_path, after) is None
    assert "flowpolicy eval run" in _cost(tmp_path, after, "run")
    for evaluation in (before, after):
        save_evaluation(record_path(tmp_path, evaluation), evaluation)
    assert load_evaluation(record_path(tmp_path, after)).mismatch == (LINE,)
    assert "mismatch" not in record_path(tmp_path, before).read_text()
    told = _cost(tmp_path, after, "run")
    assert told.startswith("success 0.4 on these pictures and 1 on those of training: difference -0.6 [")
