"""Log-ratios from velocity errors, on Gaussians in closed form."""

import math

import pytest
import torch
from scipy.integrate import quad

from flowpolicy.core.seed import torch_generator
from flowpolicy.flows import group_objectives as groups

from .gaussian import F64, tensor
from .preferences import gradient, plackett_luce


class Law:
    """N(mean, std^2) in one dimension: its exact velocity, and the expected squared error for an action."""

    def __init__(self, mean, std):
        self.mean, self.std = mean, std

    def velocity(self, x, t):
        variance = t**2 * self.std**2 + (1 - t) ** 2
        return self.mean + (t * self.std**2 - (1 - t)) / variance * (x - t * self.mean)

    def error(self, a, t):
        """E over the noise of (w - w(x_t))^2: w - w(x_t) is linear in the noise."""
        at_zero = a - self.velocity(t * a, t)
        at_one = (a - 1) - self.velocity(t * a + 1 - t, t)
        return at_zero**2 + (at_one - at_zero) ** 2


def score(a, law, reference, weight, top=1.0):
    """The library's estimate in the limit of infinitely many draws: quadrature over t."""

    def integrand(t):
        time = tensor(t)
        errors = [tensor(each.error(a, t)).reshape(1, 1, 1) for each in (law, reference)]
        return float(groups.log_ratio(*errors, groups.time_weight(time, weight, math.inf)[None]))

    return quad(integrand, 0, top, epsabs=1e-11, limit=200)[0]


CASES = [
    (0.3, Law(0.5, 0.4), Law(0.0, 0.6), math.log(1.5), 0.196350),
    (-1.0, Law(0.5, 0.4), Law(0.0, 0.6), -5.23689622, -2.951788),
    (0.2, Law(0.2, 0.3), Law(-0.4, 0.3), 2.0, 0.942478),
]


@pytest.mark.parametrize(("a", "law", "reference", "exact", "uniform"), CASES)
def test_the_exact_weight_gives_the_log_ratio_and_the_uniform_one_does_not(a, law, reference, exact, uniform):
    assert score(a, law, reference, "elbo") == pytest.approx(exact, abs=1e-6)
    assert score(a, law, reference, "uniform") == pytest.approx(uniform, abs=1e-6)


@pytest.mark.parametrize("sigma", [0.1, 0.3, 1.0])
def test_uniform_weight_undercharges_narrow_directions(sigma):
    law, reference = Law(0.2, sigma), Law(-0.1, sigma)
    ratio = score(0.4, law, reference, "uniform") / score(0.4, law, reference, "elbo")
    assert ratio == pytest.approx(math.pi * sigma / 2, rel=1e-4)


@pytest.mark.parametrize(("top", "value"), [(0.9, 0.370731), (0.95, 0.397197), (0.98, 0.404203), (0.99, 0.405155)])
def test_truncated_times(top, value):
    assert score(*CASES[0][:3], "elbo", top) == pytest.approx(value, abs=1e-6)


def test_linear_reward_tilts_a_gaussian_by_its_variance():
    actions, law, reference = (-0.5, 0.0, 0.3, 0.9), Law(0.74, 0.4), Law(0.1, 0.4)
    scores = torch.tensor([[score(a, law, reference, "elbo") for a in actions]], dtype=F64)
    rewards = 2 * tensor(*actions)[None]
    assert torch.allclose(scores - rewards / 0.5, torch.full((1, 4), -1.68, dtype=F64), atol=1e-6)
    assert gradient(lambda s: plackett_luce(s, rewards, 0.5), scores).abs().max() < 1e-6


@pytest.mark.parametrize(("sigma", "value"), [(0.05, 0.0785398), (0.1, 0.1570796), (0.3, 0.4712389)])
def test_irreducible_error_of_a_gaussian(sigma, value):
    law = Law(0.3, sigma)

    def error(t):  # of the exact field, mean over the law's own actions: quadratic in the standardised action
        z = (-(3**0.5), 0.0, 3**0.5)  # Gauss-Hermite nodes with weights 1/6, 2/3, 1/6
        return sum(w * law.error(0.3 + sigma * x, t) for w, x in zip((1 / 6, 2 / 3, 1 / 6), z, strict=True))

    irreducible = quad(error, 0, 1, epsabs=1e-10)[0]
    assert irreducible == pytest.approx(value, abs=1e-6)
    assert groups.calibrated_beta(irreducible) == pytest.approx(1 / (0.1 * math.pi * sigma / 2), rel=1e-5)


