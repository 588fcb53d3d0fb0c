import contextlib

import pytest
import torch
from torch import nn

from flowpolicy.core.errors import ConfigError
from flowpolicy.nets.flow_nets import MapNet, VelocityNet
from flowpolicy.nets.layers import whole_operators
from flowpolicy.nets.mlp import MLP
from flowpolicy.nets.transformer import Transformer
from flowpolicy.nets.unet import UNet

TRUNKS = {
    "mlp": MLP(width=24, depth=3),
    "mlp with a bypass": MLP(width=24, depth=3, bypass=True),
    "mlp of one layer": MLP(width=24, depth=1),
    "unet": UNet(width=8, levels=2),
    "transformer": Transformer(width=16, depth=2, heads=2),
}


def randomise(module, seed=0):
    """Random weights everywhere: zero-initialised layers would hide mistakes behind zeros."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return module


def map_net(trunk, chunk=5):
    return randomise(MapNet(trunk, action=3, chunk=chunk, cond=4).double())


def inputs(batch=6, chunk=5):
    generator = torch.Generator().manual_seed(1)
    x, dx = torch.randn(2, batch, chunk, 3, generator=generator, dtype=torch.float64)
    s, t = torch.rand(2, batch, generator=generator, dtype=torch.float64).sort(0).values
    cond = torch.randn(batch, 4, generator=generator, dtype=torch.float64)
    ds = torch.randn(batch, generator=generator, dtype=torch.float64)
    return x, s, t, cond, dx, ds


@pytest.fixture(params=TRUNKS.values(), ids=TRUNKS.keys())
def trunk(request):
    return request.param


OPERATORS = pytest.mark.parametrize("operators", [contextlib.nullcontext, whole_operators], ids=["parts", "whole"])


@OPERATORS
@pytest.mark.quick("nets")
def test_tangent_equals_forward_mode_and_central_differences(trunk, operators):
    net = map_net(trunk)
    x, s, t, cond, dx, ds = inputs()
    with operators():
        _, tangent = net.with_tangent(x, s, t, cond, dx, ds, 2)
        _, exact = torch.func.jvp(lambda x, s: net(x, s, t, cond).value, (x, s), (dx, ds))
    torch.testing.assert_close(tangent, exact[2:], rtol=1e-9, atol=1e-11)
    step = 1e-5
    ahead, behind = (net(x + sign * step * dx, s + sign * step * ds, t, cond).value for sign in (1, -1))
    torch.testing.assert_close(tangent, ((ahead - behind) / (2 * step))[2:], rtol=1e-5, atol=1e-6)


@OPERATORS
def test_the_gradient_of_a_forward_derivative_is_that_of_central_differences(trunk, operators):
    """What objectives that learn from the derivative itself follow; torch's own norms get it wrong."""
    net, (x, s, t, cond, dx, ds) = map_net(trunk), inputs(batch=2)
    weights = list(net.parameters())
    random = torch.Generator().manual_seed(2)
    along = [torch.randn(weight.shape, generator=random, dtype=torch.float64) for weight in weights]

    def slope():
        return torch.func.jvp(lambda x, s: net(x, s, t, cond).value, (x, s), (dx, ds))[1].square().sum()

    with operators():
        gradients = torch.autograd.grad(slope(), weights, allow_unused=True)
    exact = sum((g * d).sum() for g, d in zip(gradients, along, strict=True) if g is not None)
    step, found = 1e-6, []
    with torch.no_grad():
        for sign in (1, -2):  # ahead, then from there behind
            torch._foreach_add_(weights, along, alpha=sign * step)
            found.append(slope())
    torch.testing.assert_close(exact, (found[0] - found[1]) / (2 * step), rtol=1e-5, atol=1e-6)


def test_tangent_shares_the_value_and_carries_no_graph(trunk):
    net = map_net(trunk)
    x, s, t, cond, dx, ds = inputs()
    output, tangent = net.with_tangent(x, s, t, cond, dx, ds, 2)
    plain = net(x, s, t, cond)
    torch.testing.assert_close(output.value, plain.value)
    assert not tangent.requires_grad and tangent.shape == (4, 5, 3)
    got = torch.autograd.grad(output.value.square().sum(), list(net.parameters()))
    want = torch.autograd.grad(plain.value.square().sum(), list(net.parameters()))
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("skip", [0, 6])
def test_skip_all_or_nothing(trunk, skip):
    x, s, t, cond, dx, ds = inputs()
    output, tangent = map_net(trunk).with_tangent(x, s, t, cond, dx, ds, skip)
    assert output.value.shape == (6, 5, 3) and tangent.shape == (6 - skip, 5, 3)


