"""Moments of the sources, and equality with the published constructions."""

import math

import pytest
import torch
from scipy import stats

from flowpolicy.core.errors import ConfigError
from flowpolicy.flows.axes.registry import make
from flowpolicy.flows.axes.sources import Mixed, Normal, StudentT, divergence, mix


def random(seed=0):
    return torch.Generator().manual_seed(seed)


def test_normal_is_the_noise_of_the_other_agents_bit_for_bit():
    assert torch.equal(Normal().sample((5, 4, 2), random()), torch.randn(5, 4, 2, generator=random()))


def test_student_t_moments():
    x = StudentT(dof=10.0, scale=0.6).sample((40_000, 4, 2), random()).double()
    assert float(x.std()) == pytest.approx(0.6 * math.sqrt(10 / 8), rel=0.01)
    kurtosis = float((x**4).mean() / (x**2).mean() ** 2) - 3
    assert kurtosis == pytest.approx(6 / (10 - 4), abs=0.3)
    # One radius per row: squares of two dimensions are correlated, signs are not.
    first, second = x[:, 0, 0], x[:, 3, 1]
    assert float(torch.corrcoef(torch.stack([first**2, second**2]))[0, 1]) > 0.1
    assert abs(float(torch.corrcoef(torch.stack([first, second]))[0, 1])) < 0.02


def test_student_t_is_the_kernel_of_pfgm():
    """Radius r sqrt(b / (1 - b)), b ~ Beta(N / 2, D / 2), r = scale sqrt(D), N dimensions."""
    n, d = 8, 12
    radius = StudentT(dof=float(d), scale=0.5).sample((4000, n), random()).norm(dim=1).numpy()
    assert stats.kstest((radius / 0.5) ** 2 / d, stats.betaprime(n / 2, d / 2).cdf).pvalue > 0.01


def test_many_degrees_of_freedom_are_gaussian():
    x = StudentT(dof=1e6).sample((5000, 1), random()).flatten().numpy()
    assert stats.kstest(x, "norm").pvalue > 0.01
    assert torch.equal(StudentT(dof=math.inf).sample((3, 2), random()), Normal().sample((3, 2), random()))


@pytest.mark.parametrize("dof", [2.0, 1.0, math.nan])
def test_an_infinite_variance_is_refused(dof):
    with pytest.raises(ConfigError, match="dof"):
        StudentT(dof=dof)


def test_mixing_interpolates_mean_and_variance():
    noise = torch.randn(100_000, 1, generator=random(), dtype=torch.float64)
    share = torch.full((100_000,), 0.25, dtype=torch.float64)
    mean, log_variance = torch.full_like(noise, 2.0), torch.full_like(noise, math.log(0.1))
    x = mix(noise, share, mean, log_variance)
    assert float(x.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(x.var()) == pytest.approx(0.25 * 0.1 + 0.75, rel=0.02)
    assert torch.equal(mix(noise, 0 * share, mean, log_variance), noise)


def test_divergence_in_closed_form():
    mean, variance = torch.tensor([[0.3, -1.0]]), torch.tensor([[0.5, 2.0]])
    exact = sum(0.5 * (m * m + v - 1 - math.log(v)) for m, v in ((0.3, 0.5), (-1.0, 2.0)))
    assert float(divergence(mean, variance.log())) == pytest.approx(exact, rel=1e-5)
    assert float(divergence(0 * mean, 0 * mean)) == 0


def test_shares_while_acting():
    noise = torch.zeros(2000, 1)
    assert (Mixed().acting_shares(noise, None) == 0).all()
    assert (Mixed(acting="one", shown=True).acting_shares(noise, None) == 1).all()
    training = Mixed().shares(2000, random())
    assert stats.kstest(training.numpy(), "uniform").pvalue > 0.01
    assert torch.equal(Mixed(acting="uniform").acting_shares(noise, random()), training)
    assert Normal().acting_shares(noise, random()) is None


def test_the_start_is_late_where_nothing_moves():
    source = make("source", "warm-start", most=0.6, motion=0.5)
    history = torch.zeros(4, 2, 3)
    history[1:, 1] = torch.tensor([0.1, 0.5, 9.0]).unsqueeze(1)
    torch.testing.assert_close(source.begin(history), torch.tensor([0.6, 0.48, 0.0, 0.0]))
    assert make("source", "warm-start", most=0.2).begin(history).tolist() == pytest.approx([0.2] * 4)
    with pytest.raises(ConfigError, match="history 2"):
        source.begin(history[:, :1])
    for options in ({"most": 1.0}, {"motion": -1.0}):
        with pytest.raises(ConfigError, match=f"--flow.source.{next(iter(options))}"):
            make("source", "warm-start", **options)
    with pytest.raises(ConfigError, match=r"--flow.interpolant.spread"):
        make("interpolant", "bridge", spread=-0.1)
