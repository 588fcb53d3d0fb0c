"""Real-time chunking against closed forms: linear velocity fields have them."""

import math

import pytest
import torch

from flowpolicy.core.seed import torch_generator
from flowpolicy.flows.axes.flow_spec import Sampling
from flowpolicy.flows.axes.interpolants import Linear
from flowpolicy.flows.axes.solvers import Dynamics
from flowpolicy.flows.real_time import GUIDANCE_LIMIT, committed_rows, guidance_strength, guided, hold, soft_mask


def integrate(field, x, steps):
    return Sampling().generate(Dynamics(field, Linear()), x, steps, None)


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch_generator(seed, "real_time"), dtype=torch.float64)


def test_soft_mask_is_one_then_decays_to_zero_as_published():
    weight = soft_mask(torch.tensor([2, 0, 3]), torch.tensor([5, 0, 3]), 6).double()
    shares = [(5 - i) / (5 - 2 + 1) for i in (2, 3, 4)]
    decay = [c * (math.exp(c) - 1) / (math.e - 1) for c in shares]
    assert weight[0].tolist() == pytest.approx([1, 1, *decay, 0], abs=1e-6)
    assert weight[1].tolist() == [0] * 6
    assert weight[2].tolist() == [1, 1, 1, 0, 0, 0]


def test_strength_is_capped_where_it_is_infinite():
    t = torch.tensor([0.0, 0.5, 0.9], dtype=torch.float64)
    # (1 - t) / t / r^2 with r^2 = (1 - t)^2 / (t^2 + (1 - t)^2), written out: 2 at t = 1/2.
    assert guidance_strength(t, limit=100.0).tolist() == pytest.approx([100.0, 2.0, 0.1 / 0.9 * (0.81 + 0.01) / 0.01])
    assert guidance_strength(t).max() == GUIDANCE_LIMIT


def test_guided_velocity_of_a_linear_field():
    """v = A x: denoised = (I + (1 - t) A) x, and the pull is strength * (I + (1 - t) A)^T W (y - denoised)."""
    matrix, x, y = random(6, 6), random(4, 3, 2, seed=1), random(4, 3, 2, seed=2)
    weight = torch.rand(4, 3, generator=torch_generator(3), dtype=torch.float64)
    t = torch.tensor([0.1, 0.3, 0.5, 0.8], dtype=torch.float64)

    def field(x, t):
        return (x.flatten(1) @ matrix.T).view_as(x)

    found = guided(field, y, weight)(x, t)
    for row in range(4):
        jacobian = torch.eye(6, dtype=torch.float64) + (1 - t[row]) * matrix
        flat, target = x[row].flatten(), y[row].flatten()
        pull = jacobian.T @ (weight[row].repeat_interleave(2) * (target - jacobian @ flat))
        strength = min(GUIDANCE_LIMIT, float((t[row] ** 2 + (1 - t[row]) ** 2) / (t[row] * (1 - t[row]))))
        assert found[row].flatten().tolist() == pytest.approx((matrix @ flat + strength * pull).tolist())


def test_no_weight_is_no_guidance_bit_for_bit():
    def field(x, t):
        return torch.sin(3 * x) * (1 - t).view(-1, 1, 1)

    x = random(5, 4, 2)
    plain = integrate(field, x, 6)
    assert torch.equal(integrate(guided(field, random(5, 4, 2, seed=9), torch.zeros(5, 4)), x, 6), plain)


def test_guidance_moves_the_free_row_towards_its_conditional_mean():
    """Two rows with standard normal law and correlation rho: given the first at 2, the second has mean 2 rho = 1.8."""
    rho = 0.9
    covariance = torch.tensor([[1.0, rho], [rho, 1.0]], dtype=torch.float64)

    def field(x, t):
        # Velocity of a Gaussian: v = (t S - (1 - t)) (t^2 S + (1 - t)^2)^-1 x
        eye, time = torch.eye(2, dtype=torch.float64), t[0]
        gain = (time * covariance - (1 - time) * eye) @ torch.linalg.inv(time**2 * covariance + (1 - time) ** 2 * eye)
        return (x[..., 0] @ gain.T).unsqueeze(2)

    noise = random(4000, 2, 1)
    target = torch.full((4000, 2, 1), 2.0, dtype=torch.float64)
    weight = torch.tensor([1.0, 0.0], dtype=torch.float64).expand(4000, 2)
    plain, steered = integrate(field, noise, 20), integrate(guided(field, target, weight), noise, 20)
    assert plain.mean(0).flatten().tolist() == pytest.approx([0, 0], abs=0.06)
    assert steered[:, 0].mean().item() == pytest.approx(2.0, abs=0.1)
    assert steered[:, 0].std() < 0.25
    # The guidance takes the posterior of every row for that of independent ones, so it stops short of 2 rho.
    assert 1.4 < steered[:, 1].mean().item() < 2 * rho


def test_held_rows_are_the_data_and_carry_no_loss():
    x, v, data, cond = random(3, 4, 2), random(3, 4, 2, seed=1), random(3, 4, 2, seed=2), random(3, 5, seed=3)
    valid = torch.ones(3, 4, dtype=torch.bool)
    rows = committed_rows(torch.tensor([0, 2, 4]), 4)
    assert rows.sum(1).tolist() == [0, 2, 4]
    held = hold(x, v, data, valid, cond, rows)
    assert torch.equal(held.x[0], x[0]) and torch.equal(held.velocity[0], v[0])
    assert torch.equal(held.x[1, :2], data[1, :2]) and torch.equal(held.x[1, 2:], x[1, 2:])
    assert not held.velocity[1, :2].any() and torch.equal(held.velocity[1, 2:], v[1, 2:])
    assert torch.equal(held.valid, ~rows)
    assert torch.equal(held.cond, torch.cat([rows.double(), cond], dim=1))
    assert all(a is b for a, b in zip(hold(x, v, data, valid, cond), (x, v, valid, cond), strict=True))
