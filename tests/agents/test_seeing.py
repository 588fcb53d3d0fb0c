"""Every agent that learns from a file takes pictures: it learns, acts and is stored, and sees once per decision."""

import dataclasses

import numpy as np
import pytest
import torch

from flowpolicy.agents.cloning.dm1 import DM1
from flowpolicy.agents.cloning.flow_bc import FlowBC
from flowpolicy.agents.cloning.regression import Regression
from flowpolicy.core import keys
from flowpolicy.core.errors import ConfigError
from flowpolicy.flows.dispersive import Dispersive, dispersive_loss
from flowpolicy.nets.encoder import StateEncoder
from flowpolicy.policy import Policy
from tests.pictures import CAMERAS, OBSERVATION, batch, contract, normalizer, observed

from .every import CLONING, OFFLINE, flat
from .seeing import SEES, agent_of, batches_of


@pytest.mark.parametrize("name", [*CLONING, *OFFLINE])
def test_every_agent_learns_from_pictures_and_sees_once_per_decision(name, tmp_path):
    agent, batches = agent_of(name), batches_of(name)
    before = flat(agent)
    for seed in range(2):
        agent.update(batches(seed), torch.Generator().manual_seed(seed))
    cameras = [key for key in before if "cameras" in key and key.startswith("weights")]
    still = [key for key in cameras if torch.equal(before[key], flat(agent)[key])]
    assert cameras and not still
    policy = agent.policy()
    policy.save(tmp_path)
    loaded, seen = Policy.load(tmp_path), []
    loaded.actor.encoder.register_forward_hook(lambda *args: seen.append(len(args[2].cond)))
    chunk = loaded.act(observed(3), torch.Generator().manual_seed(0))
    assert chunk.shape == (3, agent.contract.chunk, 2) and seen == [3]
    torch.testing.assert_close(chunk, policy.act(observed(3), torch.Generator().manual_seed(0)), atol=0, rtol=0)
    other = agent_of(name)
    other.load_state_dict(agent.state_dict())
    torch.testing.assert_close(flat(other), flat(agent), atol=0, rtol=0)


@pytest.mark.parametrize("nfe", [1, 5, 10])
def test_a_flow_sees_once_however_often_it_is_evaluated(nfe):
    policy, seen = agent_of("flow_bc").policy(), []
    policy.actor.encoder.register_forward_hook(lambda *args: seen.append(len(args[2].cond)))
    policy.act(observed(2), torch.Generator().manual_seed(0), nfe=nfe)
    assert policy.evaluations == nfe and seen == [2]


@pytest.mark.parametrize("config", [DM1, FlowBC, Regression])
def test_several_noises_are_drawn_for_an_observation_that_is_seen_once(config):
    small = dataclasses.replace(CLONING["dm1"], encoder=SEES) if config is DM1 else None
    options = {"net": CLONING["flow"].net, "encoder": SEES, "chunk": 2, "execute": 2}
    made = dataclasses.replace(small, noises=3) if small else config(**options, noises=3)
    agent = made.build(contract(chunk=2), normalizer(), steps=9, seed=0, compile=False)
    seen = []
    agent.actor.encoder.register_forward_hook(lambda *args: seen.append(len(args[2].cond)))
    given = batch(rows=4, chunk=2)
    obs, action, valid, draws = agent.arguments(given, torch.Generator().manual_seed(0))
    assert len(obs["front_image"]) == 4 and len(action) == len(valid) == 12
    torch.testing.assert_close(action[:4], action[8:])
    if config is not Regression:
        assert len(draws["noise"]) == 12 and not torch.equal(draws["noise"][:4], draws["noise"][4:8])
    loss, _ = agent.loss(obs, action, valid, draws)
    assert seen == [4]
    if config is FlowBC:  # the mean over draws is the mean of the losses of one draw each
        each = []
        for part in range(3):
            rows = slice(4 * part, 4 * part + 4)
            one = {name: value[rows] for name, value in draws.items()}
            each.append(agent.loss(obs, action[rows], valid[rows], one)[0])
        torch.testing.assert_close(loss, torch.stack(each).mean())


