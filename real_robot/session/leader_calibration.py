"""Two poses of a leader arm become its calibration."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from flowpolicy.real_robot.arm.models import find_arm
from flowpolicy.real_robot.teaching.devices import DeviceConfig, listen_to
from flowpolicy.real_robot.teaching.leader import TURN, LeaderCalibration, LeaderServer
from flowpolicy.real_robot.teaching.teaching_device import DeviceError

_STILL, _STILL_S = 0.02, 1.0
"""A leader that moved less than this, rad, for so long, s, is held in its pose."""


def calibrate_leader(config: DeviceConfig, arm: str, wait: float, tell: Callable[[str], None]) -> LeaderCalibration:
    """Ask for both poses and take each when its button was pressed and it stands still.

    Args:
        config: where the leader is waited for.
        arm: which arm it will lead.
        wait: seconds for each pose.
        tell: told what to do.

    Raises:
        DeviceError: no leader comes, or it does not stand still in time.
        ConfigError: the two poses do not differ as they should.

    """
    model, server = find_arm(arm), listen_to(config)
    try:
        tell(f"waiting for a leader on port {server.port}")
        home = np.round(np.array(model.home), 2)
        tell(f"1. hold it as the arm stands at home ({home.tolist()} rad) and press its button")
        first = _pose(server, wait)
        tell(
            f"2. turn every joint by {TURN:g} rad, as the arm's would turn to larger angles, and press its button again"
        )
        second = _pose(server, wait)
        return LeaderCalibration.between(first, second, model)
    finally:
        server.close()


def _pose(server: LeaderServer, wait: float) -> NDArray[np.float64]:
    """(n,) rad, mean of a second in which the leader stood still after its button was pressed."""
    deadline, pressed = time.monotonic() + wait, False
    kept: list[tuple[float, NDArray[np.float64]]] = []
    strange = ""
    while time.monotonic() < deadline:
        packets, told = server.take()
        strange = told or strange
        for packet in packets:
            pressed |= packet.held
            kept.append((packet.heard, packet.q))
        now = time.monotonic()
        kept = [one for one in kept if one[0] > now - _STILL_S and len(one[1]) == len(kept[-1][1])]
        if pressed and len(kept) > 5 and kept[0][0] < now - 0.8 * _STILL_S:
            q = np.stack([one[1] for one in kept])
            if np.isfinite(q).all() and np.ptp(q, axis=0).max() < _STILL:
                return np.asarray(q.mean(0))
        time.sleep(0.02)
    raise DeviceError(
        f"no pose within {wait:g} s{strange and ': ' + strange}",
        expected="a leader that is connected, whose button is pressed, and that then stands still for a second",
    )
