"""Score, metrics and directions of the Fisher Decorator on Gaussian flows."""

import math

import pytest
import torch

from flowpolicy.core.errors import ConfigError
from flowpolicy.flows import fisher_metric as fisher
from flowpolicy.flows.fisher_metric import Metric

from .gaussian import F64, GaussianFlow, tensor


def metric_of(scores, metric):
    """The matrix behind the quadratic form of one state with the scores (k, d): its Hessian."""
    size = scores.shape[1]
    zero = torch.zeros(1, size, dtype=F64)
    cost = lambda shift: size * fisher.charge(metric, shift, scores[None]).divergence.sum()  # noqa: E731
    unit = 2.0 if metric.normalise == "none" else 1.0
    return 0.5 * unit * torch.func.hessian(cost)(zero).reshape(size, size)


def exact(**options):
    return Metric(**{"shrinkage": 0.0, "damping": 0.0, **options})


def scores_of(flow, mode, t, count=200_000):
    x, times = flow.draw(count, t)
    v = flow.field(x, times)
    return fisher.action_score(x, v, times) if mode == "score" else fisher.proxy_score(v, times)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("t", [0.3, 0.8, 0.95])
def test_score_identity_in_both_conventions(seed, t):
    flow = GaussianFlow.random(3, seed)
    x, times = flow.draw(50, t, seed)
    true = -(x - t * flow.mean) @ torch.linalg.inv(flow.at(t))
    v = flow.field(x, times)
    torch.testing.assert_close(fisher.action_score(x, v, times), t * true, atol=1e-10, rtol=1e-10)
    dn_time, dn_velocity = 1 - t, -v
    dn = -(x + (1 - dn_time) * dn_velocity) / dn_time
    torch.testing.assert_close(dn, true, atol=1e-10, rtol=1e-10)


def test_the_score_of_a_flow_map_is_read_from_its_diagonal():
    """The mean velocity from s to t is (X_{s,t}(x) - x) / (t - s); at s = t it is the velocity."""
    flow = GaussianFlow.random(3, 7)

    def mean_field(x, s, t):
        if torch.equal(s, t):
            return flow.field(x, s)
        root = {float(u[0]): torch.linalg.cholesky(flow.at(float(u[0]))) for u in (s, t)}
        first, last = float(s[0]), float(t[0])
        carried = last * flow.mean + (x - first * flow.mean) @ torch.linalg.inv(root[first]).T @ root[last].T
        return (carried - x) / (last - first)

    x, times = flow.draw(20, 0.9)
    v = fisher.diagonal(mean_field)(x, times)
    torch.testing.assert_close(fisher.action_score(x, v, times), fisher.action_score(x, flow.field(x, times), times))


@pytest.mark.parametrize(
    ("std", "moment", "true", "scaled"),
    [(0.1, 0.580470, 42.953, 37.15), (0.5, 0.042453, 4.830, 2.72), (0.377964, 0.0, 8.0, 0.0)],
)
def test_the_proxy_vanishes_where_the_metric_does_not(std, moment, true, scaled):
    """1-D, t = .875: second moment of the velocity, the true metric, and what the release takes for it."""
    t, flow = 0.875, GaussianFlow(tensor(0.0), tensor([std**2]))
    closed = float((t * std**2 - (1 - t)) ** 2 / flow.at(t))
    assert closed == pytest.approx(moment, abs=1e-6)
    assert float(1 / flow.at(t)) == pytest.approx(true, abs=1e-3)
    proxy = float(scores_of(flow, "proxy", t).square().mean()) / t**2
    assert proxy == pytest.approx(scaled, rel=1e-2, abs=1e-2)
    score = float(scores_of(flow, "score", t).square().mean()) / t**2
    assert score == pytest.approx(true, rel=1e-2)


@pytest.mark.parametrize("seed", [0, 1])
def test_moments_of_proxy_and_score(seed):
    """E[score score^T] = S_t^-1; in action units the metric of the actions blurred by (1 - t) / t."""
    t, flow = 0.85, GaussianFlow.random(3, seed)
    score, proxy = (scores_of(flow, mode, t, 1_000_000) for mode in ("score", "proxy"))
    blurred = torch.linalg.inv(flow.covariance + ((1 - t) / t) ** 2 * flow.eye)
    torch.testing.assert_close(t**2 * torch.linalg.inv(flow.at(t)), blurred)
    fisher_matrix = metric_of(score, exact())
    torch.testing.assert_close(fisher_matrix, blurred, atol=1e-2 * float(blurred.abs().max()), rtol=0)
    slope = t * flow.covariance - (1 - t) * flow.eye
    moment = torch.outer(flow.mean, flow.mean) + slope @ torch.linalg.inv(flow.at(t)) @ slope
    measured = metric_of(proxy, exact(mode="proxy")) * (1 - t) ** 2 / t**2
    torch.testing.assert_close(measured, moment, atol=1e-2 * float(moment.abs().max()), rtol=0)


