"""The compiled update of value learning, through the code generator, against the eager one."""

import pytest
import torch

from flowpolicy.agents.offline.fql import FQL
from flowpolicy.core.seed import torch_generator
from flowpolicy.core.spec import ActionSpec, Contract, ObservationSpec, Spec
from flowpolicy.data.normalize import Normalizer
from flowpolicy.nets.critic import CriticConfig
from flowpolicy.nets.plain import Plain

from ..uninstrumented import uninstrumented


@pytest.mark.slow
def test_compiled_updates_equal_the_eager_ones():
    config = FQL(net=Plain(16, 1), critic=CriticConfig(width=16, depth=1), flow_steps=2)
    random = torch_generator(0, "batch")
    state = torch.randn(8, 1, 4, generator=random)
    batch = {
        "obs": {"state": state},
        "next_obs": {"state": state + 0.1},
        "action": torch.rand(8, 1, 2, generator=random) * 2 - 1,
        "next_action": torch.rand(8, 2, generator=random) * 2 - 1,
        "valid": torch.ones(8, 1, dtype=torch.bool),
        "reward": torch.randn(8, 1, generator=random),
        "mask": (torch.rand(8, generator=random) < 0.7).float(),
        "steps": torch.ones(8),
    }

    def losses(compile):
        contract = Contract(Spec({"state": ObservationSpec((4,))}, ActionSpec(2)), 1, 1, 1, config.nfe)
        agent = config.build(contract, Normalizer({"state": 4}, 2), steps=3, seed=0, compile=compile)
        noise = torch_generator(0, "noise")
        return torch.tensor([[float(v) for v in agent.update(batch, noise).values()] for _ in range(4)])

    with uninstrumented():
        torch.testing.assert_close(losses(True), losses(False), rtol=1e-4, atol=1e-4)
