import dataclasses

import numpy as np
import pytest
import torch

from flowpolicy.core.errors import ConfigError, ContractError, EvaluationError
from flowpolicy.evaluate.plan import EvaluationPlan, make_plan
from flowpolicy.evaluate.rollout import rollout
from flowpolicy.policy.session import Session

from .fakes import SEEN, SPEC, ChaosEnv, NetworkPolicy, SeeingChaosEnv, outcome

PLAN = make_plan("fake/Chaos", 12, 1)


@pytest.fixture(scope="module")
def alone():
    return rollout(NetworkPolicy(), ChaosEnv(1), PLAN)


@pytest.mark.parametrize("slots", [2, 5, 12, 20])
@pytest.mark.quick("evaluate")
def test_outcomes_are_bit_identical_for_any_number_of_slots(alone, slots):
    together = rollout(NetworkPolicy(), ChaosEnv(slots), PLAN)
    assert [outcome(e) for e in together] == [outcome(e) for e in alone]


@pytest.mark.parametrize(("history", "chunk", "execute"), [(1, 4, 3), (2, 4, 3), (3, 8, 8), (2, 2, 1), (5, 4, 2)])
def test_pictures_are_taken_where_a_decision_sees_them_and_nowhere_else(history, chunk, execute):
    """The outcomes are those of taking every one: a picture of another moment would lead to another orbit."""
    policy = NetworkPolicy(history, chunk, execute, spec=SEEN)
    every, few = SeeingChaosEnv(3, eager=True), SeeingChaosEnv(3)
    whole, lazy = rollout(policy, every, PLAN), rollout(policy, few, PLAN)
    assert [outcome(e) for e in lazy] == [outcome(e) for e in whole]
    assert [outcome(e) for e in lazy] != [
        outcome(e) for e in rollout(NetworkPolicy(history, chunk, execute), few, PLAN)
    ]
    # One at the start; then before each decision as many as it sees, but for those that the one before saw or that no
    # decision came after.
    needed = sum(1 + sum(-step % execute < history for step in range(1, e.length)) for e in lazy)
    assert few.looked - needed in range(len(lazy) + 1) if history > 1 else few.looked == sum(e.chunks for e in lazy)
    assert few.looked < every.looked or history >= execute


def test_a_picture_that_was_not_taken_is_no_black_one():
    session = Session(NetworkPolicy(1, 4, 3, spec=SEEN))
    obs = SeeingChaosEnv(1).reset([0], [0])
    seen = {"state": obs["state"][0], "eye_image": np.zeros((4, 5, 3), np.uint8)}
    with pytest.raises(ConfigError, match="eye_image"):
        session.act({"state": seen["state"]})
    session.act(seen)
    for _ in range(2):
        assert not session.episode.looks
        session.act({"state": seen["state"]})
    assert session.episode.looks
    with pytest.raises(ConfigError, match="eye_image"):
        session.act({"state": seen["state"]})


def test_outcomes_do_not_depend_on_the_order_of_the_plan(alone):
    backwards = EvaluationPlan(PLAN.env_id, PLAN.indices[::-1], PLAN.policy_seeds[::-1])
    assert [outcome(e) for e in rollout(NetworkPolicy(), ChaosEnv(5), backwards)] == [outcome(e) for e in alone[::-1]]


def test_the_policy_seed_is_what_the_noise_depends_on(alone):
    other = dataclasses.replace(PLAN, policy_seeds=tuple(s + 1 for s in PLAN.policy_seeds))
    changed = rollout(NetworkPolicy(), ChaosEnv(1), other)
    assert all(a.return_ != b.return_ for a, b in zip(alone, changed, strict=True))


def test_outcomes_come_in_plan_order_and_some_episodes_succeed(alone):
    assert tuple(e.index for e in alone) == PLAN.indices
    assert tuple(e.policy_seed for e in alone) == PLAN.policy_seeds
    assert 0 < sum(e.success for e in alone) < len(alone)