def test_action_units():
    flow = GaussianFlow(tensor(0.0, 0.0), torch.diag(tensor(0.01, 0.25)))
    metric = metric_of(scores_of(flow, "score", 0.8, 1_000_000), exact())
    torch.testing.assert_close(metric.diagonal(), tensor(13.7931, 3.2), rtol=1e-2, atol=0)


@pytest.mark.parametrize(
    ("t", "proxy", "true"),
    [(0.875, (1.8637, 0.1363), (1.7978, 0.2022)), (0.95, (0.9602, 1.0398), (1.9038, 0.0962)), (0.8, (2.0, 0.0), None)],
)
def test_trace_normalised_diagonals(t, proxy, true):
    flow = GaussianFlow(tensor(0.0, 0.0), torch.diag(tensor(0.01, 0.25)))
    for mode, values in (("proxy", proxy), ("score", true)):
        if values:
            metric = exact(mode=mode, normalise="state", samples=2)
            if mode == "score":  # without the shrinkage that two samples would call for
                plain = metric_of(scores_of(flow, mode, t), exact())
                found = 2 * plain.diagonal() / plain.trace()
            else:
                found = metric_of(scores_of(flow, mode, t), metric).diagonal()
            torch.testing.assert_close(found, tensor(*values), atol=1e-2, rtol=0)


def test_near_the_data_the_proxy_tends_to_the_covariance():
    """The inverse of what is meant: it charges wide directions most, and adds the outer product of the mean."""
    flow = GaussianFlow(tensor(0.3, -0.2), torch.diag(tensor(0.01, 0.25)))
    t = 0.9999
    moment = metric_of(scores_of(flow, "proxy", t), exact(mode="proxy")) * (1 - t) ** 2 / t**2
    torch.testing.assert_close(moment, flow.covariance + torch.outer(flow.mean, flow.mean), atol=5e-3, rtol=0)
    metric = metric_of(scores_of(flow, "score", t), exact())
    torch.testing.assert_close(metric.diagonal(), tensor(100.0, 4.0), rtol=1e-2, atol=0)


def test_trace_normalisation():
    generator = torch.Generator().manual_seed(2)
    shift, scores = (
        torch.randn(7, 4, generator=generator, dtype=F64),
        torch.randn(7, 9, 4, generator=generator, dtype=F64),
    )
    state = exact(mode="proxy", normalise="state", samples=9)
    cost = fisher.charge(state, shift, scores).divergence
    torch.testing.assert_close(fisher.charge(state, shift, 31.0 * scores).divergence, cost)
    isotropic = (4**0.5 * torch.eye(4, dtype=F64)).expand(7, 4, 4)
    torch.testing.assert_close(fisher.charge(state, shift, isotropic).divergence, shift.square().mean(1))
    torch.testing.assert_close(fisher.charge(exact(mode="iso"), shift).divergence, shift.square().mean(1))
    matrix = metric_of(scores[0], state)
    assert float(matrix.trace()) == pytest.approx(4.0)
    torch.testing.assert_close(matrix, matrix.T)
    assert torch.linalg.eigvalsh(matrix).min() > -1e-12


def test_global_normalisation_keeps_how_tight_each_state_is():
    """Two states, the second ten times tighter: per state they are charged alike, globally 100 times apart."""
    scores = (
        torch.randn(1, 16, 3, generator=torch.Generator().manual_seed(0), dtype=F64) * tensor(1.0, 10.0)[:, None, None]
    )
    shift = torch.ones(2, 3, dtype=F64)
    each = fisher.charge(exact(mode="proxy", normalise="state", samples=16), shift, scores).divergence
    torch.testing.assert_close(each[0], each[1])
    metric = exact(normalise="global")
    first = fisher.charge(metric, shift, scores, torch.ones((), dtype=F64))
    both = fisher.charge(metric, shift, scores, first.scale).divergence
    assert float(both[1] / both[0]) == pytest.approx(100.0)
    torch.testing.assert_close(first.scale, scores.square().mean())


