import math

import pytest
import torch

from flowpolicy.core.errors import ConfigError
from flowpolicy.flows.dispersive import Dispersive, dispersive_loss, neighbours, spread, squared_distances

X1 = torch.tensor([[0, 0], [3, 4]], dtype=torch.float64)
X2 = torch.tensor([[1, 0], [0, 1], [-1, 0], [0, -1]], dtype=torch.float64)
X3 = torch.tensor([[1, 2]] * 4, dtype=torch.float64)
RAW = {"normalise": False, "per_dimension": False}
KINDS = ("l2", "cosine", "hinge", "covariance")


def rows(b, f, seed=0):
    return torch.randn(b, f, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def loss(features, kind="l2", **options):
    return float(dispersive_loss(features, Dispersive(kind, temperature=0.5, **options)))


TABLE = [
    ("l2, diagonal", "l2", {**RAW, "include_diagonal": True}, (-0.693147, -1.349995, 0)),
    ("l2 per dimension, diagonal", "l2", {"normalise": False, "include_diagonal": True}, (-0.693147, -1.132438, 0)),
    ("cosine, diagonal", "cosine", {**RAW, "include_diagonal": True}, (None, 0.867562, 2)),
    ("hinge, diagonal", "hinge", {**RAW, "margin": 3.0, "include_diagonal": True}, (4.5, 2.75, 9)),
    ("hinge", "hinge", {**RAW, "margin": 3.0}, (0, 0.666667, 9)),
    # Squared off-diagonal covariances 2 * 6 ** 2, 0, 0, and hinges of deviations 2.12 and 2.83, 0.816 twice, 0 twice.
    ("covariance", "covariance", RAW, (72, 2 * (1 - (2 / 3) ** 0.5), 2 * (1 - 1e-6))),
    ("l2, as by default", "l2", {}, (None, -4.396349, 0)),
]


@pytest.mark.parametrize(("name", "kind", "options", "expected"), TABLE, ids=[row[0] for row in TABLE])
def test_table_of_values(name, kind, options, expected):
    for features, value in zip((X1, X2, X3), expected, strict=True):
        if value is not None:
            assert loss(features, kind, **options) == pytest.approx(value, abs=1e-6)


def test_equilateral_triangle_is_the_optimum():
    angle = torch.arange(3, dtype=torch.float64) * 2 * math.pi / 3
    triangle = torch.stack([angle.cos(), angle.sin()], dim=1)
    assert loss(triangle) == pytest.approx(-6, abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_invariances(kind):
    features = rows(12, 5)
    rotation = torch.linalg.qr(rows(5, 5, seed=1)).Q
    order = torch.randperm(12, generator=torch.Generator().manual_seed(2))
    value = loss(features, kind)
    assert loss(features[order], kind) == pytest.approx(value, rel=1e-9)
    assert loss(7 * features, kind) == pytest.approx(value, rel=1e-9)
    if kind != "covariance":
        assert loss(features @ rotation, kind) == pytest.approx(value, rel=1e-9)
    if kind != "cosine":
        assert loss(features + 3, kind, **RAW) == pytest.approx(loss(features, kind, **RAW), rel=1e-9)


def test_without_normalisation_norms_are_inflated():
    features = rows(12, 5)
    assert loss(7 * features, **RAW) < loss(features, **RAW) - 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("features", [X2[:1], X3, torch.zeros(4, 3, dtype=torch.float64)], ids=["one", "same", "zero"])
def test_finite_at_collapse(kind, features):
    features = features.clone().requires_grad_()
    value = dispersive_loss(features, Dispersive(kind))
    (gradient,) = torch.autograd.grad(value, features)
    assert gradient.isfinite().all()
    if len(features) == 1:
        assert float(value.detach()) == 0 and (gradient == 0).all()


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_nearly_equal_rows_disperse(kind, normalise):
    """Equal rows are a maximum: every small difference lowers the loss, and descent makes it grow."""
    equal = torch.ones(8, 5, dtype=torch.float64) + rows(1, 5, seed=3)
    features = (equal + 1e-3 * rows(8, 5)).requires_grad_()
    config = Dispersive(kind, normalise=normalise)
    assert float(dispersive_loss(features.detach(), config)) < float(dispersive_loss(equal, config))
    distances = [float(squared_distances(features.detach()).mean())]
    for _ in range(60):
        (gradient,) = torch.autograd.grad(dispersive_loss(features, config), features)
        features = (features - 0.2 * gradient).detach().requires_grad_()
        distances.append(float(squared_distances(features.detach()).mean()))
    assert distances[-1] > 2 * distances[0]


def test_gradient_is_alive_at_ordinary_feature_scale():
    """Where the released code's gradient is exactly zero: 64 x 128 standard normal features."""
    features = rows(64, 128).requires_grad_()
    options = Dispersive(temperature=0.5, normalise=False, include_diagonal=True)
    (gradient,) = torch.autograd.grad(dispersive_loss(features, options), features)
    assert 2e-2 < float(gradient.norm()) < 1e-1


def test_the_nearest_pair_is_pushed_hardest():
    features = torch.tensor([[0.0, 1], [0.1, 1], [3, -1]], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(dispersive_loss(features, Dispersive(**RAW)), features)
    assert gradient[0].norm() > 10 * gradient[2].norm()


def test_points_on_the_circle_become_a_triangle():
    angle = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64, requires_grad=True)
    for _ in range(400):
        points = torch.stack([angle.cos(), angle.sin()], dim=1)
        (gradient,) = torch.autograd.grad(dispersive_loss(points, Dispersive()), angle)
        angle = (angle - 0.1 * gradient).detach().requires_grad_()
    gaps = torch.sort(angle.detach().remainder(2 * math.pi)).values.diff()
    torch.testing.assert_close(gaps, torch.full((2,), 2 * math.pi / 3, dtype=torch.float64), atol=1e-4, rtol=0)


def test_nearly_collapsed_float32_rows_keep_their_distances():
    features = torch.ones(2, 64) * 5
    features[0, 0] += 1e-3
    assert float(squared_distances(features)[0, 1]) == pytest.approx(1e-6, rel=1e-2)


def test_spread_tells_collapse_from_a_sphere():
    sphere = spread(X2)  # unit vectors along both axes: rank 2, squared distances 2, 2 and 4 over length 1
    assert float(sphere["feature_rank"]) == pytest.approx(2)
    assert float(sphere["feature_distance"]) == pytest.approx(8 / 3)
    line = spread(torch.outer(rows(30, 1)[:, 0], rows(1, 6)[0]) + 3.0)
    assert float(line["feature_rank"]) == pytest.approx(1)
    assert float(spread(X3)["feature_distance"]) == pytest.approx(0, abs=1e-12)
    assert all(torch.isfinite(value) for value in spread(X3[:1]).values())


def test_neighbours_are_close_rows_of_one_episode():
    row, first = torch.tensor([3, 5, 8, 9]), torch.tensor([0, 0, 8, 8])
    expected = torch.eye(4, dtype=torch.bool)
    expected[0, 1] = expected[1, 0] = expected[2, 3] = expected[3, 2] = True
    assert torch.equal(neighbours(row, first, 2), expected)
    expected[0, 1] = expected[1, 0] = False
    assert torch.equal(neighbours(row, first, 1), expected)
    assert torch.equal(neighbours(row, row, 10**6), torch.eye(4, dtype=torch.bool))


@pytest.mark.parametrize("kind", ["l2", "cosine", "hinge"])
def test_neighbours_take_no_part_in_the_mean_over_pairs(kind):
    features, config = rows(6, 3), Dispersive(kind, margin=9.0)
    alone = torch.eye(6, dtype=torch.bool)
    torch.testing.assert_close(dispersive_loss(features, config, alone), dispersive_loss(features, config))
    near = alone.clone()
    near[:3, :3] = near[3:, 3:] = True
    unit = features / features.square().mean(1, keepdim=True).sqrt()
    values = []
    for i in range(3):
        for j in range(3, 6):
            distance = (unit[i] - unit[j]).square().mean()
            cosine = unit[i] @ unit[j] / 3
            hinge = (9 - distance).clamp(min=0).square()
            values.append({"l2": (-distance / 0.5).exp(), "cosine": (cosine / 0.5).exp(), "hinge": hinge}[kind])
    mean = torch.stack(values).mean()
    expected = mean if kind == "hinge" else mean.log()
    torch.testing.assert_close(dispersive_loss(features, config, near), expected)


@pytest.mark.parametrize("kind", ["l2", "cosine", "hinge"])
def test_a_batch_of_neighbours_alone_repels_nobody(kind):
    features = rows(4, 3).requires_grad_()
    value = dispersive_loss(features, Dispersive(kind), torch.ones(4, 4, dtype=torch.bool))
    (gradient,) = torch.autograd.grad(value, features)
    assert value == 0 and not gradient.any()


def test_covariances_know_no_neighbours():
    with pytest.raises(ConfigError, match="a regulariser of pairs"):
        Dispersive("covariance", exclude_steps=8)
