"""A one-step bandit: one state, Gaussian behaviour, a reward that is a known function of the chunk; closed forms."""

from __future__ import annotations

import torch

from flowpolicy.agents.base.optimizer import Adam
from flowpolicy.core.seed import torch_generator
from flowpolicy.core.spec import ActionSpec, Contract, ObservationSpec, Spec
from flowpolicy.data.normalize import Normalizer
from flowpolicy.nets.critic import CriticConfig
from flowpolicy.nets.plain import Plain

from ...conftest import repeat

MEAN, DEVIATION = torch.tensor([0.2, -0.1]), 0.3
EULER = 0.24687
"""Deviation of ten Euler steps of the exact field of N(mean, 0.3^2)."""
FAST = Adam(lr=2e-3)
TINY = {"net": Plain(width=48, depth=2), "actor_optimizer": FAST, "critic_optimizer": FAST}


def tiny(aggregate="mean"):
    return CriticConfig(width=48, depth=2, aggregate=aggregate)


def bandit(config, *, seed=0):
    """An agent for one state and actions of two dimensions."""
    spec = Spec({"state": ObservationSpec((1,))}, ActionSpec(2))
    contract = Contract(spec, config.history, config.chunk, config.execute, config.nfe)
    return config.build(contract, Normalizer({"state": 1}, 2), steps=1000, seed=seed, compile=False)


def batch(reward, random, rows=128, chunk=1):
    """Chunks of the behaviour policy, each followed by its reward and the end."""
    action = (MEAN + DEVIATION * torch.randn(rows, chunk, 2, generator=random)).clamp(-1, 1)
    state = torch.zeros(rows, 1, 1)
    rewards = torch.zeros(rows, chunk)
    rewards[:, -1] = reward(action)
    return {
        "obs": {"state": state},
        "action": action,
        "valid": torch.ones(rows, chunk, dtype=torch.bool),
        "reward": rewards,
        "mask": torch.zeros(rows),
        "steps": torch.full((rows,), float(chunk)),
        "next_obs": {"state": state},
        "next_action": action[:, 0],
    }


def train(config, reward, steps):
    """The agent after ``steps`` updates, and 2000 chunks of its policy."""
    agent, random = bandit(config), torch_generator(0, "bandit")
    repeat(lambda: agent.update(batch(reward, random, chunk=config.chunk), random), steps)
    return agent, agent.policy().act({"state": torch.zeros(2000, 1, 1)}, torch_generator(1))
