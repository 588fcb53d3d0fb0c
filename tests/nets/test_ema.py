import pytest
import torch
from torch import nn

from flowpolicy.nets.ema import EMA


class Scalar(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = nn.Parameter(torch.tensor([value], dtype=torch.float64))
        self.register_buffer("count", torch.tensor([7]))


def test_constant_weights_closed_form():
    """From 1 towards 0 the average after n updates is the product of the decays: 1/10 * 2/11 * 3/12 * 1/5 * 1/5."""
    ema, target = EMA(Scalar(1.0), decay=0.2), Scalar(0.0)
    for n in range(5):
        ema.update(target, ema.share_at(n))
    assert float(ema.state_dict()["value"]) == pytest.approx(1 / 10 * 2 / 11 * 0.2**3, rel=1e-12)


def test_final_decay():
    """Without warm-up, at update 10000, the gap shrinks by the decay: 0.995 ** 1000 = .006654."""
    ema, target = EMA(Scalar(1.0), decay=0.995), Scalar(0.0)
    for _ in range(1000):
        ema.update(target, ema.share_at(10_000))
    assert float(ema.state_dict()["value"]) == pytest.approx(0.006654, abs=1e-6)


def test_buffers_are_copied_and_the_module_is_untouched():
    module = Scalar(3.0)
    ema = EMA(module, decay=0.9)
    module.count.fill_(9)
    module.value.data.fill_(5.0)
    ema.update(module, ema.share_at(100))
    assert int(ema.state_dict()["count"]) == 9
    assert float(module.value.detach()) == 5.0
    assert float(ema.state_dict()["value"]) == pytest.approx(0.9 * 3 + 0.1 * 5)


def test_restored_average_goes_on_bit_for_bit():
    torch.manual_seed(0)
    module = nn.Linear(4, 3)
    ema, restored = EMA(module, 0.99), EMA(nn.Linear(4, 3), 0.99)
    steps = [{name: torch.randn_like(p) for name, p in module.named_parameters()} for _ in range(6)]
    for n, weights in enumerate(steps):
        if n == 3:
            restored.load_state_dict({name: value.clone() for name, value in ema.state_dict().items()})
        module.load_state_dict(weights)
        ema.update(module, ema.share_at(n))
        if n >= 3:
            restored.update(module, restored.share_at(n))
    for name, value in ema.state_dict().items():
        assert torch.equal(value, restored.state_dict()[name])


def test_averaged_weights_load_into_the_module():
    module = nn.Linear(4, 3)
    ema = EMA(module, 0.9)
    other = nn.Linear(4, 3)
    other.load_state_dict(ema.state_dict())
    assert torch.equal(other.weight, module.weight)


def test_foreign_state_is_refused():
    with pytest.raises(KeyError, match="weight"):
        EMA(nn.Linear(2, 2), 0.9).load_state_dict({"bias": torch.zeros(2)})