def test_return_length_and_success_step_agree_with_a_replay_by_hand():
    policy, env = NetworkPolicy(history=1), ChaosEnv(1)
    played = rollout(policy, env, make_plan("fake/Chaos", 1, 4))[0]
    by_hand = ChaosEnv(1)
    generator = torch.Generator().manual_seed(played.policy_seed)
    obs, rewards, successes, chunk, over = by_hand.reset([played.index], [0]), [], [], [], False
    while not over:
        if not chunk:
            shown = torch.from_numpy(obs["state"])[None]
            chunk = list(NetworkPolicy(history=1).act({"state": shown}, generator)[0, :3])
        step = by_hand.step(chunk.pop(0).numpy()[None], [0])
        obs, over = step.obs, bool(step.truncated[0])
        rewards.append(step.reward[0])
        successes.append(bool(step.success[0]))
    assert played.length == len(rewards)
    assert played.return_ == pytest.approx(sum(rewards), rel=1e-12)
    assert played.success_step == (successes.index(True) + 1 if any(successes) else None)
    assert played.chunks == -(-len(rewards) // 3)


def test_history_repeats_the_first_observation_and_then_slides():
    policy, env = NetworkPolicy(history=3, execute=1, chunk=2), ChaosEnv(1)
    plan = make_plan("fake/Chaos", 2, 0)
    first = rollout(policy, env, plan)[0]
    for start, index in ((0, plan.indices[0]), (first.length, plan.indices[1])):
        initial = torch.from_numpy(ChaosEnv(1).reset([index], [0])["state"])[0]
        shown = [seen[0] for seen in policy.seen[start : start + 4]]
        assert torch.equal(shown[0], initial.expand(3, 3))
        assert torch.equal(shown[1][:2], initial.expand(2, 3))
        assert torch.equal(shown[3][:2], shown[2][1:])
        assert not torch.equal(shown[3][2], shown[3][1])


def test_every_initial_state_is_started_once_and_no_finished_slot_is_stepped():
    env = ChaosEnv(5)
    stepped = []
    step = env.step
    env.step = lambda action, slots: (stepped.append(list(slots)), step(action, slots))[1]
    played = rollout(NetworkPolicy(), env, PLAN)
    started = [index for _, indices, _ in env.calls for index in indices]
    assert sorted(started) == sorted(PLAN.indices)
    assert sum(map(len, stepped)) == sum(e.length for e in played)


@pytest.mark.parametrize("nfe", [None, 1, 4])
def test_evaluations_are_measured(nfe):
    for played in rollout(NetworkPolicy(nfe=2), ChaosEnv(2), PLAN, nfe=nfe):
        assert played.evaluations == played.chunks * (nfe or 2)
        assert played.chunks == -(-played.length // 3)
        assert len(played.decision_seconds) == played.chunks


def test_a_policy_that_evaluates_more_than_it_says_is_caught():
    policy = NetworkPolicy(nfe=2)
    policy.contract = dataclasses.replace(policy.contract, nfe=1)
    act = policy.act
    policy.act = lambda obs, generator, nfe=None: act(obs, generator, 2)
    with pytest.raises(EvaluationError, match="used 2 network evaluations"):
        rollout(policy, ChaosEnv(1), PLAN)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_non_finite_action_names_episode_and_step(bad):
    policy, calls = NetworkPolicy(execute=3), []
    act = policy.act

    def spoiled(obs, generator, nfe=None):
        calls.append(1)
        chunk = act(obs, generator, nfe).clone()
        if len(calls) == 3:
            chunk[0, 1, 0] = bad
        return chunk

    policy.act = spoiled
    with pytest.raises(EvaluationError, match=r"episode 0 \(initial state 1000000\), step 6: .*NaN or infinity"):
        rollout(policy, ChaosEnv(1), PLAN)


def test_a_non_finite_reward_is_an_error():
    env = ChaosEnv(1)
    step = env.step
    env.step = lambda action, slots: dataclasses.replace(step(action, slots), reward=np.array([np.nan]))
    with pytest.raises(EvaluationError, match="step 1: the reward is nan"):
        rollout(NetworkPolicy(), env, PLAN)


def test_a_chunk_of_the_wrong_shape_is_an_error():
    policy = NetworkPolicy()
    policy.contract = dataclasses.replace(policy.contract, chunk=3)
    policy.act = lambda obs, generator, nfe=None: (
        setattr(policy, "evaluations", policy.evaluations + 2),
        torch.zeros(1, 4, 2),
    )[1]
    with pytest.raises(EvaluationError, match=r"shape \(4, 2\)"):
        rollout(policy, ChaosEnv(1), PLAN)


def test_another_environment_or_plan_is_refused():
    env = ChaosEnv(1)
    with pytest.raises(ContractError, match="plan is for 'Lift'"):
        rollout(NetworkPolicy(), env, make_plan("Lift", 2, 0))
    env.spec = dataclasses.replace(SPEC, action=dataclasses.replace(SPEC.action, size=3))
    with pytest.raises(ContractError, match=r"action\.size: 2 against 3"):
        rollout(NetworkPolicy(), env, PLAN)


def test_only_recorded_episodes_are_rendered_and_recording_changes_nothing(alone):
    env = ChaosEnv(3)
    played = rollout(NetworkPolicy(), env, PLAN, record=[0, 7])
    assert [bool(e.frames) for e in played] == [i in (0, 7) for i in range(12)]
    assert len(env.rendered) == sum(e.length + 1 for i, e in enumerate(played) if i in (0, 7))
    assert len(played[7].frames) == played[7].length + 1
    assert [outcome(e) for e in played] == [outcome(e) for e in alone]


def test_progress_is_told_every_episode_once():
    told = []
    played = rollout(NetworkPolicy(), ChaosEnv(4), PLAN, progress=told.append)
    assert sorted(e.index for e in told) == sorted(e.index for e in played)
