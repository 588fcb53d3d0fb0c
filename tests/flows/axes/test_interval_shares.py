import pytest
import torch

from flowpolicy.core.errors import ConfigError
from flowpolicy.flows.axes.time_laws import Ends, logit_normal, uniform


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_uniform_moments():
    t = uniform(400_000, generator())
    assert t.min() >= 0 and t.max() < 1
    assert abs(float(t.mean()) - 1 / 2) < 3e-3 and abs(float(t.var()) - 1 / 12) < 1e-3


def test_logit_normal_is_normal_in_logits_and_reverses_with_the_opposite_mean():
    t = logit_normal(400_000, generator(), mean=-0.4, std=1.3)
    logits = torch.logit(t.double())
    assert abs(float(logits.mean()) + 0.4) < 1e-2 and abs(float(logits.std()) - 1.3) < 1e-2
    assert abs(float(torch.logit((1 - t).double()).mean()) - 0.4) < 1e-2


def test_published_pair_law():
    """LN(-0.4, 1) pairs with data at 0 are this law's +0.4: E[t] = .5345, E[r] = .3013, P(t - r > .5) = .0845."""
    s, t = Ends(share_diagonal=0.0, share_endpoint=0.0, share_uniform=0.0).intervals(1_000_000, generator())
    noisy, clean = 1 - s, 1 - t
    assert abs(float(noisy.mean()) - 0.5345) < 2e-3
    assert abs(float(clean.mean()) - 0.3013) < 2e-3
    assert abs(float((noisy - clean > 0.5).float().mean()) - 0.0845) < 2e-3


@pytest.mark.parametrize("batch", [1, 7, 64, 255, 256])
def test_shares_are_exact_counts_and_the_diagonal_comes_first(batch):
    law = Ends(share_diagonal=0.5, share_endpoint=0.15)
    s, t = law.intervals(batch, generator(batch))
    count = batch // 2
    assert law.diagonal(batch) == count
    assert torch.equal(s[:count], t[:count])
    assert (s[count:] < t[count:]).all()
    assert (s >= 0).all() and (t <= 1).all()
    assert int((t == 1).sum()) == law.endpoint(batch) == int(0.15 * batch)


@pytest.mark.parametrize("batch", [20, 64, 256, 1000])
def test_the_interval_of_one_step_sampling_is_trained(batch):
    s, t = Ends().intervals(batch, generator(batch))
    assert int(((s == 0) & (t == 1)).sum()) >= 0.05 * batch
    assert (s[t == 1] <= 0.5).all()


def test_draws_depend_on_the_generator_alone():
    law = Ends()
    torch.manual_seed(0)
    first = law.intervals(32, generator(5))
    torch.manual_seed(1)
    again, other = law.intervals(32, generator(5)), law.intervals(32, generator(6))
    assert torch.equal(first.s, again.s) and torch.equal(first.t, again.t)
    assert not torch.equal(first.s, other.s)


def test_impossible_shares_are_refused():
    with pytest.raises(ConfigError, match="at most 1"):
        Ends(share_diagonal=0.9, share_endpoint=0.2)
