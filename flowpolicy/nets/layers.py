"""Layers that survive ``torch.compile`` of ``torch.func.jvp``, and the hand-written derivatives of two of them.

``nn.LayerNorm`` and ``nn.GroupNorm`` do not (torch 2.13: internal assert in their forward derivative).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional

from flowpolicy.nets.constants import GELU_CUBIC, GELU_SLOPE, NORM_EPS

_BASE_2 = 1.4426950408889634  # 1 / ln 2
_whole = False


@contextlib.contextmanager
def whole_operators() -> Iterator[None]:
    """Inside, layers call torch's own operators instead of their parts, for whoever runs or exports them one by one.

    The functions are the same, to round-off, and so are their gradients. What is differentiated forwards is computed
    in parts nevertheless: torch's own norms give the right derivative there, and a wrong gradient of it without a word
    (torch 2.13). Not for torch's compiler, which cannot differentiate them, and fuses the parts into faster code.
    """
    global _whole
    before, _whole = _whole, True
    try:
        yield
    finally:
        _whole = before


def _taken_whole(x: Tensor) -> bool:
    return _whole and forward_ad.unpack_dual(x).tangent is None


def normalized(x: Float[Tensor, "*b d"], eps: float) -> Float[Tensor, "*b d"]:
    """Zero mean and unit variance in the last dimension; ``eps`` is added to the variance."""
    if _taken_whole(x):
        return functional.layer_norm(x, x.shape[-1:], eps=eps)
    centred = x - x.mean(-1, keepdim=True)
    return centred * (centred.square().mean(-1, keepdim=True) + eps).rsqrt()


def gelu(x: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """GELU in its tanh form, written with a power of two: compiled, 0.4 of the time of ``tanh`` on a CPU.

    The exponent is limited because its square would overflow in the derivative; below x = -7.5 the result is 0 to
    within 1e-18 anyway.
    """
    if _taken_whole(x):
        return functional.gelu(x, approximate="tanh")
    exponent = x * (-GELU_SLOPE * _BASE_2 - (GELU_SLOPE * GELU_CUBIC * _BASE_2) * (x * x))
    return x / (1 + torch.exp2(exponent.clamp(max=63.0)))


def gelu_derivative(x: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """Derivative of :func:`gelu`."""
    square = x * x
    gate = torch.sigmoid(GELU_SLOPE * x * (1 + GELU_CUBIC * square))
    return gate + x * gate * (1 - gate) * GELU_SLOPE * (1 + 3 * GELU_CUBIC * square)


class LayerNorm(nn.Module):
    """Layer normalisation of the last dimension (Ba et al. 2016, arXiv 1607.06450)."""

    def __init__(self, size: int, eps: float = NORM_EPS) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size))

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """Zero mean and unit variance per row, then weight and bias."""
        if _taken_whole(x):
            return functional.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)
        centred = x - x.mean(-1, keepdim=True)
        return centred * (centred.square().mean(-1, keepdim=True) + self.eps).rsqrt() * self.weight + self.bias

    def derivative(self, x: Float[Tensor, "*b d"], dx: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """Derivative of :meth:`forward` at x along dx."""
        centred = x - x.mean(-1, keepdim=True)
        scale = (centred.square().mean(-1, keepdim=True) + self.eps).rsqrt()
        normal = centred * scale
        along = (normal * dx).mean(-1, keepdim=True)
        return (dx - dx.mean(-1, keepdim=True) - normal * along) * scale * self.weight


class GroupNorm(nn.Module):
    """Group normalisation of sequences with the channels last (Wu and He 2018, arXiv 1803.08494)."""

    def __init__(self, groups: int, channels: int, eps: float = NORM_EPS) -> None:
        super().__init__()
        self.groups, self.eps = groups, eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Float[Tensor, "b l d"]) -> Float[Tensor, "b l d"]:
        """Zero mean and unit variance per row and group of channels, then weight and bias per channel."""
        grouped = x.unflatten(2, (self.groups, -1))
        if _taken_whole(x):
            rows = grouped.transpose(1, 2).flatten(2)
            rows = functional.layer_norm(rows, rows.shape[2:], eps=self.eps)
            normal = rows.unflatten(2, grouped.shape[1::2]).transpose(1, 2).flatten(2)
            whole: Tensor = normal * self.weight + self.bias
            return whole
        centred = grouped - grouped.mean((1, 3), keepdim=True)
        normal = centred * (centred.square().mean((1, 3), keepdim=True) + self.eps).rsqrt()
        output: Tensor = normal.flatten(2) * self.weight + self.bias
        return output


class Conv(nn.Module):
    """Convolution along the length of (b, length, channels), as one matrix product over shifted copies.

    At the small batches and lengths of action chunks this is 2 to 3 times faster on a CPU than ``nn.Conv1d``.
    The length becomes ``ceil(length / stride)``; zeros are padded on both ends.

    Args:
        inputs: channels in.
        outputs: channels out.
        kernel: odd size.
        stride: step between outputs.

    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride
        self.linear = nn.Linear(kernel * inputs, outputs)

    def forward(self, x: Float[Tensor, "b l i"]) -> Float[Tensor, "b m o"]:
        """Convolve every row."""
        length, margin = x.shape[1], self.kernel // 2
        padded = functional.pad(x, (0, 0, margin, margin))
        shifted = [padded[:, start : start + length : self.stride] for start in range(self.kernel)]
        output: Tensor = self.linear(torch.cat(shifted, dim=2))
        return output
