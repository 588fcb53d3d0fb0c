"""What a policy is told about the previous chunk, and what it makes of it."""

import numpy as np
import pytest
import torch

from flowpolicy.core.errors import ConfigError
from flowpolicy.core.seed import torch_generator
from flowpolicy.evaluate.plan import make_plan
from flowpolicy.evaluate.rollout import rollout
from flowpolicy.flows.axes.registry import make
from flowpolicy.flows.goals import read_goal
from flowpolicy.policy.graph import ActGraph
from flowpolicy.policy.previous import Previous
from flowpolicy.policy.queue import ChunkQueue

from ..evaluate.fakes import ChaosEnv, NetworkPolicy
from .test_flow_policy import policy_with
from .test_policy import observe


def column(*values):
    return np.array(values, np.float32)[:, None]


def test_the_queue_knows_what_was_executed_and_what_is_planned():
    queue = ChunkQueue(2)
    assert queue.previous(3) is None
    queue.push(column(1, 2, 3, 4))
    queue.pop()
    queue.pop()
    executed, known, planned = queue.previous(3)
    assert executed.flatten().tolist() == [0, 1, 2] and known.tolist() == [[False, True, True]]
    assert planned.flatten().tolist() == [3, 4, 4]
    # Seen by an observation that is one action old.
    executed, known, planned = queue.previous(3, 1)
    assert executed.flatten().tolist() == [0, 0, 1] and planned.flatten().tolist() == [2, 3, 4]
    queue.push(column(5, 6))
    queue.pop()
    queue.pop()
    executed, known, planned = queue.previous(3)
    assert executed.flatten().tolist() == [2, 5, 6] and bool(known.all())
    assert planned.flatten().tolist() == [6, 6, 6]


def before(policy, rows=3, known=True):
    contract = policy.contract
    shape = (rows, contract.chunk, contract.spec.action.size)
    scaled = 0.4 * torch.rand(shape, generator=torch_generator(5)) - 0.2
    actions = policy.normalizer.unaction(scaled)
    return Previous(actions, torch.full(shape[:2], known), actions.flip(1))


def test_a_bridge_starts_from_what_was_executed(contract):
    policy = policy_with(contract, interpolant=make("interpolant", "bridge", spread=0.0))
    obs, first, other = observe(contract), torch_generator(0), torch_generator(1)
    given = before(policy)
    chunk = policy.act(obs, first, 1, previous=given)
    # Without spread the noise says nothing, and one Euler step is x + v(x, 0).
    assert torch.equal(chunk, policy.act(obs, other, 1, previous=given))
    start = policy.normalizer.action(given.executed)
    v = policy.dynamics(policy.streams(obs)).at(start, 0.0)
    expected = policy.normalizer.unaction((start + v).clamp(-1, 1))
    torch.testing.assert_close(chunk, expected, atol=1e-6, rtol=0)
    # Unknown actions are the middle of the range, as in the first decision.
    nothing = policy.act(obs, first, 1, previous=before(policy, known=False))
    assert torch.equal(nothing, policy.act(obs, first, 1)) and not torch.equal(nothing, chunk)


def test_a_warm_start_stays_near_the_plan(contract):
    obs = observe(contract)
    plain = policy_with(contract)
    distances = []
    for most in (0.0, 0.5, 0.9, 0.999):
        policy = policy_with(contract, source=make("source", "warm-start", most=most))
        given = before(policy)
        chunk = policy.act(obs, torch_generator(0), 4, previous=given)
        assert policy.evaluations == 4
        distances.append(float((chunk - given.planned).norm()))
        unstarted = policy.act(obs, torch_generator(0), 4, previous=before(policy, known=False))
        assert torch.equal(unstarted, plain.act(obs, torch_generator(0), 4))
    assert distances == sorted(distances, reverse=True) and distances[-1] < 0.02 * distances[0]


def test_a_held_plan_comes_out_as_planned(contract):
    policy = policy_with(contract, guidance=make("guidance", "trajectory-blend", held=2))
    given = before(policy)
    chunk = policy.act(observe(contract), torch_generator(0), 4, previous=given)
    torch.testing.assert_close(chunk[:, :2], given.planned[:, :2], atol=1e-5, rtol=0)
    assert float((chunk[:, 2:] - given.planned[:, 2:]).abs().max()) > 1e-3


