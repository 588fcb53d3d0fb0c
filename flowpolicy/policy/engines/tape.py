"""A tape of NumPy calls over fixed buffers: what remains of a network when nothing is decided at run time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float32

from flowpolicy.nets.constants import GELU_CUBIC, GELU_SLOPE, NORM_EPS

Rows = Float32[np.ndarray, "_ _"]
"""(rows, columns)."""

# gelu(x) = x / (1 + exp(-(slope x + slope cubic x^3))). With y = -GAIN x, where GAIN^3 = slope cubic, the exponent is
# y (y^2 + SHIFT), and y / (1 + exp(..)) = -GAIN gelu(x). The gain goes into the layers before and behind.
GAIN = float(np.cbrt(GELU_SLOPE * GELU_CUBIC))
SHIFT = GELU_SLOPE / GAIN


LANE = 16
"""Columns of products are padded to a multiple of this: rows of weights then begin at a cache line."""


VECTORS = 5
"""Up to so many rows are multiplied one by one: OpenBLAS copies the whole matrix before it multiplies two matrices, so
that 4 rows took 580 us together and 267 us apart (512 x 512, one thread, measured); 16 took 596 and 1,047."""


class Input(NamedTuple):
    """What a product is applied to: a column of ones behind the values saves the addition of the bias."""

    values: Rows
    """(r, n): where the values are written."""
    whole: Rows
    """(r, m > n): the values, a column of ones, and zeros."""


class Tape:
    """Records calls and plays them in order. Every array that it hands out is one of its buffers.

    Args:
        rows: rows of every buffer.

    """

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self._calls: list[Callable[[], object]] = []
        self._constants: dict[tuple[float, int], np.ndarray] = {}

    def widened(self, rows: int) -> Tape:
        """Another view of this tape, for buffers with ``rows`` rows."""
        other = Tape(rows)
        other._calls = self._calls
        return other

    def compiled(self) -> Callable[[], None]:
        """A function that plays the tape."""
        calls = tuple(self._calls)

        def play() -> None:
            with np.errstate(over="ignore"):  # exp of a gate that is shut; the quotient is 0 as it should be
                for call in calls:
                    call()

        return play

    def call(self, function: Callable[..., object], *arguments: Any) -> None:
        """Record any call."""
        self._calls.append(partial(function, *arguments))

    def buffer(self, size: int) -> Rows:
        """A new buffer (rows, size) of zeros."""
        return aligned((self.rows, size))

    def full(self, value: float, size: int) -> Rows:
        """A constant (rows, size). A scalar would cost NumPy twice the time of an array of equal numbers."""
        key = (value, size)
        if key not in self._constants:
            self._constants[key] = aligned((self.rows, size))
            self._constants[key][...] = value
        return self._constants[key]

    def spread(self, row: Float[np.ndarray, " n"]) -> Rows:
        """A constant with the same row everywhere."""
        constant = self.buffer(len(row))
        constant[...] = row
        return constant

    def input(self, size: int) -> Input:
        """A new input of a product."""
        whole = aligned((self.rows, -(-(size + 1) // LANE) * LANE))
        whole[:, size] = 1.0
        return Input(whole[:, :size], whole)

    def matrix(
        self, weight: Float[np.ndarray, "o i"], bias: Float[np.ndarray, " o"] | None, whole: int
    ) -> Float32[np.ndarray, "_ _"]:
        """Weights laid out for :meth:`apply` to inputs of ``whole`` columns, the bias where they have their ones."""
        wide = np.zeros((len(weight), whole))
        wide[:, : weight.shape[1]] = weight
        if bias is not None:
            wide[:, weight.shape[1]] = bias
        matrix = aligned(wide.shape)
        matrix[...] = wide
        return matrix

    def apply(self, matrix: Float32[np.ndarray, "_ _"], x: Rows) -> Rows:
        """The product with a laid out matrix."""
        out = self.buffer(len(matrix))
        if self.rows <= VECTORS:
            for row in range(self.rows):
                self.call(np.dot, matrix, x[row], out[row])
        else:
            turned = aligned((len(matrix), self.rows))
            self.call(np.dot, matrix, x.T, turned)
            self.call(np.copyto, out, turned.T)
        return out

    def product(self, x: Rows, weight: Float[np.ndarray, "o i"], bias: Float[np.ndarray, " o"] | None = None) -> Rows:
        """``x @ weight.T``; with ``bias`` where ``x`` has its column of ones behind the columns of ``weight``."""
        return self.apply(self.matrix(weight, bias, x.shape[1]), x)

    def add(self, x: Rows, y: Rows, out: Rows | None = None) -> Rows:
        """``x + y``."""
        return self._binary(np.add, x, y, out)

    def multiply(self, x: Rows, y: Rows, out: Rows | None = None) -> Rows:
        """``x * y``."""
        return self._binary(np.multiply, x, y, out)

    def clamp(self, x: Rows, low: Rows, high: Rows, out: Rows | None = None) -> Rows:
        """``x`` between ``low`` and ``high``; not-a-number stays."""
        return self._binary(np.minimum, self._binary(np.maximum, x, low, out), high, out)

    def gelu(self, y: Rows, out: Rows | None = None) -> Rows:
        """Activation, scaled on both sides: from ``y = -GAIN x`` to ``-GAIN`` times the GELU of x."""
        size = y.shape[1]
        t = self.buffer(size)
        self.call(np.square, y, t)
        self.add(t, self.full(SHIFT, size), t)
        self.multiply(t, y, t)
        self.call(np.exp, t, t)
        self.add(t, self.full(1.0, size), t)
        return self._binary(np.divide, y, t, out)

    def norm(self, x: Rows, weight: Float[np.ndarray, " n"], bias: Float[np.ndarray, " n"]) -> Rows:
        """``weight * x / rms(x) + bias``: the layer norm of an ``x`` whose mean is zero by construction."""
        out, size = self.buffer(x.shape[1]), x.shape[1]
        if self.rows == 1:
            # [scale, 1] @ [[weight * x], [bias]]: one call instead of a scaling and an addition.
            mixture, factors = aligned((2, size)), np.ones(2, np.float32)
            mixture[1] = bias
            self.multiply(x, self.spread(weight), mixture[:1])
            self.call(_set_inverse_rms, x[0], size, factors)
            self.call(np.dot, factors, mixture, out[0])
            return out
        scale = np.empty((self.rows, 1), np.float32)
        self.call(_inverse_rms, x, scale)
        self.multiply(x, scale, out)
        self.multiply(out, self.spread(weight), out)
        return self.add(out, self.spread(bias), out)

    def _binary(self, ufunc: Callable[..., object], x: Rows, y: Rows, out: Rows | None) -> Rows:
        out = self.buffer(x.shape[1]) if out is None else out
        self.call(ufunc, x, y, out)
        return out


def _set_inverse_rms(x: Float32[np.ndarray, " n"], size: int, factors: Float32[np.ndarray, "2"]) -> None:
    factors[0] = (float(x.dot(x)) / size + NORM_EPS) ** -0.5  # NumPy's own scalars would take four times as long


def _inverse_rms(x: Rows, scale: Float32[np.ndarray, "r 1"]) -> None:
    np.einsum("rn,rn->r", x, x, out=scale[:, 0])
    scale /= x.shape[1]
    scale += NORM_EPS
    np.sqrt(scale, out=scale)
    np.reciprocal(scale, out=scale)


def aligned(shape: tuple[int, ...]) -> np.ndarray:
    """Zeros in float32 that begin at a multiple of 64 bytes: a cache line, and whole vector registers."""
    size = 4 * int(np.prod(shape))
    raw = np.zeros(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(np.float32).reshape(shape)
