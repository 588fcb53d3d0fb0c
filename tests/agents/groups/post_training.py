"""One state with known laws: base policies, groups of their chunks, and GDRO agents on them."""

import copy
import dataclasses
import functools

import torch

from flowpolicy.agents.base.optimizer import Optimizer
from flowpolicy.agents.cloning.dm1 import DM1
from flowpolicy.agents.cloning.flow_bc import FlowBC
from flowpolicy.agents.groups.gdro import GDRO
from flowpolicy.agents.groups.group_file import Groups
from flowpolicy.agents.groups.judges import fit_judge
from flowpolicy.core.seed import torch_generator
from flowpolicy.core.spec import ActionSpec, Contract, ObservationSpec, Spec
from flowpolicy.data.normalize import Normalizer
from flowpolicy.nets.critic import CriticConfig
from flowpolicy.nets.encoder import StateEncoder
from flowpolicy.nets.mlp import MLP

from ...conftest import repeat

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
    return {"obs": state, "action": action, "valid": torch.ones(n, action.shape[1], dtype=torch.bool)}


def gaussian(n, generator):
    """Chunks of one action from N((0.2, -0.1), 0.3^2)."""
    return (torch.tensor([0.2, -0.1]) + 0.3 * torch.randn(n, 1, 2, generator=generator)).clamp(-1, 1)


def trained(config, draw, steps, *, seed=0, lr=2e-3, rows=128):
    """A base policy after ``steps`` updates on chunks from ``draw``."""
    contract = Contract(SPEC, config.history, config.chunk, config.execute, config.nfe)
    config = dataclasses.replace(config, optimizer=Optimizer(lr=lr, warmup=20))
    agent, random = config.build(contract, normalizer(), steps=steps, seed=seed, compile=False), torch_generator(seed)
    repeat(lambda: agent.update(windows(draw(rows, random)), random), steps)
    return agent.policy()


@functools.cache
def base_of(name):
    """A base policy of the behaviour N((0.2, -0.1), 0.3^2)."""
    return trained(BASES[name], gaussian, 200 if name == "dm1" else 150, lr=4e-3)


def groups_of(policy, reward, **options):
    """Groups of a policy's own chunks; the training judge is fitted to ``reward``, the other to ``judged``."""
    return copy.deepcopy(_groups_of(policy, reward, **options))  # tests change them


@functools.cache
def _groups_of(policy, reward, *, states=256, candidates=8, seed=0, judged=None, epochs=12):
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
    columns["obs"] = {k: v[index] for k, v in groups.obs.items()}
    found["group"] = columns
    return found


def run(agent, groups, steps, seed=0, draw=gaussian, size=32):
    random = torch_generator(seed, "run")
    return repeat(lambda: agent.update(batch(groups, random, size, draw), random), steps)


def sample(policy, n=4000):
    return policy.act({"state": torch.zeros(n, 1, 1)}, torch_generator(5)).squeeze(1)


def linear(action):
    """Reward along the first dimension."""
    return action[..., 0]
