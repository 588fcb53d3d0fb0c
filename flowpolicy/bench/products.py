"""The floor of a decision: its bare matrix products and convolutions, and one read of its weights."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from flowpolicy.policy.engines.engine import drawn
from flowpolicy.policy.policy import Policy

Product = tuple[int, list[int], list[int]]
"""Number of the second factor (the same weights have the same), and the shapes of both factors."""

Convolution = tuple[list[int], list[int], list[int], list[int], list[int], int]
"""Shapes of pictures (n, c, h, w) and weights; stride, padding, dilation and groups."""


def products(policy: Policy, nfe: int, batch: int) -> list[Product]:
    """Every matrix product of one decision of the eager policy, in order: what no engine can leave out.

    ``W x`` of a linear layer appears as ``x (rows, i) @ W.T (i, o)``.
    """
    return _recorded(policy, nfe, batch).products


def convolutions(policy: Policy, nfe: int, batch: int) -> list[Convolution]:
    """Every convolution of one decision, in order; none where nothing is seen but states."""
    return _recorded(policy, nfe, batch).convolutions


def _recorded(policy: Policy, nfe: int, batch: int) -> _Recorder:
    contract = policy.contract
    obs = {key: torch.from_numpy(x) for key, x in drawn(contract, batch, np.random.default_rng(0)).items()}
    noise = torch.zeros(batch * policy.shapes.candidates, contract.chunk, contract.spec.action.size)
    recorder = _Recorder()
    streams = policy.streams(obs)
    with torch.no_grad(), recorder:
        policy.decide(streams, noise, nfe)
    return recorder


def weight_bytes(found: list[Product]) -> int:
    """Bytes of all second factors, each counted once per use: a later use finds it gone from the nearest cache."""
    return sum(4 * int(np.prod(second)) for _, _, second in found)


def aligned(shape: tuple[int, ...]) -> np.ndarray:
    """Zeros in float32 that begin at a multiple of 64 bytes: a cache line, and whole vector registers."""
    size = 4 * int(np.prod(shape))
    raw = np.zeros(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(np.float32).reshape(shape)


class _Recorder(TorchDispatchMode):
    """Writes down the factors of matrix products and convolutions. The first of ``addmm`` and ``baddbmm`` is a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.products: list[Product] = []
        self.convolutions: list[Convolution] = []
        self._numbers: dict[tuple[int, tuple[int, ...]], int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().split("::")[1].split(".")[0]
        if name in ("mm", "bmm", "addmm", "baddbmm", "linear"):
            first, second = args[1:3] if name in ("addmm", "baddbmm") else args[:2]
            second = second.mT if name == "linear" else second
            key = (second.data_ptr(), tuple(second.shape))
            number = self._numbers.setdefault(key, len(self._numbers))
            rows = first.reshape(-1, first.shape[-1]) if second.dim() == 2 else first
            self.products.append((number, list(rows.shape), list(second.shape)))
        elif name == "convolution":
            pictures, weight, _, stride, padding, dilation, _, _, groups = args
            shapes = list(pictures.shape), list(weight.shape)
            self.convolutions.append((*shapes, list(stride), list(padding), list(dilation), int(groups)))
        return func(*args, **(kwargs or {}))


def numpy_products(found: list[Product]) -> Callable[[], None]:
    """The products by NumPy, over aligned buffers and without allocation."""
    factors: dict[int, np.ndarray] = {}
    calls = []
    for number, first, second in found:
        if number not in factors:
            factors[number] = _drawn(second[:-2] + second[-2:][::-1]).swapaxes(-1, -2)
        x, weight = _drawn(first), factors[number]
        out = aligned((*first[:-1], second[-1]))
        vector = len(first) == 2 and first[0] == 1
        calls.append((np.dot, weight.T, x[0], out[0]) if vector else (np.matmul, x, weight, out))

    def run() -> None:
        for function, a, b, out in calls:
            function(a, b, out)

    return run


def torch_products(found: list[Product]) -> Callable[[], None]:
    """The products by torch, the same way."""
    factors: dict[int, Tensor] = {}
    calls: list[tuple[Callable[..., Tensor], Tensor, Tensor, Tensor]] = []
    for number, first, second in found:
        if number not in factors:
            factors[number] = torch.from_numpy(_drawn(second[:-2] + second[-2:][::-1])).mT
        x, weight = torch.from_numpy(_drawn(first)), factors[number]
        out = torch.from_numpy(aligned((*first[:-1], second[-1])))
        vector = len(first) == 2 and first[0] == 1
        calls.append((torch.mv, weight.mT, x[0], out[0]) if vector else (torch.matmul, x, weight, out))

    @torch.inference_mode()
    def run() -> None:
        for function, a, b, out in calls:
            function(a, b, out=out)

    return run


def torch_convolutions(found: list[Convolution]) -> Callable[[], None]:
    """The convolutions by torch, with channels last, as the encoder has them."""
    calls: list[Callable[[], Tensor]] = []
    for pictures, weights, stride, padding, dilation, groups in found:
        x, weight = (torch.from_numpy(_drawn(shape)) for shape in (pictures, weights))
        x, weight = (each.to(memory_format=torch.channels_last) for each in (x, weight))
        calls.append(functools.partial(torch.conv2d, x, weight, None, stride, padding, dilation, groups))

    @torch.inference_mode()
    def run() -> None:
        for call in calls:
            call()

    return run


def one_read(size: int) -> Callable[[], object]:
    """One pass over ``size`` bytes in order, as fast as the library's dot product reads them."""
    values = _drawn([max(1, size // 4)])
    return lambda: np.dot(values, values)


def _drawn(shape: list[int]) -> np.ndarray:
    values = aligned(tuple(shape))
    values[...] = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    return values
