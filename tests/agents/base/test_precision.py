"""Products in bfloat16: the losses stay near, every parameter has a gradient, and what must be exact is."""

import pytest
import torch

from flowpolicy.agents.offline.fisher import FisherAgent
from flowpolicy.core.devices import multiplying
from flowpolicy.core.seed import torch_generator

from ..every import make


@pytest.mark.parametrize("name", ["fql", "qc", "dm1", "mean_flow_q", "fisher", "fisher_euler_kl2", "flow_bc"])
def test_losses_stay_near_and_gradients_whole(name, tmp_path):
    agent, batches = make(name, tmp_path)
    given = agent.arguments(batches(torch_generator(0)), torch_generator(1))
    found = {}
    for precision in ("fp32", "bf16"):
        with multiplying(precision, "cpu"):
            loss = agent._loss(*given, **agent.switches())[0]
            agent.optimizer.descend(loss)
        found[precision] = loss.detach(), {k: p.grad for k, p in agent.named_parameters() if p.grad is not None}
    assert found["fp32"][1].keys() == found["bf16"][1].keys()
    assert all(grad.dtype == torch.float32 for grad in found["bf16"][1].values())
    torch.testing.assert_close(found["bf16"][0].float(), found["fp32"][0], rtol=0.05, atol=0.05)
    assert bool(agent.exact) == (name not in ("fql", "qc", "flow_bc"))


def test_what_a_shift_is_charged_is_computed_in_float32(tmp_path, monkeypatch):
    agent, batches = make("fisher_euler_kl2", tmp_path)
    seen, charge = [], FisherAgent.charge

    def spied(self, t, cond, base, shift, draws):
        seen.append((torch.is_autocast_enabled("cpu"), cond.dtype, base.dtype, shift.dtype))
        return charge(self, t, cond, base, shift, draws)

    monkeypatch.setattr(FisherAgent, "charge", spied)
    with multiplying("bf16", "cpu"):
        agent.update(batches(torch_generator(0)), torch_generator(1))
    assert seen == [(False, *[torch.float32] * 3)]
