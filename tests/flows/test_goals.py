"""Goals in words, and the least move to where they are met."""

import numpy as np
import pytest
import torch
from scipy import optimize

from flowpolicy.core.errors import ConfigError
from flowpolicy.flows.goals import Goal, project, read_goal

from .gaussian import F64, GaussianFlow


@pytest.mark.parametrize(
    ("text", "rows", "value"),
    [
        ("a[-1] = 0", [{9: 1}, {10: 1}, {11: 1}], [0, 0, 0]),
        ("a[0, 1] = -0.5", [{1: 1}], [-0.5]),
        ("sum a[:, 2] = 0.4; 2 a[1, 0] - .5*a[0,0] = 1e-1", [{2: 1, 5: 1, 8: 1, 11: 1}, {3: 2, 0: -0.5}], [0.4, 0.1]),
        ("mean a[1:3, 0] = 1", [{3: 0.5, 6: 0.5}], [1]),
        ("-a[0] + a[1] = 1, 2, 3", [{0: -1, 3: 1}, {1: -1, 4: 1}, {2: -1, 5: 1}], [1, 2, 3]),
    ],
)
def test_words_are_rows(text, rows, value):
    goal = read_goal(text, 4, 3)
    expected = torch.zeros(len(rows), 12, dtype=F64)
    for row, entries in enumerate(rows):
        for column, factor in entries.items():
            expected[row, column] = factor
    assert torch.equal(goal.matrix, expected)
    assert goal.value.tolist() == value


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("", "empty"),
        ("b = 0", "for example"),
        ("a[4] = 0", "outside"),
        ("a[0, 3] = 0", "outside"),
        ("a[0] a[1] = 0", "for example"),
        ("a[0] = 1, 2", "one per equation"),
        ("a[0]", "one number"),
        ("a[0:2] + a[0, 1:] = 0", "as many"),
        ("a[0, 0] = 1; 2 a[0, 0] = 3", "contradicts"),
    ],
)
def test_other_words_are_refused(text, hint):
    with pytest.raises(ConfigError, match=hint):
        read_goal(text, 4, 3)


