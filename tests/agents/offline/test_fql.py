"""FQL: assembly, closed form of its optimum, and what the parts of its loss reach."""

import dataclasses

import pytest
import torch

from flowpolicy.agents.base.bricks import flow_sample, q_term
from flowpolicy.agents.offline.fql import FQL, one_step
from flowpolicy.core.errors import ConfigError
from flowpolicy.core.keys import ACTION
from flowpolicy.core.seed import torch_generator
from flowpolicy.nets.critic import CriticConfig
from flowpolicy.nets.encoder import StateEncoder
from flowpolicy.nets.plain import Plain

from ..shared import build, check_agent
from .bandit import EULER, MEAN, TINY, tiny, train

SMALL = {"net": Plain(width=32, depth=2), "critic": CriticConfig(width=32, depth=2)}


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"chunk": 3, "execute": 3, "history": 2},
        {"n_step": 3, "critic": CriticConfig(width=16, depth=2, members=2, held_out=2, aggregate="min")},
        {"encoder": StateEncoder(width=8), "ema": 0.9, "normalize_q": True},
    ],
)
def test_suite(change, demonstrations):
    check_agent(dataclasses.replace(FQL(**SMALL), **change), demonstrations, compiled=False)


def test_the_policy_reaches_the_optimum_of_a_quadratic_bandit():
    """mu(z) = (w b(z) + k c) / (w + k): b(z) the flow's sample, w = alpha / dimensions, r = -k |a - c|^2."""
    goal, k, alpha = torch.tensor([-0.1, 0.2]), 1.0, 2.0
    config = FQL(**TINY, critic=tiny(), alpha=alpha)
    _, chunk = train(config, lambda a: -k * (a[:, 0] - goal).square().sum(1), 500)
    weight = alpha / 2
    torch.testing.assert_close(chunk[:, 0].mean(0), (weight * MEAN + k * goal) / (weight + k), rtol=0, atol=0.05)
    deviation = chunk[:, 0].std(0)
    torch.testing.assert_close(deviation, torch.full_like(deviation, EULER / 2), rtol=0.25, atol=0)


def make(demonstrations, **change):
    agent, sampler = build(dataclasses.replace(FQL(**SMALL), **change), demonstrations)
    batch = sampler.draw(torch_generator(0))
    inputs = {name: dict(value.items()) if "obs" in name else value for name, value in batch.items()}
    return agent, agent.transition(inputs), agent.draw(batch[ACTION], torch_generator(1))


def test_each_loss_reaches_the_networks_of_its_own_optimiser(demonstrations):
    agent, t, draws = make(demonstrations)
    for name, loss in agent.losses(t, draws)[0].items():
        agent.zero_grad(set_to_none=True)
        loss.backward(retain_graph=True)
        reached = {n.split(".")[0] for n, p in agent.named_parameters() if p.grad is not None}
        assert reached == {name}


def test_distillation_has_no_gradient_where_policy_and_flow_agree(demonstrations):
    """With the alpha term alone; and none of it enters the flow."""
    agent, t, draws = make(demonstrations)
    noise = draws.z
    sample = flow_sample(agent.flow, t.obs, noise, 10, "euler")
    assert not sample.requires_grad

    class Agrees(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.shift = torch.nn.Parameter(torch.zeros(()))

        def forward(self, z, cond):
            return type("Output", (), {"value": sample + self.shift})

    agent.actor.net = Agrees()
    with torch.no_grad():
        for parameter in agent.critic.parameters():
            parameter.zero_()
    loss, metrics = agent.actor_loss(t, noise)
    loss.backward()
    assert metrics["distill"] == 0 and agent.actor.net.shift.grad == 0


def test_a_normalised_q_term_does_not_see_the_scale_of_rewards(demonstrations):
    """Invariant to Q -> cQ, and -1 or +1 where Q has one sign."""
    agent, t, draws = make(demonstrations)
    chunk = one_step(agent.actor, t.obs, draws.z)
    before = q_term(agent.critic, t.obs, chunk, normalize=True)[0]
    with torch.no_grad():
        agent.critic.head.weight.mul_(7.0)
        agent.critic.head.bias.mul_(7.0)
    torch.testing.assert_close(q_term(agent.critic, t.obs, chunk, normalize=True)[0], before)
    for sign in (1.0, -1.0):
        with torch.no_grad():
            agent.critic.head.weight.mul_(0.01)
            agent.critic.head.bias.fill_(sign * 50)
        assert q_term(agent.critic, t.obs, chunk, normalize=True)[0].item() == pytest.approx(-sign, rel=1e-5)


def test_held_out_networks_change_nothing_but_their_report(demonstrations):
    agent, t, draws = make(demonstrations, critic=CriticConfig(width=32, depth=2, held_out=2))
    losses, metrics = agent.losses(t, draws)
    with torch.no_grad():
        for parameter in agent.critic.parameters():
            parameter[2:].mul_(3.0)
    other, moved = agent.losses(t, draws)
    assert torch.equal(losses["actor"], other["actor"]) and metrics["target_mean"] == moved["target_mean"]
    assert metrics["q_held_out"] != moved["q_held_out"]
    assert metrics["q_policy_held_out"] != moved["q_policy_held_out"]
    assert metrics["q_mean"] == moved["q_mean"]


@pytest.mark.parametrize(
    "change",
    [
        {"alpha": 3.0},
        {"normalize_q": True},
        {"flow_steps": 5},
        {"solver": "midpoint"},
        {"discount": 0.5},
        {"n_step": 2},
        {"encoder": StateEncoder(width=8)},
        {"net": Plain(width=16, depth=2)},
        {"net": Plain(width=32, depth=3)},
        {"critic": CriticConfig(width=16, depth=2)},
        {"critic": CriticConfig(width=32, depth=3)},
        {"critic": CriticConfig(width=32, depth=2, members=3)},
        {"critic": CriticConfig(width=32, depth=2, aggregate="min")},
        {"critic": CriticConfig(width=32, depth=2, layer_norm=False)},
        {"history": 2},
        {"chunk": 2},
    ],
)
def test_every_option_changes_the_loss(change, demonstrations):
    def loss(**change):
        agent, t, draws = make(demonstrations, **change)
        return sum(agent.losses(t, draws)[0].values()).item()

    assert loss(**change) != loss()


def test_a_solver_that_cannot_spend_the_evaluations_is_refused():
    with pytest.raises(ConfigError, match="nfe=5"):
        FQL(solver="midpoint", flow_steps=5)
    with pytest.raises(ConfigError, match="discount"):
        FQL(discount=1.5)
