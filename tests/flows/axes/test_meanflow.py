import pytest
import torch

from flowpolicy.flows.axes.consistency import ImprovedMeanFlow, MeanFlow, Problem
from flowpolicy.flows.axes.interpolants import Linear
from flowpolicy.flows.axes.losses import Squared
from flowpolicy.flows.straight import interpolate, velocity
from flowpolicy.nets.trunk import FlowOutput


def meanflow(network, x, s, t, speed, cond, valid, skip=0, kappa=1.0):
    """Loss of one batch of intervals, the first ``skip`` of which are points."""
    objective = MeanFlow() if kappa == 1 else ImprovedMeanFlow(kappa=kappa)
    return objective.loss(Problem(network, x, speed, s, t, cond, skip), valid, Squared(), Linear())[0]


def meanflow_target(speed, slope, s, t):
    """What the errors of a network that says nothing are measured against."""

    class Silent:
        def __call__(self, x, s, t, cond):
            raise AssertionError("the velocity of the pair is followed, not the network's own")

        def with_tangent(self, x, s, t, cond, dx, ds, skip):
            return FlowOutput(torch.zeros_like(x), {}), slope.reshape(-1, 1, 1)

    shaped = speed.reshape(-1, 1, 1)
    return -MeanFlow().errors(Problem(Silent(), shaped, shaped, s, t, shaped[:, 0], 0)).off.flatten()


Z = torch.tensor(1.3, dtype=torch.float64)
PAIRS = [(0.0, 1.0, 0.08), (0.2, 0.9, 0.32112043), (0.3, 0.5, 0.43035770)]


def column(*values):
    return torch.tensor(values, dtype=torch.float64)


def derivative(lab, x, s, t, speed):
    """d/ds of the exact mean velocity along (speed, 1), t fixed, by forward mode."""
    one = torch.ones_like(s)
    return torch.func.jvp(lambda x, s: lab.mean_velocity(x, s, t), (x, s), (speed, one))[1]


@pytest.mark.parametrize(("r", "t", "u"), PAIRS)
@pytest.mark.quick("flows")
def test_exact_mean_velocity_is_its_own_target(lab, r, t, u):
    """The target of the exact U with the marginal velocity is U: the plus sign with noise at 0."""
    s, e, x = column(1 - t), column(1 - r), Z.reshape(1)
    assert float(lab.u(Z, r, t)) == pytest.approx(u, abs=1e-8)
    w = lab.velocity(x, s)
    slope = derivative(lab, x, s, e, w)
    assert float(meanflow_target(w, slope, s, e)) == pytest.approx(-u, abs=1e-8)
    if t - r > 0.5:
        assert abs(float(w - (e - s) * slope) + u) > 1e-2


def test_velocities_of_the_laboratory(lab):
    for t, v in ((1.0, 0.6), (0.9, 0.639724), (0.5, 0.675862)):
        assert float(lab.v(Z, t)) == pytest.approx(v, abs=1e-6)


def test_diagonal_is_the_velocity(lab):
    assert float(lab.u(Z, 0.5 - 1e-7, 0.5)) == pytest.approx(float(lab.v(Z, 0.5)), abs=1e-6)
    w = column(0.4, -2.0)
    assert torch.equal(meanflow_target(w, column(1e9, 5.0), column(0.2, 0.7), column(0.2, 0.7)), w)


def test_composition(lab):
    r, s, t = 0.1, 0.45, 0.85
    at_s = Z - (t - s) * lab.u(Z, s, t)
    parts = (t - s) * lab.u(Z, s, t) + (s - r) * lab.u(at_s, r, s)
    assert float((t - r) * lab.u(Z, r, t)) == pytest.approx(0.14602279, abs=1e-8)
    assert float(parts) == pytest.approx(0.14602279, abs=1e-8)


