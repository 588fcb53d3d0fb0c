"""The straight line between noise and data, and what a velocity on it says about both.

Convention (ND): noise at t = 0, data at t = 1, ``x_t = (1 - t) noise + t data``, velocity = data - noise.
MeanFlow and DM1 run time the other way (DN: data at 0). At the border, ``t_ND = 1 - t_DN`` and every
velocity changes its sign: ``u_DN(z, r, t) = -u_ND(z, 1 - t, 1 - r)``.

Source: Lipman et al. 2023 (arXiv 2210.02747); Liu et al. 2023 (arXiv 2209.03003).
"""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

Field = Callable[[Tensor, Tensor], Tensor]
"""Velocity at (x (b, *d), t (b,)) -> (b, *d)."""

MeanField = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Mean velocity at (x (b, *d), s (b,), t (b,)) -> (b, *d)."""


def rows(time: Float[Tensor, " b"], like: Float[Tensor, "b *d"]) -> Float[Tensor, "b *ones"]:
    """Reshape one time per row so that it broadcasts against ``like``."""
    return time.reshape(-1, *[1] * (like.ndim - 1))


def interpolate(
    noise: Float[Tensor, "b *d"], data: Float[Tensor, "b *d"], t: Float[Tensor, " b"]
) -> Float[Tensor, "b *d"]:
    """The point ``x_t`` on the straight line from ``noise`` (t = 0) to ``data`` (t = 1)."""
    time = rows(t, data)
    return (1 - time) * noise + time * data


def velocity(noise: Float[Tensor, "b *d"], data: Float[Tensor, "b *d"]) -> Float[Tensor, "b *d"]:
    """Time derivative of :func:`interpolate`: the regression target of flow matching."""
    return data - noise


def velocity_to_data(
    x: Float[Tensor, "b *d"], v: Float[Tensor, "b *d"], t: Float[Tensor, " b"]
) -> Float[Tensor, "b *d"]:
    """Posterior mean of the data, ``x + (1 - t) v``."""
    return x + (1 - rows(t, x)) * v


def velocity_to_score(
    x: Float[Tensor, "b *d"], v: Float[Tensor, "b *d"], t: Float[Tensor, " b"]
) -> Float[Tensor, "b *d"]:
    """Gradient of the log density of ``x_t``, ``(t v - x) / (1 - t)``; t < 1, standard Gaussian noise only."""
    time = rows(t, x)
    return (time * v - x) / (1 - time)
