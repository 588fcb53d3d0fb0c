"""GDRO on one state with a Gaussian or two-mode base: closed forms, resume, judges and early stopping."""

import copy
import dataclasses

import pytest
import torch
from tensordict import TensorDict

from flowpolicy.agents.dm1 import DM1
from flowpolicy.agents.flow_bc import FlowBC
from flowpolicy.agents.gdro import GDRO
from flowpolicy.agents.imitation import Optimizer
from flowpolicy.agents.judges import Judge, critic_judges, fit_judge, load_judge
from flowpolicy.core.errors import DataError
from flowpolicy.core.seed import torch_generator
from flowpolicy.core.spec import ActionSpec, Contract, ObservationSpec, Spec
from flowpolicy.data.groups import Groups
from flowpolicy.data.normalize import Normalizer
from flowpolicy.flows.times import PairLaw
from flowpolicy.nets.critic import CriticConfig
from flowpolicy.nets.encoder import StateEncoder
from flowpolicy.nets.mlp import MLP

SIZES = {"history": 1, "chunk": 1, "execute": 1}
SMALL = {"net": MLP(width=32, depth=2), "encoder": StateEncoder(width=8)}
FIT = {"config": CriticConfig(width=32, depth=2)}
BASES = {"flow_bc": FlowBC(**SMALL, **SIZES), "dm1": DM1(**SMALL, **SIZES)}
SPEC = Spec({"state": ObservationSpec((1,))}, ActionSpec(2))


def normalizer():
    return Normalizer({"state": 1}, 2)


def windows(action):
    n = len(action)
    state = {"state": torch.zeros(n, 1, 1)}
    return TensorDict({"obs": state, "action": action, "valid": torch.ones(n, action.shape[1], dtype=torch.bool)}, [n])


def gaussian(n, generator):
    """Chunks of one action from N((0.2, -0.1), 0.3^2)."""
    return (torch.tensor([0.2, -0.1]) + 0.3 * torch.randn(n, 1, 2, generator=generator)).clamp(-1, 1)


def trained(config, draw, steps, *, seed=0, lr=2e-3, rows=128):
    """A base policy after ``steps`` updates on chunks from ``draw``."""
    contract = Contract(SPEC, config.history, config.chunk, config.execute, config.nfe)
    config = dataclasses.replace(config, optimizer=Optimizer(lr=lr, warmup=20))
    agent, random = config.build(contract, normalizer(), steps=steps, seed=seed, compile=False), torch_generator(seed)
    for _ in range(steps):
        agent.update(windows(draw(rows, random)), random)
    return agent.policy()


@pytest.fixture(scope="module")
def bases():
    return {name: trained(config, gaussian, 200 if name == "dm1" else 150, lr=4e-3) for name, config in BASES.items()}


def groups_of(policy, reward, *, states=256, candidates=8, seed=0, judged=None, epochs=12):
    """Groups of a policy's own chunks; the training judge is fitted to ``reward``, the other to ``judged``."""
    obs, random = {"state": torch.zeros(states, 1, 1)}, torch_generator(seed, "groups")
    rows = {"state": obs["state"].repeat_interleave(candidates, 0)}
    action = policy.act(rows, random).clone().view(states, candidates, 1, 2)
    score = reward(action.squeeze(2))
    judges = {
        name: fit_judge(
            obs, action, f(action.squeeze(2)), normalizer(), caution=0.0, seed=seed, **FIT, epochs=epochs
        ).store()
        for name, f in (("train", reward), ("held_out", judged or reward))
    }
    return Groups(
        obs=obs,
        action=action,
        valid=torch.ones(states, 1, dtype=torch.bool),
        score=score,
        row=torch.arange(states),
        held_out=torch.arange(states) % 8 == 0,
        provenance={"source": "critic"},
        judges=judges,
    )


def config_for(policy, **options):
    config = policy.config
    shared = {"net": config.net, "encoder": config.encoder, "sampler": config.sampler, "nfe": policy.contract.nfe}
    fast = Optimizer(lr=1e-3, warmup=10, schedule="constant", ema=0.98)
    return GDRO(**{"optimizer": fast, "anchor": 0.0, "bc_weight": 0.0, **shared, **SIZES, **options})


def build(policy, groups, *, seed=0, compile=False, **options):
    config = config_for(policy, **options)
    return config.build(
        policy.contract, policy.normalizer, base=policy, groups=groups, steps=1000, seed=seed, compile=compile
    )


