"""What students are trained on, against the closed form of Gaussian flows."""

import pytest
import torch

from flowpolicy.core.seed import torch_generator
from flowpolicy.flows.student_targets import (
    backward_simulation,
    guided_line,
    line_through,
    matching_gradient,
    segment_lines,
    step_of,
)

F64 = torch.float64
MEAN, STD = 0.3, 0.4


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch_generator(seed), dtype=F64)


def deviation(t):
    return (t**2 * STD**2 + (1 - t) ** 2) ** 0.5


def curved(x, t, mean=MEAN):
    """Velocity of independent pairs with data N(mean, STD^2)."""
    t = t.reshape(-1, 1)
    return mean + (t * STD**2 - (1 - t)) / deviation(t) ** 2 * (x - mean * t)


def straight(x, t):
    """Velocity of the pairs data = MEAN + STD noise, whose paths are lines."""
    t = t.reshape(-1, 1)
    return MEAN + (STD - 1) * (x - MEAN * t) / (1 + (STD - 1) * t)


def mean_velocity(x, s, t):
    """The flow map of ``curved`` as a mean velocity; the velocity where s = t."""
    s_, t_ = s.reshape(-1, 1), t.reshape(-1, 1)
    end = MEAN * t_ + deviation(t_) / deviation(s_) * (x - MEAN * s_)
    return torch.where(t_ > s_, (end - x) / (t_ - s_).clamp(min=1e-12), curved(x, s))


def test_a_line_goes_through_its_point_with_its_slope():
    x, slope, t = random(5, 3), random(5, 3, seed=1), torch.linspace(0, 1, 5, dtype=F64)
    line = line_through(x, t, slope)
    assert torch.allclose(line.data - line.noise, slope, atol=1e-12)
    assert torch.allclose((1 - t[:, None]) * line.noise + t[:, None] * line.data, x, atol=1e-12)


def test_chords_meet_the_trajectory_at_both_nodes():
    states, nodes = random(4, 6, 3), torch.tensor([0.0, 0.2, 0.7, 1.0], dtype=F64)
    segment = torch.tensor([0, 1, 2, 2, 1, 0])
    line = segment_lines(states, nodes, segment)
    for row, k in enumerate(segment.tolist()):
        for node in (k, k + 1):
            point = (1 - nodes[node]) * line.noise[row] + nodes[node] * line.data[row]
            assert torch.allclose(point, states[node, row], atol=1e-12)
    whole = segment_lines(states[[0, 3]], nodes[[0, 3]], torch.zeros(6, dtype=torch.int64))
    assert torch.equal(whole.noise, states[0]) and torch.allclose(whole.data, states[3], atol=1e-12)


def test_a_guide_with_straight_paths_corrects_to_the_exact_map_at_every_time():
    noise, exact = random(9, 3), MEAN + STD * random(9, 3)
    t = torch.linspace(0.05, 0.95, 9, dtype=F64)
    line = guided_line(noise, straight(noise, 0 * t), straight, t)
    assert torch.equal(line.noise, noise) and torch.allclose(line.data, exact, atol=1e-12)
    # A curved guide does not: half-way along the student's line is no point of the guide's path.
    bent = guided_line(noise, exact - noise, curved, t)
    assert float((bent.data - exact).abs().max()) > 0.05
    # A student that errs is corrected, the more the earlier the guide takes over.
    wrong = guided_line(noise, exact - noise + 0.1, straight, t)
    gap = (wrong.data - exact).abs().mean(1)
    assert torch.allclose(gap, 0.1 * t * (STD / (1 + (STD - 1) * t)), atol=1e-12)


def test_an_exact_map_ends_at_the_same_place_through_any_step():
    noise, u = random(64, 3), torch.rand(64, generator=torch_generator(2), dtype=F64)
    for count in (1, 2, 4, 8):
        s, t = step_of(torch.full((64,), count), u)
        assert torch.allclose(t - s, torch.full_like(s, 1 / count)) and bool((s >= 0).all() and (t <= 1).all())
        found = backward_simulation(mean_velocity, noise, s, t)
        assert torch.allclose(found.data, MEAN + STD * noise, atol=1e-9)
        assert torch.allclose(found.start, MEAN * s[:, None] + deviation(s)[:, None] * noise, atol=1e-9)


def test_the_matching_gradient_is_the_difference_of_the_posterior_means():
    """Laws N(m, STD^2) that differ by their mean: (m - m') (1 - t)^2 / V_t, whatever the point; none where equal."""
    data, noise = 1.0 + STD * random(50, 3), random(50, 3, seed=1)
    t = torch.linspace(0, 0.98, 50, dtype=F64)
    fake = lambda x, t: curved(x, t, 1.0)  # noqa: E731
    assert torch.equal(matching_gradient(data, noise, t, fake, fake), torch.zeros(50, 3, dtype=F64))
    push = matching_gradient(data, noise, t, fake, curved)
    time = t[:, None]
    x = (1 - time) * noise + time * data
    posterior = MEAN + time * STD**2 / deviation(time) ** 2 * (x - MEAN * time)
    expected = (1.0 - MEAN) * (1 - time) ** 2 / deviation(time) ** 2
    expected = expected / (data - posterior).abs().mean(1, keepdim=True)
    assert torch.allclose(push, expected.expand(50, 3), atol=1e-9)
    assert bool((push > 0).all())  # descending it carries the samples towards the smaller mean


@pytest.mark.parametrize("count", [1, 3])
def test_steps_are_picked_evenly(count):
    s, _ = step_of(torch.full((3000,), count), torch.rand(3000, generator=torch_generator(0), dtype=F64))
    for k in range(count):
        assert float(((s * count).round() == k).double().mean()) == pytest.approx(1 / count, abs=0.03)