@pytest.mark.parametrize("samples", [1, 5])
def test_a_projected_chunk_meets_the_goal_in_units_of_the_environment(samples, contract):
    guidance = make("guidance", "projection", goal="sum a[:, 0] = 3; a[0, 1] - a[3, 1] = 0.1", samples=samples)
    policy = policy_with(contract, guidance=guidance)
    chunk = policy.act(observe(contract), torch_generator(0), 4 * samples)
    goal = read_goal(guidance.goal, *chunk.shape[1:])
    error = chunk.flatten(1).double() @ goal.matrix.T - goal.value
    assert float(error.abs().max()) < 1e-5
    scaled = policy.normalizer.action(chunk)
    assert float(scaled.abs().max()) < 1 + 1e-5


def test_noise_optimisation_comes_nearer_to_the_goal_and_one_of_many_too(contract):
    obs, text = observe(contract, rows=32), "a[0, 0] = 0.9"
    goal = read_goal(text, contract.chunk, 2)
    distances = {}
    for name, nfe, options in (
        ("none", 3, {}),
        ("noise-opt", 12, {"iterations": 3, "goal": text}),
        ("best-of-n", 24, {"n": 8, "goal": text}),
        ("gradient", 3, {"goal": text}),
    ):
        policy = policy_with(contract, guidance=make("guidance", name, **options))
        chunk = policy.act(obs, torch_generator(0), nfe)
        distances[name] = float(goal.cost(chunk.double()).mean())
    assert max(distances["noise-opt"], distances["gradient"], distances["best-of-n"]) < 0.7 * distances["none"]


def test_engines_and_robots_refuse_what_they_cannot_give(contract):
    for values in ({"interpolant": "bridge"}, {"source": "warm-start"}, {"guidance": "trajectory-blend"}):
        policy = policy_with(contract, **values)
        assert policy.continues
        for refuse in (policy.require_plain_noise, policy.require_no_memory):
            with pytest.raises(ConfigError, match="continues its previous chunk"):
                refuse()
    for name in ("best-of-n", "noise-opt"):
        policy = policy_with(contract, guidance=name)
        policy.require_plain_noise()
        with pytest.raises(ConfigError, match="reads a goal"):
            ActGraph(policy, policy.config.sampler.flow.sampling.guidance.total(2))


def test_a_composition_asks_for_observations_that_exist(contract):
    keys = tuple(contract.spec.observation)
    split = policy_with(contract, guidance=make("guidance", "compose", keys=keys))
    split.act(observe(contract), torch_generator(0), 3 * (1 + len(keys)))
    assert split.evaluations == 3 * (1 + len(keys))
    with pytest.raises(ConfigError, match="gaol"):
        policy_with(contract, guidance=make("guidance", "compose", keys=("gaol",)))


class Continuing(NetworkPolicy):
    """Records what it is told."""

    continues = True

    def __init__(self):
        super().__init__()
        self.told, self.given = [], []

    def act(self, obs, generator, nfe=None, previous=None):
        self.told.append(previous)
        chunk = super().act(obs, generator, nfe)
        self.given.append(chunk[0])
        return chunk


def test_a_rollout_tells_what_was_executed_from_the_second_decision_on():
    policy = Continuing()
    episode = rollout(policy, ChaosEnv(1), make_plan("fake/Chaos", 1, 0))[0]
    execute, chunk = policy.contract.execute, policy.contract.chunk
    assert episode.chunks == len(policy.told) > 2 and policy.told[0] is None
    for number, told in enumerate(policy.told[1:], 1):
        done = torch.cat([given[:execute] for given in policy.given[:number]])[-chunk:]
        assert torch.equal(told.executed[0, -len(done) :], done)
        assert told.known.sum() == len(done)
        rest = policy.given[number - 1][execute:]
        assert torch.equal(told.planned[0, : len(rest)], rest)
