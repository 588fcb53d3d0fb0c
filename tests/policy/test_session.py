"""The one acting loop, and that everything that acts goes through it."""

import inspect
import subprocess
import sys

import numpy as np
import pytest
import torch

from flowpolicy.core.errors import ActionError, ConfigError
from flowpolicy.core.seed import numpy_generator
from flowpolicy.evaluate.plan import make_plan
from flowpolicy.evaluate.rollout import rollout
from flowpolicy.policy import Session, load_engine

from ..evaluate.fakes import ChaosEnv, NetworkPolicy
from .engines.policies import make
from .test_inputs import WRONG

KINDS = ("policy", "numpy", "eager")


def acting(kind, contract, folder, **choice):
    policy = make(contract, **choice)
    if kind == "policy":
        return policy
    policy.save(folder)
    return load_engine(folder, kind)


def observations(contract, count):
    stream = numpy_generator(0, "session")
    shapes = {key: spec.shape for key, spec in contract.spec.observation.items()}
    return [{key: stream.standard_normal(shape, np.float32) for key, shape in shapes.items()} for _ in range(count)]


@pytest.mark.parametrize("kind", KINDS)
def test_actions_are_the_first_of_each_chunk_for_what_was_seen(kind, contract, tmp_path):
    policy, seen = acting(kind, contract, tmp_path), observations(contract, 5)
    session = Session(policy, seed=3, execute=2)
    found = [session.act(obs) for obs in seen]
    assert all(isinstance(action, np.ndarray) and action.shape == (2,) for action in found)
    generator = torch.Generator().manual_seed(3) if kind == "policy" else np.random.default_rng(3)
    for decision in (0, 2, 4):
        past = [seen[max(decision - 1, 0)], seen[decision]]
        obs = {key: np.stack([one[key] for one in past])[None] for key in seen[0]}
        chunk = policy.act(obs, generator if kind == "policy" else policy.noise(1, generator))[0]
        assert np.array_equal(np.stack(found[decision : decision + 2]), chunk[: len(found) - decision][:2])
    assert (session.episode.steps, len(session.episode.decision_seconds), session.episode.evaluations) == (5, 3, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_an_episode_depends_on_its_seed_alone(kind, contract, tmp_path):
    session, seen = Session(acting(kind, contract, tmp_path), seed=4), observations(contract, 4)

    def play(episode):
        for obs in seen:
            episode.see(obs)
            yield episode.act()

    alone = [np.stack(list(play(session.begin(seed)))) for seed in (4, 5)]
    assert not np.array_equal(*alone)
    together = zip(*[play(session.begin(seed)) for seed in (4, 5)], strict=True)
    assert all(np.array_equal(a, b) for a, b in zip(alone, map(np.stack, zip(*together, strict=True)), strict=True))
    assert np.array_equal(np.stack([session.act(obs) for obs in seen]), alone[0])
    session.reset()
    again = np.stack([session.act(obs) for obs in seen])
    assert not any(np.array_equal(again, one) for one in alone), "the next episode has noise of its own"
    session.reset(5)
    assert np.array_equal(np.stack([session.act(obs) for obs in seen]), alone[1])
    other = Session(session.source, seed=4)
    other.reset()
    assert np.array_equal(np.stack([other.act(obs) for obs in seen]), again)


def test_by_hand_it_repeats_an_episode_of_a_rollout():
    plan, env = make_plan("fake/Chaos", 3, 0), ChaosEnv(1)
    planned = rollout(NetworkPolicy(), ChaosEnv(2), plan)
    session = Session(NetworkPolicy())
    for episode in planned:
        session.reset(episode.policy_seed)
        obs, rewards, over = env.reset([episode.index], [0]), [], False
        while not over:
            step = env.step(session.act({key: value[0] for key, value in obs.items()})[None], [0])
            obs, over = step.obs, bool(step.truncated[0])
            rewards.append(float(step.reward[0]))
        assert sum(rewards) == episode.return_


@pytest.mark.parametrize("kind", KINDS)
def test_a_rollout_runs_on_engines_and_does_not_depend_on_its_slots(kind, tmp_path):
    found = []
    for slots in (1, 3):
        actor = acting_on_chaos(kind, NetworkPolicy(history=1).contract, tmp_path)
        found.append([(e.return_, e.length, e.evaluations) for e in rollout(actor, ChaosEnv(slots), PLAN)])
    assert found[0] == found[1] and len(set(found[0])) == len(PLAN.indices)


PLAN = make_plan("fake/Chaos", 4, 0)


def acting_on_chaos(kind, contract, folder):
    from flowpolicy.data.normalize import Normalizer
    from flowpolicy.nets.encoder import StateEncoder
    from flowpolicy.nets.mlp import MLP
    from flowpolicy.policy import Policy
    from flowpolicy.policy.actor import PolicyConfig
    from flowpolicy.policy.samplers import FlowSampler

    torch.manual_seed(0)
    config = PolicyConfig(MLP(width=16, depth=2), StateEncoder(width=8), FlowSampler())
    policy = Policy(config, contract, Normalizer({"state": 3}, 2))
    if kind == "policy":
        return policy.eval()
    policy.save(folder)
    return load_engine(folder, kind)


ONE = {
    name: case
    for name, case in WRONG.items()
    if name in ("missing", "one number for all", "complex", "NaN", "infinity", "too large for float32")
}


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
@pytest.mark.parametrize("kind", KINDS)
def test_wrong_observations_are_named_as_by_what_decides(kind, contract, tmp_path):
    policy, (obs,) = acting(kind, contract, tmp_path), observations(contract, 1)
    for change, message in ONE.values():
        with pytest.raises(ConfigError, match=message):
            Session(policy).act(change(obs))
    with pytest.raises(ConfigError, match="'state' has shape"):
        Session(policy).act({key: value[None] for key, value in obs.items()})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda chunk: chunk * np.nan, "NaN or infinity"),
        (lambda chunk: chunk / 0, "NaN or infinity"),
        (lambda chunk: chunk[:, :-1], r"shape \(3, 2\)"),
        (lambda chunk: None, "no chunk in time"),
    ],
)
def test_what_is_no_action_is_refused(spoil, message):
    class Spoiled:
        contract, prefix, continues, evaluations = NetworkPolicy().contract, 0, False, 0

        def stream(self, seed):
            return seed

        def chunk(self, obs, stream, committed=None, previous=None):
            chunk = spoil(np.ones((1, 4, 2), np.float32))
            return None if chunk is None else chunk[0]

    with np.errstate(all="ignore"), pytest.raises(ActionError, match=message):
        Session(Spoiled()).act({"state": np.zeros(3, np.float32)})


