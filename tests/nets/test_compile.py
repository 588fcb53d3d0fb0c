"""Every trunk under torch.compile, without the type-checking import hook.

Tracing and differentiation are enough here (``aot_eager``): that is where layers fail under ``torch.func.jvp``.
tests/agents/base/test_compiled.py goes through the code generator.
"""

import pytest
import torch

from flowpolicy.flows.axes.consistency import MeanFlow, Problem
from flowpolicy.flows.axes.interpolants import Linear
from flowpolicy.flows.axes.losses import Squared
from flowpolicy.nets.flow_nets import MapNet
from flowpolicy.nets.mlp import MLP
from flowpolicy.nets.transformer import Transformer
from flowpolicy.nets.unet import UNet

from ..agents.uninstrumented import uninstrumented

TRUNKS = {"mlp": MLP(16, 2), "unet": UNet(8, 2), "transformer": Transformer(16, 1, 2)}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(TRUNKS))
def test_compiled_loss_gradient_and_jvp_equal_the_eager_ones(name):
    random = torch.Generator().manual_seed(0)
    net = MapNet(TRUNKS[name], action=2, chunk=3, cond=4)
    for parameter in net.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=random)
    x, w = torch.randn(8, 3, 2, generator=random), torch.randn(8, 3, 2, generator=random)  # no views: jvp under compile
    s = torch.rand(8, generator=random)
    t = s + 0.3
    cond, valid = torch.randn(8, 4, generator=random), torch.ones(8, 3, dtype=torch.bool)

    def loss(x, s, t):
        return MeanFlow().loss(Problem(net, x, w, s, t, cond, 2), valid, Squared(), Linear())[0]

    def jvp(x, s):
        return torch.func.jvp(lambda x, s: net(x, s, t, cond).value, (x, s), (w, torch.ones_like(s)))

    def compiled(function):
        return torch.compile(function, fullgraph=True, dynamic=False, backend="aot_eager")

    def gradients(function):
        return torch.autograd.grad(function(x, s, t), list(net.parameters()))

    with uninstrumented():
        torch.testing.assert_close(gradients(compiled(loss)), gradients(loss), rtol=1e-3, atol=1e-4)
        if name == "mlp":  # the loss of the others is made of this
            torch.testing.assert_close(compiled(jvp)(x, s), jvp(x, s), rtol=1e-3, atol=1e-4)
