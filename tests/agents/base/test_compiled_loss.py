"""A compiled loss is the loss: for every signature, again and again, and with weights that have changed since."""

import torch
from torch import nn

from flowpolicy.agents.base.compiled_loss import CompiledLoss
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