def test_one_demonstration_has_zero_loss(callable_map):
    """Data a0 alone: U = (a0 - x) / (1 - s) for every t. Tests path, sign, derivative and target together."""
    a0, generator = 0.3, torch.Generator().manual_seed(0)
    noise = torch.randn(64, 2, 3, generator=generator, dtype=torch.float64)
    s, t = torch.rand(2, 64, generator=generator, dtype=torch.float64).sort(0).values
    data = torch.full_like(noise, a0)
    network = callable_map(lambda x, s, t: (a0 - x) / (1 - s) + 0 * t)
    flow = meanflow(
        network, interpolate(noise, data, s), s, t, velocity(noise, data), noise[:, :, 0], torch.ones(64, 2) > 0
    )
    assert float(flow) < 1e-20


@pytest.mark.parametrize(("a0", "r", "t", "eps", "u"), [(0.3, 0.2, 0.7, 1.1, 0.8), (0.3, 0.0, 1.0, -0.4, -0.7)])
def test_published_numbers_with_the_opposite_sign(a0, r, t, eps, u):
    noise, data = column(eps), column(a0)
    x = interpolate(noise, data, column(1 - t))
    assert float((a0 - x) / t) == pytest.approx(-u, abs=1e-12)
    assert float(velocity(noise, data)) == pytest.approx(-u, abs=1e-12)


def test_linear_network(callable_map):
    """U = A x + p s + q t: dU/ds = A w + p, and the gradient stops at the target."""
    generator = torch.Generator().manual_seed(3)
    A, p, q = (torch.randn(3, n, generator=generator, dtype=torch.float64) for n in (3, 1, 1))
    A.requires_grad_()
    x, w = torch.randn(2, 5, 1, 3, generator=generator, dtype=torch.float64)
    s, t = torch.rand(2, 5, generator=generator, dtype=torch.float64).sort(0).values
    network = callable_map(lambda x, s, t: x @ A.T + s * p.T + t * q.T)
    valid = torch.ones(5, 1, dtype=torch.bool)
    loss = meanflow(network, x, s, t, w, x[:, 0], valid)
    (gradient,) = torch.autograd.grad(loss, A)
    with torch.no_grad():
        shape = (5, 1, 1)
        target = w + (t - s).reshape(shape) * (w @ A.T + p.T)
        residual = (x @ A.T + s.reshape(shape) * p.T + t.reshape(shape) * q.T - target)[:, 0]
    assert float(loss) == pytest.approx(float(residual.square().mean()), rel=1e-12)
    torch.testing.assert_close(gradient, 2 * residual.T @ x[:, 0] / residual.numel())


def test_conversion_between_conventions(lab):
    s, e = 0.2, 0.8
    assert float(lab.u(Z, 1 - e, 1 - s)) == pytest.approx(0.32590767, abs=1e-8)
    assert float(lab.mean_velocity(Z, s, e)) == pytest.approx(-0.32590767, abs=1e-8)


@pytest.mark.parametrize("kappa", [1.0, 0.3, 0.0])
def test_kappa_mixes_the_conditional_with_the_own_velocity(callable_map, kappa):
    network = callable_map(lambda x, s, t: 3.0 * x + 0 * (s + t))
    x, w = torch.ones(4, 1, 1), torch.full((4, 1, 1), 7.0)
    s, t = torch.zeros(4), torch.tensor([0.0, 0.5, 0.5, 0.5])
    flow = meanflow(network, x, s, t, w, x[:, 0], torch.ones(4, 1) > 0, skip=1, kappa=kappa)
    tangent = kappa * 7 + (1 - kappa) * 3
    torch.testing.assert_close(network.tangents[0][1:], torch.full((3, 1, 1), tangent))
    target = 7 + 0.5 * 3 * tangent
    assert float(flow) == pytest.approx(((3 - 7) ** 2 + 3 * (3 - target) ** 2) / 4, rel=1e-5)


def test_skipped_rows_are_plain_velocity_matching(callable_map):
    """With every row on the diagonal the loss is the squared distance to the velocity, and no tangent is needed."""
    network = callable_map(lambda x, s, t: x * s + t)
    x, w = torch.ones(3, 1, 2), torch.zeros(3, 1, 2)
    s = torch.tensor([0.1, 0.2, 0.3])
    flow = meanflow(network, x, s, s, w, x[:, 0], torch.ones(3, 1) > 0, skip=3)
    assert float(flow) == pytest.approx(4 * 0.14 / 3, rel=1e-5)