def test_what_a_policy_cannot_act_by_is_refused(contract, tmp_path):
    policy = make(contract)
    policy.save(tmp_path)
    engine = load_engine(tmp_path, "numpy")
    for options, message in (
        ({"execute": 0}, "1 to 4"),
        ({"execute": 5}, "1 to 4"),
        ({"nfe": 0}, "nfe=0"),
        ({"execution": "real_time"}, "--agent.prefix"),
    ):
        for actor in (policy, engine):
            with pytest.raises(ConfigError, match=message):
                Session(actor, **options)
    with pytest.raises(ConfigError, match="load_engine"):
        Session(engine, nfe=2)


@pytest.mark.parametrize("kind", KINDS)
def test_without_noise_every_seed_does_the_same(kind, contract, tmp_path):
    policy, (obs,) = acting(kind, contract, tmp_path), observations(contract, 1)
    middle = [Session(policy, seed=seed, noise_scale=0.0).act(obs) for seed in (0, 1)]
    whole = [Session(policy, seed=seed, noise_scale=1.0).act(obs) for seed in (0, 1)]
    assert np.array_equal(*middle) and not np.array_equal(*whole)
    plain = [Session(policy, seed=seed).act(obs) for seed in (0, 1)]
    assert np.array_equal(plain, whole), "what one session asks for is nothing to another"


@pytest.mark.parametrize("kind", KINDS)
def test_late_observations_commit_what_was_executed_since(kind, contract, tmp_path):
    """The observation is two actions old at every decision but the first."""
    policy = acting(kind, contract, tmp_path, prefix=2)
    session, told = Session(policy, execution="real_time"), []
    source = session.source
    chunk = source.chunk
    source.chunk = lambda obs, stream, committed=None, previous=None: (
        told.append(committed) or chunk(obs, stream, committed, previous)
    )
    session.reset(0)
    first, *rest = observations(contract, 4)
    actions = [session.act(first, 0), session.act(first, 1), session.act(first, 2)]
    actions.append(session.act(rest[0], 2))
    assert told[0] is None and len(session.episode.history.stacked()["state"]) == 2
    assert np.array_equal(told[1].action[0, :2], np.stack(actions[1:3]))
    assert told[1].length.tolist() == [2] and session.episode.stale == 0
    # Of the new chunk the first two rows are what was executed; the next one is the third.
    again = source.chunk(session.episode.history.stacked(), source.stream(9), told[1])
    assert np.array_equal(again[:2], np.stack(actions[1:3]))


def test_a_plan_is_executed_whole_before_the_policy_is_asked(contract):
    session, (obs,) = Session(make(contract)), observations(contract, 1)
    plan = np.arange(10.0).reshape(5, 2)
    episode = session.begin(0, plan)
    found = []
    for _ in plan:
        episode.see(obs)
        found.append(episode.act())
    assert np.array_equal(np.stack(found), plan) and not episode.decision_seconds
    found[-1][:] = np.nan  # what the caller does to an action does not reach the queue
    assert np.isfinite(episode.queue.previous(4).executed).all()
    episode.act()
    assert len(episode.decision_seconds) == 1


def test_an_exported_policy_acts_without_torch(contract, tmp_path):
    from flowpolicy.policy.exporting import export

    policy, (obs,) = make(contract), observations(contract, 1)
    export(policy, "numpy", tmp_path / "export")
    np.savez(tmp_path / "obs.npz", **obs)
    program = inspect.cleandoc(f"""
        import sys
        import numpy as np
        from flowpolicy.policy import Session, load_engine
        session = Session(load_engine({str(tmp_path / "export")!r}), seed=1)
        print(session.act(dict(np.load({str(tmp_path / "obs.npz")!r}))).tolist(), "torch" in sys.modules)
    """)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    expected = Session(load_engine(tmp_path / "export"), seed=1).act(obs)
    assert done.stdout.strip() == f"{expected.tolist()} False"


@pytest.mark.parametrize("kind", KINDS)
def test_what_an_environment_gives_wrong_is_named_in_a_rollout_too(kind, tmp_path):
    actor = acting_on_chaos(kind, NetworkPolicy(history=1).contract, tmp_path)
    for spoil, message in (
        (lambda obs: obs * np.nan, "'state' holds NaN"),
        (lambda obs: obs[:, :2], "'state' has shape"),
    ):
        env = ChaosEnv(2)
        reset = env.reset
        env.reset = lambda indices, slots, reset=reset, spoil=spoil: {"state": spoil(reset(indices, slots)["state"])}
        with pytest.raises(ConfigError, match=message):
            rollout(actor, env, PLAN)
