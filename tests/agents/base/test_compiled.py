"""The compiled update through the real agent and code generator, without the type-checking import hook.

The code of a U-Net or a transformer takes minutes to generate: tests/nets/test_compile.py traces and differentiates
them, which is where layers fail.
"""

import pytest
import torch

from flowpolicy.agents.cloning.dm1 import DM1
from flowpolicy.core.keys import ACTION, OBS, VALID
from flowpolicy.core.seed import torch_generator
from flowpolicy.core.spec import ActionSpec, Contract, ObservationSpec, Spec
from flowpolicy.data.normalize import Normalizer
from flowpolicy.nets.encoder import StateEncoder
from flowpolicy.nets.mlp import MLP

from ..uninstrumented import uninstrumented


@pytest.mark.slow
def test_compiled_updates_equal_the_eager_ones():
    config = DM1(net=MLP(16, 1), encoder=StateEncoder(8), chunk=3, execute=3)
    contract = Contract(Spec({"state": ObservationSpec((4,))}, ActionSpec(2)), 1, 3, 3, 1)
    random = torch_generator(0, "batch")
    batch = {
        OBS: {"state": torch.randn(16, 1, 4, generator=random)},
        ACTION: torch.rand(16, 3, 2, generator=random) * 2 - 1,
        VALID: torch.rand(16, 3, generator=random) < 0.8,
    }

    def losses(compile):
        agent = config.build(contract, Normalizer({"state": 4}, 2), steps=3, seed=0, compile=compile)
        weights, noise = torch_generator(0, "weights"), torch_generator(0, "noise")
        with torch.no_grad():
            for value in agent.actor.parameters():  # the outputs start at zero, which would hide everything before
                value += 0.1 * torch.randn(value.shape, generator=weights)
        updates = [agent.update(batch, noise) for _ in range(3)]
        return torch.tensor([[float(metrics[name]) for name in ("loss", "grad_norm")] for metrics in updates])

    with uninstrumented():
        torch.testing.assert_close(losses(True), losses(False), rtol=1e-4, atol=1e-4)
