"""Teachers whose flow is known in closed form, stored as runs."""

import torch
from torch import nn

from flowpolicy.agents.students.teacher import Teacher
from flowpolicy.core.seed import torch_generator
from flowpolicy.core.spec import ActionSpec, Contract, ObservationSpec, Spec
from flowpolicy.data.normalize import Normalizer
from flowpolicy.nets.encoder import StateEncoder
from flowpolicy.nets.mlp import MLP
from flowpolicy.nets.trunk import FlowOutput
from flowpolicy.policy.actor import PolicyConfig
from flowpolicy.policy.policy import Policy
from flowpolicy.policy.samplers import FlowSampler

CONTRACT = Contract(Spec({"state": ObservationSpec((2,))}, ActionSpec(2)), 1, 2, 2, 10)
SMALL = {"net": MLP(width=16, depth=2), "encoder": StateEncoder(width=8), "chunk": 2, "execute": 2}


class GaussianNet(nn.Module):
    """The flow from N(0, 1) to N(mean + state, std^2): ``x = a state..`` at every time in closed form.

    With ``straight`` the flow of the pairs ``data = mean + std noise`` instead, whose paths are lines.
    """

    def __init__(self, mean=0.3, std=0.4, straight=False):
        super().__init__()
        self.mean, self.std, self.straight = mean, std, straight

    def forward(self, x, t, cond):
        t, mean = t.reshape(-1, 1, 1), self.mean + 0.1 * cond[:, -1].reshape(-1, 1, 1)
        if self.straight:
            gain = (self.std - 1) / (1 + (self.std - 1) * t)
        else:
            gain = (t * self.std**2 - (1 - t)) / (t**2 * self.std**2 + (1 - t) ** 2)
        return FlowOutput(mean + gain * (x - mean * t), {})

    def at(self, noise, t, obs):
        """Where the exact flow carries the noise until t."""
        mean = self.mean + 0.1 * obs["state"][:, -1, -1].reshape(-1, 1, 1)
        width = 1 + (self.std - 1) * t if self.straight else (t**2 * self.std**2 + (1 - t) ** 2) ** 0.5
        return mean * t + width * noise


def exact_policy(**options):
    """A policy with the exact velocity; its normaliser changes nothing."""
    config = PolicyConfig(SMALL["net"], StateEncoder(width=0), FlowSampler())
    policy = Policy(config, CONTRACT, Normalizer({"state": 2}, 2))
    policy.actor.net = GaussianNet(**options)
    return policy.eval().requires_grad_(False)


def exact_teacher(**options):
    return Teacher(exact_policy(**options))


def observed(rows, seed=0):
    return {"state": 2 * torch.rand(rows, 1, 2, generator=torch_generator(seed, "obs")) - 1}


def noise_of(rows, seed=0):
    return torch.randn(rows, 2, 2, generator=torch_generator(seed, "noise"))