def test_a_goal_moves_into_scaled_units():
    scale, offset = torch.tensor([2.0, 0.5]), torch.tensor([-1.0, 3.0])
    goal = read_goal("sum a[:, 0] = 0.3; a[0, 1] = 2", 3, 2)
    chunk = torch.randn(5, 3, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    scaled = goal.rescaled(scale, offset)
    error = chunk.flatten(1) @ goal.matrix.mT - goal.value
    other = ((chunk - offset) * scale).flatten(1) @ scaled.matrix.mT - scaled.value
    torch.testing.assert_close(other, error, atol=1e-12, rtol=0)


def test_the_gap_is_the_gradient_of_half_the_squared_distance():
    goal = read_goal("3 a[0, 0] - a[1, 1] = 2; 7 a[2, 0] = 1", 3, 2)
    chunk = torch.randn(4, 3, 2, dtype=F64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    # Distance to two orthogonal planes, one after the other.
    a = chunk.flatten(1)
    cost = 0.5 * ((3 * a[:, 0] - a[:, 3] - 2) ** 2 / 10 + (a[:, 4] - 1 / 7) ** 2)
    (gradient,) = torch.autograd.grad(cost.sum(), chunk)
    torch.testing.assert_close(goal.gap(chunk), gradient, atol=1e-12, rtol=0)
    torch.testing.assert_close(goal.cost(chunk), cost, atol=1e-12, rtol=0)


def test_projection_conditions_a_gaussian():
    flow = GaussianFlow.random(6, 0)
    goal = read_goal("sum a[:, 0] = 0.4; a[0, 1] - a[2, 1] = -0.1", 3, 2)
    a, s = goal.matrix, flow.covariance
    gain = s @ a.T @ torch.linalg.inv(a @ s @ a.T)
    mean, covariance = flow.mean + gain @ (goal.value - a @ flow.mean), s - gain @ a @ s
    samples, _ = flow.draw(10_000, 1.0)
    moved = project(samples.view(-1, 3, 2), goal, s.unsqueeze(0), limit=float("inf")).flatten(1)
    assert float((moved @ a.T - goal.value).abs().max()) < 1e-10
    torch.testing.assert_close(moved.mean(0), mean, atol=0.05, rtol=0)
    torch.testing.assert_close(moved.T.cov(), covariance, atol=0.08, rtol=0)
    again = project(moved.view(-1, 3, 2), goal, s.unsqueeze(0), limit=float("inf")).flatten(1)
    torch.testing.assert_close(again, moved, atol=1e-10, rtol=0)


def test_the_identity_moves_the_shortest_way_and_limits_hold():
    goal = Goal(torch.tensor([[1.0, 1.0, 1.0, 0.0]], dtype=F64), torch.tensor([2.4], dtype=F64))
    chunk = torch.tensor([[0.9, 0.0, 0.3, 0.5], [0.0, 0.0, 0.0, 0.0]], dtype=F64).view(2, 2, 2)
    moved = project(chunk, goal).flatten(1)
    # The first would go to 1.3, 0.4, 0.7: it stays at its limit, the others share what is left.
    expected = torch.tensor([[1.0, 0.55, 0.85, 0.5], [0.8, 0.8, 0.8, 0.0]], dtype=F64)
    torch.testing.assert_close(moved, expected, atol=1e-10, rtol=0)
    with pytest.raises(ConfigError, match="no chunk within the limits"):
        project(chunk, goal._replace(value=torch.tensor([3.1], dtype=F64)))


def programme(seed):
    """A chunk, equations, and a metric: half of the goals lie within the limits, a quarter at a corner of them."""
    generator = torch.Generator().manual_seed(seed)
    size, equations = 2 * int(torch.randint(2, 8, (1,), generator=generator)), 1 + seed % 3
    matrix = torch.randn(equations, size, generator=generator, dtype=F64)
    chunk, met = 2 * torch.rand(2, size, generator=generator, dtype=F64) - 1
    met = (met, met, 2.5 * met, met.sign())[seed % 4]
    root = torch.randn(size, 3, generator=generator, dtype=F64)
    metric = 0.3 * root @ root.T + 0.1 * torch.eye(size, dtype=F64) if seed % 2 else torch.eye(size, dtype=F64)
    return chunk, matrix, matrix @ met, metric


def test_projection_within_limits_is_the_quadratic_programme():
    """Every goal that a linear programme reaches is met, no other is, and none costs more than scipy's SLSQP."""
    refused = 0
    for seed in range(200):
        chunk, matrix, value, metric = programme(seed)
        shape = (1, len(chunk) // 2, 2)
        bounds, a, b = [(-1, 1)] * len(chunk), matrix.numpy(), value.numpy()
        goal = Goal(matrix, value)
        if optimize.linprog(np.zeros(len(chunk)), A_eq=a, b_eq=b, bounds=bounds).status:
            refused += 1
            with pytest.raises(ConfigError, match="no chunk within the limits"):
                project(chunk.view(shape), goal, metric.unsqueeze(0))
            continue
        moved = project(chunk.view(shape), goal, metric.unsqueeze(0)).flatten()
        assert float(moved.abs().max()) <= 1 and float((matrix @ moved - value).abs().max()) < 1e-7
        start, inverse = chunk.numpy(), torch.linalg.inv(metric).numpy()

        def cost(x, start=start, inverse=inverse):
            return (x - start) @ inverse @ (x - start)

        best = optimize.minimize(
            cost,
            moved.numpy(),
            jac=lambda x, start=start, inverse=inverse: 2 * inverse @ (x - start),
            bounds=bounds,
            constraints={"type": "eq", "fun": lambda x, a=a, b=b: a @ x - b, "jac": lambda x, a=a: a},
            method="SLSQP",
            options={"ftol": 1e-12},
        )
        if best.success and abs(a @ best.x - b).max() < 1e-9:
            assert cost(moved.numpy()) <= best.fun * (1 + 1e-6) + 1e-9
    assert 10 < refused < 60


def test_a_goal_on_the_limits_is_met_despite_rounding():
    chunk = torch.zeros(1, 2, 2, dtype=F64)
    moved = project(chunk, Goal(torch.eye(4, dtype=F64)[:1], torch.tensor([1 + 1e-6], dtype=F64)))
    assert moved.flatten().tolist() == [1, 0, 0, 0]