def test_dual_ascent_reaches_the_trust_region_solution():
    metric, gain, budget = torch.diag(tensor(1.5, 0.5)), tensor(1.0, 1.0), 0.01
    log_weight = tensor(math.log(10.0))[0].requires_grad_()
    optimizer = torch.optim.Adam([log_weight], lr=3e-3)
    for _ in range(2000):
        shift = 2 / (2 * log_weight.detach().exp()) * torch.linalg.solve(metric, gain)
        divergence = shift @ metric @ shift / 2
        optimizer.zero_grad()
        fisher.dual_loss(log_weight, divergence, budget).backward()
        optimizer.step()
    assert float(log_weight.detach().exp()) == pytest.approx(11.547005, rel=1e-4)
    torch.testing.assert_close(shift, tensor(0.0577350, 0.1732051), atol=1e-5, rtol=0)
    assert float(divergence) == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize(("divergence", "rises"), [(0.02, True), (0.005, False)])
def test_the_weight_rises_exactly_above_the_budget(divergence, rises):
    log_weight = torch.zeros((), requires_grad=True)
    spent = torch.tensor(divergence, requires_grad=True)
    fisher.dual_loss(log_weight, spent, 0.01).backward()
    assert (log_weight.grad < 0) == rises
    assert spent.grad is None


@pytest.mark.parametrize(("samples", "free"), [(8, 0.67), (4, 0.83)])
def test_few_samples_leave_most_directions_free(samples, free):
    shares, shrunk = [], []
    for seed in range(20):
        scores = torch.randn(samples, 24, generator=torch.Generator().manual_seed(seed), dtype=F64)
        released = metric_of(scores, Metric(mode="proxy", normalise="state", samples=samples, damping=1e-3))
        shares.append((torch.linalg.eigvalsh(released) < 0.01).double().mean())
        ours = metric_of(scores, Metric(normalise="state", samples=samples, damping=0.0))
        shrunk.append(float(torch.linalg.eigvalsh(ours).min()))
    assert float(torch.stack(shares).mean()) == pytest.approx(free, abs=0.01)
    assert min(shrunk) > 0.7


def test_one_sample_per_state_is_unbiased():
    """The charge is linear in the metric: over updates, single samples average to the metric of many."""
    flow = GaussianFlow.random(3, 3)
    scores = scores_of(flow, "score", 0.9)
    shift = torch.randn(1, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    single = fisher.charge(exact(), shift.expand(len(scores), -1), scores[:, None]).divergence
    many = fisher.charge(exact(), shift, scores[None]).divergence
    assert float(single.mean()) == pytest.approx(float(many), rel=1e-9)


def cosine(matrix, covariance):
    """Between the cheapest way to gain along (1, 1) and Sigma grad Q."""
    gain = torch.ones(2, dtype=F64)
    return float(torch.cosine_similarity(torch.linalg.solve(matrix, gain), covariance @ gain, dim=0))


@pytest.mark.parametrize(
    ("stds", "t", "score", "proxy"),
    [((0.05, 0.5), 0.95, 1.0, 0.954), ((0.05, 0.5), 0.9, 0.999, 0.997), ((0.1, 1.0), 0.95, 1.0, 0.167)],
)
def test_decorator_direction_on_the_anisotropic_bandit(stds, t, score, proxy):
    """Behaviour N(0, diag(std^2)), Q linear at 45 degrees. Documented: the released proxy is close for narrow
    behaviour and inverted for wide; the isotropic metric is at .71-.77 throughout."""
    covariance = torch.diag(tensor(*stds).square())
    flow = GaussianFlow(tensor(0.0, 0.0), covariance)
    found = cosine(metric_of(scores_of(flow, "score", t), Metric(time=t)), covariance)
    assert found > 0.98 and found == pytest.approx(score, abs=3e-3)
    assert cosine(metric_of(scores_of(flow, "proxy", t), exact(mode="proxy")), covariance) == pytest.approx(
        proxy, abs=6e-3
    )
    assert cosine(torch.eye(2, dtype=F64), covariance) < 0.8


def test_overflow_charges_only_what_lies_outside():
    action = tensor([0.5, -1.0], [1.5, -1.2])
    assert float(fisher.overflow(action)) == pytest.approx((0.25 + 0.04) / 4)
    assert float(fisher.overflow(action.clamp(-1, 1))) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"time": 1.0}, "metric.time"),
        ({"shrinkage": 2.0}, "metric.shrinkage"),
        ({"mode": "curv", "normalise": "global"}, "no trace"),
        ({"normalise": "state"}, "only a direction"),
    ],
)
def test_impossible_metrics_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        Metric(**options)