def test_features_are_pushed_apart_camera_by_camera_before_proprioception():
    config = DM1(net=CLONING["dm1"].net, encoder=SEES, chunk=2, execute=2, dispersive=Dispersive(weight=0.5))
    agent = config.build(contract(chunk=2), normalizer(), steps=9, seed=0, compile=False)
    given = batch(chunk=2)
    arguments = agent.arguments(given, torch.Generator().manual_seed(0))
    features = agent.actor.encoder(arguments[0]).features
    assert features.keys() == set(CAMERAS)
    expected = torch.stack([dispersive_loss(feature, config.dispersive) for feature in features.values()]).mean()
    metrics = agent.loss(*arguments)[1]
    torch.testing.assert_close(metrics["dispersive"], expected.detach())
    assert {"feature_rank", "feature_distance"} <= metrics.keys()
    moved = batch(chunk=2)
    moved[keys.OBS, "state"] += 1.0
    other = agent.loss(*agent.arguments(moved, torch.Generator().manual_seed(0)))[1]
    torch.testing.assert_close(other["dispersive"], metrics["dispersive"])


@pytest.mark.parametrize("kind", ["dm1", "flow_bc"])
def test_the_trunk_is_pushed_apart_at_zero_noise_where_that_is_asked_for(kind):
    dispersive = Dispersive(weight=0.5, place="trunk", exclude_steps=2)
    config = dataclasses.replace(CLONING[kind], encoder=SEES, chunk=2, execute=2, noises=2, dispersive=dispersive)
    agent = config.build(contract(chunk=2), normalizer(), steps=9, seed=0, compile=False)
    given = batch(chunk=2)
    given |= {keys.ROW: torch.tensor([0, 2, 5, 7, 8, 20]), keys.FIRST: torch.tensor([0, 0, 5, 5, 5, 20])}
    arguments = agent.arguments(given, torch.Generator().manual_seed(0))
    near = torch.eye(6, dtype=torch.bool)
    for i, j in ((0, 1), (2, 3), (3, 4)):
        near[i, j] = near[j, i] = True
    assert torch.equal(arguments[3]["near"], near)
    cond = agent.actor.encoder(arguments[0]).cond
    times = [torch.zeros(6), torch.ones(6)] if kind == "dm1" else [torch.zeros(6)]
    hidden = agent.actor.net(torch.zeros(6, 2, 2), *times, cond).features["trunk"]
    loss, metrics = agent.loss(*arguments)
    torch.testing.assert_close(metrics["dispersive"], dispersive_loss(hidden, dispersive, near).detach())
    off = dataclasses.replace(config, dispersive=Dispersive(weight=0.0)).build(
        contract(chunk=2), normalizer(), steps=9, seed=0, compile=False
    )
    torch.testing.assert_close(off.loss(*arguments)[0] + 0.5 * metrics["dispersive"], loss)


def test_acting_takes_whole_pictures_and_is_the_same_every_time():
    policy = agent_of("regression").policy()
    obs = observed(2)
    first, again = (policy.act(obs, torch.Generator().manual_seed(seed)) for seed in (0, 1))
    torch.testing.assert_close(first, again, atol=0, rtol=0)
    arrays = policy.act({key: value.numpy() for key, value in obs.items()}, torch.Generator())
    np.testing.assert_array_equal(arrays, first.numpy())


def test_pictures_that_are_none_are_refused_in_words():
    policy, obs = agent_of("regression").policy(), observed(2)
    with pytest.raises(ConfigError, match=r"the pictures 'front_image' are of torch\.float32"):
        policy.act(obs | {"front_image": obs["front_image"] / 255}, torch.Generator())
    with pytest.raises(ConfigError, match="has shape"):
        policy.act(obs | {"front_image": obs["front_image"][:, :, :-1]}, torch.Generator())
    with pytest.raises(ConfigError, match=r"--agent\.encoder vision"):
        dataclasses.replace(CLONING["flow"], encoder=StateEncoder()).build(
            contract(chunk=2), normalizer(), steps=1, seed=0, compile=False
        )
    assert OBSERVATION["front_image"].kind == "image"


def test_noises_that_somebody_else_must_answer_are_refused():
    with pytest.raises(ConfigError, match=r"--agent\.noises 2"):
        dataclasses.replace(CLONING["flow"], noises=2, teacher="runs/x").check(2)