def batch(groups, random, size=32, draw=gaussian):
    index = torch.randint(len(groups.score), (size,), generator=random)
    found = windows(draw(size, random))
    columns = {"action": groups.action[index], "valid": groups.valid[index], "score": groups.score[index]}
    columns["obs"] = TensorDict({k: v[index] for k, v in groups.obs.items()}, [size])
    found["group"] = TensorDict(columns, [size])
    return found


def run(agent, groups, steps, seed=0, draw=gaussian):
    random = torch_generator(seed, "run")
    return [agent.update(batch(groups, random, draw=draw), random) for _ in range(steps)]


def sample(policy, n=4000):
    return policy.act({"state": torch.zeros(n, 1, 1)}, torch_generator(5)).squeeze(1)


def linear(action):
    """Reward along the first dimension."""
    return action[..., 0]


@pytest.mark.parametrize("name", ["flow_bc", "dm1"])
def test_learns_is_reproducible_and_resumes_bit_for_bit(name, bases):
    base = bases[name]
    groups = groups_of(base, linear, epochs=2)
    agent = build(base, groups, assess_every=3, bc_weight=0.5, anchor=0.1, reference_rate=0.01)
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    random = torch_generator(0)
    for _ in range(7):
        agent.update(batch(groups, random), random)
    assert torch.equal(torch.random.get_rng_state(), before), "an update drew from the global generator"
    start = dict(base.actor.named_parameters())
    still = [key for key, value in agent.actor.named_parameters() if torch.equal(value, start[key])]
    assert still == ["encoder.project.0.weight"], "only what multiplies the state, which is zero, stays"
    stored = copy.deepcopy(agent.state_dict())
    other = build(base, groups, seed=9, assess_every=3, bc_weight=0.5, anchor=0.1, reference_rate=0.01)
    other.load_state_dict(stored)
    other.assessor = agent.assessor  # its noise is that of the seed
    streams = random.get_state()
    for one in (agent, other):
        random.set_state(streams)
        for _ in range(4):
            one.update(batch(groups, random), random)
    for file, tensors in agent.state_dict().items():
        for key, value in tensors.items():
            assert torch.equal(value, other.state_dict()[file][key]), (file, key)
    policy = agent.policy()
    chunk = policy.act({"state": torch.zeros(3, 1, 1)}, torch_generator(0))
    assert chunk.shape == (3, 1, 2) and policy.evaluations == base.contract.nfe


def test_gd_9_and_13_nothing_moves_without_a_preference(bases):
    """Equal rewards: the gate is shut; without a gate the gradient at the reference is zero all the same."""
    base = bases["dm1"]
    groups = groups_of(base, linear, epochs=1)
    groups.score = torch.ones_like(groups.score) + 0.0
    for gate in (0.1, 0.0):
        agent = build(base, groups, scale="none", gate=gate, map_weight=0.0)
        random = torch_generator(0)
        rows = batch(groups, random)
        rows_group = rows["group"].to_dict()
        draws = agent.draw(rows["group", "action"], random)
        loss, metrics = agent.loss(rows.exclude("group").to_dict(), rows_group, *draws)
        loss.backward()
        worst = max(float(p.grad.abs().max()) for p in agent.actor.parameters() if p.grad is not None)
        assert worst < 1e-6
        assert float(metrics["best_log_ratio"]) == 0.0
    # Every candidate in every rank of eight: log 8! / 7.
    assert float(metrics["group_loss"]) == pytest.approx(0.0, abs=1e-6)
    assert agent.assessment.hacking_gap == 0.0


def test_gd_9_the_loss_at_the_reference_is_log_factorial(bases):
    base = bases["flow_bc"]
    groups = groups_of(base, lambda a: 5.0 * torch.sign(a[..., 0] - 0.2), epochs=1)  # every gate is open
    agent = build(base, groups, scale="none")
    random = torch_generator(0)
    rows = batch(groups, random)
    _, metrics = agent.loss(
        rows.exclude("group").to_dict(), rows["group"].to_dict(), *agent.draw(rows["group", "action"], random)
    )
    if float(metrics["gate"]) == 1.0:
        assert float(metrics["group_loss"]) == pytest.approx(float(torch.tensor(9.0).lgamma()) / 7, abs=1e-5)
    else:
        pytest.fail("a group of eight lies on one side: choose another seed")


