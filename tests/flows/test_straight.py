import torch

from flowpolicy.flows import straight as ip


def draw():
    generator = torch.Generator().manual_seed(0)
    noise, data = torch.randn(2, 6, 3, 2, generator=generator, dtype=torch.float64)
    return noise, data, torch.linspace(0.1, 0.9, 6, dtype=torch.float64)


def test_ends_are_noise_and_data():
    noise, data, t = draw()
    assert torch.equal(ip.interpolate(noise, data, torch.zeros_like(t)), noise)
    assert torch.equal(ip.interpolate(noise, data, torch.ones_like(t)), data)


def test_velocity_is_the_time_derivative_of_the_path():
    noise, data, t = draw()
    _, slope = torch.func.jvp(lambda t: ip.interpolate(noise, data, t), (t,), (torch.ones_like(t),))
    torch.testing.assert_close(ip.velocity(noise, data), slope)


def test_velocity_points_from_noise_to_data():
    """Guards the sign: one unit of time along the velocity carries the noise onto the data."""
    noise, data, _ = draw()
    torch.testing.assert_close(noise + ip.velocity(noise, data), data)


def test_conversions_recover_both_ends():
    noise, data, t = draw()
    x, v = ip.interpolate(noise, data, t), ip.velocity(noise, data)
    torch.testing.assert_close(ip.velocity_to_data(x, v, t), data)


def test_score_of_the_gaussian(lab):
    """Exact score -(x - t mean) / variance of the interpolant, from the exact velocity, and back."""
    x, t = torch.linspace(-2, 2, 6, dtype=torch.float64), torch.linspace(0.05, 0.95, 6, dtype=torch.float64)
    v = lab.velocity(x, t)
    exact = -(x - t * lab.mean) / (t**2 * lab.std**2 + (1 - t) ** 2)
    torch.testing.assert_close(ip.velocity_to_score(x, v, t), exact)


def test_conditional_velocity_is_unbiased(lab):
    """Mean of the conditional velocity near z = 0.5 at DN time 0.6 is the marginal one, -0.39417 in DN."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(2_000_000, generator=generator)
    data = lab.mean + lab.std * torch.randn(2_000_000, generator=generator)
    x = ip.interpolate(noise, data, torch.full_like(noise, 0.4))
    near = (x - 0.5).abs() < 0.01
    mean = ip.velocity(noise, data)[near].mean()
    assert abs(lab.v(0.5, 0.6) + 0.39419) < 1e-5
    assert abs(float(mean) - 0.39419) < 0.012
