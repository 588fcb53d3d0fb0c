"""What reaches the arm where chunks disagree: the jump at a seam, per chunk mode, in simulated time."""

from __future__ import annotations

from typing import Any

import numpy as np
from rich.table import Table

from flowpolicy.core.seed import numpy_generator
from flowpolicy.real_robot.arm.envelope import Envelope
from flowpolicy.real_robot.arm.envelope_limits import policy_limits
from flowpolicy.real_robot.arm.follower import LOOKAHEAD, Follower
from flowpolicy.real_robot.arm.models.franka import FR3
from flowpolicy.real_robot.bridge.chunks import Mode, Scheduler, freeze
from flowpolicy.real_robot.drivers.driver_protocols import ActionChunk

MODES: tuple[Mode, ...] = ("latest", "crossfade", "rtc", "ensemble")
_TICK, _DT, _ROWS, _EVERY = 0.004, 0.05, 16, 0.2


def bench_seams(*, disagreement: float = 0.010, latency: float = 0.100, seconds: float = 20.0) -> dict[str, Any]:
    """Follow chunks of a slow sine that each are off by a constant of their own.

    Args:
        disagreement: standard deviation of that constant per joint, rad.
        latency: from observation to arrival of a chunk, s.
        seconds: simulated time.

    Returns:
        Per mode, in mrad: largest jump of the reference and of the commanded position from tick to tick, and the
        root mean square distance of the commanded position from the sine; and the peaks of the commanded
        acceleration (rad/s^2) and jerk (rad/s^3). ``smooth`` is the sine's own largest step, mrad.

    """
    modes = {mode: _follow(mode, disagreement, latency, seconds) for mode in MODES}
    return {"disagreement": disagreement, "latency": latency, "smooth": 1e3 * 0.15 * 1.5 * _TICK, "modes": modes}


def seams_table(result: dict[str, Any]) -> Table:
    """The result of :func:`bench_seams` for the console."""
    title = f"chunks {1e3 * result['disagreement']:g} mrad apart, {1e3 * result['latency']:g} ms late"
    names = ("reference jump, mrad", "commanded jump, mrad", "distance from truth, mrad", "rad/s2", "rad/s3")
    table = Table("mode", *names, title=title)
    for mode, row in result["modes"].items():
        table.add_row(mode, *(f"{row[key]:.2f}" for key in ("reference", "commanded", "distance")), *_peaks(row))
    return table


def _peaks(row: dict[str, float]) -> tuple[str, str]:
    return f"{row['acceleration']:.2f}", f"{row['jerk']:.0f}"


def _truth(times: np.ndarray) -> np.ndarray:
    q = np.tile(np.array(FR3.home), (len(times), 1))
    q[:, 0] += 0.15 * (1.0 - np.exp(-times)) * np.sin(1.2 * times)
    q[:, 3] += 0.15 * (1.0 - np.exp(-times)) * np.sin(1.5 * times)
    return q


def _follow(mode: Mode, disagreement: float, latency: float, seconds: float) -> dict[str, float]:
    rng = numpy_generator(0, "bench", "seams")
    scheduler = Scheduler(mode, _TICK)
    follower = Follower(Envelope(policy_limits(FR3, table=0.0, tool=0.1034), _TICK))
    follower.seed(np.array(FR3.home))
    previous: ActionChunk | None = None
    asked, commanded, seq, due = [], [], 0, 0.0
    times = _TICK * np.arange(round(seconds / _TICK))
    for t in times:
        if t >= due + latency:
            seq += 1
            rows = _truth(due + _DT * (1 + np.arange(_ROWS))) + disagreement * rng.standard_normal(FR3.joints)
            chunk = ActionChunk(seq, due, due + _DT, _DT, rows, np.full(_ROWS, 0.08))
            if mode == "rtc":
                chunk = freeze(chunk, previous, latency)
            previous, due = chunk, due + _EVERY
            scheduler.push(chunk, t)
        now, ahead = scheduler.sample(t), scheduler.sample(t + LOOKAHEAD)
        if now is None or ahead is None:
            asked.append(np.array(FR3.home))
        else:
            asked.append(now.q)
            follower.step(ahead.q, ahead.dq)
        commanded.append(follower.motion.q)
    settled = times > 1.0
    asked_path, path = np.stack(asked)[settled], np.stack(commanded)[settled]
    steps = [np.abs(np.diff(path, n=n, axis=0)).max() / _TICK**n for n in (1, 2, 3)]
    return {
        "reference": 1e3 * float(np.abs(np.diff(asked_path, axis=0)).max()),
        "commanded": 1e3 * float(steps[0] * _TICK),
        "distance": 1e3 * float(np.sqrt(np.mean((path - _truth(times[settled])) ** 2))),
        "acceleration": float(steps[1]),
        "jerk": float(steps[2]),
    }