def test_gd_14_the_anchor_touches_the_best_candidate_alone(bases):
    base = bases["flow_bc"]
    groups = groups_of(base, linear, epochs=1)
    agent, random = build(base, groups, anchor=1.0, gate=0.0), torch_generator(0)
    rows = batch(groups, random)
    draws = agent.draw(rows["group", "action"], random)
    inputs = rows.exclude("group").to_dict(), rows["group"].to_dict()
    anchor = agent.loss(*inputs, *draws)[1]["anchor_loss"]
    best = inputs[1]["score"].argmax(1)
    moved = inputs[1]["action"].clone()
    others = torch.ones(len(best), 8, dtype=torch.bool).scatter(1, best[:, None], False)
    moved[others] += 0.05
    assert float(agent.loss(inputs[0], inputs[1] | {"action": moved}, *draws)[1]["anchor_loss"]) == float(anchor)
    moved = inputs[1]["action"].clone()
    moved[~others] += 0.05
    assert float(agent.loss(inputs[0], inputs[1] | {"action": moved}, *draws)[1]["anchor_loss"]) != float(anchor)
    without = build(base, groups, anchor=0.0, gate=0.0)
    total, parts = without.loss(*inputs, *draws)
    assert float(total.detach()) == pytest.approx(float(parts["group_loss"]))


def test_rewards_plus_a_constant_of_the_state_train_the_same_policy(bases):
    base = bases["dm1"]
    groups = groups_of(base, linear, epochs=1)
    shifted = dataclasses.replace(groups, score=groups.score + 8.0 * torch.randint(-3, 4, (256, 1)))
    for objective in ("plackett_luce", "dgpo"):
        first, second = (build(base, each, objective=objective) for each in (groups, shifted))
        run(first, groups, 5)
        run(second, shifted, 5)
        for (key, a), (_, b) in zip(first.actor.named_parameters(), second.actor.named_parameters(), strict=True):
            assert torch.allclose(a, b, atol=1e-4), key


@pytest.mark.slow
@pytest.mark.parametrize(("name", "objective"), [("flow_bc", "plackett_luce"), ("dm1", "plackett_luce")])
def test_a_linear_reward_moves_the_mean_by_its_variance_and_the_map_follows_in_one_evaluation(name, objective, bases):
    """KL-optimal mean: base mean + variance / temperature, in units of the scale; 16 draws, 16 candidates."""
    base = bases[name]
    groups = groups_of(base, linear, candidates=16, states=512, epochs=1)
    start = sample(base)
    agent = build(base, groups, objective=objective, scale="none", temperature=0.3, gate=0.0, draws=16)
    run(agent, groups, 250)
    end = sample(agent.policy(agent.ema.state_dict()))
    # Candidates are samples of the base as it acts, so the tilt goes by their variance.
    wanted = float(start[:, 0].var()) / 0.3
    shift = (end - start).mean(0)
    assert float(shift[0]) == pytest.approx(wanted, rel=0.15)
    assert abs(float(shift[1])) < 0.05
    assert end.std(0) == pytest.approx(start.std(0), rel=0.2)


def two_modes(n, generator):
    """70 % of the chunks near (-0.5, 0), 30 % near (0.5, 0)."""
    side = torch.where(torch.rand(n, 1, 1, generator=generator) < 0.3, 0.5, -0.5)
    return torch.cat([side, torch.zeros_like(side)], 2) + 0.08 * torch.randn(n, 1, 2, generator=generator)


@pytest.mark.slow
def test_mode_odds_follow_the_closed_form():
    """Odds after / before of the rewarded mode are exp((R2 - R1) / tau)."""
    config = FlowBC(net=MLP(width=96, depth=3), encoder=StateEncoder(width=8), **SIZES)
    base = trained(config, two_modes, 800, rows=256)
    share = float((sample(base)[:, 0] > 0).float().mean())
    groups = groups_of(base, lambda a: 1.0 * (a[..., 0] > 0), candidates=16, states=512, epochs=1)
    agent = build(base, groups, scale="none", temperature=0.8, gate=0.0, draws=8)
    run(agent, groups, 300, draw=two_modes)
    odds = share / (1 - share) * 2.718281828 ** (1 / 0.8)
    found = float((sample(agent.policy(agent.ema.state_dict()))[:, 0] > 0).float().mean())
    assert found == pytest.approx(odds / (1 + odds), abs=0.07)


