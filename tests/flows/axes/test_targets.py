"""Every target gives the same velocity and the same error on the path."""

import pytest
import torch

import flowpolicy.flows.axes  # noqa: F401, registers the values
from flowpolicy.flows.axes.interpolants import Latent, Linear, Trigonometric, VariancePreserving
from flowpolicy.flows.axes.registry import VALUES
from flowpolicy.flows.axes.targets import Data, Drawn, Noise, Velocity

F64 = torch.float64
PATHS = [Linear(), Trigonometric(), VariancePreserving(), Latent()]
T = torch.linspace(0.1, 0.9, 6, dtype=F64)


def draw(seed=0):
    return torch.randn(4, 6, 2, 3, generator=torch.Generator().manual_seed(seed), dtype=F64)


def truth(target, path, noise, data, z):
    """What a perfect network of this target says at the pair."""
    if isinstance(target, Velocity):
        return path.velocity(noise, data, T, z)
    if isinstance(target, Data):
        return data
    e = path.effective(T, data)
    return (path.point(noise, data, T, z) - e.beta * data) / e.sigma


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.name)
@pytest.mark.parametrize("name", sorted(set(VALUES["target"]) - {"segment"}))  # that one has tests of its own
def test_a_perfect_prediction_has_no_error_and_gives_the_velocity(name, path):
    noise, data, z, _ = draw()
    z = z if path.latent else None
    target = VALUES["target"][name]()
    exact = truth(target, path, noise, data, z)
    error = target.error(exact, Drawn(noise, data, z, T, path))
    torch.testing.assert_close(error, torch.zeros_like(error), atol=1e-12, rtol=0)
    if not path.latent:
        x = path.point(noise, data, T)
        torch.testing.assert_close(target.velocity(exact, x, T, path), path.velocity(noise, data, T), atol=1e-9, rtol=0)


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.name)
@pytest.mark.parametrize("target", [Data(floor=1e-6), Noise(floor=1e-6)], ids=["data", "noise"])
def test_errors_are_errors_of_the_velocity(target, path):
    """A prediction that is off by d makes the velocity off by the reported error, which is the loss of velocities."""
    noise, data, z, off = draw(1)
    z = z if path.latent else None
    x = path.point(noise, data, T, z)
    exact = truth(target, path, noise, data, z)
    moved = target.velocity(exact + off, x, T, path) - target.velocity(exact, x, T, path)
    torch.testing.assert_close(target.error(exact + off, Drawn(noise, data, z, T, path)).abs(), moved.abs())


def test_straight_line_weights():
    noise, data, _, off = draw(2)
    one_minus_t = (1 - T).reshape(-1, 1, 1)
    torch.testing.assert_close(Data().error(data + off, Drawn(noise, data, None, T, Linear())), off / one_minus_t)
    torch.testing.assert_close(
        Noise().error(noise + off, Drawn(noise, data, None, T, Linear())), off / T.reshape(-1, 1, 1)
    )


def test_the_floor_bounds_the_weight_and_leaves_the_optimum():
    noise, data, _, off = draw(3)
    late = torch.full((6,), 0.999, dtype=F64)
    error = Data(floor=0.05).error(data + off, Drawn(noise, data, None, late, Linear()))
    torch.testing.assert_close(error, off / 0.05)
    assert Noise(floor=0.03).start == 0.03 and Data().start == 0.0