@pytest.mark.parametrize("chunk", range(1, 18))
def test_every_chunk_length(trunk, chunk):
    net = map_net(trunk, chunk)
    x, s, t, cond, dx, ds = inputs(batch=2, chunk=chunk)
    output, tangent = net.with_tangent(x, s, t, cond, dx, ds, 1)
    assert output.value.shape == (2, chunk, 3) and tangent.shape == (1, chunk, 3)
    assert output.features["trunk"].shape[0] == 2
    gradients = torch.autograd.grad(output.value.square().sum(), list(net.parameters()))
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_every_input_matters(trunk):
    """Each row of the output depends on x, both times and the condition of that row, and on no other row."""
    net = map_net(trunk)
    x, s, t, cond, _, _ = inputs()
    base = net(x, s, t, cond).value
    bump = torch.zeros(6, dtype=torch.float64)
    bump[1] = 0.01
    for changed in (
        net(x + bump.reshape(-1, 1, 1), s, t, cond),
        net(x, s + bump, t, cond),
        net(x, s, t + bump, cond),
        net(x, s, t, cond + bump.reshape(-1, 1)),
    ):
        moved = (changed.value - base).abs().amax((1, 2))
        assert moved[1] > 1e-6
        torch.testing.assert_close(moved[[0, 2, 3, 4, 5]], torch.zeros(5, dtype=torch.float64), atol=1e-12, rtol=0)


def test_features_carry_a_gradient_to_the_first_layer(trunk):
    net = map_net(trunk)
    x, s, t, cond, _, _ = inputs()
    feature = net(x, s, t, cond).features["trunk"]
    (gradient,) = torch.autograd.grad(feature.square().sum(), next(net.trunk.inlet.parameters()))
    assert gradient.abs().max() > 0


def test_starts_at_zero_and_learns(trunk):
    """The first MeanFlow targets are free of the derivative of a random network; the zero is no dead end."""
    torch.manual_seed(0)
    net = VelocityNet(trunk, action=3, chunk=5, cond=4).double()
    x, s, _, cond, dx, _ = inputs()
    assert (net(x, s, cond).value == 0).all()
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    first = float(dx.square().mean())
    for _ in range(100):
        loss = (net(x, s, cond).value - dx).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss) < 0.5 * first


def test_parameter_counts_by_hand():
    """MLP of width w, depth 3 with i inputs: (i + 1) w + 2 (w + 1) w + 3 norms of 2 w + (w + 1) 15 outputs."""
    net = VelocityNet(MLP(width=24, depth=3), action=3, chunk=5, cond=4)
    i, w = 15 + 17 + 4, 24
    count = sum(parameter.numel() for parameter in net.parameters())
    assert count == (i + 1) * w + 2 * (w + 1) * w + 3 * 2 * w + (w + 1) * 15
    assert sum(p.numel() for p in MapNet(MLP(width=24, depth=3), 3, 5, 4).parameters()) == count + (2 * 5 - 17) * w


@pytest.mark.parametrize(
    "build", [lambda: UNet(width=12), lambda: UNet(kernel=4), lambda: Transformer(width=30, heads=4)]
)
def test_impossible_sizes_are_refused(build):
    with pytest.raises(ConfigError):
        build()


def test_a_bypass_takes_all_noise_away_where_it_is_told_to():
    net = MapNet(MLP(width=8, depth=2, bypass=True), action=3, chunk=5, cond=4).double()
    nn.init.constant_(net.trunk.bypass.bias, -1.0)  # the outlet starts at zero
    x, _, _, cond, _, _ = inputs()
    start, end = torch.zeros(len(x), dtype=x.dtype), torch.ones(len(x), dtype=x.dtype)
    assert not (x + net(x, start, end, cond).value).any()
