"""IQL: expectiles, weights, and the tilted Gaussian that a quadratic bandit has as optimum."""

import dataclasses

import pytest
import torch

from flowpolicy.agents.offline.iql import IQL, awr_weight, expectile_loss
from flowpolicy.core.errors import ConfigError
from flowpolicy.nets.critic import CriticConfig
from flowpolicy.nets.encoder import StateEncoder
from flowpolicy.nets.plain import Plain

from ..shared import check_agent
from .bandit import DEVIATION, MEAN, TINY, tiny, train

SMALL = {"net": Plain(width=32, depth=2), "critic": CriticConfig(width=32, depth=2, aggregate="min")}


@pytest.mark.parametrize(
    "change",
    [{}, {"chunk": 3, "execute": 2, "history": 2}, {"n_step": 2, "encoder": StateEncoder(width=8), "ema": 0.9}],
)
def test_suite(change, demonstrations):
    check_agent(dataclasses.replace(IQL(**SMALL), **change), demonstrations, compiled=False)


@pytest.mark.parametrize(
    ("expectile", "values", "expected"),
    [(0.9, [0.0, 0, 0, 1], 0.75), (0.7, [0.0, 0, 0, 1], 0.4375), (0.9, [0.0, 1], 0.9), (0.5, [0.0, 0, 0, 1], 0.25)],
)
def test_expectile_minimiser(expectile, values, expected):
    q, v = torch.tensor(values, dtype=torch.float64), torch.linspace(0, 1, 100_001, dtype=torch.float64)
    loss = expectile_loss(q[:, None] - v, expectile).sum(0)
    assert v[loss.argmin()].item() == pytest.approx(expected, abs=2e-5)


def test_weights_are_capped():
    weight = awr_weight(torch.tensor([0.5, 0.4, 0.0, -1.0]), 10.0)
    torch.testing.assert_close(weight, torch.tensor([100.0, 54.59815, 1.0, 4.539993e-05]))


def test_the_policy_reaches_the_optimum_of_a_quadratic_bandit():
    """Weights exp(-alpha k |a - c|^2) tilt N(mu, s^2) to the mean (mu + 2 alpha k s^2 c) / (1 + 2 alpha k s^2)."""
    goal, k, alpha = torch.tensor([-0.1, 0.2]), 1.0, 5.0
    config = IQL(**TINY, critic=tiny("min"), alpha=alpha)
    _, chunk = train(config, lambda a: -k * (a[:, 0] - goal).square().sum(1), 500)
    tilt = 2 * alpha * k * DEVIATION**2
    torch.testing.assert_close(chunk[:, 0].mean(0), (MEAN + tilt * goal) / (1 + tilt), rtol=0, atol=0.04)
    assert chunk.std(0).max() < 1e-6, "the policy is deterministic"


@pytest.mark.parametrize("expectile", [0.0, 1.0])
def test_an_impossible_expectile_is_refused(expectile):
    with pytest.raises(ConfigError, match="expectile"):
        IQL(expectile=expectile)
