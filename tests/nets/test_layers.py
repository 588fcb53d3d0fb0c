import math

import pytest
import torch
from torch.nn import functional

from flowpolicy.nets.layers import Conv, GroupNorm, LayerNorm, gelu, gelu_derivative, whole_operators
from flowpolicy.nets.time_features import TimeFeatures


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def filled(module):
    module.double()
    for index, parameter in enumerate(module.parameters()):
        parameter.data = randn(*parameter.shape, seed=10 + index)
    return module


def test_gelu_is_the_tanh_form():
    x = torch.linspace(-6, 6, 101, dtype=torch.float64)
    torch.testing.assert_close(gelu(x), functional.gelu(x, approximate="tanh"))
    slope = torch.func.jvp(lambda x: functional.gelu(x, approximate="tanh"), (x,), (torch.ones_like(x),))[1]
    torch.testing.assert_close(gelu_derivative(x), slope)


def test_layer_norm():
    norm, x, dx = filled(LayerNorm(7)), 3 * randn(4, 7) + 2, randn(4, 7, seed=1)
    torch.testing.assert_close(norm(x), functional.layer_norm(x, (7,), norm.weight, norm.bias))
    torch.testing.assert_close(norm.derivative(x, dx), torch.func.jvp(norm, (x,), (dx,))[1])


def test_group_norm():
    norm, x = filled(GroupNorm(2, 6)), randn(3, 5, 6) + 1
    want = functional.group_norm(x.transpose(1, 2), 2, norm.weight, norm.bias).transpose(1, 2)
    torch.testing.assert_close(norm(x), want)


@pytest.mark.parametrize("function", [gelu, filled(LayerNorm(6)), filled(GroupNorm(2, 6))])
def test_whole_operators_are_the_same_functions(function):
    x = 3 * randn(3, 5, 6) + 1
    parts = function(x)
    with whole_operators():
        whole = function(x)
    torch.testing.assert_close(whole, parts)
    assert not torch.equal(whole, parts), "the same code ran twice"


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("length", [1, 2, 3, 8])
def test_conv_is_a_convolution(length, kernel, stride):
    conv, x = filled(Conv(4, 3, kernel, stride)), randn(2, length, 4)
    weight = conv.linear.weight.reshape(3, kernel, 4).permute(0, 2, 1)
    want = functional.conv1d(x.transpose(1, 2), weight, conv.linear.bias, stride, padding=kernel // 2)
    torch.testing.assert_close(conv(x), want.transpose(1, 2))
    assert want.shape[2] == math.ceil(length / stride)


@pytest.mark.parametrize(("frequencies", "highest"), [(8, 30.0), (2, math.pi)])
def test_time_features_are_bounded_and_know_their_derivative(frequencies, highest):
    times = TimeFeatures(frequencies, highest).double()
    t = torch.linspace(0, 1, 50, dtype=torch.float64)
    assert times(t).shape == (50, times.size) and times(t).abs().max() <= 1
    exact = torch.func.jvp(times, (t,), (torch.ones_like(t),))[1]
    torch.testing.assert_close(times.derivative(t), exact)
    assert 1 < exact.abs().max() <= highest * (1 + 1e-6)


def test_time_features_tell_late_times_apart():
    """Frequencies below 1 on [0, 1] span hardly more than {1, t, t ** 2}; a velocity gets a dozen directions."""
    features = TimeFeatures(8, 30.0)(torch.linspace(0, 1, 200)).double()
    values = torch.linalg.svdvals(features)
    assert int((values > 1e-3 * values[0]).sum()) >= 10
