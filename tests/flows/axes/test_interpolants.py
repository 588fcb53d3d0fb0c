"""Paths and conversions against a Gaussian: data N(m, s^2), noise and z N(0, 1), everything known exactly."""

import math

import pytest
import torch

import flowpolicy.flows.axes  # noqa: F401, registers the values
from flowpolicy.core.errors import ConfigError
from flowpolicy.flows import straight
from flowpolicy.flows.axes.interpolants import Latent, Linear, VariancePreserving
from flowpolicy.flows.axes.registry import VALUES, make

from ..gaussian import F64, normal

M, S = 0.7, 0.4
PATHS = {name: cls() for name, cls in VALUES["interpolant"].items()}
PATHS |= {f"latent-{gamma}": Latent(gamma=gamma, scale=0.6) for gamma in ("brownian", "quadratic", "sine")}
TIMES = torch.linspace(0.05, 0.95, 13, dtype=torch.float64)
X = torch.linspace(-1.5, 2.0, 13, dtype=torch.float64).flip(0)


def posterior(path, x, t):
    """Posterior means of noise, data and z, and the variance of x_t."""
    c = path.coefficients(t)
    variance = c.alpha**2 + c.gamma**2 + (c.beta * S) ** 2
    off = (x - c.beta * M) / variance
    return c.alpha * off, M + c.beta * S**2 * off, c.gamma * off, off


def exact_velocity(path, x, t):
    c = path.coefficients(t)
    noise, data, z, _ = posterior(path, x, t)
    return c.dalpha * noise + c.dbeta * data + c.dgamma * z


@pytest.mark.parametrize("name", PATHS)
def test_ends_and_derivatives(name):
    path = PATHS[name]
    ends = path.coefficients(torch.tensor([0.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(ends.alpha, torch.tensor([1.0, 0.0], dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(ends.beta, torch.tensor([0.0, 1.0], dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(ends.gamma, torch.zeros(2, dtype=torch.float64), atol=1e-12, rtol=0)
    for k in range(3):
        _, slope = torch.func.jvp(lambda t, k=k: path.coefficients(t)[k], (TIMES,), (torch.ones_like(TIMES),))
        torch.testing.assert_close(path.coefficients(TIMES)[k + 3], slope, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("name", [n for n in PATHS if n != "encode-decode"])
def test_a_velocity_gives_data_and_noise_and_back(name):
    path = PATHS[name]
    v = exact_velocity(path, X, TIMES)
    _, data, _, off = posterior(path, X, TIMES)
    sigma = (path.coefficients(TIMES).alpha ** 2 + path.coefficients(TIMES).gamma ** 2).sqrt()
    torch.testing.assert_close(path.data(X, v, TIMES), data, atol=1e-10, rtol=0)
    torch.testing.assert_close(path.noise(X, v, TIMES), sigma * off, atol=1e-10, rtol=0)
    torch.testing.assert_close(path.from_data(X, data, TIMES), v, atol=1e-10, rtol=0)
    torch.testing.assert_close(path.from_noise(X, sigma * off, TIMES), v, atol=1e-9, rtol=0)


def test_straight_line_is_what_the_other_agents_use_bit_for_bit():
    generator = torch.Generator().manual_seed(0)
    noise, data = torch.randn(2, 7, 3, 2, generator=generator)
    t = torch.rand(7, generator=generator)
    assert torch.equal(Linear().point(noise, data, t), straight.interpolate(noise, data, t))
    assert torch.equal(Linear().velocity(noise, data, t), straight.velocity(noise, data))


def test_simulated_variance_of_a_latent_path():
    generator = torch.Generator().manual_seed(0)
    noise, z, g = torch.randn(3, 200_000, generator=generator, dtype=torch.float64)
    t = torch.full((200_000,), 0.3, dtype=torch.float64)
    x = Latent(gamma="sine", scale=0.8).point(noise, M + S * g, t, z)
    gamma = 0.8 * math.sin(0.3 * math.pi) ** 2
    assert float(x.var()) == pytest.approx(0.7**2 + (0.3 * S) ** 2 + gamma**2, rel=0.02)
    assert float(x.mean()) == pytest.approx(0.3 * M, abs=0.01)


def test_variance_is_preserved():
    c = VariancePreserving(low=0.2, high=15.0).coefficients(TIMES)
    torch.testing.assert_close(c.alpha**2 + c.beta**2, torch.ones_like(TIMES))


def test_times_stay_where_derivatives_are_finite():
    for path in PATHS.values():
        inside = path.inside(torch.tensor([0.0, 1.0 - 2**-24]))
        assert all(torch.isfinite(value).all() for value in path.coefficients(inside))


def test_impossible_options_are_refused():
    with pytest.raises(ConfigError):
        VariancePreserving(low=0.0)


def test_the_bridge_has_the_law_that_it_states():
    path = make("interpolant", "bridge", spread=0.3, scale=0.8)
    past = torch.tensor([0.5, -0.2], dtype=F64).expand(50_000, 1, 2)
    begin = path.begin(normal(50_000, 1, 2), past)
    data, z = 0.9 + 0.1 * normal(50_000, 1, 2, seed=1), normal(50_000, 1, 2, seed=2)
    for t in (0.0, 0.4, 1.0):
        x = path.point(begin, data, torch.full((50_000,), t, dtype=F64), z)
        variance = (1 - t) ** 2 * 0.3**2 + t**2 * 0.1**2 + (0.8 * t * (1 - t)) ** 2
        mean = (1 - t) * past[0] + t * 0.9
        torch.testing.assert_close(x.mean(0), mean, atol=0.01, rtol=0)
        torch.testing.assert_close(x.var(0), torch.full((1, 2), variance, dtype=F64), atol=0, rtol=0.04)
