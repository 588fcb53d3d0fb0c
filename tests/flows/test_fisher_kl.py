"""Curvature and second-order KL of a decorator against exact values."""

import numpy as np
import pytest
import torch

from flowpolicy.flows import fisher_metric as fisher
from flowpolicy.flows.fisher_metric import Metric

from .gaussian import F64, GaussianFlow, tensor


@pytest.mark.parametrize("seed", range(3))
def test_curvature_needs_one_derivative_of_the_flow(seed):
    t, flow = 0.85, GaussianFlow.random(4, seed)
    x, times = flow.draw(6, t, seed)
    shift = torch.randn(6, 4, generator=torch.Generator().manual_seed(seed), dtype=F64).requires_grad_()
    tangent = fisher.derivative(flow.field, x, times, shift.detach())
    blurred = t**2 * torch.linalg.inv(flow.at(t))
    value = fisher.curvature(shift, tangent, times)
    torch.testing.assert_close(value, (shift @ blurred * shift).sum(1), atol=1e-10, rtol=1e-10)
    (gradient,) = torch.autograd.grad(value.sum(), shift)
    torch.testing.assert_close(gradient, 2 * shift @ blurred, atol=1e-10, rtol=1e-10)
    scores = torch.randn(6, 1, 4, generator=torch.Generator().manual_seed(seed), dtype=F64)
    charged = fisher.charge_curvature(Metric(mode="curv", time=t, damping=0.0, shrinkage=0.2), shift, tangent, scores)
    isotropic = scores.square().mean((1, 2)) * shift.square().sum(1)
    torch.testing.assert_close(charged, 0.5 * (0.8 * value + 0.2 * isotropic) / 4)


def test_curvature_between_two_modes_is_negative_and_charged_the_isotropic_share_alone():
    """Modes at -.5 and .5 with std .1: the log density is convex between them."""

    def field(x, t):
        variance = t[:, None] ** 2 * 0.01 + (1 - t[:, None]) ** 2
        logits = torch.stack([-((x - t[:, None] * m) ** 2) / (2 * variance) for m in (-0.5, 0.5)])
        gain = (t[:, None] * 0.01 - (1 - t[:, None])) / variance
        modes = torch.stack([m + gain * (x - t[:, None] * m) for m in (-0.5, 0.5)])
        return (torch.softmax(logits, 0) * modes).sum(0)

    shift, times = torch.full((2, 1), 0.1, dtype=F64), torch.full((2,), 0.9, dtype=F64)
    x = 0.9 * tensor([0.0], [0.5])
    value = fisher.curvature(shift, fisher.derivative(field, x, times, shift), times)
    assert value[0] < 0 < value[1]
    blurred = 0.01 + (0.1 / 0.9) ** 2
    assert float(value[1]) == pytest.approx(0.01 / blurred, rel=1e-3)
    metric, tangent = Metric(mode="curv", damping=0.1, shrinkage=0.2), fisher.derivative(field, x, times, shift)
    charged = fisher.charge_curvature(metric, shift, tangent, torch.full((2, 1, 1), 3.0, dtype=F64))
    assert float(charged[0]) == pytest.approx(0.5 * (0.2 * 9 + 0.1) * 0.01)


SIGMA = tensor([0.2, 0.05], [0.05, 0.1])
SHIFT = tensor(0.1, -0.2)


def grid(covariance, nodes=8):
    """Gauss-Hermite nodes and weights of N(0, covariance): exact for polynomials of degree 15."""
    points, weights = np.polynomial.hermite_e.hermegauss(nodes)
    size = len(covariance)
    mesh = np.stack(np.meshgrid(*[points] * size, indexing="ij"), -1).reshape(-1, size)
    mass = np.stack(np.meshgrid(*[weights / weights.sum()] * size, indexing="ij"), -1).reshape(-1, size).prod(1)
    return torch.tensor(mesh, dtype=F64) @ torch.linalg.cholesky(covariance).T, torch.tensor(mass, dtype=F64)


def exact_kl(covariance, shift, linear):
    """KL from N(shift, (I + linear) covariance (I + linear)^T) to N(0, covariance)."""
    size = len(covariance)
    moved = torch.eye(size, dtype=F64) + linear
    inverse = torch.linalg.inv(covariance)
    trace = (inverse @ moved @ covariance @ moved.T).trace()
    return float(0.5 * (trace - size + shift @ inverse @ shift) - torch.linalg.det(moved).abs().log())


def expansions(covariance, shift, linear):
    """Means over N(0, covariance) of the full second-order form, of the one without divergence, of the curvature."""
    action, mass = grid(covariance)
    inverse = torch.linalg.inv(covariance)
    basis = torch.eye(len(covariance), dtype=F64)[:, None].expand(-1, len(action), -1)
    move, parts = fisher.shift_and_divergence(lambda a: shift + a @ linear.T, action, basis)
    divergence = parts.sum(0)  # over all directions: exact
    zero, score = torch.zeros_like(divergence), -action @ inverse
    full = fisher.second_order_kl(move, score, divergence, divergence)
    bare = fisher.second_order_kl(move, score, zero, zero)
    return (float((mass * term).sum()) for term in (full, bare, 0.5 * (move @ inverse * move).sum(1)))


