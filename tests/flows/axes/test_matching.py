import pytest
import torch

from flowpolicy.flows.axes.interpolants import Linear
from flowpolicy.flows.axes.losses import Adaptive, adaptive_weight, matching_loss


def test_mean_over_valid_entries_by_hand():
    """Squared errors 1, 4 (row 0, one valid step) and 9, 16, 25, 36 (row 1): 91 / 6, whatever stands in step (0, 1)."""
    prediction = torch.tensor([[[1.0, 2.0], [1e6, -1e6]], [[3.0, 4.0], [5.0, 6.0]]], requires_grad=True)
    valid = torch.tensor([[True, False], [True, True]])
    loss = matching_loss(prediction, torch.zeros(2, 2, 2), valid)
    assert float(loss) == pytest.approx(91 / 6, rel=1e-6)
    (gradient,) = torch.autograd.grad(loss, prediction)
    assert (gradient[0, 1] == 0).all()
    torch.testing.assert_close(gradient[1, 1], torch.tensor([10.0, 12.0]) / 6)


def test_nothing_valid_is_zero_with_a_finite_gradient():
    prediction = torch.ones(2, 3, 1, requires_grad=True)
    loss = matching_loss(prediction, torch.zeros(2, 3, 1), torch.zeros(2, 3, dtype=torch.bool))
    (gradient,) = torch.autograd.grad(loss, prediction)
    assert float(loss.detach()) == 0 and torch.equal(gradient, torch.zeros(2, 3, 1))


@pytest.mark.parametrize(
    ("power", "constant", "error", "contribution"),
    [(0.5, 1e-3, 0.01, 0.0953463), (0.5, 1e-3, 1.0, 0.9995004), (1.0, 0.01, 0.01, 0.5), (0.0, 1e-3, 0.01, 0.01)],
)
def test_adaptive_weight(power, constant, error, contribution):
    prediction = torch.full((1, 2, 3), error**0.5, dtype=torch.float64)
    valid = torch.ones(1, 2, dtype=torch.bool)
    loss = Adaptive(power, constant).reduce(prediction, valid, torch.zeros(1), Linear())
    assert float(loss) == pytest.approx(contribution, abs=5e-8)


def test_adaptive_weight_carries_no_gradient():
    error = torch.tensor([0.5, 2.0], requires_grad=True)
    (gradient,) = torch.autograd.grad((adaptive_weight(error, 1.0, 0.0) * error).sum(), error)
    torch.testing.assert_close(gradient, torch.tensor([2.0, 0.5]))
