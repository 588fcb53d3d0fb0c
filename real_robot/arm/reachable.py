"""What one tick of bounded jerk can lead to, exactly.

Over a tick, jerk J u(s) with |u| <= 1 moves acceleration, velocity and position by the moments of u. Moments that some
u within [-1, 1] has are those between the two bang-bang functions with at most two switches (Krein and Nudelman 1977,
the Markov moment problem); with two moments given the switches follow in closed form, and with them the extremes of
the third. A trajectory whose every step is reachable in this sense is one of bounded jerk, whatever proposed it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flowpolicy.real_robot.arm.braking import Motion

Array = NDArray[np.float64]

_SLACK = 1e-6
"""Of the normalised moments: rounding of whoever proposed the step."""


def reachable(now: Motion, proposed: Motion, jerk: Array, dt: float) -> NDArray[np.bool_]:
    """Whether (..., n) jerk within +-``jerk`` (n,) rad/s^3 for ``dt`` s leads from ``now`` to ``proposed``, (..., n).

    Not-a-number is not reachable.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        zeroth = (proposed.a - now.a) / (jerk * dt)
        left = (proposed.v - now.v - dt * now.a) / (jerk * dt**2)  # integral of (1 - s) u
        third = (proposed.q - now.q - dt * (now.v + 0.5 * dt * now.a)) / (jerk * dt**3)  # of (1 - s)^2 / 2 u
        # In the time that is left, r = 1 - s: integrals of u, r u and r^2 u.
        first, second = left, 2.0 * third
        low, fits_low = _extreme(zeroth, first)
        high, fits_high = _extreme(-zeroth, -first)
        inside = (second >= np.minimum(low, -high) - _SLACK) & (second <= np.maximum(low, -high) + _SLACK)
        return np.asarray((np.abs(zeroth) <= 1.0 + _SLACK) & fits_low & fits_high & inside)


def _extreme(zeroth: Array, first: Array) -> tuple[Array, NDArray[np.bool_]]:
    """Second moment of the function that is +1, -1 between two switches, and +1 again, and whether there is one."""
    width = np.minimum(np.maximum(0.5 * (1.0 - zeroth), 0.0), 1.0)  # between the switches
    middle = np.where(width > _SLACK, 0.5 * (0.5 - first) / np.maximum(width, _SLACK), 0.5)
    slack = _SLACK / np.maximum(width, _SLACK)
    fits = (middle - 0.5 * width >= -slack) & (middle + 0.5 * width <= 1.0 + slack)
    # Where the function does not change, the first moment is one half exactly.
    fits = np.where(width > _SLACK, fits, np.abs(first - 0.5) <= 2.0 * _SLACK)
    return 1.0 / 3.0 - 2.0 * width * (middle**2 + width**2 / 12.0), fits
