"""Every trunk under torch.compile, in a process without the type-checking import hook.

Tracing and differentiation are enough here (``aot_eager``): that is where layers fail under ``torch.func.jvp``.
tests/agents/base/test_compiled.py goes through the code generator.
"""

import subprocess
import sys

import pytest

PROGRAM = """
import torch
from flowpolicy.flows.axes.consistency import MeanFlow, Problem
from flowpolicy.flows.axes.interpolants import Linear
from flowpolicy.flows.axes.losses import Squared
from flowpolicy.nets.flow_nets import MapNet
from flowpolicy.nets.mlp import MLP
from flowpolicy.nets.transformer import Transformer
from flowpolicy.nets.unet import UNet

torch.set_num_threads(1)
torch.manual_seed(0)
trunk = {"mlp": MLP(16, 2), "unet": UNet(8, 2), "transformer": Transformer(16, 1, 2)}["NAME"]
net = MapNet(trunk, action=2, chunk=3, cond=4)
for parameter in net.parameters():
    parameter.data = 0.3 * torch.randn_like(parameter)
x, w = torch.randn(8, 3, 2), torch.randn(8, 3, 2)
s = torch.rand(8)
t = s + 0.3
cond, valid = torch.randn(8, 4), torch.ones(8, 3, dtype=torch.bool)


def loss(x, s, t):
    return MeanFlow().loss(Problem(net, x, w, s, t, cond, 2), valid, Squared(), Linear())[0]


def jvp(x, s):
    return torch.func.jvp(lambda x, s: net(x, s, t, cond).value, (x, s), (w, torch.ones_like(s)))


def gradients(function):
    return torch.autograd.grad(function(x, s, t), list(net.parameters()))


compiled = torch.compile(loss, fullgraph=True, dynamic=False, backend="aot_eager")
torch.testing.assert_close(gradients(compiled), gradients(loss), rtol=1e-3, atol=1e-4)
compiled = torch.compile(jvp, fullgraph=True, dynamic=False, backend="aot_eager")
torch.testing.assert_close(compiled(x, s), jvp(x, s), rtol=1e-3, atol=1e-4)
"""


@pytest.mark.slow
def test_compiled_loss_gradient_and_jvp_equal_the_eager_ones():
    program = "\n".join(PROGRAM.replace("NAME", name) for name in ("mlp", "unet", "transformer"))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
