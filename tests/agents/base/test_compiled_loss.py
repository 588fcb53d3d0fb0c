"""A compiled loss is the loss: for every signature, again and again, and with weights that have changed since."""

import pytest
import torch
from torch import nn

from flowpolicy.agents.base import compiled_loss
from flowpolicy.agents.base.compiled_loss import CompiledLoss
from flowpolicy.core.errors import TrainingError
from flowpolicy.core.seed import torch_generator


def test_every_signature_has_its_own_graph_and_weights_are_read_anew():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Linear(3, 2)

    def loss(batch, scale, *, squared):
        error = net(batch["x"]) - scale
        return (error.square() if squared else error.abs()).mean(), {"rows": len(batch["x"])}

    compiled, random = CompiledLoss(loss, "cpu"), torch_generator(0)
    for rows, squared in ((4, True), (4, True), (5, True), (4, False), (4, True), (5, True), (4, False)):
        batch, scale = {"x": torch.randn(rows, 3, generator=random)}, torch.randn(2, generator=random)
        expected, gradients = [], []
        for function in (loss, compiled):
            net.zero_grad()
            value, metrics = function(batch, scale, squared=squared)
            value.backward()
            assert metrics == {"rows": rows}
            expected.append(value.detach())
            gradients.append(net.weight.grad.clone())
        torch.testing.assert_close(*expected)
        torch.testing.assert_close(*gradients)
        with torch.no_grad():  # as optimisers and resumed checkpoints do: in place
            net.weight.add_(torch.randn(2, 3, generator=random))
    with torch.no_grad():
        batch = {"x": torch.ones(4, 3)}
        torch.testing.assert_close(compiled(batch, scale, squared=True)[0], loss(batch, scale, squared=True)[0])


def test_one_loss_may_have_many_signatures_and_one_process_many_losses(monkeypatch):
    """PyTorch gives up at the ninth graph of a code object; changing sizes without end are refused in our words."""
    monkeypatch.setattr(compiled_loss, "BACKEND", "eager")
    monkeypatch.setattr(compiled_loss, "SIGNATURES", 10)

    class Owner:
        def __init__(self, power):
            self.power = f"{power}"

        def loss(self, x):
            return (x * float(self.power)).mean(), {}

    for power in range(10):
        assert CompiledLoss(Owner(power).loss, "cpu")(torch.ones(3))[0] == power
    compiled = CompiledLoss(Owner(2).loss, "cpu")
    for _ in range(2):
        for rows in range(1, 11):
            assert compiled(torch.ones(rows))[0] == 2
    with pytest.raises(TrainingError, match="the loss of Owner has been compiled for 10 different shapes"):
        compiled(torch.ones(11))
