"""Limits and closed forms of the losses."""

import math

import pytest
import torch

import flowpolicy.flows.axes  # noqa: F401, registers the values
from flowpolicy.core.errors import ConfigError
from flowpolicy.flows.axes.interpolants import Linear, Trigonometric
from flowpolicy.flows.axes.losses import Adaptive, Balanced, Elbo, PseudoHuber, Squared, matching_loss
from flowpolicy.flows.axes.registry import VALUES

F64 = torch.float64


def batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    prediction, target = torch.randn(2, 5, 4, 3, generator=generator, dtype=F64)
    valid = torch.rand(5, 4, generator=generator) < 0.7
    return prediction, target, valid, torch.rand(5, generator=generator, dtype=F64)


def test_squared_is_the_loss_of_the_other_agents():
    prediction, target, valid, t = batch()
    mine = Squared().reduce(prediction - target, valid, t, Linear())
    assert float(mine) == pytest.approx(float(matching_loss(prediction, target, valid)), rel=1e-12)
    assert float(Squared().reduce(prediction - target, torch.zeros_like(valid), t, Linear())) == 0


@pytest.mark.parametrize("name", VALUES["loss"])
def test_steps_past_the_episode_do_not_count_and_weights_do(name):
    loss = VALUES["loss"][name]()
    prediction, target, valid, t = batch()
    base = loss.reduce(prediction - target, valid, t, Linear())
    other = torch.where(valid.unsqueeze(2), prediction, prediction + 9)
    assert float(loss.reduce(other - target, valid, t, Linear())) == pytest.approx(float(base), rel=1e-12)
    double = loss.reduce(prediction - target, valid, t, Linear(), torch.full((5,), 2.0, dtype=F64))
    assert float(double) == pytest.approx(2 * float(base), rel=1e-12)


@pytest.mark.parametrize(("factor", "size"), [(1e-6, 2.0), (3e3, 2.0)])
def test_pseudo_huber_limits(factor, size):
    """c -> 0: the length of the error; c -> infinity: its square over 2c. Both over the number of entries."""
    error = torch.full((1, 4, 3), size, dtype=F64)
    value = PseudoHuber(factor).reduce(error, torch.ones(1, 4) > 0, torch.zeros(1, dtype=F64), Linear())
    c, square = factor * 12, 12 * size**2
    exact = math.sqrt(square) if factor < 1 else square / (2 * c)
    assert float(value) == pytest.approx(exact / 12, rel=1e-4)
    assert float(value) == pytest.approx((math.sqrt(square + c * c) - c) / 12, rel=1e-4)


def test_the_likelihood_weight():
    t = torch.tensor([0.0, 0.2, 0.5, 0.9, 0.999, 1.0], dtype=F64)
    weight = Elbo(clamp=20.0).time_weight(t, Linear())
    torch.testing.assert_close(weight, (t / (1 - t)).clamp(max=20))
    # Half the slope of the signal-to-noise ratio tan^2, for an error of the data that a velocity error stands for.
    inner = t[1:4]
    half = math.pi / 2
    slope = 2 * (half * inner).tan() * half / (half * inner).cos() ** 2
    exact = 0.5 * slope * ((half * inner).cos() / half) ** 2
    torch.testing.assert_close(Elbo(1e9).time_weight(inner, Trigonometric()), exact)


def test_balancing_is_one_factor():
    on, off = torch.tensor(0.5, dtype=F64), torch.tensor(4.0, dtype=F64, requires_grad=True)
    value = Balanced().balance(off, on)
    assert float(value) == pytest.approx(0.5, rel=1e-5)
    value.backward()
    assert float(off.grad) == pytest.approx(0.125, rel=1e-5)
    assert Squared().balance(off, on) is off


def test_which_losses_are_robust():
    robust = {name for name, cls in VALUES["loss"].items() if cls().robust}
    assert robust == {"adaptive", "pseudo-huber"}
    assert not Adaptive(power=0.0).robust


@pytest.mark.parametrize("wrong", [lambda: Adaptive(-1.0), lambda: PseudoHuber(0.0), lambda: Elbo(0.0)])
def test_impossible_options_are_refused(wrong):
    with pytest.raises(ConfigError):
        wrong()
