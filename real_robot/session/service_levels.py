"""Service levels of a run, from its ticks (docs/methods/franka-control.md#service-levels)."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowpolicy.real_robot.bridge.states import State


@dataclasses.dataclass(frozen=True)
class ServiceLevels:
    """What the bridge kept; times in ms."""

    ticks: int
    """Ticks with a running arm."""
    lateness_p99: float
    lateness_max: float
    compute_p99: float
    stale_percent: float
    """Share of ticks without a chunk."""
    success_rate_min: float
    success_rate_mean: float
    clipped: int
    """Ticks whose reference was clipped."""
    rejected: int
    """Chunks rejected."""
    refused: int
    """Steps at which the guard braked."""
    missed: int
    """Periods that the policy was too late for."""
    velocity: float
    """Largest commanded speed of a joint, rad/s."""
    acceleration: float
    """rad/s^2."""
    jerk: float
    """rad/s^3."""
    tracking: float
    """Root mean square of measured minus commanded position, rad."""

    def lines(self) -> list[str]:
        """Two lines for the console."""
        return [
            f"{self.ticks} ticks, late p99 {self.lateness_p99:.2f} ms (max {self.lateness_max:.1f}), "
            f"compute p99 {self.compute_p99:.2f} ms, stale {self.stale_percent:.2f} %, "
            f"command success {self.success_rate_min:.2f} min {self.success_rate_mean:.3f} mean",
            f"clipped {self.clipped}, chunks rejected {self.rejected}, guarded {self.refused}, missed {self.missed}; "
            f"commanded peaks {self.velocity:.2f} rad/s, {self.acceleration:.1f} rad/s2, {self.jerk:.0f} rad/s3, "
            f"tracking {1e3 * self.tracking:.1f} mrad",
        ]


def service_levels(ticks: NDArray[Any], rate_hz: float) -> ServiceLevels | None:
    """Service levels over the running ticks (n,) of a session; None if there are fewer than four."""
    running = ticks[ticks["state"] == State.RUNNING]
    if len(running) < 4:
        return None
    # Differences only across ticks that follow each other.
    gaps = np.diff(running["t_mono"]) > 3.0 / rate_hz
    parts = [p["q_cmd"] for p in np.split(running, np.nonzero(gaps)[0] + 1) if len(p) > 3] or [running["q_cmd"][:4]]
    peaks = [max(float(np.abs(np.diff(p, n=n, axis=0)).max()) for p in parts) * rate_hz**n for n in (1, 2, 3)]

    def grown(name: str) -> int:
        return int(running[name][-1] - running[name][0])

    late, compute = 1e3 * running["lateness"], 1e3 * running["compute"]
    return ServiceLevels(
        ticks=len(running),
        lateness_p99=float(np.percentile(late, 99)),
        lateness_max=float(late.max()),
        compute_p99=float(np.percentile(compute, 99)),
        stale_percent=100.0 * grown("starved") / len(running),
        success_rate_min=float(running["success_rate"].min()),
        success_rate_mean=float(running["success_rate"].mean()),
        clipped=grown("clipped"),
        rejected=grown("rejected"),
        refused=grown("refused"),
        missed=grown("missed"),
        velocity=peaks[0],
        acceleration=peaks[1],
        jerk=peaks[2],
        tracking=float(np.sqrt(np.mean((running["q"] - running["q_cmd"]) ** 2))),
    )
