"""Judges, the corrected score, and early stopping when the critic is corrupt."""

import dataclasses

import pytest
import torch

from flowpolicy.agents.groups.group_file import Groups, read_groups, write_groups
from flowpolicy.agents.groups.judges import Judge, critic_judges, fit_judge, load_judge
from flowpolicy.core.errors import DataError
from flowpolicy.core.seed import torch_generator
from flowpolicy.core.spec import ObservationSpec
from flowpolicy.data.normalize import Normalizer
from flowpolicy.nets.critic import CriticConfig

from .post_training import FIT, base_of, build, groups_of, linear, normalizer, run, sample


def corrupted(action):
    """The truth near the behaviour's mean, and a bonus that grows off the data."""
    return honest(action) + 3.0 * (action[..., 1] - 0.2).relu()


def honest(action):
    return -action[..., 1].square() + 0.2 * action[..., 0]


def test_a_corrupted_critic_is_seen_through_and_early_stopping_does_no_harm():
    base = base_of("dm1")
    groups = groups_of(base, corrupted, judged=honest)
    agent = build(base, groups, temperature=0.1, assess_every=20, support_weight=0.1, draws=4)
    rows = run(agent, groups, 160)
    last = rows[-1]
    assert float(last["reward_gain"]) > 0.3
    assert float(last["corrected_gain"]) < 0.0
    assert float(last["hacking_gap"]) > 0.5 * float(last["reward_gain"])
    assert float(last["unsupported"]) >= 0.0 and float(last["kl"]) > 0.0

    def truth(policy):
        return float(honest(sample(policy)).mean())

    assert truth(agent.policy()) >= truth(base) - 0.005
    assert truth(agent.policy(agent.ema.state_dict())) < truth(base) - 0.02
    late = dataclasses.replace(agent.config, early_stopping=False)
    agent.config = late
    assert torch.equal(agent.policy().actor.net.trunk.inlet.weight, agent.ema.state_dict()["net.trunk.inlet.weight"])


def test_judges_that_are_wrong_together_do_not_lead_beyond_the_support_limit():
    base = base_of("dm1")
    groups = groups_of(base, corrupted, judged=corrupted)
    kept = {}
    for limit in (0.05, 100.0):
        options = {"temperature": 0.1, "assess_every": 20, "support_weight": 0.0, "draws": 4}
        agent = build(base, groups, support_limit=limit, **options)
        run(agent, groups, 160)
        kept[limit] = agent.assessor.raw(agent.policy())["unsupported"] - agent.assessor.start["unsupported"]
    assert kept[0.05] <= 0.05 < kept[100.0]


def test_a_judge_scores_alike_before_and_after_the_file(tmp_path):
    """Several observations, in an order that is not the alphabet's: they are joined in that of training."""
    random = torch_generator(0)
    obs = {name: torch.randn(8, 1, width, generator=random) for name, width in (("wrist", 3), ("arm", 2), ("cup", 4))}
    action, score = torch.randn(8, 4, 2, 2, generator=random), torch.randn(8, 4, generator=random)
    scaling = Normalizer({name: value.shape[2] for name, value in obs.items()}, 2)
    judge = fit_judge(obs, action, score, scaling, caution=1.0, seed=0, epochs=1)
    write_groups(
        tmp_path / "groups.hdf5",
        Groups(
            obs=obs,
            action=action,
            valid=torch.ones(8, 2, dtype=torch.bool),
            score=score,
            row=torch.arange(8),
            held_out=torch.arange(8) % 2 == 0,
            provenance={"source": "returns"},
            judges={"train": judge.store()},
        ),
    )
    loaded = load_judge(read_groups(tmp_path / "groups.hdf5").judges["train"])
    assert torch.equal(loaded(obs, action[:, 0]), judge(obs, action[:, 0]))


def test_patience_stops_a_run_that_only_gets_worse():
    base = base_of("dm1")
    groups = groups_of(base, corrupted, judged=honest)
    agent = build(base, groups, temperature=0.1, assess_every=5, patience=3)
    for steps in range(1, 200):
        run(agent, groups, 1, seed=steps)
        if agent.stopped:
            break
    assert agent.stopped and agent.assessment.stale == 3
    assert agent.updates == agent.assessment.best_update + 15


def test_judges_survive_their_file_and_are_cautious():
    obs, random = {"state": torch.zeros(6, 1, 1)}, torch_generator(0)
    critic = CriticConfig(width=16, depth=1, members=3, held_out=2).build({"state": ObservationSpec((1,))}, 1, 2)
    chunk = torch.rand(6, 1, 2, generator=random)
    sizes = {"history": 1, "chunk": 1, "action": 2}
    bold = critic_judges(critic, normalizer(), {"state": 1}, **sizes, caution=0.0)
    values = critic(obs, chunk)
    assert torch.allclose(bold["train"](obs, chunk), values[:3].mean(0))
    assert torch.allclose(bold["held_out"](obs, chunk), values[3:].mean(0))
    careful = critic_judges(critic, normalizer(), {"state": 1}, **sizes, caution=2.0)["train"]
    assert torch.allclose(careful(obs, chunk), values[:3].mean(0) - 2 * values[:3].std(0, unbiased=False))
    again = load_judge(careful.store())
    assert torch.equal(again(obs, chunk), careful(obs, chunk))
    longer = torch.cat([chunk, chunk + 0.1], dim=1)
    assert torch.equal(careful(obs, longer), careful(obs, chunk)), "a judge of one action sees the first"
    broken = careful.store()
    del broken.tensors["critic.head.bias"]
    with pytest.raises(DataError, match="cannot be rebuilt"):
        load_judge(broken)


def test_a_fitted_judge_knows_the_advantage_and_not_the_value_of_the_state():
    random = torch_generator(0)
    obs = {"state": torch.rand(256, 1, 1, generator=random)}
    action = 2 * torch.rand(256, 8, 1, 2, generator=random) - 1
    score = 100 * obs["state"].squeeze(2) + action[:, :, 0, 0]
    judge = fit_judge(obs, action, score, normalizer(), caution=0.0, seed=0, epochs=40, **FIT)
    fresh = 2 * torch.rand(500, 1, 2, generator=random) - 1
    found = judge({"state": torch.rand(500, 1, 1, generator=random)}, fresh)
    assert torch.corrcoef(torch.stack([found, fresh[:, 0, 0]]))[0, 1] > 0.97
    assert isinstance(judge, Judge) and float(found.abs().max()) < 3


def test_a_group_file_without_judges_is_refused():
    base = base_of("flow_bc")
    groups = dataclasses.replace(groups_of(base, linear, epochs=1), judges={})
    with pytest.raises(DataError, match="--held-out-share"):
        build(base, groups)
