"""Draws follow the stated densities; intervals have the stated shares."""

import math

import pytest
import torch
from scipy import integrate, stats

import flowpolicy.flows.axes  # noqa: F401, registers the values
from flowpolicy.core.errors import ConfigError
from flowpolicy.flows.axes.registry import VALUES, make
from flowpolicy.flows.axes.time_laws import Beta, Dyadic, Grid, LogitNormal, Shifted, Split, UShape

LAWS = {name: cls() for name, cls in VALUES["time"].items()}
LAWS |= {"shifted-2.5": Shifted(mean=0.3, std=0.8, shift=2.5), "u-1": UShape(1.0), "beta-3": Beta(3.0)}
CONTINUOUS = [name for name in LAWS if name not in ("grid", "dyadic")]


def random(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_draws_follow_the_density(name):
    law = LAWS[name]
    grid = torch.linspace(1e-6, 1 - 1e-6, 20_001, dtype=torch.float64)
    cdf = integrate.cumulative_simpson(law.log_pdf(grid).exp().numpy(), x=grid.numpy(), initial=0)
    assert cdf[-1] == pytest.approx(1, abs=2e-3)
    draws = law.draw(20_000, random()).double().numpy()
    assert draws.min() >= 0 and draws.max() <= 1
    statistic = stats.kstest(draws, lambda t: torch.from_numpy(_interpolate(t, grid.numpy(), cdf)).numpy()).statistic
    assert statistic < 1.7 / math.sqrt(20_000)


def _interpolate(t, x, y):
    import numpy as np

    return np.interp(t, x, y)


@pytest.mark.parametrize("name", LAWS)
def test_intervals(name):
    law = LAWS[name]
    s, t = law.pairs(64, law.diagonal(64, 0.25), random())
    assert (s >= 0).all() and (s <= t).all() and (t <= 1).all()
    diagonal = law.diagonal(64, 0.25)
    assert torch.equal(s[:diagonal], t[:diagonal])
    assert (s[diagonal:] < t[diagonal:]).any()
    again = law.pairs(64, law.diagonal(64, 0.25), random())
    assert torch.equal(s, again.s) and torch.equal(t, again.t)


def test_u_shape_in_numbers():
    """P(t < 0.1) is half of (e^.4 - 1) / (e^4 - 1) plus half of 1 - (e^3.6 - 1) / (e^4 - 1)."""
    exact = 0.5 * (math.expm1(0.4) + math.expm1(4) - math.expm1(3.6)) / math.expm1(4)
    assert exact == pytest.approx(0.1725, abs=1e-4)
    t = UShape().draw(200_000, random())
    assert float((t < 0.1).float().mean()) == pytest.approx(exact, abs=3e-3)
    assert float((t > 0.9).float().mean()) == pytest.approx(exact, abs=3e-3)
    flat = UShape(1e-4).log_pdf(torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64))
    torch.testing.assert_close(flat, torch.zeros(3, dtype=torch.float64), atol=1e-3, rtol=0)


def test_the_shift_is_the_published_one():
    """t = 1 - s X / (1 + (s - 1) X), X logit-normal, drawn from the same z."""
    t = Shifted(mean=-0.2, std=1.3, shift=2.0).draw(5, random(3)).double()
    z = torch.randn(5, generator=random(3)).double()
    x = torch.sigmoid(-0.2 - 1.3 * z)  # the mirror of z, which is as good
    torch.testing.assert_close(t, 1 - 2 * x / (1 + x), atol=1e-6, rtol=0)
    assert torch.equal(Shifted(shift=1.0).draw(9, random()), LogitNormal().draw(9, random()))


def test_the_shift_for_a_size():
    assert Shifted(reference=56.0).for_size(14).shift == pytest.approx(0.5)
    assert Shifted(reference=56.0).for_size(112).shift == pytest.approx(math.sqrt(2))
    assert Shifted(reference=1.0).for_size(1000).shift == 3.0
    assert Shifted(shift=2.0).for_size(14).shift == 2.0


def test_no_law_is_another_one_by_default():
    """'shifted' once was: its shift was 1."""
    single = ("uniform", "logit-normal", "shifted", "u-shape", "beta", "grid")
    draws = {name: tuple(make("time", name).draw(50, random()).tolist()) for name in single}
    assert len(set(draws.values())) == len(draws)


def test_grid_draws_left_ends():
    t = Grid(4).draw(1000, random())
    assert sorted(set(t.tolist())) == [0.0, 0.25, 0.5, 0.75]
    assert (Grid(1).draw(10, random()) == 0).all()


def test_dyadic_intervals():
    s, t = Dyadic(8).pairs(2000, 100, random())
    lengths = (t - s)[100:]
    assert set(lengths.tolist()) == {1.0, 0.5, 0.25, 0.125}
    assert ((s[100:] / lengths) % 1 == 0).all()


def test_shares_are_exact_counts():
    s, t = Split(0.5, 0.25).pairs(80, 40, random())
    assert int((s == t).sum()) == 40 and int((t == 1).sum()) == 20


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: UShape(0.0),
        lambda: LogitNormal(std=0.0),
        lambda: Shifted(shift=0.0),
        lambda: Beta(0.0),
        lambda: Grid(0),
        lambda: Dyadic(12),
        lambda: Split(0.9, 0.2),
    ],
)
def test_impossible_laws_are_refused(wrong):
    with pytest.raises(ConfigError):
        wrong()
