import pytest
import torch

from flowpolicy.flows.resolution import neighbourhood_std, time_for


def test_resolution_floor():
    """(1 - t) / t is half the local std; the std is that of the actions among near states, not of all."""
    for std in (0.05, 0.2, 0.5):
        t = time_for(std)
        assert (1 - t) / t == pytest.approx(std / 2)
    generator = torch.Generator().manual_seed(0)
    obs = torch.rand(4000, 1, generator=generator, dtype=torch.float64)
    action = torch.sin(6 * obs) + 0.1 * torch.randn(4000, 2, generator=generator, dtype=torch.float64)
    assert float(neighbourhood_std(obs, action)) == pytest.approx(0.1, rel=0.1)
    assert float(action.std()) > 0.4
