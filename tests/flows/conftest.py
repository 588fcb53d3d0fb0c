"""One-dimensional Gaussian laboratory: data N(0.7, 0.4 ** 2), noise N(0, 1), everything in closed form.

Written with data at time 0 (DN), as the papers do; the flows run with noise at 0. Tests convert at the border.
"""

import dataclasses

import pytest
import torch
from torch import Tensor

from flowpolicy.nets.trunk import FlowOutput


@dataclasses.dataclass
class Gaussian:
    mean: float = 0.7
    std: float = 0.4

    def at(self, t):
        """Mean and standard deviation of the interpolant at DN time t."""
        return (1 - t) * self.mean, ((1 - t) ** 2 * self.std**2 + t**2) ** 0.5

    def v(self, z, t):
        """DN marginal velocity."""
        mean, std = self.at(t)
        return -self.mean + (t - (1 - t) * self.std**2) / std**2 * (z - mean)

    def u(self, z, r, t):
        """DN mean velocity from t back to r < t."""
        (mean_t, std_t), (mean_r, std_r) = self.at(t), self.at(r)
        return (mean_t - mean_r + (1 - std_r / std_t) * (z - mean_t)) / (t - r)

    def velocity(self, x, t):
        """The same flow with noise at 0."""
        return -self.v(x, 1 - t)

    def mean_velocity(self, x, s, t):
        """The same flow with noise at 0."""
        return -self.u(x, 1 - t, 1 - s)


class CallableMap:
    """Turns a function of (x, s, t) into the network that the MeanFlow loss expects."""

    def __init__(self, function):
        self.function, self.tangents = function, []

    def __call__(self, x: Tensor, s: Tensor, t: Tensor, cond: Tensor) -> FlowOutput:
        return FlowOutput(self.function(x, s.reshape(-1, 1, 1), t.reshape(-1, 1, 1)), {})

    def with_tangent(self, x, s, t, cond, dx, ds, skip):
        self.tangents.append(dx)
        _, derivative = torch.func.jvp(
            lambda x, s: self(x, s, t[skip:], cond).value, (x[skip:], s[skip:]), (dx[skip:], ds[skip:])
        )
        return self(x, s, t, cond), derivative


@pytest.fixture
def lab():
    return Gaussian()


@pytest.fixture
def callable_map():
    return CallableMap
