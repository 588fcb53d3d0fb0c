import torch

from flowpolicy.flows.dispersive import Dispersive, dispersive_loss
from flowpolicy.nets.encoder import StateEncoder


def test_condition_is_projection_and_observation():
    torch.manual_seed(0)
    encoder, obs = StateEncoder(width=12).build(5), torch.randn(4, 5)
    cond, feature = encoder(obs)
    assert cond.shape == (4, encoder.size) == (4, 17)
    assert torch.equal(cond, torch.cat([feature, obs], dim=1))


def test_width_zero_passes_through():
    encoder, obs = StateEncoder(width=0).build(5), torch.randn(4, 5)
    assert encoder.size == 5 and not list(encoder.parameters())
    assert torch.equal(encoder(obs).cond, obs)


def test_dispersive_gradient_reaches_every_weight_of_the_encoder():
    """The published DM1 computed its features without a gradient."""
    torch.manual_seed(0)
    encoder = StateEncoder(width=12).build(5)
    value = dispersive_loss(encoder(torch.randn(16, 5)).feature, Dispersive())
    for gradient in torch.autograd.grad(value, list(encoder.parameters())):
        assert gradient.isfinite().all() and gradient.abs().max() > 1e-6
