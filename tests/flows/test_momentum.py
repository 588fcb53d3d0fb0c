"""Segments with momentum modes: closed forms against quadrature and exact solutions."""

import pytest
import torch

from flowpolicy.core.errors import ConfigError
from flowpolicy.core.seed import torch_generator
from flowpolicy.flows.axes.interpolants import Linear
from flowpolicy.flows.axes.registry import make
from flowpolicy.flows.axes.solvers import Dynamics
from flowpolicy.flows.momentum import Momentum, phi

F64 = torch.float64


def segment(modes, seed=0, rows=5):
    random = torch_generator(seed)
    rates = 3 * torch.randn(rows, modes, generator=random, dtype=F64)
    rates[:, 0] = 0
    return Momentum(
        torch.randn(rows, modes, 2, 3, generator=random, dtype=F64),
        rates,
        torch.randn(rows, modes, generator=random, dtype=F64),
    )


def full(value, rows=5):
    return torch.full((rows,), value, dtype=F64)


def test_phi_is_continuous_at_zero_and_exact_beyond():
    z = torch.tensor([0.0, 1e-12, 9.99e-4, 1.001e-3, -9.99e-4, 2.0, -3.0], dtype=F64)
    exact = torch.where(z == 0, torch.ones_like(z), torch.expm1(z) / torch.where(z == 0, torch.ones_like(z), z))
    assert torch.allclose(phi(z), exact, atol=1e-9)
    x = torch.tensor([0.0, 5e-4, -2.0], dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(phi, (x,))


def test_the_way_is_the_integral_of_the_velocity():
    momentum, start, span, n = segment(4), 0.1, 0.6, 4000
    middle = start + span * (torch.arange(n, dtype=F64) + 0.5) / n
    way = sum(momentum.velocity(full(float(t))) for t in middle) * span / n
    assert torch.allclose(momentum.displacement(full(start), full(span)), way, atol=1e-6)


def test_two_halves_make_one_whole():
    momentum = segment(3)
    halves = momentum.displacement(full(0.0), full(0.35)) + momentum.displacement(full(0.35), full(0.65))
    assert torch.allclose(halves, momentum.displacement(full(0.0), full(1.0)), atol=1e-12)


def test_one_mode_and_equal_rates_are_constant_velocities():
    one = segment(1)
    assert torch.allclose(one.displacement(full(0.3), full(0.5)), 0.5 * one.modes[:, 0], atol=1e-12)
    still = segment(4)._replace(rates=torch.zeros(5, 4, dtype=F64))
    mean = (still.logits.softmax(1)[:, :, None, None] * still.modes).sum(1)
    assert torch.allclose(still.velocity(full(0.7)), mean, atol=1e-12)
    assert torch.allclose(still.displacement(full(0.2), full(0.5)), 0.5 * mean, atol=1e-12)


def test_an_eigendirection_of_a_linear_flow_is_solved_exactly():
    """dx/dt = g x from x0: velocity g x0 exp(g t), end x0 exp(g)."""
    x0, g = torch.randn(5, 2, 3, dtype=F64, generator=torch_generator(1)), -1.7
    momentum = Momentum(
        torch.stack([torch.zeros_like(x0), g * x0], 1),
        torch.tensor([[0.0, g]], dtype=F64).expand(5, 2),
        torch.tensor([[-torch.inf, 0.0]], dtype=F64).expand(5, 2),
    )
    end = x0 + momentum.displacement(full(0.0), full(1.0))
    assert torch.allclose(end, x0 * torch.exp(torch.tensor(g)), atol=1e-12)


def test_dropped_modes_leave_the_shares_of_the_others():
    momentum = segment(3)
    dropped = torch.tensor([[True, False, False]] * 4 + [[True, True, True]])
    left = momentum.without(dropped).logits.softmax(1)
    assert torch.equal(left[:4, 0], torch.zeros(4, dtype=F64))
    assert torch.allclose(left[:4, 1:], momentum.logits[:4, 1:].softmax(1), atol=1e-12)
    assert torch.allclose(left[4], momentum.logits[4].softmax(0), atol=1e-12)


def test_a_network_s_numbers_are_read_as_they_are_written():
    target = make("target", "segment", count=3)
    raw = torch.randn(4, 2, 3 * 2 + 5, generator=torch_generator(0), dtype=F64)
    momentum = target.read(raw)
    assert torch.equal(momentum.modes[:, 1], raw[:, :, 2:4])
    assert torch.equal(momentum.logits, raw[:, :, 6:9].mean(1))
    assert torch.equal(momentum.rates[:, 0], torch.zeros(4, dtype=F64))
    even = target.read(torch.zeros(1, 2, 11, dtype=F64)).rates[0]
    assert float(even[1]) == pytest.approx(-float(even[2])) and float(even[1]) > 1.5
    start = target.velocity(raw, raw[:, :, :2], torch.zeros(4, dtype=F64), Linear())
    assert torch.allclose(start, momentum.velocity(torch.zeros(4, dtype=F64)))


def test_the_solver_adds_up_segments_and_refuses_other_numbers():
    momentum, solver = segment(2), make("solver", "self", segments=2)
    flow = Dynamics(lambda x, t: x, Linear(), segment=lambda x, t: momentum)
    x = torch.zeros(5, 2, 3, dtype=F64)
    half = momentum.displacement(full(0.0), full(0.5))
    assert torch.allclose(solver.solve(flow, x, (0.0, 0.5, 1.0), 2, None), 2 * half, atol=1e-12)
    with pytest.raises(ConfigError, match="2 segments"):
        solver.steps(4)
    with pytest.raises(ConfigError, match="no segment"):
        solver.solve(Dynamics(lambda x, t: x, Linear()), x, (0.0, 1.0), 1, None)