def test_a_map_stays_consistent_with_its_own_flow(bases):
    """MF-5 after post-training: one jump and many jumps land close together, as before it."""
    base = bases["dm1"]
    groups = groups_of(base, linear, epochs=1)
    agent = build(base, groups, scale="none", temperature=0.5, draws=8)
    run(agent, groups, 120)

    def gap(policy):
        noise, obs = torch.randn(1000, 1, 2, generator=torch_generator(1)), {"state": torch.zeros(1000, 1, 1)}
        return float((policy.act_from(obs, noise, 1) - policy.act_from(obs, noise, 16)).square().mean().sqrt())

    policy = agent.policy(agent.ema.state_dict())
    assert float((sample(policy) - sample(base)).mean(0)[0]) > 0.05
    assert gap(policy) < gap(base) + 0.03


def corrupted(action):
    """The truth near the behaviour's mean, and a bonus that grows off the data."""
    return honest(action) + 3.0 * (action[..., 1] - 0.2).relu()


def honest(action):
    return -action[..., 1].square() + 0.2 * action[..., 0]


def test_a_corrupted_critic_is_seen_through_and_early_stopping_does_no_harm(bases):
    base = bases["dm1"]
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


def test_patience_stops_a_run_that_only_gets_worse(bases):
    base = bases["dm1"]
    groups = groups_of(base, corrupted, judged=honest)
    agent = build(base, groups, temperature=0.1, assess_every=5, patience=3)
    for steps in range(1, 200):
        run(agent, groups, 1, seed=steps)
        if agent.stopped:
            break
    assert agent.stopped and agent.assessment.stale == 3
    assert agent.updates == agent.assessment.best_update + 15


@pytest.mark.parametrize("objective", ["top_one", "regression", "dpo", "dgpo"])
def test_every_objective_raises_the_reward(objective, bases):
    base = bases["flow_bc"]
    groups = groups_of(base, linear)
    agent = build(base, groups, objective=objective, temperature=0.3, bc_weight=0.1, assess_every=60)
    run(agent, groups, 60)
    assert agent.assessment.reward_gain > 0.05


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("objective", "top_one"),
        ("temperature", 0.3),
        ("scale", "deviation"),
        ("gate", 0.8),
        ("weight", "uniform"),
        ("beta", 2.0),
        ("draws", 2),
        ("anchor", 1.0),
        ("bc_weight", 1.0),
        ("map_weight", 0.1),
        ("pairs", PairLaw()),
        ("reference_rate", 0.5),
    ],
)
def test_every_option_that_decides_weights_changes_them(field, value, bases):
    base = bases["dm1"]
    groups = groups_of(base, linear, states=64, epochs=1)
    plain, changed = build(base, groups), build(base, groups, **{field: value})
    for agent in (plain, changed):
        run(agent, groups, 2)
    weights = [torch.cat([p.detach().flatten() for p in agent.actor.parameters()]) for agent in (plain, changed)]
    assert not torch.equal(*weights)


def test_uniform_weight_is_calibrated_by_the_error_of_the_reference(bases):
    base = bases["flow_bc"]
    agent = build(base, groups_of(base, linear, epochs=1), weight="uniform")
    # Two dimensions of deviation 0.3: pi sigma / 2 each (GD-11); the base's own error comes on top.
    assert 1 / (0.1 * agent.beta) == pytest.approx(2 * 0.4712, rel=0.3)


def test_judges_survive_their_file_and_are_cautious():
    obs, random = {"state": torch.zeros(6, 1, 1)}, torch_generator(0)
    critic = CriticConfig(width=16, depth=1, members=3, held_out=2).build(1, 2)
    chunk = torch.rand(6, 1, 2, generator=random)
    sizes = {"history": 1, "chunk": 1, "action": 2}
    bold = critic_judges(critic, normalizer(), {"state": 1}, **sizes, caution=0.0)
    values = critic(obs["state"].flatten(1), chunk)
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


def test_a_group_file_without_judges_is_refused(bases):
    base = bases["flow_bc"]
    groups = dataclasses.replace(groups_of(base, linear, epochs=1), judges={})
    with pytest.raises(DataError, match="--held-out-share"):
        build(base, groups)