def test_constant_shift_is_exact_in_every_form():
    none = torch.zeros(2, 2, dtype=F64)
    assert exact_kl(SIGMA, SHIFT, none) == pytest.approx(0.31428571, abs=1e-8)
    for form in expansions(SIGMA, SHIFT, none):
        assert form == pytest.approx(0.31428571, abs=1e-8)


@pytest.mark.parametrize(
    ("factor", "std", "exact_value", "full", "bare", "bent"),
    [(-0.05, 1.0, 0.00254329, 0.0025, 0.00375, 0.00125), (0.05, 0.4, 0.00245984, 0.0025, 0.00375, 0.00125)],
)
def test_scaling_map_needs_the_divergence(factor, std, exact_value, full, bare, bent):
    """shift = factor * a. Without the divergence half too much, by the curvature alone half too little."""
    covariance, linear, none = tensor([std**2]), tensor([factor]), tensor(0.0)
    assert exact_kl(covariance, none, linear) == pytest.approx(exact_value, abs=1e-8)
    found = list(expansions(covariance, none, linear))
    assert found == pytest.approx([full, bare, bent], abs=1e-8)


def test_linear_map_and_shift():
    linear = tensor([0.1, 0.05], [0.0, -0.1])
    assert exact_kl(SIGMA, SHIFT, linear) == pytest.approx(0.3407646, abs=1e-7)
    full, _, bent = expansions(SIGMA, SHIFT, linear)
    assert full == pytest.approx(0.3407143, abs=1e-7)
    assert bent == pytest.approx(0.3307143, abs=1e-7)


@pytest.mark.parametrize("seed", range(3))
def test_the_full_form_is_second_order_and_the_others_are_not(seed):
    """On random Gaussians and maps: the relative error of the full form vanishes with the map, theirs does not."""
    generator = torch.Generator().manual_seed(seed)
    covariance = GaussianFlow.random(3, seed).covariance
    linear, shift = 0.2 * torch.randn(3, 3, generator=generator, dtype=F64), torch.zeros(3, dtype=F64)

    def errors(scale):
        truth = exact_kl(covariance, shift, scale * linear)
        return [abs(form - truth) / truth for form in expansions(covariance, shift, scale * linear)]

    coarse, fine = errors(0.1), errors(0.001)
    assert fine[0] < 0.02 * coarse[0]
    assert min(fine[1:]) > 10 * fine[0]


def test_two_probes_estimate_the_square_without_the_variance_of_one():
    """div of a random linear map in 3 dimensions: the product of two estimates is unbiased, the square is not."""
    flow = GaussianFlow.random(3, 1)
    linear = torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    truth, count = float(linear.trace()), 400_000
    probes = torch.randint(0, 2, (2, count, 3), generator=torch.Generator().manual_seed(1)).to(F64) * 2 - 1
    move, (first, second) = fisher.shift_and_divergence(lambda a: a @ linear.T, flow.draw(count, 0.9)[0], probes)
    zero = torch.zeros_like(move)
    assert float(first.mean()) == pytest.approx(truth, abs=2e-2)
    product = fisher.second_order_kl(move, zero, first, second).mean()
    square = fisher.second_order_kl(move, zero, first, first).mean()
    assert float(product) == pytest.approx(0.5 * truth**2, abs=3e-2)
    excess = (linear + linear.T).triu(1).square().sum()
    assert float(square) == pytest.approx(0.5 * (truth**2 + float(excess)), rel=2e-2)


def test_the_divergence_carries_a_gradient():
    """d/dM of 1/2 (a . M s + tr M)^2 through the probes, against the closed form."""
    generator = torch.Generator().manual_seed(0)
    action, score = torch.randn(2, 5, 3, generator=generator, dtype=F64)
    matrix = torch.randn(3, 3, generator=generator, dtype=F64).requires_grad_()
    basis = torch.eye(3, dtype=F64)[:, None].expand(-1, 5, -1)
    move, parts = fisher.shift_and_divergence(lambda a: a @ matrix.T, action, basis)
    loss = fisher.second_order_kl(move, score, parts.sum(0), parts.sum(0)).sum()
    (gradient,) = torch.autograd.grad(loss, matrix)
    drift = ((action @ matrix.T) * score).sum(1) + matrix.trace()
    by_hand = torch.einsum("b,bi,bj->ij", drift, score, action) + drift.sum() * torch.eye(3, dtype=F64)
    torch.testing.assert_close(gradient, by_hand)