def test_shared_noise_cancels_in_differences():
    t, a, b = 0.6, 0.3, -0.4
    noise = torch.randn(200_000, 2, generator=torch_generator(0), dtype=F64)

    def variance(law, reference, shared):
        def error(which, action, eps):
            x = (1 - t) * eps + t * action
            return (action - eps - which.velocity(x, t)) ** 2

        other = noise[:, 0] if shared else noise[:, 1]
        pairs = [torch.stack([error(w, a, noise[:, 0]), error(w, b, other)], 1)[:, None] for w in (law, reference)]
        scores = groups.log_ratio(*pairs, torch.ones(len(noise), 1, dtype=F64))
        return float((scores[:, 0] - scores[:, 1]).var())

    equal, unequal = (Law(0.5, 0.4), Law(0.0, 0.4)), (Law(0.5, 0.3), Law(0.0, 0.4))
    assert variance(*equal, True) < 1e-24
    assert variance(*equal, False) == pytest.approx(1.3152, rel=0.02)
    assert variance(*unequal, True) == pytest.approx(0.1016, rel=0.02)
    assert variance(*unequal, False) == pytest.approx(0.7334, rel=0.02)


@pytest.mark.parametrize(("std", "gain"), [(0.1, 2.0), (0.3, 1.4), (0.6, 1.2)])
def test_importance_drawn_times_are_unbiased_and_lower_the_error(std, gain):
    """Eight dimensions, shifted by half a deviation and 10 % wider; the log-ratio is known."""
    rows, draws, size = 3000, 8, 8
    generator = torch_generator(0, "times")
    action = std * torch.randn(rows, 1, 2, size, generator=generator, dtype=F64)
    noise = torch.randn(rows, draws, 1, size, generator=generator, dtype=F64)
    law, reference = Law(0.5 * std / size**0.5, 1.1 * std), Law(0.0, std)

    def log_density(which):
        return (-((action - which.mean) ** 2) / (2 * which.std**2) - math.log(which.std)).sum(3)[:, 0]

    exact = log_density(law) - log_density(reference)

    def mistakes(t, density):
        time = t.double()[..., None, None]
        x, w = (1 - time) * noise + time * action, action - noise
        errors = ((w - which.velocity(x, time)).square().sum(3) for which in (law, reference))
        return groups.log_ratio(*errors, groups.time_weight(t.double(), cap=math.inf) / density.double()) - exact

    uniform = groups.stratified_times(rows, draws, generator)
    plain = mistakes(uniform, torch.ones_like(uniform))
    better = mistakes(*groups.importance_times(rows, draws, std, generator))
    assert abs(float(better.mean())) < 4 * float(better.std()) / rows**0.5
    assert float(better.std()) < float(plain.std()) / gain


@pytest.mark.parametrize("high", [1.0, 0.98])
def test_importance_drawn_times_have_the_density_that_they_say(high):
    t, density = groups.importance_times(200, 500, 0.2, torch_generator(1), high)
    assert float(t.min()) >= 0 and float(t.max()) <= high
    assert float((1 / density).mean()) == pytest.approx(high, rel=1e-3)
    assert float((t.square() / density).mean()) == pytest.approx(high**3 / 3, rel=1e-3)
    assert float(density.min()) >= 0.999 * groups.UNIFORM_SHARE / high


MEAN, DEVIATION, SLOPE, TAU = 0.1, 0.4, 1.0, 0.5


def test_the_analytic_tilt_of_a_gaussian_by_a_linear_reward():
    """Reference N(0.1, 0.4^2), reward a, tau 0.5: the KL-optimal law is N(0.1 + 0.4^2 / 0.5, 0.4^2) = N(0.42, 0.4^2).

    The policy is the exact field of N(m, exp(l)^2), m and l learned from groups of 16 at 16 stratified draws.
    """
    generator = torch_generator(0, "tilt")
    mean = torch.tensor(MEAN, dtype=F64, requires_grad=True)
    log_std = torch.tensor(math.log(DEVIATION), dtype=F64, requires_grad=True)
    optimizer = torch.optim.Adam([mean, log_std], lr=0.02)
    averaged = []
    for step in range(800):
        actions = MEAN + DEVIATION * torch.randn(64, 1, 16, generator=generator, dtype=F64)
        t = groups.stratified_times(64, 16, generator).double()
        noise = torch.randn(64, 16, 1, generator=generator, dtype=F64)
        time = t.unsqueeze(2)
        x, w = (1 - time) * noise + time * actions, actions - noise
        policy, reference = Law(mean, log_std.exp()), Law(MEAN, DEVIATION)
        error, base = ((w - law.velocity(x, time)).square() for law in (policy, reference))
        scores = groups.log_ratio(error, base, groups.time_weight(t), limit=20.0)
        rewards = SLOPE * actions[:, 0]
        order = groups.ranking(rewards, torch.rand(64, 16, generator=generator, dtype=F64))
        loss = groups.group_loss("plackett_luce", scores, error.mean(1), rewards, TAU, order).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step >= 400:
            averaged.append((float(mean), float(log_std.exp())))
    found = torch.tensor(averaged).mean(0)
    shift = SLOPE * DEVIATION**2 / TAU
    assert float(found[0]) - MEAN == pytest.approx(shift, rel=0.1)
    assert float(found[1]) == pytest.approx(DEVIATION, rel=0.1)
